//! Tiles for pictures that do not fit into memory as a whole: each tile is computed by itself, and where two tiles overlap
//! the first fades into the second.

use tch::{Kind, Tensor};

use crate::error::{Error, Result};

/// The tiles of an axis: where each begins, and the length of all.
struct Axis {
    starts: Vec<i64>,
    len: i64,
}

impl Axis {
    /// Divides an axis into tiles. The last tile ends where the axis ends, so it may overlap more.
    fn new(side: i64, tile: i64, overlap: i64) -> Self {
        if tile >= side {
            return Self { starts: vec![0], len: side };
        }
        let step = tile - overlap;
        let count = (side - overlap + step - 1) / step;
        Self { starts: (0..count).map(|i| (i * step).min(side - tile)).collect(), len: tile }
    }

    /// Returns the weights of the places of tile `i` in a result whose axis is scaled by `scale`: 1 except on the ramps where
    /// another tile overlaps.
    fn ramp(&self, i: usize, scale: impl Fn(i64) -> i64) -> Tensor {
        let len = scale(self.len);
        let overlap = |a: usize, b: usize| scale(self.starts[a] + self.len - self.starts[b]);
        let before = if i > 0 { overlap(i - 1, i) } else { 0 };
        let after = if i + 1 < self.starts.len() { overlap(i, i + 1) } else { 0 };
        let rise = |place: i64, len: i64| if place < len { (place as f32 + 0.5) / len as f32 } else { 1.0 };
        let ramp: Vec<f32> =
            (0..len).map(|place| rise(place, before).min(rise(len - 1 - place, after))).collect();
        Tensor::from_slice(&ramp)
    }
}

/// The factor by which the sides of a picture become longer or shorter.
#[derive(Clone, Copy)]
pub(super) enum Scale {
    Up(i64),
    Down(i64),
}

impl Scale {
    fn apply(self, side: i64) -> i64 {
        match self {
            Self::Up(factor) => side * factor,
            Self::Down(factor) => side / factor,
        }
    }
}

/// Computes `f` of `[B, C, H, W]` in tiles of `tile` places of `x` a side, which overlap by `overlap`. With a single tile the
/// result is `f(x)` bit for bit.
pub(super) fn tiled(
    x: &Tensor,
    tile: i64,
    overlap: i64,
    scale: Scale,
    f: impl Fn(&Tensor) -> Result<Tensor>,
) -> Result<Tensor> {
    if overlap < 0 || 2 * overlap > tile || tile == 0 {
        return Err(Error::Config(format!("tiles of {tile} cannot overlap by {overlap}: at most by a half")));
    }
    let [down, across] = [2, 3].map(|axis| Axis::new(x.size()[axis], tile, overlap));
    if down.starts.len() * across.starts.len() == 1 {
        return f(x);
    }
    let mut sums: Option<(Tensor, Tensor, Kind)> = None;
    for (i, &top) in down.starts.iter().enumerate() {
        for (j, &left) in across.starts.iter().enumerate() {
            let part = f(&x.f_narrow(2, top, down.len)?.f_narrow(3, left, across.len)?)?;
            let ramp = down.ramp(i, |side| scale.apply(side)).f_unsqueeze(1)?
                * across.ramp(j, |side| scale.apply(side)).f_unsqueeze(0)?;
            let ramp = ramp.f_to_device(x.device())?;
            if sums.is_none() {
                let sides = [scale.apply(x.size()[2]), scale.apply(x.size()[3])];
                let size = [x.size()[0], part.size()[1], sides[0], sides[1]];
                let zeros = |size: &[i64]| Tensor::f_zeros(size, (Kind::Float, x.device()));
                sums = Some((zeros(&size)?, zeros(&sides)?, part.kind()));
            }
            let Some((whole, weights, _)) = &sums else { continue };
            let place = |sums: &Tensor, axis: i64| {
                sums.f_narrow(axis, scale.apply(top), part.size()[2])?.f_narrow(
                    axis + 1,
                    scale.apply(left),
                    part.size()[3],
                )
            };
            let _ = place(whole, 2)?.f_add_(&part.f_mul(&ramp)?)?;
            let _ = place(weights, 0)?.f_add_(&ramp)?;
        }
    }
    match sums {
        Some((whole, weights, kind)) => Ok(whole.f_div(&weights)?.f_to_kind(kind)?),
        None => f(x),
    }
}

#[cfg(test)]
mod tests {
    use tch::Device;
    use tch::nn::VarStore;

    use super::*;
    use crate::models::autoencoder::{AutoEncoder, AutoEncoderParams};
    use crate::shim;

    fn distance(a: &Tensor, b: &Tensor) -> f64 {
        f64::try_from((a - b).norm() / b.norm()).unwrap()
    }

    #[test]
    fn the_identity_in_tiles_is_the_identity() {
        let x = shim::randn(&[2, 3, 23, 40], 1).unwrap();
        for (tile, overlap) in [(8, 4), (9, 0), (16, 5), (39, 1)] {
            let same = tiled(&x, tile, overlap, Scale::Up(1), |x| Ok(x.shallow_clone())).unwrap();
            assert!(distance(&same, &x) < 1e-6, "{tile}, {overlap}");
        }
        assert!(tiled(&x, 8, 5, Scale::Up(1), |x| Ok(x.shallow_clone())).is_err());
    }

    #[test]
    fn one_tile_has_the_bits_of_the_whole_and_several_are_close() {
        let mut vs = VarStore::new(Device::Cpu);
        let params = AutoEncoderParams { ch: 32, ..AutoEncoderParams::flux1() };
        let model = AutoEncoder::new(vs.root(), &params).unwrap();
        crate::nn::init(&vs, 1).unwrap();
        vs.freeze();
        let z = shim::randn(&[1, 16, 16, 24], 2).unwrap();
        let whole = model.decode(&z).unwrap();
        assert_eq!(model.decode_tiled(&z, 192, 48).unwrap(), whole);
        let seams = distance(&model.decode_tiled(&z, 96, 32).unwrap(), &whole);
        assert!(seams > 0.0 && seams < SEAMS, "decoded: {seams}");
        let x = shim::randn(&[1, 3, 128, 192], 2).unwrap();
        let whole = model.encode(&x).unwrap();
        assert_eq!(model.encode_tiled(&x, 192, 48).unwrap(), whole);
        let seams = distance(&model.encode_tiled(&x, 96, 32).unwrap(), &whole);
        assert!(seams > 0.0 && seams < SEAMS, "encoded: {seams}");
    }

    /// The relative difference that norms over single tiles and missing neighbours make, for random latents and weights.
    const SEAMS: f64 = 0.35;
}
