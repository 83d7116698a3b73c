//! Pictures that a request begins with, encoded.

use tch::Tensor;

use super::depth::DepthModel;
use super::edit::{ControlPreprocess, Edit, Role};
use super::{CANNY, Conditions};
use crate::error::{Error, Result};
use crate::generation::autoencoder::Autoencoder;
use crate::generation::loader::Loader;
use crate::image::{Image, Mask};
use crate::math;
use crate::sampling::LatentSpec;

/// What a picture is begun with, as patches `[B, L, C]`.
pub(in crate::generation) struct InitLatents {
    patches: Tensor,
    /// 1 where it is drawn anew, 0 where it is kept.
    mask: Option<Tensor>,
}

impl InitLatents {
    /// Those of several pictures, side by side.
    pub(in crate::generation) fn cat(starts: &[&Self]) -> Result<Self> {
        let patches: Vec<_> = starts.iter().map(|start| &start.patches).collect();
        let masks: Option<Vec<_>> = starts.iter().map(|start| start.mask.as_ref()).collect();
        let mask = masks.map(|masks| math::cat(&masks, 0)).transpose()?;
        Ok(Self { patches: math::cat(&patches, 0)?, mask })
    }

    /// What the picture is at a time, under this noise.
    ///
    /// Source: diffusers 0.42.1, `FlowMatchEulerDiscreteScheduler.scale_noise`.
    pub(in crate::generation) fn noised(&self, noise: &Tensor, time: f64) -> Result<Tensor> {
        Ok(noise.f_mul_scalar(time)?.f_add(&self.patches.f_mul_scalar(1.0 - time)?)?)
    }

    /// The patches, and the picture's own where the mask keeps it.
    ///
    /// Source: diffusers 0.42.1, `pipelines/flux/pipeline_flux_inpaint.py`, the end of the loop.
    pub(in crate::generation) fn keep_unmasked(
        &self,
        img: &Tensor,
        noise: &Tensor,
        time: f64,
    ) -> Result<Tensor> {
        match &self.mask {
            Some(mask) => {
                let kept = mask.f_neg()?.f_add_scalar(1.0)?.f_mul(&self.noised(noise, time)?)?;
                Ok(kept.f_add(&mask.f_mul(img)?)?)
            }
            None => Ok(img.shallow_clone()),
        }
    }
}

/// What a drawing begins with, and the conditions that stand beside its noisy patches.
pub(in crate::generation) type EditInputs = (Option<InitLatents>, Conditions);

/// Encodes the pictures of an edit in this role, for a drawing of this width and height.
pub(in crate::generation) fn encode(
    loader: &Loader,
    autoencoder: &Autoencoder,
    depth: &DepthModel,
    (edit, role): (&Edit, Role),
    (width, height): (u32, u32),
) -> Result<EditInputs> {
    let (mut init, mut conditions) = (None, Conditions::default());
    let [first, ..] = &edit.images[..] else {
        return Err(Error::Request("no picture to begin with".into()));
    };
    let picture = |image: &Image| image.resize(width, height).to_tensor();
    match role {
        Role::Init => {
            let latent = autoencoder.encode(loader, &picture(first)?)?;
            let size = latent.size();
            let mask = edit.mask.as_ref().map(|mask| {
                // As diffusers: each number of the latent takes the mask's pixel at its corner.
                let mask = mask_tensor(loader, mask, (width, height))?;
                let mask = mask.f_upsample_nearest2d([size[2], size[3]], None, None)?;
                loader.latent().pack(&mask.f_repeat([1, size[1], 1, 1])?.f_to_kind(loader.kind)?)
            });
            init = Some(InitLatents { patches: patches(loader, &latent)?, mask: mask.transpose()? });
        }
        Role::Reference => conditions.img_cond_seq = Some(references(loader, autoencoder, edit)?),
        Role::Control => {
            let image = first.resize(width, height);
            let followed = match edit.follow {
                ControlPreprocess::Picture => image.to_tensor()?,
                ControlPreprocess::Canny => image.canny(CANNY.0, CANNY.1).to_tensor()?,
                ControlPreprocess::Depth => depth.depths(&image)?,
            };
            conditions.img_cond = Some(autoencoder.encode_patches(loader, &followed)?);
        }
        Role::Fill => {
            let Some(mask) = &edit.mask else { return Err(Error::Request("Fill needs a mask".into())) };
            let mask = mask_tensor(loader, mask, (width, height))?;
            let seen = picture(first)?.f_to_device(loader.settings.device)?.f_mul(&(1.0 - &mask))?;
            let patches = autoencoder.encode_patches(loader, &seen)?;
            let mask = fold(&mask, loader.latent())?.f_to_kind(loader.kind)?;
            conditions.img_cond = Some(Tensor::f_cat(&[patches, mask], -1)?);
        }
    }
    Ok((init, conditions))
}

