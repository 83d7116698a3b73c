//! A full or a tiny autoencoder.

use tch::Tensor;

use super::{AutoEncoder, TinyAutoEncoder};
use crate::error::Result;
use crate::models::Model;
use crate::nn::Parameters;

/// FLUX.1's autoencoder, or a tiny one in its place.
#[derive(Debug)]
pub(crate) enum AnyAutoEncoder {
    Full(Box<AutoEncoder>),
    Tiny(Box<TinyAutoEncoder>),
}

impl Model for AnyAutoEncoder {
    fn parameters(&self) -> &Parameters {
        match self {
            Self::Full(model) => model.parameters(),
            Self::Tiny(model) => model.parameters(),
        }
    }
}

impl AnyAutoEncoder {
    /// Encodes pictures to latents. A `tile` is the side of tiles in pixels, which overlap by a quarter.
    pub(crate) fn encode(&self, x: &Tensor, tile: Option<i64>) -> Result<Tensor> {
        match (self, tile) {
            (Self::Full(model), None) => model.encode(x),
            (Self::Full(model), Some(tile)) => model.encode_tiled(x, tile, tile / 4),
            (Self::Tiny(model), None) => model.encode(x),
            (Self::Tiny(model), Some(tile)) => model.encode_tiled(x, tile, tile / 4),
        }
    }

    /// Decodes latents to pictures, with tiles as in [`AnyAutoEncoder::encode`].
    pub(crate) fn decode(&self, z: &Tensor, tile: Option<i64>) -> Result<Tensor> {
        match (self, tile) {
            (Self::Full(model), None) => model.decode(z),
            (Self::Full(model), Some(tile)) => model.decode_tiled(z, tile, tile / 4),
            (Self::Tiny(model), None) => model.decode(z),
            (Self::Tiny(model), Some(tile)) => model.decode_tiled(z, tile, tile / 4),
        }
    }
}
