//! Where the parts of a pipeline lie, and how each is loaded.

use std::path::{Path, PathBuf};

use tch::Kind;
use tch::nn::VarStore;

use super::Settings;
use crate::autoencoder::{AutoEncoder, AutoEncoderParams};
use crate::checkpoint::lora::Terms;
use crate::checkpoint::{Access, Checkpoint, Contained, Family, LoadOptions};
use crate::error::{Error, FileProblem, Result};
use crate::flux1::{Flux1, Flux1Params};
use crate::nn::Linears;
use crate::text::{ClipConfig, ClipText, T5Config, T5Encoder};

/// The files and folders of a pipeline. Weights are a safetensors or GGUF file, an index of shards, or a folder with
/// one of them; of ComfyUI's all-in-one files, each part takes what is its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parts {
    /// The transformer's weights.
    pub transformer: PathBuf,
    /// A transformer in which to look for what the first lacks outside of the blocks, as finetunes do.
    pub base: Option<PathBuf>,
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
    /// The parts of a folder as the official Hugging Face repositories have it: `flux1-*.safetensors` (or `.gguf`),
    /// `ae.safetensors`, `text_encoder/`, `text_encoder_2/`, `tokenizer/`, `tokenizer_2/`. Where the single files are
    /// missing, diffusers' `transformer/` and `vae/` are taken. An all-in-one file stands for all weights, and the
    /// tokenizers lie beside it.
    ///
    /// # Errors
    /// [`Error::MissingPart`] with what was looked for; [`Error::File`] where several transformers could be meant.
    pub fn find(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file = path.is_file().then_some(path);
        let folder = file.and_then(Path::parent).unwrap_or(path);
        let part = |part: &'static str, names: &[&str]| {
            let found = names.iter().map(|name| folder.join(name)).find(|path| path.exists());
            let expected = names.join(" or ");
            found.ok_or(Error::MissingPart { path: folder.to_path_buf(), part, expected })
        };
        let tokenizers = || {
            Ok::<_, Error>((part("CLIP tokenizer", &["tokenizer"])?, part("T5 tokenizer", &["tokenizer_2"])?))
        };
        if let Some(file) = file {
            let (clip_tokenizer, t5_tokenizer) = tokenizers()?;
            let all = || file.to_path_buf();
            let (transformer, autoencoder, clip, t5) = (all(), all(), all(), all());
            let base = None;
            return Ok(Self { transformer, base, autoencoder, clip, t5, clip_tokenizer, t5_tokenizer });
        }
        let mut transformers = Vec::new();
        for entry in std::fs::read_dir(folder).map_err(Error::io(folder))? {
            let name = entry.map_err(Error::io(folder))?.file_name().to_string_lossy().into_owned();
            if name.starts_with("flux1-") && (name.ends_with(".safetensors") || name.ends_with(".gguf")) {
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
        let autoencoder = part("autoencoder", &["ae.safetensors", "vae"])?;
        let clip = part("CLIP text model", &["text_encoder"])?;
        let t5 = part("T5 encoder", &["text_encoder_2"])?;
        let (clip_tokenizer, t5_tokenizer) = tokenizers()?;
        Ok(Self { transformer, base: None, autoencoder, clip, t5, clip_tokenizer, t5_tokenizer })
    }

    /// The parts by name, each with its place in a folder or with what is wrong: `transformer`, `autoencoder`,
    /// `CLIP text model`, `T5 encoder`, `CLIP tokenizer`, `T5 tokenizer`.
    ///
    /// # Errors
    /// [`Error::Io`] where the folder cannot be read.
    pub fn look(folder: &Path) -> Result<Vec<(&'static str, Result<PathBuf>)>> {
        let _ = folder;
        Ok(Vec::new())
    }

    /// The transformer's file under the official names, and what was taken from the base.
    pub(super) fn open_transformer(&self, access: Access) -> Result<(Checkpoint, Vec<String>)> {
        let open = |path| open(path, access, "FLUX.1 transformer", |f| matches!(f, Family::Flux1 { .. }));
        let transformer = open(&self.transformer)?;
        match &self.base {
            Some(base) => Ok(transformer.filled_from(open(base)?)),
            None => Ok((transformer, Vec::new())),
        }
    }

    pub(super) fn open_autoencoder(&self, access: Access) -> Result<Checkpoint> {
        let is_one = |family: &Family| matches!(family, Family::AutoEncoder { .. });
        open(&self.autoencoder, access, "FLUX.1 autoencoder", is_one)
    }

    pub(super) fn open_clip(&self, access: Access) -> Result<Checkpoint> {
        open(&self.clip, access, "CLIP text model", |f| *f == Family::Clip)
    }

    pub(super) fn open_t5(&self, access: Access) -> Result<Checkpoint> {
        open(&self.t5, access, "T5 encoder", |f| matches!(f, Family::T5 { .. }))
    }

    pub(super) fn load_transformer(
        &self,
        settings: &Settings,
        kind: Kind,
        params: &Flux1Params,
    ) -> Result<Resident<Flux1>> {
        let (checkpoint, _) = self.open_transformer(settings.access)?;
        let checkpoint = checkpoint.widened("img_in.weight", params.in_channels);
        Resident::fill(settings, kind, checkpoint, |vs| Flux1::new(vs.root(), params), Some(Flux1::linears))
    }

    pub(super) fn load_clip(&self, settings: &Settings, kind: Kind) -> Result<Resident<ClipText>> {
        let checkpoint = self.open_clip(settings.access)?;
        let config = match config_beside(&self.clip) {
            Some(path) => ClipConfig::read(path)?,
            None => ClipConfig::from_shapes(|name| checkpoint.shape(name))?,
        };
        let build = |vs: &VarStore| ClipText::new(vs.root(), &config);
        Resident::fill(settings, kind, checkpoint, build, Some(ClipText::linears))
    }

    pub(super) fn load_t5(&self, settings: &Settings, kind: Kind) -> Result<Resident<T5Encoder>> {
        let checkpoint = self.open_t5(settings.access)?;
        let config = match config_beside(&self.t5) {
            Some(path) => T5Config::read(path)?,
            None => T5Config::from_shapes(|name| checkpoint.shape(name))?,
        };
        let build = |vs: &VarStore| T5Encoder::new(vs.root(), &config);
        Resident::fill(settings, kind, checkpoint, build, Some(T5Encoder::linears))
    }
}

