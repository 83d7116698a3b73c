//! Terms of some rows of a weight, so that a large one can be merged piece by piece.

use std::ops::Range;

use tch::{Kind, Tensor};

use super::{Change, Factor, Term, Update};
use crate::error::Result;

impl Term {
    /// Whether what is done to a row depends on that row alone. DoRA over columns, and a whole parameter, do not.
    pub(crate) fn is_by_rows(&self) -> bool {
        let by_columns = |magnitude: &Tensor| matches!(magnitude.size()[..], [1, n] if n != 1);
        !matches!(self.update.change, Change::Replace(_))
            && !self.update.magnitude.as_ref().is_some_and(by_columns)
    }

    /// The same of these rows of the weight alone; `None` where it changes none of them.
    pub(crate) fn of_rows(&self, rows: &Range<i64>) -> Result<Option<Self>> {
        let own = self.rows.clone().unwrap_or(0..i64::MAX);
        let (begin, end) = (rows.start.max(own.start), rows.end.min(own.end));
        if begin >= end {
            return Ok(None);
        }
        let (first, len) = (begin - own.start, end - begin);
        let cut = |tensor: &Tensor| -> Result<Tensor> { Ok(tensor.f_narrow(0, first, len)?) };
        let change = match &self.update.change {
            Change::LowRank { down, up, bias } => Change::LowRank {
                down: down.shallow_clone(),
                up: cut(up)?,
                bias: bias.as_ref().map(cut).transpose()?,
            },
            Change::Hadamard { w1: [w1_a, w1_b], w2: [w2_a, w2_b] } => Change::Hadamard {
                w1: [cut(w1_a)?, w1_b.shallow_clone()],
                w2: [cut(w2_a)?, w2_b.shallow_clone()],
            },
            Change::Kronecker { w1, w2 } => Change::Full(kronecker_rows(w1, w2, first, len)?),
            Change::Full(delta) => Change::Full(cut(delta)?),
            Change::Bias(bias) => Change::Bias(cut(bias)?),
            Change::Replace(values) => Change::Replace(cut(values)?),
        };
        let magnitude = self.update.magnitude.as_ref().map(cut).transpose()?;
        let rows = Some(begin - rows.start..end - rows.start);
        let update = Update { change, scale: self.update.scale, magnitude };
        Ok(Some(Self { update, rows, strength: self.strength }))
    }
}

/// Some rows of `w1 ⊗ w2`, of the rows of `w1` that they come from alone.
fn kronecker_rows(w1: &Factor, w2: &Factor, first: i64, len: i64) -> Result<Tensor> {
    let (w1, w2) = (w1.matrix(Kind::Float)?, w2.matrix(Kind::Float)?.f_contiguous()?);
    let each = w2.size()[0];
    let (from, to) = (first / each, (first + len + each - 1) / each);
    let rows = w1.f_narrow(0, from, to - from)?.f_contiguous()?.f_kron(&w2)?;
    Ok(rows.f_narrow(0, first - from * each, len)?)
}
