//! Pixels to latents, and latents to pixels.

use tch::{Kind, Tensor};

use super::loader::Loader;
use super::resident::{Resident, not_loaded};
use crate::error::Result;
use crate::models::Model;
use crate::models::autoencoder::AnyAutoEncoder;
use crate::shim;

/// The autoencoder of a pipeline.
#[derive(Debug, Default)]
pub(super) struct Autoencoder {
    model: Option<Resident<AnyAutoEncoder>>,
}

impl Autoencoder {
    pub(super) fn load(&mut self, loader: &Loader) -> Result<()> {
        if self.model.is_none() {
            let checkpoint = loader.open_autoencoder()?;
            self.model = Some(loader.load_autoencoder(&loader.parts.autoencoder, checkpoint)?);
        }
        Ok(())
    }

    pub(super) fn is_loaded(&self) -> bool {
        self.model.is_some()
    }

    pub(super) fn release(&mut self) {
        self.model = None;
    }

    pub(super) fn release_workspace(&self) {
        self.model.iter().for_each(|autoencoder| autoencoder.model.release_workspace());
    }

    /// Pixels `[1, 3, height, width]` to the latent `[1, C, H, W]`.
    pub(super) fn encode(&self, loader: &Loader, pixels: &Tensor) -> Result<Tensor> {
        let autoencoder = self.model.as_ref().ok_or_else(not_loaded)?;
        let x = pixels.f_to_device(loader.settings.device)?.f_to_kind(autoencoder.kind)?;
        autoencoder.model()?.encode(&x, loader.settings.vae_tile)
    }

    /// Pixels `[1, 3, H, W]` to patches `[1, L, C]` in the pipeline's kind.
    pub(super) fn encode_patches(&self, loader: &Loader, pixels: &Tensor) -> Result<Tensor> {
        loader.latent().pack(&self.encode(loader, pixels)?.f_to_kind(loader.kind)?)
    }

    /// Patches `[1, L, C]` of a picture of this height and width to its pixels `[3, H, W]`.
    pub(super) fn decode_patches(
        &self,
        loader: &Loader,
        patches: &Tensor,
        (height, width): (i64, i64),
    ) -> Result<Tensor> {
        let latent = loader.latent().unpack(&patches.f_to_kind(Kind::Float)?, height, width)?;
        self.decode(loader, &latent)
    }

    /// A latent `[1, C, H, W]` to pixels `[3, H, W]`.
    pub(super) fn decode(&self, loader: &Loader, latent: &Tensor) -> Result<Tensor> {
        decode(loader, self.model.as_ref().ok_or_else(not_loaded)?, latent)
    }
}

/// A latent `[1, C, H, W]` to pixels `[3, H, W]`, as the official code does it: in f32, under bf16 autocast unless the
/// pipeline is f32.
pub(super) fn decode(
    loader: &Loader,
    autoencoder: &Resident<AnyAutoEncoder>,
    latent: &Tensor,
) -> Result<Tensor> {
    let model = autoencoder.model()?;
    let autocast = !loader.decodes_in_f32(autoencoder.kind);
    let _autocast = autocast.then(|| shim::Autocast::bf16(loader.settings.device)).transpose()?;
    Ok(model.decode(latent, loader.settings.vae_tile)?.f_get(0)?)
}
