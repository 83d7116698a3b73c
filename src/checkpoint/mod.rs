//! Weight files: opened, looked at, and poured into a variable store.
//!
//! The way of a weight: file → bytes → rename, join, swap → cast → `VarStore`, one tensor at a time. Nothing here knows
//! a model: what is wanted is what the store declares.

mod detect;
mod file;
mod finite;
mod folder;
mod gguf;
mod index;
mod load;
pub mod lora;
mod names;
mod quant_state;
mod safetensors;
mod select;
mod source;
mod staging;
pub(crate) mod stream;
pub(crate) mod write;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use tch::Kind;

pub use detect::{Contained, Family, ForeignModel, Layout, Packing, Role};
pub use file::Access;
#[cfg(test)]
pub(crate) use file::HEADERS_READ;
pub(crate) use file::read_index;
pub(crate) use folder::{before_end, is_index, names_in, one_model};
#[cfg(feature = "hub")]
pub(crate) use folder::{shards_of, weights_among};
pub use index::Index;
pub use load::{LoadOptions, Loaded};
pub use names::{
    AUTOENCODER_DIFFUSERS, CLIP_OPENAI, CLIP_VISION_OPENAI, CONTROLNET_DIFFUSERS, DEPTH_TRANSFORMERS_5,
    FLUX1_DIFFUSERS, FLUX2_DIFFUSERS, NORMS_SPELLED_WEIGHT, Rename, Renames, T5_LLAMA, TAESD_DECODER,
    TAESD_ENCODER, transformer_diffusers,
};
pub(crate) use quant_state::is_embedding;
pub use safetensors::{Entry, Header};

use crate::error::{Error, FileProblem, Result};
use crate::family::ModelFamily;
use detect::{Names, find_packing, without_wrappers};
use file::WeightFile;
use folder::Weights;
use source::{Part, Source, Stored};

/// One or several weight files that together hold a model, or several. Clones share the open files.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    files: Vec<Arc<WeightFile>>,
    /// The tensors by the names that the model knows.
    tensors: BTreeMap<String, Source>,
    /// Names of tensors that the model in it does not read.
    left_aside: Vec<String>,
    /// What a caller should know about how the files were read.
    warnings: Vec<String>,
    /// The form in which the weights are packed, where that is one that cannot be read.
    packing: Option<&'static Packing>,
}

impl Checkpoint {
    /// Opens a safetensors or GGUF file, an index of shards (`….safetensors.index.json`), or a folder that holds one of
    /// them. Of a file that is one of several shards, all are opened, by their index where it lies beside them, else by the
    /// numbers in their names (`…-00001-of-00002.safetensors`); [`Checkpoint::warnings`] says so. Headers are read and
    /// checked, nothing else. What torch.compile, FSDP and activation checkpoints put among the names is left out of them.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::File`] with what is wrong, [`Error::MissingPart`] for a folder without weights.
    pub fn open(path: impl AsRef<Path>, access: Access) -> Result<Self> {
        let (weights, warning) = folder::find(path.as_ref())?;
        let mut checkpoint = match weights {
            Weights::Index(index) => Self::open_index(&index, access)?,
            Weights::Files(files) => Self::from_files(
                files.iter().map(|file| WeightFile::open(file, access)).collect::<Result<_>>()?,
            )?,
        };
        checkpoint.warnings.extend(warning);
        Ok(checkpoint)
    }

    fn open_index(path: &Path, access: Access) -> Result<Self> {
        let index = Index::read(path)?;
        let folder = path.parent().unwrap_or(Path::new(""));
        let shards = index.shards();
        let files: Vec<_> =
            shards.iter().map(|s| WeightFile::open(&folder.join(s), access)).collect::<Result<_>>()?;
        let headers = shards.into_iter().zip(files.iter().map(|f| &*f.header)).collect();
        index.check(&headers).map_err(Error::file(path))?;
        Self::from_files(files)
    }

    fn from_files(files: Vec<WeightFile>) -> Result<Self> {
        let mut tensors = BTreeMap::new();
        for (i, file) in files.iter().enumerate() {
            if file.parts > 1 && file.parts != files.len() {
                let reason = format!(
                    "this is one of {} parts of a model: give all of them their names (NAME-00001-of-00002.gguf) in one folder, and they are read together, or join them with `llama-gguf-split --merge FIRST OUT`",
                    file.parts
                );
                let key = "split.count".into();
                return Err(Error::file(&file.path)(FileProblem::Metadata { key, reason }));
            }
            for (name, entry) in &file.header.entries {
                let source = Source::whole(i, name, Stored::Plain, entry.shape.clone());
                let bare = without_wrappers(name).unwrap_or_else(|| name.clone());
                if tensors.insert(bare, source).is_some() {
                    let reason = format!("{name} is in two of the files");
                    return Err(Error::file(&file.path)(FileProblem::Index { reason }));
                }
            }
        }
        let packing = find_packing(files.iter().flat_map(|file| file.header.entries.values()));
        if packing.is_none() {
            quant_state::tie(&files, &mut tensors)?;
        }
        let files = files.into_iter().map(Arc::new).collect();
        Ok(Self { files, tensors, left_aside: Vec::new(), warnings: Vec::new(), packing })
    }

