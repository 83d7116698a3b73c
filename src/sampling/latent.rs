//! The latents of a family of models: their sizes, noise, patches and positions.

use tch::{Device, Kind, Tensor};

use super::{NoiseRule, legacy};
use crate::error::{Error, Result};
use crate::shim;

/// How the latents of a family look, and how a transformer reads them. The methods have the names of the official functions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LatentSpec {
    /// Channels of a latent.
    pub channels: i64,
    /// The pixels to a side of one place of a latent.
    pub compression: i64,
    /// The places of a latent to a side of one patch, which is a token of the transformer.
    pub patch: i64,
    /// Whether a picture whose side is no multiple of a patch gets another patch for the rest; otherwise the rest is not drawn.
    pub rounds_up: bool,
    /// The axes of the positions.
    pub axes: PositionAxes,
}

/// Which axis of a position counts what. All other axes are zero.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PositionAxes {
    /// How many axes a position has.
    pub count: i64,
    /// The axis of a patch's row.
    pub row: i64,
    /// The axis of a patch's column.
    pub column: i64,
    /// The axis of a text token's place, where the text has places.
    pub text: Option<i64>,
}

/// What a transformer is called with, made from latents and text.
#[derive(Debug)]
pub struct Prepared {
    /// Patches `[B, Li, C]`.
    pub img: Tensor,
    /// Their positions `[B, Li, axes]`.
    pub img_ids: Tensor,
    /// Text states `[B, Lt, …]`.
    pub txt: Tensor,
    /// Their positions `[B, Lt, axes]`.
    pub txt_ids: Tensor,
    /// Pooled text `[B, …]`, of families that read one.
    pub vec: Option<Tensor>,
}

impl LatentSpec {
    /// Returns the pixels to a side of one patch.
    pub const fn patch_pixels(&self) -> i64 {
        self.patch * self.compression
    }

    /// Returns the channels of one patch.
    pub const fn patch_channels(&self) -> i64 {
        self.channels * self.patch * self.patch
    }

    /// Returns how many patches a side of so many pixels has.
    pub const fn patches(&self, pixels: i64) -> i64 {
        let rest = if self.rounds_up { self.patch_pixels() - 1 } else { 0 };
        (pixels + rest) / self.patch_pixels()
    }

    /// Returns the side of the latent of a picture with a side of so many pixels.
    pub const fn size(&self, pixels: i64) -> i64 {
        self.patch * self.patches(pixels)
    }

    /// Draws standard normal noise `[num_samples, C, H, W]` on the CPU, the official bits for a seed.
    ///
    /// The values come from a generator of their own: no other draw of the process changes them, nor they it.
    /// Source: `sampling.py` lines 16–34.
    ///
    /// # Errors
    /// [`Error::Tch`] where the memory is not to be had.
    pub fn get_noise(
        &self,
        num_samples: i64,
        height: i64,
        width: i64,
        kind: Kind,
        seed: u64,
        rule: NoiseRule,
    ) -> Result<Tensor> {
        let size = [num_samples, self.channels, self.size(height), self.size(width)];
        if rule == NoiseRule::Legacy && kind == Kind::BFloat16 {
            return Ok(legacy::randn_bf16(size.iter().product::<i64>() as usize, seed)?.f_reshape(size)?);
        }
        Ok(shim::randn(&size, seed)?.f_to_kind(kind)?)
    }

    /// Draws what the generator of a seed gives after the first picture's noise, so many times: f32 `[count, C, H, W]`. For
    /// samplers that add noise on the way.
    ///
    /// # Errors
    /// [`Error::Tch`] where the memory is not to be had.
    pub fn get_more_noise(&self, count: i64, height: i64, width: i64, seed: u64) -> Result<Tensor> {
        let count = count.max(0);
        let all = self.get_noise(count + 1, height, width, Kind::Float, seed, NoiseRule::Current)?;
        Ok(all.f_narrow(0, 1, count)?)
    }

    /// Packs latents `[B, C, H, W]` into patches `[B, H/patch·W/patch, patch²·C]`. C need not be [`LatentSpec::channels`]:
    /// masks and the pictures that ControlNets follow are packed, too.
    ///
    /// # Errors
    /// [`Error::Shape`] where a side is no multiple of a patch.
    pub fn pack(&self, img: &Tensor) -> Result<Tensor> {
        let p = self.patch;
        let [b, c, h, w] = img.size()[..] else {
            return Err(Error::Shape { what: "img", expected: "[B, C, H, W]".into(), found: img.size() });
        };
        if h % p != 0 || w % p != 0 {
            let expected = format!("both sides multiples of {p}");
            return Err(Error::Shape { what: "img", expected, found: img.size() });
        }
        let img = img.f_reshape([b, c, h / p, p, w / p, p])?.permute([0, 2, 4, 1, 3, 5]);
        Ok(img.f_reshape([b, (h / p) * (w / p), c * p * p])?)
    }

    /// Unpacks the patches of a picture of `height` × `width` pixels to latents. Source: `sampling.py` lines 357–365.
    ///
    /// # Errors
    /// [`Error::Shape`] where the count of patches is not the picture's.
    pub fn unpack(&self, x: &Tensor, height: i64, width: i64) -> Result<Tensor> {
        let (p, h, w) = (self.patch, self.patches(height), self.patches(width));
        match x.size()[..] {
            [b, l, c] if l == h * w && c % (p * p) == 0 => {
                let c = c / (p * p);
                let x = x.f_reshape([b, h, w, c, p, p])?.permute([0, 3, 1, 4, 2, 5]);
                Ok(x.f_reshape([b, c, h * p, w * p])?)
            }
            _ => {
                let expected = format!("[B, {}, {}·C]", h * w, p * p);
                Err(Error::Shape { what: "x", expected, found: x.size() })
            }
        }
    }

