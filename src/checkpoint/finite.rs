//! Which number of a checkpoint is none: looked for only when a result is not finite, so that nothing is spent before.

use std::path::PathBuf;

use tch::{Kind, Tensor};

use super::load::is_integer;
use super::source::Part;
use super::stream::DECODED;
use super::{Checkpoint, is_quantised};
use crate::error::{FileProblem, Result};
use crate::numerics;
use crate::quant::{self, Job};

impl Checkpoint {
    /// The first tensor, by its name, of which a number is NaN or infinity in the file, or becomes infinity in the kind
    /// that it is computed in: its file, and the problem that says so. Reads the weights until it is found.
    ///
    /// # Errors
    /// As [`Checkpoint::tensor`].
    pub(crate) fn find_not_finite(&self, kind: Kind) -> Result<Option<(PathBuf, FileProblem)>> {
        self.check_unchanged()?;
        for (name, source) in &self.tensors {
            for part in &source.parts {
                let entry = self.entry(part);
                if entry.encoding.kind().is_some_and(is_integer) && !is_quantised(part, entry) {
                    continue;
                }
                if let Some(problem) = self.not_finite(name, part, kind)? {
                    return Ok(Some((self.files[part.file].path.clone(), problem)));
                }
            }
        }
        Ok(None)
    }

    fn not_finite(&self, name: &str, part: &Part, kind: Kind) -> Result<Option<FileProblem>> {
        let code = self.code(name, part)?;
        let (file, entry) = (&self.files[part.file], self.entry(part));
        let buffer = numerics::empty(&[part.elements.len().min(DECODED) as i64], Kind::Float)?;
        let (mut first, mut count, mut overflow) = (None, 0u64, None);
        for at in part.elements.clone().step_by(DECODED) {
            let run = at..(at + DECODED).min(part.elements.end);
            let numbers = buffer.f_narrow(0, 0, run.len() as i64)?;
            let parts = vec![file.part(entry, &code, part.of, run)?];
            // SAFETY: nothing else has `buffer`, and `numbers` is as many of its f32 as the part has.
            unsafe { quant::decode_all(&[Job { out: &numbers, parts }])? };
            let bad = places_not_finite(&numbers)?;
            count += bad.numel() as u64;
            if first.is_none() && bad.numel() > 0 {
                first = Some(at + bad.int64_value(&[0]) as usize);
            }
            if kind == Kind::Half && first.is_none() && overflow.is_none() {
                let bad = places_not_finite(&numbers.f_to_kind(kind)?)?;
                if bad.numel() > 0 {
                    let place = bad.int64_value(&[0]);
                    overflow = Some((at + place as usize, numbers.double_value(&[place])));
                }
            }
        }
        let place = |element: usize| place_in(&entry.shape, element, part.of);
        let name = entry.name.clone();
        Ok(match (first, overflow) {
            (Some(first), _) => Some(FileProblem::NotFinite {
                name,
                first: place(first),
                count,
                of: part.elements.len() as u64,
            }),
            (None, Some((at, value))) => {
                Some(FileProblem::Overflow { name, first: place(at), value, kind: "f16" })
            }
            (None, None) => None,
        })
    }
}

/// The places of the numbers that are NaN or infinity.
fn places_not_finite(numbers: &Tensor) -> Result<Tensor> {
    Ok(numbers.f_isfinite()?.f_logical_not()?.f_nonzero()?.f_view([-1])?)
}

/// Where an element lies in a tensor of this shape; of packed numbers, which have none, how many lie before it.
fn place_in(shape: &[i64], mut element: usize, numbers: usize) -> Vec<i64> {
    if shape.iter().map(|&size| size as usize).product::<usize>() != numbers {
        return vec![element as i64];
    }
    let mut place = Vec::with_capacity(shape.len());
    for &size in shape.iter().rev() {
        place.push((element % size.max(1) as usize) as i64);
        element /= size.max(1) as usize;
    }
    place.reverse();
    place
}

#[cfg(test)]
mod tests {
    use super::place_in;

    #[test]
    fn places_are_those_of_the_shape() {
        assert_eq!(place_in(&[128, 64], 3 * 64 + 5, 128 * 64), [3, 5]);
        assert_eq!(place_in(&[2, 3, 4], 23, 24), [1, 2, 3]);
        assert_eq!(place_in(&[], 0, 1), [0; 0]);
        // Four bits: the shape is that of the bytes.
        assert_eq!(place_in(&[32, 1], 40, 64), [40]);
    }
}
