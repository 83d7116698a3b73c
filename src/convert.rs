//! Weight files into other names, other numbers and other sizes of file, without holding a model in memory.
//!
//! A tensor whose type stays is copied as its bytes are; any other is decoded and rounded once, some millions of numbers
//! at a time. All files of a conversion are written beside their places and moved there together at its end.

mod config;
mod encode;
mod lora;
mod merge;
mod outputs;

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use crate::checkpoint::write::{Plan, Planned, finish};
use crate::checkpoint::{Access, Checkpoint, Family, Layout};
use crate::error::{Error, FileProblem, Result};
use encode::{Encoder, Recipe};
use merge::Merges;
use outputs::Output;

/// The numbers of a written file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskKind {
    /// Every float as bf16.
    Bf16,
    /// Every float as f16.
    F16,
    /// Every float as f32.
    F32,
    /// The weights of linear layers as e4m3, rounded as they are; all else stays.
    Fp8,
    /// The weights of linear layers as e4m3, each with a scale that makes its greatest number 448, as ComfyUI has it
    /// (`scaled_fp8` and `….scale_weight`); all else stays.
    Fp8Scaled,
}

/// What a conversion changes; by default nothing.
#[derive(Debug, Clone, Default)]
pub struct Conversion {
    /// Whose names to write: [`Layout::Official`], [`Layout::Diffusers`] or [`Layout::Comfy`]. `None` keeps them.
    pub layout: Option<Layout>,
    /// The numbers to write. `None` keeps them, but for quantised ones, which become bf16.
    pub kind: Option<DiskKind>,
    /// The most bytes of tensors in a file; a larger model becomes several, with an index.
    pub shard_size: Option<u64>,
    /// LoRAs to merge into the weights, each with its strength.
    pub merges: Vec<(PathBuf, f64)>,
    /// Whether files that stand in the way are replaced.
    pub overwrite: bool,
    /// Whether what has no place is left out: of LoRAs that are merged, and of one that is itself converted.
    pub allow_partial_lora: bool,
}

/// What a conversion wrote.
#[derive(Debug, Clone, PartialEq)]
pub struct Converted {
    /// The files.
    pub files: Vec<PathBuf>,
    /// How many tensors are in them, scales and markers included.
    pub tensors: usize,
    /// The bytes of these.
    pub bytes: u64,
    /// What whoever asked for it should know: what was left out or is of another type now.
    pub notes: Vec<String>,
}

/// How far a conversion is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// Bytes of tensors that are written.
    pub written: u64,
    /// Bytes of all tensors.
    pub total: u64,
}

/// Hears of a conversion's progress, and may stop it.
pub type OnProgress<'a> = dyn FnMut(Progress) -> ControlFlow<()> + 'a;

/// Converts what [`Checkpoint::open`] takes to a file, if `output` ends in `.safetensors`, else to a folder.
///
/// A file that is too large for one becomes `STEM-00001-of-0000N.safetensors` … with `STEM.safetensors.index.json`. A
/// folder holds `model.safetensors`; in diffusers' layout `diffusion_pytorch_model.safetensors` with a `config.json`
/// from which diffusers builds exactly this model, or for a LoRA `pytorch_lora_weights.safetensors`. ComfyUI's
/// all-in-one files are taken apart where the official or diffusers' names are asked for: into `flux1-VARIANT`, `ae`,
/// `text_encoder/` and `text_encoder_2/`, or into `transformer/`, `vae/` and the same two.
///
/// Text encoders have the same names in every layout.
///
/// # Errors
/// [`Error::Request`] for what cannot be asked, [`Error::File`] for a number that the wanted type does not hold, for
/// what stands there already or is being written, [`Error::Lora`] with all that has no place, [`Error::Cancelled`], and
/// as [`Checkpoint::open`]. Then nothing has a final name that had none before.
pub fn convert(
    input: &Path,
    output: &Path,
    conversion: &Conversion,
    on_progress: &mut OnProgress,
) -> Result<Converted> {
    let _no_grad = tch::no_grad_guard();
    let place = Place::new(output)?;
    if let Some(layout @ (Layout::Llama | Layout::XLabs)) = conversion.layout {
        return Err(Error::Request(format!("{layout} are read, not written")));
    }
    if conversion.shard_size == Some(0) {
        return Err(Error::Request("a shard of no bytes holds nothing".into()));
    }
    // Read, not mapped: pages of a mapping would count as memory of this process.
    let checkpoint = Checkpoint::open(input, Access::Read)?;
    checkpoint.check_readable()?;
    let mut job = Job { conversion, input, place, notes: checkpoint.warnings().to_vec() };
    let written = match checkpoint.family() {
        Family::Lora => job.lora(checkpoint)?,
        family => job.model(checkpoint, &family)?,
    };
    job.write(written, on_progress)
}

