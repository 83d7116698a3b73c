//! The parts of a pipeline in memory: opened under their official names, built, filled, changed by LoRAs.

use std::path::{Path, PathBuf};

use tch::Kind;
use tch::nn::VarStore;

use super::{Offload, Parts, Settings, configs};
use crate::checkpoint::lora::Terms;
use crate::checkpoint::{Access, Checkpoint, Contained, Family, LoadOptions};
use crate::error::{Error, FileProblem, Result};
use crate::models::Model;
use crate::models::autoencoder::{AnyAutoEncoder, AutoEncoder, TinyAutoEncoder};
use crate::models::flux1::{Flux1, Flux1Params};
use crate::models::text::{ClipText, T5Encoder};
use crate::models::vision::{
    DepthAnything, DepthConfig, ReduxConfig, ReduxImageEncoder, SiglipConfig, SiglipVision,
};

impl Parts {
    /// The transformer's file under the official names, and what was taken from the base.
    pub(super) fn open_transformer(&self, access: Access) -> Result<(Checkpoint, Vec<String>)> {
        let open = |path| {
            open(path, access, TRANSFORMER, |f| f.is_drawn() && matches!(f, Family::Transformer { .. }))
        };
        let transformer = open(&self.transformer)?;
        match &self.base {
            Some(base) => Ok(transformer.filled_from(open(base)?)),
            None => Ok((transformer, Vec::new())),
        }
    }

    pub(super) fn open_autoencoder(&self, access: Access) -> Result<Checkpoint> {
        open_autoencoder(&self.autoencoder, access)
    }

    pub(super) fn open_clip(&self, access: Access) -> Result<Checkpoint> {
        open(&self.clip, access, CLIP, |f| *f == Family::Clip)
    }

    pub(super) fn open_t5(&self, access: Access) -> Result<Checkpoint> {
        open(&self.t5, access, T5, |f| matches!(f, Family::T5 { .. }))
    }

    /// What reads the pictures of Redux.
    pub(super) fn open_image_encoder(&self, access: Access) -> Result<Checkpoint> {
        let path = named(&self.image_encoder, "image encoder", "SigLIP")?;
        open(path, access, SIGLIP, |f| *f == Family::Siglip)
    }

    /// What makes tokens of its states.
    pub(super) fn open_redux(&self, access: Access) -> Result<Checkpoint> {
        let path = named(&self.redux, "Redux model", "flux1-redux-dev.safetensors")?;
        open(path, access, REDUX, |f| *f == Family::Redux)
    }

    /// The sizes of the image encoder, from its settings where they lie beside it.
    pub(super) fn siglip_config(&self, checkpoint: &Checkpoint) -> Result<SiglipConfig> {
        let beside = |path| configs::path_beside(path, configs::Kind::SIGLIP);
        match self.image_encoder.as_deref().map(beside).transpose()?.flatten() {
            Some(path) => SiglipConfig::read(path),
            None => SiglipConfig::from_shapes(|name| checkpoint.shape(name)),
        }
    }

    pub(super) fn load_image_encoder(
        &self,
        settings: &Settings,
        kind: Kind,
    ) -> Result<Resident<SiglipVision>> {
        let checkpoint = self.open_image_encoder(settings.access)?;
        let config = self.siglip_config(&checkpoint)?;
        Resident::load(settings, kind, checkpoint, |vs| SiglipVision::new(vs, &config))
    }

    pub(super) fn load_redux(&self, settings: &Settings, kind: Kind) -> Result<Resident<ReduxImageEncoder>> {
        let checkpoint = self.open_redux(settings.access)?;
        let config = ReduxConfig::from_shapes(|name| checkpoint.shape(name))?;
        Resident::load(settings, kind, checkpoint, |vs| ReduxImageEncoder::new(vs, &config))
    }

    pub(super) fn load_transformer(
        &self,
        settings: &Settings,
        kind: Kind,
        params: &Flux1Params,
    ) -> Result<Resident<Flux1>> {
        let (checkpoint, _) = self.open_transformer(settings.access)?;
        let checkpoint = checkpoint.widened("img_in.weight", params.in_channels);
        Resident::load(settings, kind, checkpoint, |vs| Flux1::new(vs, params))
    }

