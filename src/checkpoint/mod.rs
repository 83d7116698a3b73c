//! Weight files: opened, looked at, and poured into a variable store.
//!
//! The way of a weight: file → bytes → rename, join, swap → cast → `VarStore`, one tensor at a time. Nothing here knows
//! a model: what is wanted is what the store declares.

mod detect;
mod file;
mod names;
mod safetensors;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use ::safetensors::Dtype;
use serde::Deserialize;
use tch::nn::VarStore;
use tch::{Kind, Tensor};

pub use detect::{Family, Layout};
pub use file::Access;
pub use names::{
    AUTOENCODER_DIFFUSERS, FLUX1_DIFFUSERS, FLUX2_DIFFUSERS, NORMS_SPELLED_WEIGHT, Rename, Renames, T5_LLAMA,
};
pub use safetensors::{Entry, Header};

use crate::error::{Error, FileProblem, Mismatch, Result};
use crate::quant::Encoding;
use file::WeightFile;
use safetensors::{printable, shorten};

/// How a checkpoint is poured into a store.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct LoadOptions {
    /// The kind of every parameter in memory. `None` keeps the file's, which must then be one kind throughout.
    pub kind: Option<Kind>,
}

/// What was loaded.
#[derive(Debug, Clone, PartialEq)]
pub struct Loaded {
    /// How many tensors.
    pub tensors: usize,
    /// Their bytes in memory, borrowed ones included.
    pub bytes: u64,
    /// How many of them lie in the mapped file.
    pub borrowed: usize,
    /// Their kind.
    pub kind: Kind,
}

/// One or several weight files that together hold a model.
#[derive(Debug)]
pub struct Checkpoint {
    files: Vec<WeightFile>,
    /// The tensors by the names that the model knows.
    tensors: BTreeMap<String, Source>,
}

/// Where a tensor comes from.
#[derive(Debug, Clone)]
struct Source {
    /// The file and the entry of each part; several are joined on the first axis.
    parts: Vec<(usize, String)>,
    shape: Vec<i64>,
    change: names::Change,
}

impl Checkpoint {
    /// Opens a safetensors file, an index of shards (`….safetensors.index.json`), or a folder that holds one of them.
    /// Headers are read and checked, nothing else.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::File`] with what is wrong, [`Error::MissingPart`] for a folder without weights.
    pub fn open(path: impl AsRef<Path>, access: Access) -> Result<Self> {
        let path = path.as_ref();
        let path = if path.is_dir() { &find_in_folder(path)? } else { path };
        if path.to_string_lossy().ends_with(".index.json") {
            return Self::open_index(path, access);
        }
        Self::from_files(vec![WeightFile::open(path, access)?])
    }

    fn open_index(path: &Path, access: Access) -> Result<Self> {
        let problem = |reason: String| Error::file(path)(FileProblem::Index { reason });
        let index = Index::read(path)?;
        let shards = index.shards();
        let folder = path.parent().unwrap_or(Path::new(""));
        let files: Vec<_> =
            shards.iter().map(|s| WeightFile::open(&folder.join(s), access)).collect::<Result<_>>()?;
        for (shard, file) in shards.iter().zip(&files) {
            for name in file.header.entries.keys() {
                match index.weight_map.get(name) {
                    Some(place) if place == *shard => {}
                    Some(place) => {
                        let (name, place) = (shorten(name), shorten(place));
                        return Err(problem(format!("{name} is in {shard} too, not only in {place}")));
                    }
                    None => {
                        let name = shorten(name);
                        return Err(problem(format!("it does not name {name}, which is in {shard}")));
                    }
                }
            }
        }
        for (name, shard) in &index.weight_map {
            let file = shards.iter().position(|s| *s == shard).map(|i| &files[i]);
            if !file.is_some_and(|f| f.header.entries.contains_key(name)) {
                return Err(problem(format!("{} is not in {shard}", shorten(name))));
            }
        }
        Self::from_files(files)
    }

