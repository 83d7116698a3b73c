//! Small pictures of latents that are still on their way.

use std::path::Path;

use serde::Deserialize;
use tch::{Kind, Tensor};

use super::autoencoder::{self, Autoencoder};
use super::loader::Loader;
use super::resident::Resident;
use super::{PartKind, PreviewBy};
use crate::error::{Error, FileProblem, Result};
use crate::image::Image;
use crate::models::Model;
use crate::models::TransformerParams;
use crate::models::autoencoder::AnyAutoEncoder;
use crate::models::text::read_config;

/// The longest side of the latent that the autoencoder itself makes a preview of.
const SIDE: i64 = 32;

/// What a file of factors says of itself.
const FORMAT: &str = "latent-rgb/1";

/// What makes previews in place of the autoencoder.
#[derive(Debug)]
enum PreviewModel {
    Decoder(Box<Resident<AnyAutoEncoder>>),
    Factors(LatentRgb),
}

/// The colour of each place of a latent as a sum of its channels: `scripts/fit_latent_rgb.py` fits it.
#[derive(Debug, Deserialize)]
struct LatentRgb {
    format: String,
    /// Red, green and blue of each channel, in the range of pictures: −1 is black, 1 is white.
    factors: Vec<[f32; 3]>,
    /// The colour of a latent of zeros.
    bias: [f32; 3],
}

impl LatentRgb {
    fn read(path: &Path) -> Result<Self> {
        let this: Self = read_config(path)?;
        let wrong = |reason| Err(Error::file(path)(FileProblem::Settings { reason }));
        if this.format != FORMAT {
            return wrong(format!("its format is {:?}, not {FORMAT:?}", this.format));
        }
        if this.factors.iter().chain([&this.bias]).flatten().any(|factor| !factor.is_finite()) {
            return wrong("a factor is no finite number".into());
        }
        Ok(this)
    }

    /// `[1, C, H, W]` to `[3, H, W]`.
    fn forward(&self, latent: &Tensor) -> Result<Tensor> {
        let factors = Tensor::f_from_slice(&self.factors.concat())?;
        let factors = factors.f_reshape([self.factors.len() as i64, 3])?.f_to_device(latent.device())?;
        let bias = Tensor::f_from_slice(&self.bias)?.f_to_device(latent.device())?;
        if latent.size()[1] != factors.size()[0] {
            let expected = format!("{} channels, for which the preview's factors are", factors.size()[0]);
            return Err(Error::Shape { what: "latent", expected, found: latent.size() });
        }
        let rgb = latent.f_get(0)?.permute([1, 2, 0]).f_matmul(&factors)?.f_add(&bias)?; // [H, W, 3]
        Ok(rgb.permute([2, 0, 1]))
    }
}

/// What makes the previews of a pipeline: the autoencoder, unless the parts name another.
#[derive(Debug, Default)]
pub(super) struct Previewer {
    model: Option<PreviewModel>,
}

impl Previewer {
    /// Loads what makes previews, where that is not the autoencoder.
    pub(super) fn load(&mut self, loader: &Loader) -> Result<()> {
        if self.model.is_some() {
            return Ok(());
        }
        self.model = match &loader.parts.preview {
            None => None,
            Some(PreviewBy::Factors(path)) => Some(PreviewModel::Factors(LatentRgb::read(path)?)),
            Some(PreviewBy::Decoder(path)) => {
                let checkpoint = loader.open_part(PartKind::PreviewDecoder, path)?;
                let decoder = loader.load_autoencoder(path, checkpoint)?;
                Some(PreviewModel::Decoder(Box::new(decoder)))
            }
        };
        Ok(())
    }

    pub(super) fn is_loaded(&self) -> bool {
        self.model.is_some()
    }

    pub(super) fn release(&mut self) {
        self.model = None;
    }

    pub(super) fn release_workspace(&self) {
        if let Some(PreviewModel::Decoder(decoder)) = &self.model {
            decoder.model.release_workspace();
        }
    }

    /// Whether what is loaded is for latents of this transformer.
    ///
    /// # Errors
    /// [`Error::File`] where it is not.
    pub(super) fn check(&self, loader: &Loader, transformer: &TransformerParams) -> Result<()> {
        let of_patch = loader.latent().patch * loader.latent().patch;
        match (&self.model, &loader.parts.preview) {
            (Some(PreviewModel::Factors(factors)), Some(PreviewBy::Factors(path)))
                if factors.factors.len() as i64 * of_patch != transformer.out_channels() =>
            {
                let reason = format!(
                    "it has factors for {} channels, and the model's latents have {}",
                    factors.factors.len(),
                    transformer.out_channels() / of_patch
                );
                Err(Error::file(path)(FileProblem::Settings { reason }))
            }
            _ => Ok(()),
        }
    }

    /// Patches `[1, L, C]` of a picture of this height and width to a picture that costs little: see
    /// [`Request::previews`](super::Request::previews).
    pub(super) fn preview(
        &self,
        loader: &Loader,
        autoencoder: &Autoencoder,
        patches: &Tensor,
        (height, width): (i64, i64),
    ) -> Result<Image> {
        let latent = loader.latent().unpack(&patches.f_to_kind(Kind::Float)?, height, width)?;
        let picture = match &self.model {
            Some(PreviewModel::Factors(factors)) => factors.forward(&latent)?,
            Some(PreviewModel::Decoder(decoder)) => autoencoder::decode(loader, decoder, &latent)?,
            None => {
                let (height, width) = (latent.size()[2], latent.size()[3]);
                let times = (height.max(width) + SIDE - 1) / SIDE;
                let small =
                    latent.f_adaptive_avg_pool2d([(height / times).max(1), (width / times).max(1)])?;
                autoencoder.decode(loader, &small)?
            }
        };
        Image::from_tensor(&picture)
    }
}

#[cfg(test)]
mod tests {
    use tch::Device;

    use super::*;

    fn read(text: &str) -> Result<LatentRgb> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("factors.json");
        std::fs::write(&path, text).unwrap();
        LatentRgb::read(&path)
    }

    #[test]
    fn the_colour_of_each_place_is_the_sum_of_its_channels() {
        let text =
            r#"{"format": "latent-rgb/1", "factors": [[1, 0, 0.5], [0, 2, -1]], "bias": [0.25, 0, 1]}"#;
        let factors = read(text).unwrap();
        let latent = Tensor::from_slice(&[1f32, 2.0, 3.0, 10.0, 20.0, 30.0]).reshape([1, 2, 1, 3]);
        let rgb: Vec<f32> = Vec::try_from(factors.forward(&latent).unwrap().reshape([-1])).unwrap();
        assert_eq!(rgb, [1.25, 2.25, 3.25, 20.0, 40.0, 60.0, -8.5, -18.0, -27.5]);
        let other = Tensor::zeros([1, 3, 1, 1], (Kind::Float, Device::Cpu));
        assert!(matches!(factors.forward(&other), Err(Error::Shape { .. })));
    }

    #[test]
    fn what_is_no_file_of_factors_is_refused_with_the_reason() {
        let says = |text: &str| read(text).unwrap_err().to_string();
        assert!(says(r#"{"format": "other", "factors": [], "bias": [0, 0, 0]}"#).contains("latent-rgb/1"));
        assert!(
            says(r#"{"format": "latent-rgb/1", "factors": [[0, 1]], "bias": [0, 0, 0]}"#).contains("array")
        );
        assert!(
            says(r#"{"format": "latent-rgb/1", "factors": [[0, 1, 1e99]], "bias": [0, 0, 0]}"#)
                .contains("factor")
        );
    }
}