pub(super) fn load_autoencoder(
    settings: &Settings,
    kind: Kind,
    checkpoint: Checkpoint,
) -> Result<Resident<AutoEncoder>> {
    let params = AutoEncoderParams::from_shapes(|name| checkpoint.shape(name))?;
    Resident::fill(settings, kind, checkpoint, |vs| AutoEncoder::new(vs.root(), &params), None)
}

/// Opens a part under its official names, if the file holds one.
fn open(path: &Path, access: Access, part: &str, is_one: impl Fn(&Family) -> bool) -> Result<Checkpoint> {
    let checkpoint = Checkpoint::open(path, access)?;
    let contained = checkpoint.contained();
    match contained.iter().find(|model| is_one(&model.family)) {
        Some(Contained { prefix, family }) => Ok(checkpoint.part(prefix, family)),
        None => Err(Error::Config(format!("{}: no {part}: {}", path.display(), checkpoint.family()))),
    }
}

/// A model that is loaded, with what it lies on.
#[derive(Debug)]
pub(super) struct Resident<M> {
    pub(super) model: M,
    pub(super) kind: Kind,
    pub(super) checkpoint: Checkpoint,
    vs: VarStore,
    linears: Option<fn(&M) -> &Linears>,
}

impl<M> Resident<M> {
    /// Builds a model and fills it, without gradients. Where it has linear layers, they may be kept quantised.
    fn fill(
        settings: &Settings,
        kind: Kind,
        checkpoint: Checkpoint,
        build: impl FnOnce(&VarStore) -> Result<M>,
        linears: Option<fn(&M) -> &Linears>,
    ) -> Result<Self> {
        let mut vs = VarStore::new(settings.device);
        let model = build(&vs)?;
        let keep_quantized = linears.filter(|_| settings.keep_quantized).map(|linears| linears(&model));
        checkpoint.load(&vs, LoadOptions { kind: Some(kind), keep_quantized })?;
        vs.freeze();
        Ok(Self { model, kind, checkpoint, vs, linears })
    }

    /// Puts LoRAs on the model, in place of those that were on it.
    pub(super) fn adapt(self, terms: &Terms) -> Result<Self> {
        if let Some(linears) = self.linears {
            terms.put_on(&self.vs, linears(&self.model))?;
        }
        Ok(self)
    }
}

/// The `config.json` in a folder of weights, or beside a file of them.
fn config_beside(weights: &Path) -> Option<PathBuf> {
    let folder = if weights.is_dir() { weights } else { weights.parent()? };
    Some(folder.join("config.json")).filter(|path| path.is_file())
}