    fn from_files(files: Vec<WeightFile>) -> Result<Self> {
        let mut tensors = BTreeMap::new();
        for (i, file) in files.iter().enumerate() {
            for (name, entry) in &file.header.entries {
                let source = Source {
                    parts: vec![(i, name.clone())],
                    shape: entry.shape.clone(),
                    change: names::Change::None,
                };
                if tensors.insert(name.clone(), source).is_some() {
                    let reason = format!("{name} is in two of the files");
                    return Err(Error::file(&file.path)(FileProblem::Index { reason }));
                }
            }
        }
        Ok(Self { files, tensors })
    }

    /// The same tensors under the names of another layout. Names that no rule knows stay as they are, so that loading
    /// reports them.
    pub fn renamed(mut self, renames: &Renames) -> Self {
        self.tensors = renames.apply(self.tensors);
        self
    }

    /// The same tensors under the official names, whatever layout was found: diffusers' and ComfyUI's transformer,
    /// diffusers' autoencoder, T5's embedding under either of its names, CLIP with and without `text_model.`.
    pub fn official(self) -> Self {
        match self.family() {
            Family::Flux1 { layout: Layout::Diffusers, .. } => self.renamed(&FLUX1_DIFFUSERS),
            Family::Flux1 { layout: Layout::Comfy, .. } => self.under("model.diffusion_model."),
            Family::AutoEncoder { layout: Layout::Diffusers } => self.renamed(&AUTOENCODER_DIFFUSERS),
            Family::T5 => self.alias("encoder.embed_tokens.weight", "shared.weight"),
            Family::Clip => {
                let bare = self.shape("embeddings.token_embedding.weight").is_some();
                let clip = if bare { self.prefixed("text_model.") } else { self };
                // Older writers kept this count from 0 to 76 beside the weights.
                clip.without(&["text_model.embeddings.position_ids"])
            }
            _ => self,
        }
    }

    /// Only the tensors whose names begin with `prefix`, without it.
    pub fn under(mut self, prefix: &str) -> Self {
        let tensors = std::mem::take(&mut self.tensors).into_iter();
        self.tensors = tensors.filter_map(|(n, s)| Some((n.strip_prefix(prefix)?.to_string(), s))).collect();
        self
    }

    /// Without the tensors of these names: buffers that some writers keep beside the weights.
    pub fn without(mut self, names: &[&str]) -> Self {
        names.iter().for_each(|name| drop(self.tensors.remove(*name)));
        self
    }

    /// Puts `prefix` before every name.
    pub fn prefixed(mut self, prefix: &str) -> Self {
        let tensors = std::mem::take(&mut self.tensors).into_iter();
        self.tensors = tensors.map(|(name, source)| (format!("{prefix}{name}"), source)).collect();
        self
    }

    /// Lets the tensor `from` stand in for `to` where that is missing, and drops it where both are there: T5's
    /// embedding bears two names.
    pub fn alias(mut self, from: &str, to: &str) -> Self {
        if let Some(source) = self.tensors.remove(from) {
            self.tensors.entry(to.to_string()).or_insert(source);
        }
        self
    }

    /// The files, in the order in which they were opened.
    pub fn files(&self) -> Vec<&Path> {
        self.files.iter().map(|f| f.path.as_path()).collect()
    }

    /// The headers of the files.
    pub fn headers(&self) -> Vec<&Header> {
        self.files.iter().map(|f| &f.header).collect()
    }

    /// The names of the tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The shape of a tensor.
    pub fn shape(&self, name: &str) -> Option<Vec<i64>> {
        self.tensors.get(name).map(|source| source.shape.clone())
    }

    /// What the names and shapes say that this is.
    pub fn family(&self) -> Family {
        Family::of(&|name| self.shape(name), self.tensors.keys().map(String::as_str))
    }

    /// The bytes of all tensors in the files.
    pub fn bytes(&self) -> u64 {
        self.entries().map(|e| e.end - e.begin).sum()
    }

    /// How many numbers the tensors hold.
    pub fn parameters(&self) -> u64 {
        self.entries().map(Entry::numel).sum()
    }

    /// The types of the tensors, with how many bytes each takes.
    pub fn dtypes(&self) -> BTreeMap<String, u64> {
        self.entries().fold(BTreeMap::new(), |mut types, e| {
            *types.entry(e.encoding.to_string()).or_default() += e.end - e.begin;
            types
        })
    }

