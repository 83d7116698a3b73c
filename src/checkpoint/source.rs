//! Where the numbers of a tensor come from: runs of stored tensors, one after the other.

use std::collections::BTreeMap;
use std::fmt;
use std::ops::Range;

use tch::{TchError, Tensor};

/// A tensor under the name that it has now.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Source {
    /// Its numbers in row-major order: joined, swapped and split tensors are other runs of the same files.
    pub(super) parts: Vec<Part>,
    /// Its shape.
    pub(super) shape: Vec<i64>,
    /// Columns that the files hold, where the rest of each row is zeros.
    pub(super) filled_columns: Option<i64>,
    /// Whether the files hold its columns as rows. Such a matrix is neither split nor joined.
    pub(super) transposed: bool,
}

/// A run of the numbers of one stored tensor.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Part {
    /// Which of the checkpoint's files.
    pub(super) file: usize,
    /// The tensor's name in it.
    pub(super) entry: String,
    /// What beside its bytes is needed to read it.
    pub(super) stored: Stored,
    /// Which of its numbers.
    pub(super) elements: Range<usize>,
    /// How many it has.
    pub(super) of: usize,
}

/// A file, and the name of a tensor in it.
pub(super) type Place = (usize, String);

/// What beside a tensor's own bytes is needed to know its numbers. Other tensors are named as in the file.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Stored {
    /// Nothing.
    Plain,
    /// fp8 with a scale, or one for each row, in this tensor.
    Scaled { scale: Place, row: usize },
    /// bitsandbytes' four bits, with its tables and its note by the ends of their names.
    FourBit { state: FourBitState, companions: BTreeMap<&'static str, Place> },
    /// bitsandbytes' eight bits, with the largest value of each row in this tensor.
    Int8 { scb: Place, row: usize },
}

/// Which four-bit numbers: `nf4` or `fp4`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FourBitState {
    Nf4,
    Fp4,
}

impl Part {
    /// Its files, and those of its companions, now stand behind `by` others.
    pub(super) fn moved(&mut self, by: usize) {
        self.file += by;
        match &mut self.stored {
            Stored::Plain => {}
            Stored::Scaled { scale: (file, _), .. } | Stored::Int8 { scb: (file, _), .. } => *file += by,
            Stored::FourBit { companions, .. } => {
                companions.values_mut().for_each(|(file, _)| *file += by);
            }
        }
    }
}

impl FourBitState {
    /// The end of the name of the note that says so.
    pub(super) fn note(self) -> &'static str {
        match self {
            Self::Nf4 => ".quant_state.bitsandbytes__nf4",
            Self::Fp4 => ".quant_state.bitsandbytes__fp4",
        }
    }
}

impl fmt::Display for FourBitState {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::Nf4 => "nf4",
            Self::Fp4 => "fp4",
        })
    }
}

impl Source {
    /// All of one stored tensor.
    pub(super) fn whole(file: usize, entry: &str, stored: Stored, shape: Vec<i64>) -> Self {
        let of = shape.iter().product::<i64>() as usize;
        let part = Part { file, entry: entry.to_string(), stored, elements: 0..of, of };
        Self { parts: vec![part], shape, filled_columns: None, transposed: false }
    }

    pub(super) fn numel(&self) -> usize {
        self.shape.iter().product::<i64>() as usize
    }

    /// The shape of what the files hold.
    pub(super) fn filled_shape(&self) -> Vec<i64> {
        let mut shape = self.shape.clone();
        if let (Some(columns), Some(last)) = (self.filled_columns, shape.last_mut()) {
            *last = columns;
        }
        if self.transposed {
            shape.reverse();
        }
        shape
    }

    /// What the files hold, with its columns as rows and with columns of zeros up to the whole shape, where that is asked.
    pub(super) fn widened(&self, filled: Tensor) -> Result<Tensor, TchError> {
        let filled = if self.transposed { filled.f_tr()?.f_contiguous()? } else { filled };
        match (self.filled_columns, self.shape.last()) {
            (Some(columns), Some(last)) => filled.f_constant_pad_nd([0, last - columns]),
            _ => Ok(filled),
        }
    }

