//! Where the parts of a pipeline lie.

use std::path::{Path, PathBuf};

use super::PartKind;
use super::model_index::ModelIndex;
use crate::checkpoint::{before_end, is_index, names_in, one_model};
use crate::error::{Error, Result};

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
    /// The embedder of Redux, for requests with such pictures.
    pub redux: Option<PathBuf>,
    /// SigLIP, which reads them, with `config.json` beside.
    pub image_encoder: Option<PathBuf>,
    /// What makes previews; without it, the autoencoder does.
    pub preview: Option<PreviewBy>,
    /// The weights of a depth model, with `config.json` beside, for [`ControlPreprocess::Depth`](super::ControlPreprocess::Depth).
    pub depth: Option<PathBuf>,
    /// diffusers' `scheduler_config.json`: the sampler and the schedule of requests that name none. Without it they are
    /// the official ones, and so they are for a transformer of another variant than its folder's.
    pub scheduler: Option<PathBuf>,
    /// diffusers' `model_index.json`, of the folder that the transformer is in: the class of its pipeline says what
    /// pictures are to it.
    pub model_index: Option<PathBuf>,
}

/// What makes previews in place of the autoencoder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PreviewBy {
    /// The weights of another autoencoder, a tiny one: its previews are as large as the pictures.
    Decoder(PathBuf),
    /// A file of factors from a latent's channels to colours, as `scripts/fit_latent_rgb.py` writes it: its previews have
    /// a pixel for each place of the latent, and take no time.
    Factors(PathBuf),
}

impl Parts {
    /// The parts of a folder as the official Hugging Face repositories have it: `flux1-*.safetensors` (or `.gguf`),
    /// `ae.safetensors`, `text_encoder/`, `text_encoder_2/`, `tokenizer/`, `tokenizer_2/`. Where the single files are
    /// missing, diffusers' `transformer/` and `vae/` are taken. An all-in-one file stands for all weights, and the
    /// tokenizers lie beside it. What a folder has of Redux is taken, too: see [`PartOverrides::redux`].
    ///
    /// # Errors
    /// [`Error::MissingPart`] with what was looked for; [`Error::File`] where several transformers could be meant.
    pub fn find(path: impl AsRef<Path>) -> Result<Self> {
        Self::find_rest(PartOverrides::default(), path)
    }

    /// The parts that are named, and the others of a folder or file, which need not hold those that are named.
    ///
    /// # Errors
    /// Those of [`Parts::find`].
    pub fn find_rest(own: PartOverrides, path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let file = path.is_file();
        let folder = if file { path.parent().unwrap_or(Path::new("")) } else { path };
        let folder = if folder == Path::new("") { Path::new(".") } else { folder };
        let names = names_in(folder)?;
        let there = |name: &str| Some(folder.join(name)).filter(|path| path.is_file());
        // It is of what the folder's own transformer draws.
        let model_index = if file || own.transformer.is_some() { None } else { there(MODEL_INDEX) };
        if let Some(index) = &model_index {
            // Another model lacks parts, too: what it is says more than what it lacks.
            ModelIndex::read(index)?;
        }
        let scheduler = own.scheduler.clone().or_else(|| there(SCHEDULER));
        let parts = own.rest(|part| match part {
            part if file && !part.is_tokenizer() => Ok::<_, Error>(path.to_path_buf()),
            part => Ok(folder.join(part.choose(folder, &names)?)),
        })?;
        let parts = Self { scheduler, model_index, ..parts };
        if parts.redux.is_some() { parts.with_redux() } else { parts.with_redux_of(folder) }
    }

    /// Where the embedder of Redux is a folder as its official repository has it, what is in there.
    ///
    /// # Errors
    /// [`Error::Io`] where the folder cannot be read, [`Error::File`] where several files could be meant.
    pub fn with_redux(self) -> Result<Self> {
        match self.redux.clone() {
            Some(folder) if folder.is_dir() => self.with_redux_of(&folder),
            _ => Ok(self),
        }
    }

    /// The transformer in a folder, where one alone could be meant.
    pub(super) fn transformer_in(folder: &Path) -> Option<PathBuf> {
        let names = names_in(folder).ok()?;
        PartKind::Transformer.choose(folder, &names).ok().map(|name| folder.join(name))
    }

