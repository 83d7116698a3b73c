//! A matrix that stays as it is stored.

use std::sync::Arc;

use tch::{Device, Kind, Tensor};

use super::fill::{Job, Part, Source, decode_all};
use super::{Code, memory};
use crate::error::{Error, Result};
use crate::shim;

/// A weight whose bytes are those of the file: numbers are made of them when they are needed, the same bits as if it
/// had been decoded when it was loaded.
#[derive(Debug)]
pub(crate) struct Quantized {
    /// Some rows each, one after the other.
    pub(crate) pieces: Vec<Piece>,
    /// Rows and columns.
    pub(crate) shape: [i64; 2],
}

/// Rows of a matrix that are stored together.
#[derive(Debug)]
pub(crate) struct Piece {
    /// u8 on one axis, dense.
    pub(crate) bytes: Tensor,
    pub(crate) code: Arc<Code>,
    /// How many numbers they are.
    pub(crate) elements: usize,
}

impl Quantized {
    /// The matrix in numbers of `kind` on `device`.
    ///
    /// # Errors
    /// [`Error::Config`] where the pieces do not fit, [`Error::Tch`].
    pub(crate) fn dequantize(&self, kind: Kind, device: Device) -> Result<Tensor> {
        let out = memory::empty(&self.shape, kind)?;
        let copies = self.pieces.iter().map(|p| Ok(p.bytes.f_to_device(Device::Cpu)?));
        let copies = copies.collect::<Result<Vec<_>>>()?;
        let sources: Vec<&[u8]> = copies.iter().map(shim::bytes).collect();
        let parts = self.pieces.iter().zip(&sources).map(|(piece, source)| piece.part(source));
        decode_all(&[Job { out: &out, parts: parts.collect::<Result<_>>()? }])?;
        Ok(out.f_to_device(device)?)
    }

    /// The bytes that it takes, wherever they are.
    pub(crate) fn nbytes(&self) -> usize {
        self.pieces.iter().map(|piece| piece.bytes.numel()).sum()
    }
}

impl Piece {
    fn part<'a>(&'a self, source: &'a dyn Source) -> Result<Part<'a>> {
        let bytes = 0..self.bytes.numel() as u64;
        let part = Part::new(source, bytes, &self.code, self.elements, 0..self.elements);
        part.map_err(|reason| Error::Config(format!("a {} matrix: {reason}", self.code)))
    }
}
