//! The numbers of tensors, some at a time: for whoever writes files larger than the memory.

use std::collections::BTreeMap;
use std::ops::Range;

use ::safetensors::Dtype;
use tch::{Kind, Tensor};

use super::source::{Part, Stored};
use super::{Checkpoint, is_quantised};
use crate::error::Result;
use crate::numerics;
use crate::quant::{self, Encoding, Job};

/// Bytes that are copied at a time.
const COPIED: usize = 8 << 20;
/// Numbers that are decoded at a time: whole blocks of every format.
pub(crate) const DECODED: usize = 4 << 20;

/// A tensor, and which of its numbers.
pub(crate) type Run = (String, Range<usize>);

/// Which tensors of a checkpoint hold the numbers of each stored tensor: by file and name, in the stored order.
#[derive(Debug)]
pub(crate) struct Places(BTreeMap<(usize, String), Vec<Place>>);

#[derive(Debug)]
struct Place {
    stored: Range<usize>,
    tensor: String,
    /// Which of the tensor's numbers is the first.
    at: usize,
}

impl Checkpoint {
    /// How a tensor is written, where all of it is written in one way that needs nothing but its own bytes.
    pub(crate) fn dtype(&self, name: &str) -> Option<Dtype> {
        let source = self.tensors.get(name)?;
        let mut dtypes = source.parts.iter().map(|part| match (&part.stored, self.entry(part).encoding) {
            (Stored::Plain, Encoding::Plain(dtype)) => Some(dtype),
            _ => None,
        });
        let first = dtypes.next()??;
        (dtypes.all(|dtype| dtype == Some(first)) && source.is_as_stored()).then_some(first)
    }

    /// Whether any of a tensor's numbers have to be decoded. A raw cast to fp8 has not.
    pub(crate) fn is_coded(&self, name: &str) -> bool {
        let coded = |part: &Part| {
            let entry = self.entry(part);
            is_quantised(part, entry) && (part.stored != Stored::Plain || entry.encoding.kind().is_none())
        };
        self.tensors.get(name).is_some_and(|source| source.parts.iter().any(coded))
    }

    /// The bytes of a tensor as they are stored.
    pub(crate) fn copy(&self, name: &str, out: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let mut buffer = Vec::new();
        for part in &self.source(name)?.parts {
            let (file, entry) = (&self.files[part.file], self.entry(part));
            let each = (entry.end - entry.begin) / entry.numel().max(1);
            let (mut at, end) = (part.elements.start as u64 * each, part.elements.end as u64 * each);
            while at < end {
                let len = (end - at).min(COPIED as u64) as usize;
                buffer.resize(len, 0);
                file.read(entry, at, &mut buffer)?;
                out(&buffer)?;
                at += len as u64;
            }
        }
        Ok(())
    }

    /// All numbers of a tensor as `kind`, in their order.
    pub(crate) fn decode(
        &self,
        name: &str,
        kind: Kind,
        out: &mut dyn FnMut(&Tensor) -> Result<()>,
    ) -> Result<()> {
        let source = self.source(name)?;
        if !source.is_as_stored() {
            return out(&self.tensor_as(name, kind)?);
        }
        let longest = source.parts.iter().map(|part| part.elements.len()).max().unwrap_or(0);
        let buffer = numerics::empty(&[longest.min(DECODED) as i64], kind)?;
        for part in &source.parts {
            let code = self.code(name, part)?;
            for at in part.elements.clone().step_by(DECODED) {
                let run = at..(at + DECODED).min(part.elements.end);
                let numbers = buffer.f_narrow(0, 0, run.len() as i64)?;
                let parts = vec![self.files[part.file].part(self.entry(part), &code, part.of, run)?];
                // SAFETY: the buffer was made above, and `out` keeps nothing of it.
                unsafe { quant::decode_all(&[Job { out: &numbers, parts }]) }?;
                out(&numbers)?;
            }
        }
        Ok(())
    }

    /// Some rows of a tensor, or of a tensor of one axis some numbers. They must begin and end between two blocks.
    pub(crate) fn rows(&self, name: &str, rows: Range<usize>, kind: Kind) -> Result<Tensor> {
        let source = self.source(name)?;
        if !source.is_as_stored() {
            let all = self.tensor_as(name, kind)?;
            return Ok(all.f_narrow(0, rows.start as i64, rows.len() as i64)?);
        }
        let source = source.rows(rows);
        let out = numerics::empty(&source.shape, kind)?;
        let codes = source.parts.iter().map(|part| self.code(name, part)).collect::<Result<Vec<_>>>()?;
        let part = |(part, code): (&Part, _)| {
            self.files[part.file].part(self.entry(part), code, part.of, part.elements.clone())
        };
        let parts = source.parts.iter().zip(&codes).map(part).collect::<Result<_>>()?;
        // SAFETY: `out` was made above, and nobody else has it.
        unsafe { quant::decode_all(&[Job { out: &out, parts }]) }?;
        Ok(out)
    }

    /// Which of its tensors hold what is stored.
    pub(crate) fn places(&self) -> Places {
        let mut places: BTreeMap<_, Vec<Place>> = BTreeMap::new();
        for (tensor, source) in &self.tensors {
            let mut at = 0;
            for part in &source.parts {
                let stored = part.elements.clone();
                let found = places.entry((part.file, part.entry.clone())).or_default();
                found.push(Place { stored: stored.clone(), tensor: tensor.clone(), at });
                at += stored.len();
            }
        }
        Places(places)
    }

    /// The tensors of another checkpoint over the same files that hold the numbers of this one's tensor, in order;
    /// `None` where not all of them are in one.
    pub(crate) fn found_in(&self, name: &str, places: &Places) -> Option<Vec<Run>> {
        let source = self.tensors.get(name)?;
        let mut runs: Vec<Run> = Vec::new();
        for part in &source.parts {
            let places = places.0.get(&(part.file, part.entry.clone()))?;
            let (mut at, end) = (part.elements.start, part.elements.end);
            while at < end {
                let place = places.iter().find(|place| place.stored.contains(&at))?;
                let to = end.min(place.stored.end);
                let begin = place.at + at - place.stored.start;
                let len = to - at;
                match runs.last_mut() {
                    Some((tensor, run)) if *tensor == place.tensor && run.end == begin => run.end += len,
                    _ => runs.push((place.tensor.clone(), begin..begin + len)),
                }
                at = to;
            }
        }
        Some(runs)
    }
}