    pub(super) fn load_clip(&self, settings: &Settings, kind: Kind) -> Result<Resident<ClipText>> {
        let checkpoint = self.open_clip(settings.access)?;
        let config = configs::clip(&self.clip, &checkpoint)?;
        Resident::load(settings, kind, checkpoint, |vs| ClipText::new(vs, &config))
    }

    pub(super) fn load_t5(&self, settings: &Settings, kind: Kind) -> Result<Resident<T5Encoder>> {
        let checkpoint = self.open_t5(settings.access)?;
        let config = configs::t5(&self.t5, &checkpoint)?;
        Resident::load(settings, kind, checkpoint, |vs| T5Encoder::new(vs, &config))
    }
}

/// Opens an autoencoder, full or tiny. Of a tiny one in two files, as its author has them, the second is looked for beside
/// the first.
pub(super) fn open_autoencoder(path: &Path, access: Access) -> Result<Checkpoint> {
    let is_one = |family: &Family| {
        family.is_drawn() && matches!(family, Family::AutoEncoder { .. } | Family::TinyAutoEncoder { .. })
    };
    let first = open(path, access, AUTOENCODER, is_one)?;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let of_two = |mine: &str, other: &str| {
        let halves = first.names().all(|tensor| tensor.starts_with(mine)) && name.contains(mine);
        halves.then(|| path.with_file_name(name.replace(mine, other))).filter(|path| path.is_file())
    };
    match of_two("decoder", "encoder").or_else(|| of_two("encoder", "decoder")) {
        Some(second) => Ok(first.joined(open(&second, access, AUTOENCODER, is_one)?)),
        None => Ok(first),
    }
}

/// Whether an autoencoder is a tiny one.
pub(super) fn is_tiny(autoencoder: &Checkpoint) -> bool {
    ["encoder.layers.0.weight", "decoder.layers.0.weight"]
        .iter()
        .any(|name| autoencoder.shape(name).is_some())
}

/// `path` is where it was opened, beside which its settings lie.
pub(super) fn load_autoencoder(
    settings: &Settings,
    kind: Kind,
    path: &Path,
    checkpoint: Checkpoint,
) -> Result<Resident<AnyAutoEncoder>> {
    let names = checkpoint.clone();
    Resident::load(settings, kind, checkpoint, |vs| {
        Ok(if is_tiny(&names) {
            let (params, _) = configs::tiny_autoencoder(path, &names)?;
            AnyAutoEncoder::Tiny(Box::new(TinyAutoEncoder::new(vs, &params)?))
        } else {
            let (params, _) = configs::autoencoder(path, &names)?;
            AnyAutoEncoder::Full(Box::new(AutoEncoder::new(vs, &params)?))
        })
    })
}

pub(super) fn open_depth(path: &Path, access: Access) -> Result<Checkpoint> {
    open(path, access, DEPTH, |family| *family == Family::Depth)
}

/// The depth model in f32, in which the official code runs it.
pub(super) fn load_depth(settings: &Settings, path: &Path) -> Result<Resident<DepthAnything>> {
    let checkpoint = open_depth(path, settings.access)?;
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
    Resident::load(settings, Kind::Float, checkpoint, |vs| DepthAnything::new(vs, &config))
}

/// A part that only some requests need.
fn named<'a>(path: &'a Option<PathBuf>, part: &'static str, expected: &'static str) -> Result<&'a Path> {
    path.as_deref().ok_or(Error::UnnamedPart { purpose: "Redux", part, expected })
}

/// Opens a part under its official names, if the file holds one.
///
/// # Errors
/// [`FileProblem::OtherModel`] where it holds another model, and as [`Checkpoint::open`].
pub(super) fn open(
    path: &Path,
    access: Access,
    wanted: &'static str,
    is_one: impl Fn(&Family) -> bool,
) -> Result<Checkpoint> {
    let checkpoint = Checkpoint::open(path, access)?;
    let contained = checkpoint.contained();
    match contained.iter().find(|model| is_one(&model.family)) {
        Some(Contained { prefix, family }) => Ok(checkpoint.part(prefix, family)),
        None => Err(other_model(&checkpoint, wanted)),
    }
}

