//! Weight files: opened, looked at, and poured into a variable store.
//!
//! The way of a weight: file → bytes → rename, join, swap → cast → `VarStore`, one tensor at a time. Nothing here knows
//! a model: what is wanted is what the store declares.

mod companions;
mod detect;
mod file;
mod gguf;
mod index;
mod load;
pub mod lora;
mod names;
mod safetensors;
mod source;
mod staging;
pub(crate) mod stream;
pub(crate) mod write;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tch::Kind;

pub(crate) use companions::is_embedding;
pub use detect::{Contained, Family, Layout};
pub use file::Access;
pub(crate) use file::read_index;
pub use index::Index;
pub use load::{LoadOptions, Loaded};
pub use names::{
    AUTOENCODER_DIFFUSERS, CONTROLNET_DIFFUSERS, DEPTH_TRANSFORMERS_5, FLUX1_DIFFUSERS, FLUX2_DIFFUSERS,
    NORMS_SPELLED_WEIGHT, Rename, Renames, T5_LLAMA, TAESD_DECODER, TAESD_ENCODER,
};
pub use safetensors::{Entry, Header};

use crate::error::{Error, FileProblem, OUTSIDE_THE_BLOCKS, Result};
use detect::Names;
use file::WeightFile;
use source::{Part, Source, Stored};

/// One or several weight files that together hold a model, or several. Clones share the open files.
#[derive(Debug, Clone)]
pub struct Checkpoint {
    files: Vec<Arc<WeightFile>>,
    /// The tensors by the names that the model knows.
    tensors: BTreeMap<String, Source>,
}

/// What writers keep beside the weights of CLIP and T5, and FLUX does not use: a count from 0 to 76, the projection to
/// the space of pictures, and the temperature of CLIP's training.
const UNUSED: [&str; 3] = ["text_model.embeddings.position_ids", "text_projection.weight", "logit_scale"];

