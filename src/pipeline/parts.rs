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
        Self::find_rest(OwnParts::default(), folder)
    }

    /// The parts that are named, and the others of a folder, which need not hold those that are named.
    ///
    /// # Errors
    /// Those of [`Parts::find`].
    pub fn find_rest(own: OwnParts, folder: impl AsRef<Path>) -> Result<Self> {
        let folder = folder.as_ref();
        let mut names = Vec::new();
        for entry in std::fs::read_dir(folder).map_err(Error::io(folder))? {
            names.push(entry.map_err(Error::io(folder))?.file_name().to_string_lossy().into_owned());
        }
        names.sort();
        own.rest(|part| Ok(folder.join(part.choose(folder, &names)?)))
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

/// Parts that are named one by one. What is `None` comes from a folder or from the hub.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OwnParts {
    /// As [`Parts::transformer`].
    pub transformer: Option<PathBuf>,
    /// As [`Parts::autoencoder`].
    pub autoencoder: Option<PathBuf>,
    /// As [`Parts::clip`].
    pub clip: Option<PathBuf>,
    /// As [`Parts::t5`].
    pub t5: Option<PathBuf>,
    /// As [`Parts::clip_tokenizer`].
    pub clip_tokenizer: Option<PathBuf>,
    /// As [`Parts::t5_tokenizer`].
    pub t5_tokenizer: Option<PathBuf>,
}

impl OwnParts {
    /// The parts, where all of them are named.
    pub fn whole(&self) -> Option<Parts> {
        self.clone().rest(|_| Err(())).ok()
    }

    /// The parts that are named, and those that `find` finds.
    pub(crate) fn rest<E>(
        self,
        mut find: impl FnMut(Part) -> std::result::Result<PathBuf, E>,
    ) -> std::result::Result<Parts, E> {
        let mut pick = |own: Option<PathBuf>, part| own.map_or_else(|| find(part), Ok);
        Ok(Parts {
            transformer: pick(self.transformer, Part::Transformer)?,
            autoencoder: pick(self.autoencoder, Part::Autoencoder)?,
            clip: pick(self.clip, Part::Clip)?,
            t5: pick(self.t5, Part::T5)?,
            clip_tokenizer: pick(self.clip_tokenizer, Part::ClipTokenizer)?,
            t5_tokenizer: pick(self.t5_tokenizer, Part::T5Tokenizer)?,
        })
    }
}

/// One of the parts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    Transformer,
    Autoencoder,
    Clip,
    T5,
    ClipTokenizer,
    T5Tokenizer,
}

impl Part {
    /// Which of the names in a folder is this part: the rule for folders and for repositories.
    pub(crate) fn choose<'a>(self, folder: &Path, names: &'a [String]) -> Result<&'a str> {
        let (part, expected): (_, &[&str]) = match self {
            Self::Transformer => ("transformer", &["flux1-*.safetensors", "transformer"]),
            Self::Autoencoder => ("autoencoder", &["ae.safetensors", "vae"]),
            Self::Clip => ("CLIP text model", &["text_encoder"]),
            Self::T5 => ("T5 encoder", &["text_encoder_2"]),
            Self::ClipTokenizer => ("CLIP tokenizer", &["tokenizer"]),
            Self::T5Tokenizer => ("T5 tokenizer", &["tokenizer_2"]),
        };
        for pattern in expected {
            let fits = |name: &&String| match pattern.split_once('*') {
                Some((start, end)) => name.starts_with(start) && name.ends_with(end),
                None => name == pattern,
            };
            match names.iter().filter(fits).collect::<Vec<_>>()[..] {
                [] => {}
                [one] => return Ok(one),
                ref several => {
                    let several: Vec<_> = several.iter().map(|name| name.as_str()).collect();
                    let reason = format!("several {part}s could be meant: {}; name one", several.join(", "));
                    return Err(Error::file(folder)(FileProblem::Index { reason }));
                }
            }
        }
        Err(Error::MissingPart { path: folder.to_path_buf(), part, expected: expected.join(" or ") })
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
