//! An autoencoder of either form.

use tch::Tensor;

use super::{AutoEncoder, TinyAutoEncoder};
use crate::error::Result;
use crate::numerics::Numerics;

/// FLUX.1's autoencoder, or a tiny one in its place.
#[derive(Debug)]
pub(crate) enum AnyAutoEncoder {
    Full(Box<AutoEncoder>),
    Tiny(Box<TinyAutoEncoder>),
}

impl AnyAutoEncoder {
    pub(crate) fn set_numerics(&self, numerics: Numerics) {
        match self {
            Self::Full(model) => model.set_numerics(numerics),
            Self::Tiny(model) => model.set_numerics(numerics),
        }
    }

    pub(crate) fn release_workspace(&self) {
        match self {
            Self::Full(model) => model.release_workspace(),
            Self::Tiny(model) => model.release_workspace(),
        }
    }

    /// Pictures to latents, in tiles of so many pixels a side where that is said, which share a quarter.
    pub(crate) fn encode(&self, x: &Tensor, tile: Option<i64>) -> Result<Tensor> {
        match (self, tile) {
            (Self::Full(model), None) => model.encode(x),
            (Self::Full(model), Some(tile)) => model.encode_tiled(x, tile, tile / 4),
            (Self::Tiny(model), None) => model.encode(x),
            (Self::Tiny(model), Some(tile)) => model.encode_tiled(x, tile, tile / 4),
        }
    }

    /// Latents to pictures, likewise.
    pub(crate) fn decode(&self, z: &Tensor, tile: Option<i64>) -> Result<Tensor> {
        match (self, tile) {
            (Self::Full(model), None) => model.decode(z),
            (Self::Full(model), Some(tile)) => model.decode_tiled(z, tile, tile / 4),
            (Self::Tiny(model), None) => model.decode(z),
            (Self::Tiny(model), Some(tile)) => model.decode_tiled(z, tile, tile / 4),
        }
    }
}
