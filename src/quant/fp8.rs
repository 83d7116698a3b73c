//! Weights as fp8 with a scale for each row, for products of fp8.

use tch::{Device, Kind, Tensor};

use crate::error::Result;
use crate::numerics;

/// A matrix `[out, in]`: `weight * scale`, row by row.
#[derive(Debug)]
pub(crate) struct Fp8 {
    /// e4m3fn `[out, in]`.
    pub(crate) weight: Tensor,
    /// f32 `[out, 1]`.
    pub(crate) scale: Tensor,
}

/// The largest number of e4m3fn.
const MOST: f64 = 448.0;
/// Rows that are quantised together on the CPU, so that their f32 numbers fit a cache.
const ROWS: i64 = 64;
/// What both sides of a product of fp8 must be multiples of.
const STEP: i64 = 16;

impl Fp8 {
    /// Whether products of fp8 take a matrix of this size.
    pub(crate) fn takes(size: &[i64]) -> bool {
        size.iter().all(|n| n % STEP == 0)
    }

    /// Scales each row so that its largest number becomes the largest of e4m3fn, and rounds to the nearest.
    ///
    /// # Errors
    /// [`Error::Tch`](crate::Error::Tch) where the memory is not to be had.
    pub(crate) fn of(matrix: &Tensor) -> Result<Self> {
        if matrix.device() != Device::Cpu {
            return Self::f_quantize(matrix);
        }
        let (rows, columns) = (matrix.size()[0], matrix.size()[1]);
        let weight = numerics::empty(&[rows, columns], Kind::Float8e4m3fn)?;
        let mut scales = Vec::new();
        for start in (0..rows).step_by(ROWS as usize) {
            let len = ROWS.min(rows - start);
            let part = Self::f_quantize(&matrix.f_narrow(0, start, len)?)?;
            weight.f_narrow(0, start, len)?.f_copy_(&part.weight)?;
            scales.push(part.scale);
        }
        Ok(Self { weight, scale: Tensor::f_cat(&scales, 0)? })
    }

    /// [`Fp8::of`] in one go, as tch's operators fail: inside a layer.
    pub(crate) fn quantize(matrix: &Tensor) -> Self {
        Self::f_quantize(matrix).unwrap_or_else(|error| panic!("{error}"))
    }

    fn f_quantize(matrix: &Tensor) -> Result<Self> {
        let matrix = matrix.f_to_kind(Kind::Float)?;
        let scale = matrix.f_abs()?.f_amax([1], true)?.f_div_scalar(MOST)?;
        // A row of zeros has no scale; 1 keeps it zero. NaN and infinity stay, so that no result of them is a number.
        let scale = scale.f_where_self(&scale.f_ne(0.0)?, &scale.f_ones_like()?)?;
        // What rounding puts above the largest number would become NaN.
        let weight = matrix.f_div(&scale)?.f_clamp(-MOST, MOST)?.f_to_kind(Kind::Float8e4m3fn)?;
        Ok(Self { weight, scale })
    }

    pub(crate) fn dequantize(&self, kind: Kind) -> Result<Tensor> {
        Ok(self.weight.f_to_kind(Kind::Float)?.f_mul(&self.scale)?.f_to_kind(kind)?)
    }

    pub(crate) fn shallow_clone(&self) -> Self {
        Self { weight: self.weight.shallow_clone(), scale: self.scale.shallow_clone() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::shim::randn;

    fn numbers(rows: i64, columns: i64) -> Tensor {
        randn(&[rows, columns], 5).unwrap() * Tensor::arange(rows, (Kind::Float, Device::Cpu)).unsqueeze(1)
    }

    #[test]
    fn each_row_is_rounded_as_torch_casts_it() {
        // More rows than are quantised together; the first one is zero.
        let matrix = numbers(ROWS + 7, 48);
        let fp8 = Fp8::of(&matrix).unwrap();
        for i in 0..matrix.size()[0] {
            let row = matrix.get(i);
            let most = f64::try_from(row.abs().max()).unwrap();
            let scale = if most > 0.0 { (most as f32 / MOST as f32) as f64 } else { 1.0 };
            assert_eq!(f64::try_from(fp8.scale.get(i)).unwrap(), scale, "row {i}");
            let cast = (&row / scale).clamp(-MOST, MOST).to_kind(Kind::Float8e4m3fn).to_kind(Kind::Float);
            assert_eq!(fp8.weight.get(i).to_kind(Kind::Float), cast, "row {i}");
            assert_eq!(fp8.dequantize(Kind::Float).unwrap().get(i), cast * scale, "row {i}");
        }
    }

    #[test]
    fn a_number_is_off_by_at_most_a_sixteenth_or_a_step_of_the_smallest() {
        let matrix = numbers(20, 64);
        let fp8 = Fp8::of(&matrix).unwrap();
        let error = (fp8.dequantize(Kind::Float).unwrap() - &matrix).abs();
        let most = matrix.abs() / 16 * 1.0001 + &fp8.scale * 2f64.powi(-10);
        assert!(bool::try_from(error.le_tensor(&most).all()).unwrap());
    }

    #[test]
    fn bf16_has_the_numbers_of_f32() {
        let matrix = numbers(20, 64).to_kind(Kind::BFloat16);
        let (narrow, wide) = (Fp8::of(&matrix).unwrap(), Fp8::of(&matrix.to_kind(Kind::Float)).unwrap());
        assert_eq!(narrow.scale, wide.scale);
        assert_eq!(narrow.weight.to_kind(Kind::Float), wide.weight.to_kind(Kind::Float));
    }
}
