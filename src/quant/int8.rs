//! Weights as int8 with a scale for each row, for products of int8.

use tch::{Kind, Tensor};

use crate::error::Result;
use crate::numerics;

/// A matrix `[out, in]`: `weight * scale`, row by row.
#[derive(Debug)]
pub(crate) struct Int8 {
    /// int8 `[out, in]`, in −127..127.
    pub(crate) weight: Tensor,
    /// f32 `[out]`.
    pub(crate) scale: Tensor,
    /// int32 `[out]`: the sum of each row of `weight`.
    pub(crate) sum: Tensor,
}

/// Rows that are quantised together, so that their f32 numbers fit a cache.
const ROWS: i64 = 64;

impl Int8 {
    /// Rounds each row to 127ths of its largest number.
    ///
    /// # Errors
    /// [`Error::Tch`](crate::Error::Tch) where the memory is not to be had.
    pub(crate) fn of(matrix: &Tensor) -> Result<Self> {
        let (rows, columns) = (matrix.size()[0], matrix.size()[1]);
        let weight = numerics::empty(&[rows, columns], Kind::Int8)?;
        let mut scales = Vec::new();
        let mut sums = Vec::new();
        for start in (0..rows).step_by(ROWS as usize) {
            let len = ROWS.min(rows - start);
            let part = matrix.f_narrow(0, start, len)?.f_to_kind(Kind::Float)?;
            let scale = part.f_abs()?.f_amax([1], true)?.f_div_scalar(127.0)?;
            // A row of zeros has no scale; 1 keeps it zero. A row with NaN or infinity keeps that as its scale, so that what
            // is computed with it is no number, either.
            let scale = scale.f_where_self(&scale.f_ne(0.0)?, &scale.f_ones_like()?)?;
            let rounded = part.f_div(&scale)?.f_round()?;
            sums.push(rounded.f_sum_dim_intlist([1i64].as_slice(), false, Kind::Int)?);
            scales.push(scale.f_view([-1])?);
            weight.f_narrow(0, start, len)?.f_copy_(&rounded)?;
        }
        Ok(Self { weight, scale: Tensor::f_cat(&scales, 0)?, sum: Tensor::f_cat(&sums, 0)? })
    }

    pub(crate) fn dequantize(&self, kind: Kind) -> Result<Tensor> {
        Ok(self.weight.f_to_kind(Kind::Float)?.f_mul(&self.scale.f_unsqueeze(1)?)?.f_to_kind(kind)?)
    }

    pub(crate) fn shallow_clone(&self) -> Self {
        let Self { weight, scale, sum } = self;
        Self { weight: weight.shallow_clone(), scale: scale.shallow_clone(), sum: sum.shallow_clone() }
    }
}
