//! The parts of a pipeline from their files: opened under their official names, built, filled.

use std::path::{Path, PathBuf};

use tch::{Device, Kind, Tensor};

use super::opened::{OpenedFiles, is_tiny};
use super::resident::Resident;
use super::{PartKind, Parts, PreviewBy, Settings, configs};
use crate::checkpoint::{Checkpoint, Family};
use crate::error::{Error, Result};
use crate::family::ModelFamily;
use crate::models::autoencoder::{AnyAutoEncoder, AutoEncoder, TinyAutoEncoder};
use crate::models::vision::{
    DepthAnything, DepthConfig, ReduxConfig, ReduxImageEncoder, SiglipConfig, SiglipVision,
};
use crate::models::{Model, Transformer, TransformerParams};
use crate::sampling::LatentSpec;

/// Where the parts of a pipeline are loaded from, and where and in which kinds they compute.
#[derive(Debug)]
pub(super) struct Loader {
    pub(super) parts: Parts,
    pub(super) settings: Settings,
    /// The family of the transformer.
    pub(super) family: ModelFamily,
    /// The kind of the transformer and of the latents.
    pub(super) kind: Kind,
    /// The kind that the settings or the transformer's file ask for.
    pub(super) wanted_kind: Kind,
    opened: OpenedFiles,
}

impl Loader {
    /// Opens the transformer, whose kind is that of the pipeline unless the settings say another.
    ///
    /// # Errors
    /// What is wrong with the file; [`Error::Config`] for a kind that nothing computes in.
    pub(super) fn open(parts: Parts, settings: Settings) -> Result<Self> {
        let opened = OpenedFiles::new(settings.access);
        let (family, kind) = (ModelFamily::Flux1, Kind::Float);
        let mut loader = Self { parts, settings, family, kind, wanted_kind: kind, opened };
        let (transformer, _) = loader.open_transformer()?;
        loader.family = family_of(&transformer);
        loader.wanted_kind = settings.kind.or_else(|| transformer.main_kind()).unwrap_or(Kind::Float);
        loader.kind = kind_on(settings.device, loader.wanted_kind);
        Ok(loader)
    }

    /// Checks that the kind is one to compute in.
    ///
    /// # Errors
    /// [`Error::Config`] where it is not.
    pub(super) fn check_kind(&self) -> Result<()> {
        let kind = self.kind;
        if matches!(kind, Kind::Float | Kind::BFloat16 | Kind::Half | Kind::Double) {
            return Ok(());
        }
        let reason = format!("the transformer's weights are {kind:?}; ask for a kind to compute in");
        Err(Error::Config(reason))
    }