    /// The same open files with mappings of their own: what is loaded from it keeps no memory of what this one's tensors lie
    /// in, and no header is read again.
    pub(crate) fn unmapped(mut self) -> Self {
        self.files.iter_mut().for_each(|file| *file = Arc::new(file.unmapped()));
        self
    }

    /// Whether the files that lie at its paths now are those that were opened, as they were then.
    pub(crate) fn is_current(&self) -> bool {
        self.files.iter().all(|file| file.is_current())
    }

    /// The same tensors under the names of another layout. Names that no rule knows stay as they are, so that loading
    /// reports them.
    pub fn renamed(mut self, renames: &Renames) -> Self {
        self.tensors = renames.apply(self.tensors);
        self
    }

    /// The same tensors, from the official names to the layout's.
    pub fn renamed_back(mut self, renames: &Renames) -> Self {
        self.tensors = renames.undo(self.tensors);
        self
    }

    /// Takes what is missing outside of the blocks (`img_in`, `time_in`, `vector_in`, `guidance_in`, `txt_in`,
    /// `final_layer`) from another checkpoint in the official names, as finetunes leave it out that did not train it.
    /// Returns the names that were taken.
    pub fn filled_from(self, base: Self) -> (Self, Vec<String>) {
        self.taking(base, ModelFamily::is_outside_the_blocks)
    }

    /// Both, where a model lies in two files. Of a name that both have, the first one's tensor stays.
    pub fn joined(self, other: Self) -> Self {
        self.taking(other, |_| true).0
    }

    /// What is missing and wanted, from another checkpoint; and the names that were taken.
    fn taking(mut self, other: Self, wanted: impl Fn(&str) -> bool) -> (Self, Vec<String>) {
        let (first, mut taken) = (self.files.len(), Vec::new());
        self.files.extend(other.files);
        self.left_aside.extend(other.left_aside);
        self.warnings.extend(other.warnings);
        for (name, mut source) in other.tensors {
            if !wanted(&name) || self.tensors.contains_key(&name) {
                continue;
            }
            source.parts.iter_mut().for_each(|part| part.moved(first));
            taken.push(name.clone());
            self.tensors.insert(name, source);
        }
        (self, taken)
    }

    /// Lets a matrix have more columns than the file: the rest of each row is zeros. The official control LoRAs widen
    /// `img_in` in this way. Nothing happens where the columns are as many or more.
    pub fn widened(mut self, name: &str, columns: i64) -> Self {
        if let Some(source) = self.tensors.get_mut(name)
            && let [_, now] = &mut source.shape[..]
            && *now < columns
        {
            source.filled_columns.get_or_insert(*now);
            *now = columns;
        }
        self
    }

    /// Only the tensors whose names begin with `prefix`, without it.
    pub fn under(mut self, prefix: &str) -> Self {
        let tensors = std::mem::take(&mut self.tensors).into_iter();
        self.tensors = tensors.filter_map(|(n, s)| Some((n.strip_prefix(prefix)?.to_string(), s))).collect();
        self
    }

    /// Without the tensors of these names: buffers that some writers keep beside the weights.
    pub fn without(mut self, names: &[impl AsRef<str>]) -> Self {
        names.iter().for_each(|name| drop(self.tensors.remove(name.as_ref())));
        self
    }

    /// Only the tensors whose names begin with one of these.
    pub fn keeping(mut self, prefixes: &[&str]) -> Self {
        self.tensors.retain(|name, _| prefixes.iter().any(|prefix| name.starts_with(prefix)));
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

    /// The names of the tensors that stand in the files beside the model and are not read: see [`Checkpoint::part`].
    pub fn left_aside(&self) -> &[String] {
        &self.left_aside
    }

    /// What a caller should know about how the files were read, a line for each: tensors that were left aside, shards that
    /// were found by another's name. Nothing is wrong where there are some.
    pub fn warnings(&self) -> &[String] {
        &self.warnings
    }

    /// The headers of the files.
    pub fn headers(&self) -> Vec<&Header> {
        self.files.iter().map(|f| &*f.header).collect()
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
        self.look().family()
    }

    /// The models in the file, each with the prefix of its names: one, or several in ComfyUI's all-in-one files.
    pub fn contained(&self) -> Vec<Contained> {
        self.look().contained()
    }

    fn look(&self) -> Names<'_> {
        let shapes = self.tensors.iter().map(|(name, source)| (name.as_str(), &source.shape[..])).collect();
        let metadata = self.files.iter().map(|file| &file.header.metadata);
        let architecture = metadata.filter_map(|texts| texts.get("general.architecture")).next();
        Names { shapes, packing: self.packing, architecture: architecture.map(String::as_str) }
    }