impl Checkpoint {
    /// Opens a safetensors or GGUF file, an index of shards (`….safetensors.index.json`), or a folder that holds one of
    /// them. Headers are read and checked, nothing else.
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
        let index = Index::read(path)?;
        let folder = path.parent().unwrap_or(Path::new(""));
        let shards = index.shards();
        let files: Vec<_> =
            shards.iter().map(|s| WeightFile::open(&folder.join(s), access)).collect::<Result<_>>()?;
        let headers = shards.into_iter().zip(files.iter().map(|f| &f.header)).collect();
        index.check(&headers).map_err(Error::file(path))?;
        Self::from_files(files)
    }

    fn from_files(files: Vec<WeightFile>) -> Result<Self> {
        let mut tensors = BTreeMap::new();
        for (i, file) in files.iter().enumerate() {
            for (name, entry) in &file.header.entries {
                let source = Source::whole(i, name, Stored::Plain, entry.shape.clone());
                if tensors.insert(name.clone(), source).is_some() {
                    let reason = format!("{name} is in two of the files");
                    return Err(Error::file(&file.path)(FileProblem::Index { reason }));
                }
            }
        }
        companions::tie(&files, &mut tensors)?;
        Ok(Self { files: files.into_iter().map(Arc::new).collect(), tensors })
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

    /// The same tensors under the official names, whatever layout was found: diffusers' transformers, ControlNets and
    /// autoencoders, ComfyUI's prefixes, the scales of norms that are spelled `.weight`, T5's embedding under either of its
    /// names and T5 in llama.cpp's, CLIP with and without `text_model.`, and SigLIP with and without `vision_model.`. Of
    /// several models in one file, nothing is taken: see
    /// [`Checkpoint::part`].
    pub fn official(self) -> Self {
        match &self.contained()[..] {
            [Contained { prefix, family }] => self.part(prefix, family),
            _ => self,
        }
    }

    /// One of the models that [`Checkpoint::contained`] found, under its official names. Tensors that belong to none
    /// of the models stay, so that loading reports them.
    pub fn part(mut self, prefix: &str, family: &Family) -> Self {
        let (bare, others): (Vec<&str>, Vec<&str>) = {
            let found = self.contained().into_iter().map(|model| model.prefix).filter(|p| *p != prefix);
            found.partition(|other| other.is_empty())
        };
        let tensors = std::mem::take(&mut self.tensors).into_iter();
        let mine = |(name, source): (String, Source)| match name.strip_prefix(prefix) {
            Some(rest) if !prefix.is_empty() => Some((rest.to_string(), source)),
            _ if others.iter().any(|other| name.starts_with(other)) => None,
            // The model without a prefix answers for what has none.
            None if !bare.is_empty() || name.ends_with(".logit_scale") => None,
            _ => Some((name, source)),
        };
        self.tensors = tensors.filter_map(mine).collect();
        let diffusers = family.layout() == Some(Layout::Diffusers)
            || self.shape("transformer_blocks.0.attn.norm_added_k.weight").is_some()
            || self.shape("encoder.down_blocks.0.resnets.0.conv1.weight").is_some();
        match family {
            Family::Flux1 { .. } if diffusers => self.renamed(&FLUX1_DIFFUSERS),
            Family::Flux2 { .. } if diffusers => self.renamed(&FLUX2_DIFFUSERS),
            Family::ControlNet { .. } if diffusers => self.renamed(&CONTROLNET_DIFFUSERS),
            Family::Flux1 { .. } | Family::Flux2 { .. } | Family::ControlNet { .. } => {
                self.renamed(&NORMS_SPELLED_WEIGHT)
            }
            Family::AutoEncoder { .. } | Family::AutoEncoder2 { .. } if diffusers => {
                self.renamed(&AUTOENCODER_DIFFUSERS)
            }
            Family::TinyAutoEncoder { .. } if self.shape("0.weight").is_some() => {
                self.renamed(&TAESD_ENCODER)
            }
            Family::TinyAutoEncoder { .. } if self.shape("1.weight").is_some() => {
                self.renamed(&TAESD_DECODER)
            }
            // The token stood for hidden patches in training.
            Family::Depth => self.renamed(&DEPTH_TRANSFORMERS_5).without(&["backbone.embeddings.mask_token"]),
            Family::T5 { .. } => self
                .renamed(&T5_LLAMA)
                .alias("encoder.embed_tokens.weight", "shared.weight")
                .without(&["logit_scale"]),
            Family::ClipVision => self
                .keeping(&["vision_model.", "visual_projection."])
                .without(&["vision_model.embeddings.position_ids"]),
            Family::Clip => {
                let bare = self.shape("embeddings.token_embedding.weight").is_some();
                let clip = if bare { self.prefixed("text_model.") } else { self };
                clip.without(&UNUSED).without(&UNUSED.map(|name| format!("text_model.{name}")))
            }
            Family::Siglip => {
                let bare = self.shape("embeddings.patch_embedding.bias").is_some();
                let mut siglip = if bare { self.prefixed("vision_model.") } else { self };
                siglip.tensors.retain(|name, _| !names::is_beside_siglip(name));
                siglip
            }
            _ => self,
        }
    }

    /// Takes what is missing outside of the blocks (`img_in`, `time_in`, `vector_in`, `guidance_in`, `txt_in`,
    /// `final_layer`) from another checkpoint in the official names, as finetunes leave it out that did not train it.
    /// Returns the names that were taken.
    pub fn filled_from(self, base: Self) -> (Self, Vec<String>) {
        self.taking(base, |name| OUTSIDE_THE_BLOCKS.iter().any(|prefix| name.starts_with(prefix)))
    }

    /// Both, where a model lies in two files. Of a name that both have, the first one's tensor stays.
    pub fn joined(self, other: Self) -> Self {
        self.taking(other, |_| true).0
    }

    /// What is missing and wanted, from another checkpoint; and the names that were taken.
    fn taking(mut self, other: Self, wanted: impl Fn(&str) -> bool) -> (Self, Vec<String>) {
        let (first, mut taken) = (self.files.len(), Vec::new());
        self.files.extend(other.files);
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
        self.look().family()
    }

    /// The models in the file, each with the prefix of its names: one, or several in ComfyUI's all-in-one files.
    pub fn contained(&self) -> Vec<Contained> {
        self.look().contained()
    }

    fn look(&self) -> Names<'_> {
        Names(self.tensors.iter().map(|(name, source)| (name.as_str(), &source.shape[..])).collect())
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
    for end in [".safetensors.index.json", ".safetensors", ".gguf"] {
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
        expected: "*.safetensors, *.safetensors.index.json or *.gguf".into(),
    })
}