/// Where the files go.
enum Place {
    File { folder: PathBuf, stem: String },
    Folder(PathBuf),
}

impl Place {
    fn new(output: &Path) -> Result<Self> {
        let name = output.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if let Some(stem) = name.strip_suffix(".safetensors").filter(|stem| !stem.is_empty()) {
            let folder = match output.parent() {
                Some(folder) if folder != Path::new("") => folder.to_path_buf(),
                _ => PathBuf::from("."),
            };
            return Ok(Self::File { folder, stem: stem.to_string() });
        }
        let others = [".gguf", ".json", ".ckpt", ".pt", ".pth", ".bin", ".sft"];
        if others.iter().any(|end| name.ends_with(end)) {
            let reason = "only safetensors are written: name a file that ends in .safetensors, or a folder";
            return Err(Error::Request(format!("{name}: {reason}")));
        }
        Ok(Self::Folder(output.to_path_buf()))
    }
}

/// One conversion under way.
struct Job<'a> {
    conversion: &'a Conversion,
    input: &'a Path,
    place: Place,
    notes: Vec<String>,
}

/// What is to be written: each output with the recipes of its tensors.
struct Written {
    outputs: Vec<Output>,
    recipes: Vec<Vec<Recipe>>,
    encoder: Encoder,
}

impl Job<'_> {
    /// A model, or several in one file.
    fn model(&mut self, checkpoint: Checkpoint, family: &Family) -> Result<Written> {
        let outputs = self.outputs(&checkpoint, family)?;
        let merges = Merges::new(&checkpoint, self.conversion, &mut self.notes)?;
        let mut recipes = Vec::new();
        for output in &outputs {
            recipes.push(self.recipes(output, merges.as_ref())?);
        }
        let path = checkpoint.files().first().map(|path| path.to_path_buf()).unwrap_or_default();
        Ok(Written { outputs, recipes, encoder: Encoder::new(path, merges) })
    }

    /// Writes all outputs, and when all are whole moves them to their places.
    fn write(self, written: Written, on_progress: &mut OnProgress) -> Result<Converted> {
        let Written { outputs, recipes, encoder } = written;
        let mut plans = Vec::new();
        for (output, recipes) in outputs.iter().zip(&recipes) {
            let planned = recipes.iter().map(|recipe| recipe.planned.clone()).collect();
            plans.push(Plan::new(output.target.clone(), planned, output.metadata.clone())?);
        }
        self.check_places(&outputs, &plans)?;
        let total: u64 = plans.iter().map(Plan::bytes).sum();
        let (mut parts, mut done) = (Vec::new(), 0);
        let mut report = |bytes: u64| {
            done += bytes;
            match on_progress(Progress { written: done, total }) {
                ControlFlow::Continue(()) => Ok(()),
                ControlFlow::Break(()) => Err(Error::Cancelled),
            }
        };
        for ((output, plan), recipes) in outputs.iter().zip(&plans).zip(&recipes) {
            let by_name: BTreeMap<&str, &Recipe> =
                recipes.iter().map(|recipe| (recipe.planned.name.as_str(), recipe)).collect();
            let mut produce = |planned: &Planned, part: &mut _| match by_name.get(planned.name.as_str()) {
                Some(recipe) => encoder.write(&output.checkpoint, recipe, part, &mut report),
                None => Ok(()),
            };
            parts.extend(plan.write(&mut produce)?);
            parts.extend(output.write_config()?);
        }
        let stale: Vec<PathBuf> = plans.iter().flat_map(|plan| plan.stale().to_vec()).collect();
        let files = finish(parts, &stale)?;
        let tensors = recipes.iter().map(Vec::len).sum();
        Ok(Converted { files, tensors, bytes: total, notes: self.notes })
    }

    /// That nothing is in the way of the outputs, and that none of them is read for them.
    fn check_places(&self, outputs: &[Output], plans: &[Plan]) -> Result<()> {
        let mut places: Vec<PathBuf> = plans.iter().flat_map(Plan::places).collect();
        places.extend(outputs.iter().filter_map(Output::config_place));
        places.extend(plans.iter().flat_map(|plan| plan.stale().to_vec()));
        let same = |path: &Path| path.canonicalize().ok();
        let read = outputs.iter().flat_map(|output| output.checkpoint.files());
        let merged = self.conversion.merges.iter().map(|(path, _)| path.as_path());
        let read: Vec<PathBuf> = read.chain(merged).chain([self.input]).filter_map(same).collect();
        if let Some(place) = places.iter().find(|place| same(place).is_some_and(|p| read.contains(&p))) {
            let place = place.display();
            return Err(Error::Request(format!("{place} is read for the conversion: name another place")));
        }
        match places.into_iter().find(|place| place.exists() && !self.conversion.overwrite) {
            Some(there) => Err(Error::file(there)(FileProblem::Exists)),
            None => Ok(()),
        }
    }
}