    /// Whether its numbers are those of the files, in their order.
    pub(super) fn is_as_stored(&self) -> bool {
        self.filled_columns.is_none() && !self.transposed
    }

    /// A matrix with its columns as rows; anything else as it is.
    pub(super) fn transposed(mut self) -> Self {
        if self.shape.len() == 2 && self.filled_columns.is_none() {
            self.shape.reverse();
            self.transposed = !self.transposed;
        }
        self
    }

    /// Numbers in a step along the first axis.
    fn row(&self) -> usize {
        self.shape.iter().skip(1).product::<i64>() as usize
    }

    /// These rows of it.
    pub(super) fn rows(&self, rows: Range<usize>) -> Self {
        let (begin, end) = (rows.start * self.row(), rows.end * self.row());
        let (mut parts, mut at) = (Vec::new(), 0);
        for part in &self.parts {
            let len = part.elements.len();
            let (from, to) = (begin.clamp(at, at + len) - at, end.clamp(at, at + len) - at);
            if from < to {
                let elements = part.elements.start + from..part.elements.start + to;
                parts.push(Part { elements, ..part.clone() });
            }
            at += len;
        }
        let mut shape = self.shape.clone();
        if let Some(first) = shape.first_mut() {
            *first = rows.len() as i64;
        }
        Self { parts, shape, filled_columns: self.filled_columns, transposed: self.transposed }
    }

    /// The second half of its rows before the first.
    pub(super) fn halves_swapped(&self) -> Self {
        let rows = self.shape.first().copied().unwrap_or(0) as usize;
        Self::joined(&[self.rows(rows / 2..rows), self.rows(0..rows / 2)]).shaped(self.shape.clone())
    }

    /// The rows of all of these, one after the other.
    pub(super) fn joined(sources: &[Self]) -> Self {
        let mut parts: Vec<Part> = Vec::new();
        for part in sources.iter().flat_map(|source| &source.parts) {
            match parts.last_mut() {
                // What was split comes together again, so that it can be borrowed.
                Some(last)
                    if last.file == part.file
                        && last.entry == part.entry
                        && last.elements.end == part.elements.start =>
                {
                    last.elements.end = part.elements.end;
                }
                _ => parts.push(part.clone()),
            }
        }
        let mut shape = sources.first().map(|source| source.shape.clone()).unwrap_or_default();
        if let Some(first) = shape.first_mut() {
            *first = sources.iter().filter_map(|source| source.shape.first()).sum();
        }
        let filled_columns = sources.first().and_then(|source| source.filled_columns);
        let transposed = sources.first().is_some_and(|source| source.transposed);
        Self { parts, shape, filled_columns, transposed }
    }

    /// The same numbers in another shape of as many.
    pub(super) fn shaped(self, shape: Vec<i64>) -> Self {
        Self { shape, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matrix(entry: &str, rows: i64) -> Source {
        Source::whole(0, entry, Stored::Plain, vec![rows, 4])
    }

    fn runs(source: &Source) -> Vec<(&str, Range<usize>)> {
        source.parts.iter().map(|p| (p.entry.as_str(), p.elements.clone())).collect()
    }

    #[test]
    fn rows_of_a_joined_tensor_are_runs_of_its_parts() {
        let joined = Source::joined(&[matrix("a", 2), matrix("b", 3)]);
        assert_eq!(joined.shape, [5, 4]);
        let middle = joined.rows(1..3);
        assert_eq!((middle.shape.clone(), runs(&middle)), (vec![2, 4], vec![("a", 4..8), ("b", 0..4)]));
    }

    #[test]
    fn what_was_split_and_joined_is_whole_again() {
        let whole = matrix("a", 6);
        let thirds = [whole.rows(0..2), whole.rows(2..4), whole.rows(4..6)];
        assert_eq!(Source::joined(&thirds), whole);
    }

    #[test]
    fn halves_swapped_twice_are_as_before() {
        let swapped = matrix("a", 6).halves_swapped();
        assert_eq!(runs(&swapped), [("a", 12..24), ("a", 0..12)]);
        assert_eq!(swapped.halves_swapped(), matrix("a", 6));
    }
}