/// The error for a file that holds another model than the one that is wanted: what it is, and what would work.
pub(super) fn other_model(checkpoint: &Checkpoint, wanted: &'static str) -> Error {
    if let Err(packed) = checkpoint.check_readable() {
        return packed;
    }
    let mut looks_like = checkpoint.family().with_flag();
    if checkpoint.family() == Family::AllInOne {
        let names: Vec<_> = checkpoint.contained().iter().map(|model| model.family.name()).collect();
        looks_like = format!("{looks_like}: {}", names.join(", "));
    }
    let works = WORKS.iter().find(|(part, _)| *part == wanted).map_or("", |(_, works)| works);
    // What a model of another family has for its counterpart is said with it.
    if !looks_like.contains(works.split(',').next().unwrap_or_default()) {
        looks_like = format!("{looks_like}; what works here: {works}");
    }
    let path = checkpoint.files().first().map(|path| path.to_path_buf()).unwrap_or_default();
    Error::file(path)(FileProblem::OtherModel { wanted, looks_like })
}

/// What each part is found as.
const WORKS: [(&str, &str); 10] = [
    (
        TRANSFORMER,
        "flux1-dev.safetensors, flux1-schnell.safetensors, a finetune of them, a GGUF file, transformer/",
    ),
    (AUTOENCODER, "ae.safetensors, vae/"),
    (CLIP, "clip_l.safetensors, text_encoder/"),
    (T5, "t5xxl_fp16.safetensors, its fp8 or GGUF files, text_encoder_2/"),
    (SIGLIP, "image_encoder/ of FLUX.1 Redux"),
    (REDUX, "flux1-redux-dev.safetensors, image_embedder/"),
    (DEPTH, "Depth Anything in transformers' names"),
    (CONTROLNET, "a ControlNet of FLUX.1 as XLabs, InstantX or Shakker publish them"),
    (IP_ADAPTER, "XLabs' IP-Adapter of FLUX.1"),
    (CLIP_VISION, "CLIP-L's vision model with its projection, as in clip-vit-large-patch14"),
];

const TRANSFORMER: &str = "FLUX.1 transformer";
const AUTOENCODER: &str = "FLUX.1 autoencoder";
const CLIP: &str = "CLIP text model";
const T5: &str = "T5 encoder";
const SIGLIP: &str = "SigLIP vision model";
const REDUX: &str = "Redux embedder";
const DEPTH: &str = "depth model";
pub(super) const CONTROLNET: &str = "FLUX.1 ControlNet";
pub(super) const IP_ADAPTER: &str = "IP-Adapter of FLUX.1";
pub(super) const CLIP_VISION: &str = "CLIP vision model";

/// A loaded model with its variables and its checkpoint.
#[derive(Debug)]
pub(super) struct Resident<M> {
    pub(super) model: M,
    pub(super) kind: Kind,
    pub(super) checkpoint: Checkpoint,
    vs: VarStore,
}

impl<M: Model> Resident<M> {
    /// Builds a model and loads its weights, without gradients. The settings say whether its linear layers keep quantised
    /// weights, and whether the weights of its blocks are offloaded.
    pub(super) fn load(
        settings: &Settings,
        kind: Kind,
        checkpoint: Checkpoint,
        build: impl FnOnce(tch::nn::Path) -> Result<M>,
    ) -> Result<Self> {
        let mut vs = VarStore::new(settings.device);
        let model = build(vs.root())?;
        let keep_quantized = settings.keep_quantized.then(|| model.linears());
        let offload = (settings.offload == Offload::Blocks).then(|| model.linears());
        checkpoint.load(&vs, LoadOptions { kind: Some(kind), keep_quantized, offload })?;
        vs.freeze();
        model.set_numerics(settings.numerics);
        Ok(Self { model, kind, checkpoint, vs })
    }

    /// Applies LoRAs to the model, and removes those that were applied before.
    pub(super) fn adapt(self, terms: &Terms) -> Result<Self> {
        terms.put_on(&self.vs, self.model.linears())?;
        Ok(self)
    }
}