    /// How the latents look.
    pub(super) fn latent(&self) -> &'static LatentSpec {
        self.family.latent()
    }

    /// The kind of text and image encoders. T5 overflows in f16, so there they run in bf16.
    pub(super) fn text_kind(&self) -> Kind {
        if self.kind == Kind::Half { Kind::BFloat16 } else { self.kind }
    }

    /// The kind of an autoencoder: that of its file, unless the pipeline computes in f32 throughout.
    pub(super) fn autoencoder_kind(&self, autoencoder: &Checkpoint) -> Kind {
        if self.kind == Kind::Float { self.kind } else { autoencoder.main_kind().unwrap_or(self.kind) }
    }

    /// Whether an autoencoder with weights of this kind decodes in f32; otherwise it does under bf16 autocast.
    pub(super) fn decodes_in_f32(&self, autoencoder: Kind) -> bool {
        autoencoder == Kind::Float && self.kind == Kind::Float
    }

    /// Opens a file as this part.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn open_part(&self, part: PartKind, path: &Path) -> Result<Checkpoint> {
        self.opened.part(part, path)
    }

    /// Closes what was opened as this part, but for the files at these paths.
    pub(super) fn keep_only(&self, part: PartKind, paths: &[PathBuf]) {
        self.opened.keep_only(part, paths);
    }

    /// Opens the transformer under the official names; also returns the names of what was taken from the base.
    pub(super) fn open_transformer(&self) -> Result<(Checkpoint, Vec<String>)> {
        let transformer = self.open_part(PartKind::Transformer, &self.parts.transformer)?;
        match &self.parts.base {
            Some(base) => Ok(transformer.filled_from(self.open_part(PartKind::Transformer, base)?)),
            None => Ok((transformer, Vec::new())),
        }
    }

    pub(super) fn open_autoencoder(&self) -> Result<Checkpoint> {
        self.open_part(PartKind::Autoencoder, &self.parts.autoencoder)
    }

    /// Opens the autoencoder that makes previews, where one does; also returns where it lies.
    pub(super) fn open_preview_decoder(&self) -> Result<Option<(Checkpoint, &Path)>> {
        match &self.parts.preview {
            Some(PreviewBy::Decoder(path)) => {
                Ok(Some((self.open_part(PartKind::PreviewDecoder, path)?, path)))
            }
            _ => Ok(None),
        }
    }

    pub(super) fn open_clip(&self) -> Result<Checkpoint> {
        self.open_part(PartKind::Clip, &self.parts.clip)
    }

    pub(super) fn open_t5(&self) -> Result<Checkpoint> {
        self.open_part(PartKind::T5, &self.parts.t5)
    }

    /// Opens SigLIP, which encodes the pictures of Redux.
    pub(super) fn open_image_encoder(&self) -> Result<Checkpoint> {
        let path = named(&self.parts.image_encoder, "image encoder", "SigLIP")?;
        self.open_part(PartKind::ImageEncoder, path)
    }

    /// Opens the embedder of Redux, which makes tokens of SigLIP's states.
    pub(super) fn open_redux(&self) -> Result<Checkpoint> {
        let path = named(&self.parts.redux, "Redux model", "flux1-redux-dev.safetensors")?;
        self.open_part(PartKind::Redux, path)
    }

    /// The sizes of SigLIP, from its settings where they lie beside it, and those of the embedder of Redux.
    pub(super) fn redux_sizes(&self) -> Result<(SiglipConfig, ReduxConfig)> {
        let redux = self.open_redux()?;
        let siglip = self.siglip_config(&self.open_image_encoder()?)?;
        Ok((siglip, ReduxConfig::from_shapes(|name| redux.shape(name))?))
    }

    fn siglip_config(&self, checkpoint: &Checkpoint) -> Result<SiglipConfig> {
        let beside = |path| configs::path_beside(path, configs::Kind::SIGLIP);
        match self.parts.image_encoder.as_deref().map(beside).transpose()?.flatten() {
            Some(path) => SiglipConfig::read(path),
            None => SiglipConfig::from_shapes(|name| checkpoint.shape(name)),
        }
    }

    /// Builds a model and loads its weights in this kind.
    pub(super) fn load<M: Model>(
        &self,
        kind: Kind,
        checkpoint: Checkpoint,
        build: impl FnOnce(tch::nn::Path) -> Result<M>,
    ) -> Result<Resident<M>> {
        Resident::load(&self.settings, kind, checkpoint, build)
    }

    pub(super) fn load_transformer(&self, params: &TransformerParams) -> Result<Resident<Transformer>> {
        let (checkpoint, _) = self.open_transformer()?;
        let checkpoint = checkpoint.widened("img_in.weight", params.in_channels());
        let transformer = self.load(self.kind, checkpoint, |vs| Transformer::new(vs, params))?;
        transformer.model.quantize(self.settings.quantize)?;
        Ok(transformer)
    }

    pub(super) fn load_image_encoder(&self) -> Result<Resident<SiglipVision>> {
        let checkpoint = self.open_image_encoder()?;
        let config = self.siglip_config(&checkpoint)?;
        self.load(self.text_kind(), checkpoint, |vs| SiglipVision::new(vs, &config))
    }

    pub(super) fn load_redux(&self) -> Result<Resident<ReduxImageEncoder>> {
        let checkpoint = self.open_redux()?;
        let config = ReduxConfig::from_shapes(|name| checkpoint.shape(name))?;
        self.load(self.text_kind(), checkpoint, |vs| ReduxImageEncoder::new(vs, &config))
    }

    /// Loads an autoencoder, full or tiny; its settings lie beside `path`.
    pub(super) fn load_autoencoder(
        &self,
        path: &Path,
        checkpoint: Checkpoint,
    ) -> Result<Resident<AnyAutoEncoder>> {
        let kind = self.autoencoder_kind(&checkpoint);
        let names = checkpoint.clone();
        self.load(kind, checkpoint, |vs| {
            Ok(if is_tiny(&names) {
                let (params, _) = configs::tiny_autoencoder(path, &names)?;
                AnyAutoEncoder::Tiny(Box::new(TinyAutoEncoder::new(vs, &params)?))
            } else {
                let (params, _) = configs::autoencoder(self.family, path, &names)?;
                AnyAutoEncoder::Full(Box::new(AutoEncoder::new(vs, &params)?))
            })
        })
    }

    /// Loads the depth model in f32, in which the official code runs it.
    pub(super) fn load_depth(&self, path: &Path) -> Result<Resident<DepthAnything>> {
        let checkpoint = self.open_part(PartKind::Depth, path)?;
        let Some(config) = configs::path_beside(path, configs::Kind::DEPTH)? else {
            let folder = if path.is_dir() { path } else { path.parent().unwrap_or(Path::new("")) };
            let expected = "config.json, which says which states of DINOv2 the depth model reads".into();
            return Err(Error::MissingPart {
                path: folder.to_path_buf(),
                part: "the depth model's settings",
                expected,
            });
        };
        let config = DepthConfig::read(config)?;
        self.load(Kind::Float, checkpoint, |vs| DepthAnything::new(vs, &config))
    }
}

/// The family of an opened transformer. Of one that only its file's other tensors told, its sizes say what is wrong.
fn family_of(transformer: &Checkpoint) -> ModelFamily {
    let family = transformer.contained().into_iter().find_map(|model| match model.family {
        Family::Transformer { family, .. } => Some(family),
        _ => None,
    });
    family.unwrap_or(ModelFamily::Flux1)
}

/// A part that only some requests need.
fn named<'a>(path: &'a Option<PathBuf>, part: &'static str, expected: &'static str) -> Result<&'a Path> {
    path.as_deref().ok_or(Error::UnnamedPart { purpose: "Redux", part, expected })
}

/// The kind that a device computes in: the one that is wanted if it can, else f32. Asked of the device itself, since
/// no list of what each can do stays true.
fn kind_on(device: Device, wanted: Kind) -> Kind {
    let product = |kind| Tensor::f_ones([2, 2], (kind, device)).and_then(|ones| ones.f_matmul(&ones));
    if product(wanted).is_err() && product(Kind::Float).is_ok() { Kind::Float } else { wanted }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_that_a_device_does_not_compute_in_becomes_f32() {
        // The CPU holds complex numbers of two halves, and multiplies no matrices of them.
        assert_eq!(kind_on(Device::Cpu, Kind::ComplexHalf), Kind::Float);
        assert_eq!(kind_on(Device::Cpu, Kind::BFloat16), Kind::BFloat16);
    }
}
