//! A matrix that stays as it is stored.

use std::sync::Arc;

use tch::{Device, Kind, Tensor};

use super::fill::{Job, Part, Source, decode_all};
use super::{Code, device};
use crate::error::{Error, Result};
use crate::numerics;
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
    /// The matrix in numbers of `kind` on `device`. Bytes on the CPU are decoded there, on all cores; bytes on another
    /// device by operations of that device, which take memory for the matrix in f32 beside the result.
    ///
    /// # Errors
    /// [`Error::Config`] where the pieces do not fit, [`Error::Tch`].
    pub(crate) fn dequantize(&self, kind: Kind, device: Device) -> Result<Tensor> {
        let on_cpu = self.pieces.iter().all(|piece| piece.bytes.device() == Device::Cpu);
        let matrix = if on_cpu { self.on_cpu(kind)? } else { self.on_their_device(kind)? };
        Ok(matrix.f_to_device(device)?)
    }

    fn on_cpu(&self, kind: Kind) -> Result<Tensor> {
        let out = numerics::empty(&self.shape, kind)?;
        let sources: Vec<&[u8]> = self.pieces.iter().map(Piece::stored).collect();
        let parts = self.pieces.iter().zip(&sources).map(|(piece, source)| piece.part(source));
        let job = Job { out: &out, parts: parts.collect::<Result<_>>()? };
        // SAFETY: `out` was made above, and nobody else has it.
        unsafe { decode_all(&[job]) }?;
        Ok(out)
    }

    pub(super) fn on_their_device(&self, kind: Kind) -> Result<Tensor> {
        let pieces = self.pieces.iter().map(|piece| {
            piece.code.check(piece.elements, piece.bytes.numel()).map_err(|reason| piece.misfit(reason))?;
            Ok(device::numbers(&piece.code, &piece.bytes, piece.elements)?.f_to_kind(kind)?)
        });
        let pieces = pieces.collect::<Result<Vec<_>>>()?;
        Ok(Tensor::f_cat(&pieces, 0)?.f_view(self.shape)?)
    }

    /// The bytes that it takes, wherever they are.
    pub(crate) fn nbytes(&self) -> usize {
        self.pieces.iter().map(|piece| piece.bytes.numel()).sum()
    }
}

impl Piece {
    fn stored(&self) -> &[u8] {
        // SAFETY: nothing writes to the bytes of a matrix that stays as it is stored.
        unsafe { shim::bytes(&self.bytes) }
    }

    fn part<'a>(&'a self, source: &'a dyn Source) -> Result<Part<'a>> {
        let bytes = 0..self.bytes.numel() as u64;
        let part = Part::new(source, bytes, &self.code, self.elements, 0..self.elements);
        part.map_err(|reason| self.misfit(reason))
    }

    fn misfit(&self, reason: String) -> Error {
        Error::Config(format!("a matrix of {}: {reason}", self.code))
    }
}