    /// The embedder and the image encoder in a folder, where it has them.
    fn with_redux_of(mut self, folder: &Path) -> Result<Self> {
        let names = names_in(folder)?;
        let found = |part: PartKind| match part.choose(folder, &names) {
            Ok(name) => Ok(Some(folder.join(name))),
            Err(Error::MissingPart { .. }) => Ok(None),
            Err(other) => Err(other),
        };
        if let Some(redux) = found(PartKind::Redux)? {
            self.redux = Some(redux);
            // Other models have an image encoder of their own: only beside Redux it is this one.
            if self.image_encoder.is_none() {
                self.image_encoder = found(PartKind::ImageEncoder)?;
            }
        }
        Ok(self)
    }

    /// Returns the parts that every pipeline has, each with its place in a folder or with what is wrong; and, where they are
    /// there, Redux and its image encoder.
    ///
    /// # Errors
    /// [`Error::Io`] where the folder cannot be read.
    pub fn look(folder: &Path) -> Result<Vec<(PartKind, Result<PathBuf>)>> {
        let names = names_in(folder)?;
        let place = |part: PartKind| (part, part.choose(folder, &names).map(|name| folder.join(name)));
        let mut places: Vec<_> = PartKind::REQUIRED.map(place).into();
        if let redux @ (_, Ok(_)) = place(PartKind::Redux) {
            places.push(redux);
            places.extend(Some(place(PartKind::ImageEncoder)).filter(|(_, found)| found.is_ok()));
        }
        Ok(places)
    }
}

/// Parts that are named one by one. What is `None` comes from a folder or from the hub.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PartOverrides {
    /// As [`Parts::transformer`].
    pub transformer: Option<PathBuf>,
    /// As [`Parts::base`]; no folder has one.
    pub base: Option<PathBuf>,
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
    /// As [`Parts::redux`], or a folder with `flux1-redux-*.safetensors` or diffusers' `image_embedder/` in it, and with
    /// `image_encoder/`.
    pub redux: Option<PathBuf>,
    /// As [`Parts::image_encoder`].
    pub image_encoder: Option<PathBuf>,
    /// As [`Parts::preview`]; no folder has one.
    pub preview: Option<PreviewBy>,
    /// As [`Parts::depth`]; no folder has one.
    pub depth: Option<PathBuf>,
    /// As [`Parts::scheduler`]; a folder has it in `scheduler/`.
    pub scheduler: Option<PathBuf>,
}

/// Where a folder of diffusers says how its model is walked.
pub(crate) const SCHEDULER: &str = "scheduler/scheduler_config.json";
/// Where it says what the whole is.
pub(crate) const MODEL_INDEX: &str = "model_index.json";

impl PartOverrides {
    /// The parts, where all of them are named.
    pub fn whole(&self) -> Option<Parts> {
        self.clone().rest(|_| Err(())).ok()
    }

    /// The parts that are named, and those that `find` finds.
    pub(crate) fn rest<E>(
        self,
        mut find: impl FnMut(PartKind) -> std::result::Result<PathBuf, E>,
    ) -> std::result::Result<Parts, E> {
        let mut pick = |own: Option<PathBuf>, part| own.map_or_else(|| find(part), Ok);
        Ok(Parts {
            transformer: pick(self.transformer, PartKind::Transformer)?,
            base: self.base,
            autoencoder: pick(self.autoencoder, PartKind::Autoencoder)?,
            clip: pick(self.clip, PartKind::Clip)?,
            t5: pick(self.t5, PartKind::T5)?,
            clip_tokenizer: pick(self.clip_tokenizer, PartKind::ClipTokenizer)?,
            t5_tokenizer: pick(self.t5_tokenizer, PartKind::T5Tokenizer)?,
            redux: self.redux,
            image_encoder: self.image_encoder,
            preview: self.preview,
            depth: self.depth,
            scheduler: self.scheduler,
            model_index: None,
        })
    }
}

impl PartKind {
    /// Which of the names in a folder is this part: the rule for folders and for repositories.
    pub(crate) fn choose<'a>(self, folder: &Path, names: &'a [String]) -> Result<&'a str> {
        let (part, expected) = (self.name(), self.patterns());
        for pattern in &expected {
            let Some((start, end)) = pattern.split_once('*') else {
                match names.iter().find(|name| name.as_str() == *pattern) {
                    Some(name) => return Ok(name),
                    None => continue,
                }
            };
            let fits = |name: &&String| {
                // Redux is called as transformers are.
                let redux = self == Self::Transformer && name.starts_with("flux1-redux-");
                name.starts_with(start) && !redux && (before_end(name, end).is_some() || is_index(name))
            };
            let matching = names.iter().filter(fits).map(String::as_str);
            if let Some(name) = one_model(folder, part, matching)? {
                return Ok(name);
            }
        }
        Err(Error::MissingPart { path: folder.to_path_buf(), part, expected: expected.join(" or ") })
    }
}