/// The patches of all references, one after the other, and their positions. The first lies over the picture, one
/// layer behind it; each further one beside or below those before it, wherever the whole stays more of a square.
///
/// Source: of one, `black-forest-labs/flux` at 802fb47, `src/flux/sampling.py`, `prepare_kontext`; of several, what
/// ComfyUI does by default.
fn references(loader: &Loader, autoencoder: &Autoencoder, edit: &Edit) -> Result<(Tensor, Tensor)> {
    let (mut all, mut ids) = (Vec::new(), Vec::new());
    let (mut height, mut width) = (0, 0);
    for image in &edit.images {
        let (w, h) = edit.reference_size(image);
        let latent = autoencoder.encode(loader, &image.resize(w, h).to_tensor()?)?;
        let (h, w) = (latent.size()[2], latent.size()[3]);
        let beside = h + height > w + width;
        let (down, across) = if beside { (0, width) } else { (height, 0) };
        (height, width) = (height.max(down + h), width.max(across + w));
        let place = Tensor::from_slice(&[1.0, down as f32 / 2.0, across as f32 / 2.0]);
        ids.push(loader.latent().image_ids(1, h, w).f_add(&place)?);
        all.push(patches(loader, &latent)?);
    }
    let ids = Tensor::f_cat(&ids, 1)?.f_to_device(loader.settings.device)?;
    Ok((Tensor::f_cat(&all, 1)?, ids))
}

fn patches(loader: &Loader, latent: &Tensor) -> Result<Tensor> {
    loader.latent().pack(&latent.f_to_kind(loader.kind)?)
}

fn mask_tensor(loader: &Loader, mask: &Mask, (width, height): (u32, u32)) -> Result<Tensor> {
    Ok(mask.resize(width, height).to_tensor()?.f_to_device(loader.settings.device)?)
}

/// A mask `[1, 1, H, W]` as Fill reads it: the pixels of each number of the latent become channels, and those patches.
///
/// Source: `black-forest-labs/flux` at 802fb47, `src/flux/sampling.py`, `prepare_fill`.
fn fold(mask: &Tensor, latent: &LatentSpec) -> Result<Tensor> {
    let side = latent.compression;
    let (h, w) = (mask.size()[2] / side, mask.size()[3] / side);
    let mask = mask.f_reshape([1, h, side, w, side])?.permute([0, 2, 4, 1, 3]);
    latent.pack(&mask.f_reshape([1, side * side, h, w])?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::family::ModelFamily;

    #[test]
    fn a_mask_is_folded_as_the_official_code_does_it() {
        // Each pixel is its own number: which becomes which channel of which patch can be read off.
        let (h, w) = (32, 48);
        let mask = Tensor::arange(h * w, (tch::Kind::Float, tch::Device::Cpu)).reshape([1, 1, h, w]);
        let folded = fold(&mask, ModelFamily::Flux1.latent()).unwrap();
        assert_eq!(folded.size(), [1, (h / 16) * (w / 16), 256]);
        for (patch, channel) in [(0, 0), (4, 37), (5, 255), (2, 130)] {
            let (row, column) = (patch / (w / 16), patch % (w / 16));
            let (in_latent, corner) = (channel / 4, channel % 4);
            let y = row * 16 + corner / 2 * 8 + in_latent / 8;
            let x = column * 16 + corner % 2 * 8 + in_latent % 8;
            assert_eq!(folded.double_value(&[0, patch, channel]), (y * w + x) as f64, "{patch} {channel}");
        }
    }
}