    /// The name that a tensor has in its file; of one that is joined from several, the first's.
    pub fn name_in_file(&self, name: &str) -> Option<&str> {
        self.tensors.get(name)?.parts.first().map(|part| part.entry.as_str())
    }

    /// That the weights are in a form that can be read.
    ///
    /// # Errors
    /// [`Error::File`] with [`FileProblem::Packed`].
    pub(crate) fn check_readable(&self) -> Result<()> {
        match (self.packing, self.files.first()) {
            (Some(_), Some(file)) => {
                let looks_like = self.family().to_string();
                Err(Error::file(&file.path)(FileProblem::Packed { looks_like }))
            }
            _ => Ok(()),
        }
    }

    /// The bytes of the tensors in the files; scales and tables of quantised ones are not counted.
    pub fn bytes(&self) -> u64 {
        self.parts().map(|part| self.part_bytes(part)).sum()
    }

    /// How many numbers the tensors hold.
    pub fn parameters(&self) -> u64 {
        self.tensors.values().map(|source| source.numel() as u64).sum()
    }

    /// The types of the tensors, with how many bytes each takes: `BF16`, `Q4_K`, `F8_E4M3 scaled`, `nf4`.
    pub fn types(&self) -> BTreeMap<String, u64> {
        let mut types = BTreeMap::new();
        for part in self.parts() {
            *types.entry(self.type_of(part)).or_default() += self.part_bytes(part);
        }
        types
    }

    /// How a tensor is stored, by the name that it has now.
    pub fn stored_as(&self, name: &str) -> Option<String> {
        self.tensors.get(name)?.parts.first().map(|part| self.type_of(part))
    }

    /// The kind to compute in: that of the tensors that take the most bytes where libtorch computes in it, and bf16
    /// for quantised ones.
    pub fn main_kind(&self) -> Option<Kind> {
        let mut kinds: Vec<(Kind, u64)> = Vec::new();
        for part in self.parts() {
            let kind = match self.entry(part).encoding.kind() {
                Some(kind @ (Kind::Double | Kind::Float | Kind::BFloat16 | Kind::Half)) => kind,
                _ => Kind::BFloat16,
            };
            let bytes = self.part_bytes(part);
            match kinds.iter_mut().find(|(k, _)| *k == kind) {
                Some((_, sum)) => *sum += bytes,
                None => kinds.push((kind, bytes)),
            }
        }
        kinds.into_iter().max_by_key(|(_, bytes)| *bytes).map(|(kind, _)| kind)
    }

    /// Whether any tensor is quantised: fp8, four or eight bits of bitsandbytes, blocks of GGUF.
    pub fn is_quantised(&self) -> bool {
        self.parts().any(|part| is_quantised(part, self.entry(part)))
    }

    /// [`Error::Changed`] where a file is no longer as long as when it was opened. Whoever computes with borrowed
    /// weights asks before each run: a mapped file that shrinks takes the process with it.
    pub fn check_unchanged(&self) -> Result<()> {
        self.files.iter().try_for_each(|file| file.check_unchanged())
    }

    fn parts(&self) -> impl Iterator<Item = &Part> {
        self.tensors.values().flat_map(|source| &source.parts)
    }

    fn entry(&self, part: &Part) -> &Entry {
        &self.files[part.file].header.entries[&part.entry]
    }

    fn part_bytes(&self, part: &Part) -> u64 {
        self.entry(part).bytes_of(&part.elements, part.of).len() as u64
    }

    fn type_of(&self, part: &Part) -> String {
        let encoding = self.entry(part).encoding;
        match &part.stored {
            Stored::Plain => encoding.to_string(),
            Stored::Scaled { .. } => format!("{encoding} scaled"),
            Stored::FourBit { state, .. } => state.to_string(),
            Stored::Int8 { .. } => "int8".into(),
        }
    }
}

/// Whether a part holds anything but floats that libtorch computes in, or whole numbers.
fn is_quantised(part: &Part, entry: &Entry) -> bool {
    let fp8 = [Some(Kind::Float8e4m3fn), Some(Kind::Float8e5m2)].contains(&entry.encoding.kind());
    part.stored != Stored::Plain || entry.encoding.kind().is_none() || fp8
}