    /// The kind that takes the most bytes, where it is one that libtorch computes in.
    pub fn main_kind(&self) -> Option<Kind> {
        let mut kinds: Vec<(Kind, u64)> = Vec::new();
        for entry in self.entries() {
            let Some(kind) = entry.encoding.kind() else { continue };
            match kinds.iter_mut().find(|(k, _)| *k == kind) {
                Some((_, bytes)) => *bytes += entry.end - entry.begin,
                None => kinds.push((kind, entry.end - entry.begin)),
            }
        }
        kinds.into_iter().max_by_key(|(_, bytes)| *bytes).map(|(kind, _)| kind)
    }

    /// [`Error::Changed`] where a file is no longer as long as when it was opened. Whoever computes with borrowed
    /// weights asks before each run: a mapped file that shrinks takes the process with it.
    pub fn check_unchanged(&self) -> Result<()> {
        self.files.iter().try_for_each(WeightFile::check_unchanged)
    }

    /// One tensor on the CPU, in the kind of the file, under the name that the model knows.
    ///
    /// # Errors
    /// [`Error::Mismatch`] where there is none of that name, else as [`Checkpoint::load`].
    pub fn tensor(&self, name: &str) -> Result<Tensor> {
        let source = self.tensors.get(name).ok_or_else(|| {
            Error::Mismatch(Box::new(Mismatch { missing: vec![name.to_string()], ..self.no_mismatch() }))
        })?;
        let parts = source.parts.iter().map(|(file, name)| {
            let file = &self.files[*file];
            file.tensor(&file.header.entries[name])
        });
        let mut parts = parts.collect::<Result<Vec<_>>>()?;
        let tensor = if parts.len() == 1 { parts.swap_remove(0) } else { Tensor::f_cat(&parts, 0)? };
        Ok(source.change.apply(&tensor)?.f_reshape(&source.shape)?)
    }

    /// Fills every parameter of the store, one tensor at a time, on the store's device.
    ///
    /// Names and shapes must be the same, all of them: nothing is filled otherwise. On the CPU a parameter lies in the
    /// mapped file where the file is mapped and its kind is the one asked for.
    ///
    /// # Errors
    /// [`Error::Mismatch`] with everything that differs, [`Error::Changed`], [`Error::Io`], [`Error::Tch`].
    pub fn load(&self, vs: &VarStore, options: LoadOptions) -> Result<Loaded> {
        let _no_grad = tch::no_grad_guard();
        self.check_unchanged()?;
        let variables: BTreeMap<String, Tensor> = vs.variables().into_iter().collect();
        let kind = options.kind.or_else(|| self.main_kind()).unwrap_or(Kind::Float);
        let mismatch = self.compare(&variables, options.kind, kind);
        if !mismatch.is_empty() {
            return Err(Error::Mismatch(Box::new(mismatch)));
        }
        let mut loaded = Loaded { tensors: 0, bytes: 0, borrowed: 0, kind };
        let mut filled = Vec::with_capacity(variables.len());
        for (name, variable) in variables {
            let tensor = self.tensor(&name)?;
            let tensor = tensor.f_to_device(vs.device())?.f_to_kind(kind)?;
            loaded.borrowed += usize::from(self.files.iter().any(|file| file.holds(&tensor)));
            loaded.bytes += (tensor.numel() * kind.elt_size_in_bytes()) as u64;
            loaded.tensors += 1;
            filled.push((variable, tensor));
        }
        // Only now, so that a file that fails half-way leaves the model as it was.
        for (mut variable, tensor) in filled {
            variable.f_set_data(&tensor)?;
        }
        Ok(loaded)
    }

    fn compare(&self, variables: &BTreeMap<String, Tensor>, asked: Option<Kind>, kind: Kind) -> Mismatch {
        let mut mismatch = self.no_mismatch();
        for (name, variable) in variables {
            let Some(source) = self.tensors.get(name) else {
                mismatch.missing.push(name.clone());
                continue;
            };
            if source.shape != variable.size() {
                mismatch.misshapen.push((name.clone(), variable.size(), source.shape.clone()));
            }
            for (file, part) in &source.parts {
                let encoding = self.files[*file].header.entries[part].encoding;
                if let Some(why) = cannot_become(encoding, asked, kind) {
                    mismatch.of_another_kind.push((name.clone(), why));
                    break;
                }
            }
        }
        mismatch.unexpected = self.tensors.keys().filter(|n| !variables.contains_key(*n)).cloned().collect();
        if !mismatch.is_empty() {
            mismatch.looks_like = self.family().to_string();
        }
        mismatch
    }