    /// Returns the positions of the patches of a latent of `height` × `width`: `[B, L, axes]` in f32.
    pub fn image_ids(&self, batch: i64, height: i64, width: i64) -> Tensor {
        let (h, w) = (height / self.patch, width / self.patch);
        let options = (Kind::Float, Device::Cpu);
        let rows = Tensor::arange(h, options).unsqueeze(1).expand([h, w], false);
        let columns = Tensor::arange(w, options).unsqueeze(0).expand([h, w], false);
        let zeros = rows.zeros_like();
        let axis = |axis| match axis {
            axis if axis == self.axes.row => &rows,
            axis if axis == self.axes.column => &columns,
            _ => &zeros,
        };
        let ids = Tensor::stack(&(0..self.axes.count).map(axis).collect::<Vec<_>>(), -1);
        ids.reshape([1, h * w, self.axes.count]).repeat([batch, 1, 1])
    }

    /// Returns the positions of so many text tokens: `[B, L, axes]` in f32.
    ///
    /// # Errors
    /// [`Error::Tch`] where the memory is not to be had.
    pub fn text_ids(&self, batch: i64, tokens: i64, device: Device) -> Result<Tensor> {
        let ids = Tensor::f_zeros([batch, tokens, self.axes.count], (Kind::Float, device))?;
        if let Some(axis) = self.axes.text {
            let places = Tensor::f_arange(tokens, (Kind::Float, device))?;
            ids.f_select(-1, axis)?.f_copy_(&places.f_unsqueeze(0)?)?;
        }
        Ok(ids)
    }

    /// Packs latents `[B, C, H, W]` and adds the positions, on the latents' device. One picture and several prompts, or
    /// one prompt and several pictures, are repeated to fit. Source: `sampling.py` lines 37–75.
    ///
    /// # Errors
    /// [`Error::Shape`] where the batches do not fit.
    pub fn prepare(&self, img: &Tensor, txt: &Tensor, vec: Option<&Tensor>) -> Result<Prepared> {
        let packed = self.pack(img)?;
        let batch = img.size()[0].max(txt.size().first().copied().unwrap_or(1));
        let repeated = |what: &'static str, x: &Tensor, dims: usize| {
            let found = x.size();
            if found.len() != dims || (found[0] != 1 && found[0] != batch) {
                let expected = format!("{dims}-dimensional, with a batch of 1 or {batch}");
                return Err(Error::Shape { what, expected, found });
            }
            let mut repeats = vec![1; dims];
            repeats[0] = batch / found[0];
            Ok(x.f_repeat(repeats)?)
        };
        let device = img.device();
        let txt = repeated("txt", txt, 3)?;
        let txt_ids = self.text_ids(batch, txt.size()[1], device)?;
        let vec = vec.map(|vec| Ok::<_, Error>(repeated("vec", vec, 2)?.f_to_device(device)?));
        Ok(Prepared {
            img: repeated("img", &packed, 3)?,
            img_ids: self.image_ids(batch, img.size()[2], img.size()[3]).f_to_device(device)?,
            txt: txt.f_to_device(device)?,
            txt_ids,
            vec: vec.transpose()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// FLUX.2's, whose autoencoder makes the patches.
    const PATCHED: LatentSpec = LatentSpec {
        channels: 128,
        compression: 16,
        patch: 1,
        rounds_up: false,
        axes: PositionAxes { count: 4, row: 1, column: 2, text: Some(3) },
    };

    #[test]
    fn latents_that_are_patches_already_are_packed_by_rows() {
        assert_eq!((PATCHED.size(1360), PATCHED.size(775), PATCHED.patch_channels()), (85, 48, 128));
        let latent = Tensor::arange(2 * 3 * 4, (Kind::Float, Device::Cpu)).reshape([1, 2, 3, 4]);
        let packed = PATCHED.pack(&latent).unwrap();
        assert_eq!(packed, latent.reshape([1, 2, 12]).transpose(1, 2));
        assert_eq!(PATCHED.unpack(&packed, 3 * 16 + 15, 4 * 16).unwrap(), latent);
        assert!(PATCHED.unpack(&packed, 4 * 16, 4 * 16).is_err());
    }

    #[test]
    fn each_axis_counts_what_the_family_says() {
        let ids = PATCHED.image_ids(2, 2, 3);
        assert_eq!(ids.size(), [2, 6, 4]);
        assert_eq!(Vec::<f32>::try_from(ids.get(1).get(5)).unwrap(), [0.0, 1.0, 2.0, 0.0]);
        let txt = PATCHED.text_ids(2, 3, Device::Cpu).unwrap();
        assert_eq!(Vec::<f32>::try_from(txt.get(1).get(2)).unwrap(), [0.0, 0.0, 0.0, 2.0]);
    }

    #[test]
    fn one_prompt_without_pooled_text_is_repeated_for_several_pictures() {
        let zeros = |size: &[i64]| Tensor::zeros(size, (Kind::Float, Device::Cpu));
        let prepared = PATCHED.prepare(&zeros(&[2, 128, 4, 4]), &zeros(&[1, 5, 8]), None).unwrap();
        assert_eq!((prepared.img.size(), prepared.txt.size()), (vec![2, 16, 128], vec![2, 5, 8]));
        assert_eq!(prepared.txt_ids.size(), [2, 5, 4]);
        assert!(prepared.vec.is_none());
    }
}
