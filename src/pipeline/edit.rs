//! Pictures that a request begins with.

use tch::Tensor;

use super::{Edit, Pipeline, Request};
use crate::error::{Error, Result};
use crate::sampling;

/// What a picture is begun with, as patches `[B, L, C]`.
pub(super) struct Start {
    patches: Tensor,
    /// 1 where it is drawn anew, 0 where it is kept.
    mask: Option<Tensor>,
}

impl Start {
    /// Those of several pictures, side by side.
    pub(super) fn together(starts: &[&Self]) -> Result<Self> {
        let patches: Vec<_> = starts.iter().map(|start| &start.patches).collect();
        let masks: Option<Vec<_>> = starts.iter().map(|start| start.mask.as_ref()).collect();
        let mask = masks.map(|masks| Tensor::f_cat(&masks, 0)).transpose()?;
        Ok(Self { patches: Tensor::f_cat(&patches, 0)?, mask })
    }

    /// What the picture is at a time, under this noise.
    ///
    /// Source: diffusers 0.42.1, `FlowMatchEulerDiscreteScheduler.scale_noise`.
    pub(super) fn noised(&self, noise: &Tensor, time: f64) -> Result<Tensor> {
        Ok(noise.f_mul_scalar(time)?.f_add(&self.patches.f_mul_scalar(1.0 - time)?)?)
    }

    /// The patches, and the picture's own where the mask keeps it.
    ///
    /// Source: diffusers 0.42.1, `pipelines/flux/pipeline_flux_inpaint.py`, the end of the loop.
    pub(super) fn keep_unmasked(&self, img: &Tensor, noise: &Tensor, time: f64) -> Result<Tensor> {
        match &self.mask {
            Some(mask) => {
                let kept = mask.f_neg()?.f_add_scalar(1.0)?.f_mul(&self.noised(noise, time)?)?;
                Ok(kept.f_add(&mask.f_mul(img)?)?)
            }
            None => Ok(img.shallow_clone()),
        }
    }
}

impl Edit {
    /// The first of so many steps that is walked. As diffusers counts it: a strength of 1 walks all.
    pub(super) fn first_step(&self, steps: usize) -> usize {
        (steps as f64 - (steps as f64 * self.strength).min(steps as f64)).max(0.0) as usize
    }
}

impl Pipeline {
    /// The picture that a request begins with, encoded.
    pub(super) fn start(&self, request: &Request) -> Result<Option<Start>> {
        let Some(edit) = request.edit.as_deref() else { return Ok(None) };
        let [picture] = &edit.images[..] else {
            let text = format!("this model begins with one picture, not with {}", edit.images.len());
            return Err(Error::Request(text));
        };
        let Some(autoencoder) = &self.autoencoder else {
            return Err(Error::Config("the autoencoder is not loaded".into()));
        };
        autoencoder.checkpoint.check_unchanged()?;
        let (width, height) = (request.width as u32, request.height as u32);
        let device = self.settings.device;
        let x =
            picture.resize(width, height).to_tensor()?.f_to_device(device)?.f_to_kind(autoencoder.kind)?;
        let latent = match self.settings.vae_tile {
            Some(tile) => autoencoder.model.encode_tiled(&x, tile, tile / 4)?,
            None => autoencoder.model.encode(&x)?,
        };
        let size = latent.size();
        let mask = edit.mask.as_ref().map(|mask| {
            // As diffusers: each number of the latent takes the mask's pixel at its corner.
            let mask = mask.resize(width, height).to_tensor()?.f_to_device(device)?;
            let mask = mask.f_upsample_nearest2d([size[2], size[3]], None, None)?;
            sampling::pack(&mask.f_repeat([1, size[1], 1, 1])?.f_to_kind(self.kind)?)
        });
        Ok(Some(Start { patches: sampling::pack(&latent.f_to_kind(self.kind)?)?, mask: mask.transpose()? }))
    }
}