    fn no_mismatch(&self) -> Mismatch {
        Mismatch {
            files: self.files.iter().map(|f| f.path.clone()).collect(),
            looks_like: self.family().to_string(),
            ..Mismatch::default()
        }
    }

    /// The entries behind the names that the checkpoint has now, not all that the files hold.
    fn entries(&self) -> impl Iterator<Item = &Entry> {
        let parts = self.tensors.values().flat_map(|source| &source.parts);
        parts.map(|(file, name)| &self.files[*file].header.entries[name])
    }
}

/// Why a stored type cannot be loaded as `kind`: it is no float that libtorch computes in, or, where no kind was
/// asked for, it is not the kind of the rest of the file.
fn cannot_become(encoding: Encoding, asked: Option<Kind>, kind: Kind) -> Option<String> {
    match encoding {
        Encoding::Plain(Dtype::F16 | Dtype::BF16 | Dtype::F32 | Dtype::F64) => {
            let differs = asked.is_none() && encoding.kind() != Some(kind);
            differs.then(|| format!("is {encoding} in a file of {kind:?}: ask for one kind to cast to"))
        }
        _ => Some(format!("is {encoding}, which is no plain float: quantised files are not loaded yet")),
    }
}

/// The weights in a folder: one index, or else one file.
fn find_in_folder(folder: &Path) -> Result<PathBuf> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(Error::io(folder))? {
        names.push(entry.map_err(Error::io(folder))?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(folder.join(weights_among(folder, &names)?))
}

/// The names that transformers and diffusers give weights; their variants have another word in between.
const USUAL_NAMES: [&str; 2] = ["model", "diffusion_pytorch_model"];

/// Which of the names in a folder are its weights: an index of shards, else a file. Of several it is the one with a
/// usual name.
pub(crate) fn weights_among<'a>(folder: &Path, names: &'a [String]) -> Result<&'a str> {
    for end in [".safetensors.index.json", ".safetensors"] {
        let found: Vec<_> =
            names.iter().filter_map(|name| Some((name.as_str(), name.strip_suffix(end)?))).collect();
        let usual: Vec<_> = found.iter().filter(|(_, stem)| USUAL_NAMES.contains(stem)).collect();
        match (&found[..], &usual[..]) {
            ([], _) => {}
            ([(one, _)], _) | (_, [(one, _)]) => return Ok(one),
            _ => {
                let names: Vec<_> = found.iter().map(|(name, _)| *name).collect();
                let reason = format!("several files could be meant: {}; name one", names.join(", "));
                return Err(Error::file(folder)(FileProblem::Index { reason }));
            }
        }
    }
    Err(Error::MissingPart {
        path: folder.to_path_buf(),
        part: "weights",
        expected: "*.safetensors or *.safetensors.index.json".into(),
    })
}

/// Which shard each tensor is in, as an index says.
#[derive(Deserialize)]
pub(crate) struct Index {
    #[serde(deserialize_with = "safetensors::unique")]
    weight_map: BTreeMap<String, String>,
}

impl Index {
    /// Reads an index; each of its shards is a file beside it.
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let problem = |reason: String| Error::file(path)(FileProblem::Index { reason });
        let text = file::read_index(path)?;
        let index: Self = serde_json::from_str(&text).map_err(|e| problem(printable(&e)))?;
        if let Some(bad) = index.shards().into_iter().find(|shard| !is_plain_name(shard)) {
            return Err(problem(format!("\"{}\" is no plain name of a file beside it", shorten(bad))));
        }
        Ok(index)
    }

    pub(crate) fn shards(&self) -> BTreeSet<&String> {
        self.weight_map.values().collect()
    }
}

/// A name that cannot lead out of a folder.
fn is_plain_name(name: &str) -> bool {
    let mut components = Path::new(name).components();
    let first = components.next();
    matches!(first, Some(std::path::Component::Normal(_)))
        && components.next().is_none()
        && !name.contains(['\\', ':'])
}
