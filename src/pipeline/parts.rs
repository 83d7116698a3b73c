//! Where the parts of a pipeline lie, and how each is loaded.

use std::path::{Path, PathBuf};

use tch::Kind;
use tch::nn::VarStore;

use super::Settings;
use crate::autoencoder::{AutoEncoder, AutoEncoderParams};
use crate::checkpoint::{Access, Checkpoint, Family, LoadOptions};
use crate::error::{Error, FileProblem, Result};
use crate::flux1::{Flux1, Flux1Params};
use crate::text::{ClipConfig, ClipText, T5Config, T5Encoder};

/// The files and folders of a pipeline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parts {
    /// The transformer's weights: a file, an index of shards, or a folder with one of them.
    pub transformer: PathBuf,
    /// The autoencoder's, likewise.
    pub autoencoder: PathBuf,
    /// CLIP's, likewise, with `config.json` beside.
    pub clip: PathBuf,
    /// T5's, likewise, with `config.json` beside.
    pub t5: PathBuf,
    /// CLIP's tokenizer: a folder or a `tokenizer.json`.
    pub clip_tokenizer: PathBuf,
    /// T5's tokenizer: a folder, a `tokenizer.json` or a `spiece.model`.
    pub t5_tokenizer: PathBuf,
}

impl Parts {
    /// The parts of a folder as the official Hugging Face repositories have it: `flux1-*.safetensors`,
    /// `ae.safetensors`, `text_encoder/`, `text_encoder_2/`, `tokenizer/`, `tokenizer_2/`. Where the single files are
    /// missing, diffusers' `transformer/` and `vae/` are taken.
    ///
    /// # Errors
    /// [`Error::MissingPart`] with what was looked for; [`Error::File`] where several transformers could be meant.
    pub fn find(folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref();
        let part = |part: &'static str, names: &[&str]| {
            let found = names.iter().map(|name| folder.join(name)).find(|path| path.exists());
            let expected = names.join(" or ");
            found.ok_or(Error::MissingPart { path: folder.to_path_buf(), part, expected })
        };
        let mut transformers = Vec::new();
        for entry in std::fs::read_dir(folder).map_err(Error::io(folder))? {
            let name = entry.map_err(Error::io(folder))?.file_name().to_string_lossy().into_owned();
            if name.starts_with("flux1-") && name.ends_with(".safetensors") {
                transformers.push(name);
            }
        }
        transformers.sort();
        let transformer = match &transformers[..] {
            [] => part("transformer", &["flux1-*.safetensors", "transformer"])?,
            [one] => folder.join(one),
            several => {
                let reason = format!("several transformers could be meant: {}; name one", several.join(", "));
                return Err(Error::file(folder)(FileProblem::Index { reason }));
            }
        };
        Ok(Self {
            transformer,
            autoencoder: part("autoencoder", &["ae.safetensors", "vae"])?,
            clip: part("CLIP text model", &["text_encoder"])?,
            t5: part("T5 encoder", &["text_encoder_2"])?,
            clip_tokenizer: part("CLIP tokenizer", &["tokenizer"])?,
            t5_tokenizer: part("T5 tokenizer", &["tokenizer_2"])?,
        })
    }

    /// The transformer's file under the official names.
    pub(super) fn open_transformer(&self, access: Access) -> Result<Checkpoint> {
        open(&self.transformer, access, "FLUX.1 transformer", |f| matches!(f, Family::Flux1 { .. }))
    }

    pub(super) fn load_transformer(&self, settings: &Settings, kind: Kind) -> Result<Resident<Flux1>> {
        let checkpoint = self.open_transformer(settings.access)?;
        let params = Flux1Params::from_shapes(|name| checkpoint.shape(name))?;
        Resident::fill(settings, kind, checkpoint, |vs| Flux1::new(vs.root(), &params))
    }

    /// In the kind of its file, unless the pipeline computes in f32 throughout.
    pub(super) fn load_autoencoder(&self, settings: &Settings, kind: Kind) -> Result<Resident<AutoEncoder>> {
        let is_one = |family: &Family| matches!(family, Family::AutoEncoder { .. });
        let checkpoint = open(&self.autoencoder, settings.access, "FLUX.1 autoencoder", is_one)?;
        let kind = if kind == Kind::Float { kind } else { checkpoint.main_kind().unwrap_or(kind) };
        let params = AutoEncoderParams::from_shapes(|name| checkpoint.shape(name))?;
        Resident::fill(settings, kind, checkpoint, |vs| AutoEncoder::new(vs.root(), &params))
    }

    pub(super) fn load_clip(&self, settings: &Settings, kind: Kind) -> Result<Resident<ClipText>> {
        let checkpoint = open(&self.clip, settings.access, "CLIP text model", |f| *f == Family::Clip)?;
        let config = match config_beside(&self.clip) {
            Some(path) => ClipConfig::read(path)?,
            None => ClipConfig::from_shapes(|name| checkpoint.shape(name))?,
        };
        Resident::fill(settings, kind, checkpoint, |vs| ClipText::new(vs.root(), &config))
    }

    pub(super) fn load_t5(&self, settings: &Settings, kind: Kind) -> Result<Resident<T5Encoder>> {
        let checkpoint = open(&self.t5, settings.access, "T5 encoder", |f| *f == Family::T5)?;
        let config = match config_beside(&self.t5) {
            Some(path) => T5Config::read(path)?,
            None => T5Config::from_shapes(|name| checkpoint.shape(name))?,
        };
        Resident::fill(settings, kind, checkpoint, |vs| T5Encoder::new(vs.root(), &config))
    }
}

/// Opens a part under its official names, if it is what it should be.
fn open(path: &Path, access: Access, part: &str, is_one: impl Fn(&Family) -> bool) -> Result<Checkpoint> {
    let checkpoint = Checkpoint::open(path, access)?;
    let family = checkpoint.family();
    if !is_one(&family) {
        return Err(Error::Config(format!("{}: no {part}: {family}", path.display())));
    }
    Ok(checkpoint.official())
}

/// A model that is loaded, with what it lies on.
#[derive(Debug)]
pub(super) struct Resident<M> {
    pub(super) model: M,
    pub(super) kind: Kind,
    pub(super) checkpoint: Checkpoint,
    _vs: VarStore,
}

impl<M> Resident<M> {
    /// Builds a model and fills it, without gradients.
    fn fill(
        settings: &Settings,
        kind: Kind,
        checkpoint: Checkpoint,
        build: impl FnOnce(&VarStore) -> Result<M>,
    ) -> Result<Self> {
        let mut vs = VarStore::new(settings.device);
        let model = build(&vs)?;
        checkpoint.load(&vs, LoadOptions { kind: Some(kind) })?;
        vs.freeze();
        Ok(Self { model, kind, checkpoint, _vs: vs })
    }
}

/// The `config.json` in a folder of weights, or beside a file of them.
fn config_beside(weights: &Path) -> Option<PathBuf> {
    let folder = if weights.is_dir() { weights } else { weights.parent()? };
    Some(folder.join("config.json")).filter(|path| path.is_file())
}
