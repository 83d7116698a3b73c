//! LoRA files into the names of another layout.
//!
//! diffusers splits layers that officially are joined. Split, a matrix pair becomes one for each part: the first matrix
//! for all of them, and some rows of the second. Joined, parts with the same first matrix become one pair again; of
//! others the first matrices are stacked and the second ones stand along the diagonal, which splitting undoes.

mod bands;

use std::collections::BTreeMap;
use std::rc::Rc;

use safetensors::Dtype;
use serde_json::json;
use tch::{Kind, Tensor};

use super::encode::{Content, Encoder, Recipe};
use super::outputs::{Output, metadata};
use super::{DiskKind, Job, Written};
use crate::checkpoint::lora::{Component, Form, Holder, Lora, Maker, Part, Patch, Slot};
use crate::checkpoint::write::Planned;
use crate::checkpoint::{Checkpoint, Layout, Renames, transformer_diffusers};
use crate::error::{Error, FileProblem, Result, Unplaced};
use crate::family::ModelFamily;
use crate::quant::Encoding;

/// What diffusers and peft say of the alphas, module by module, under the names that the modules had.
const SETTINGS: &str = "lora_adapter_metadata";

impl Job<'_> {
    /// A LoRA: its matrices under other names, and its scale with them.
    pub(super) fn lora(&mut self, checkpoint: Checkpoint) -> Result<Written> {
        let input = self.input.display();
        if !self.conversion.merges.is_empty() {
            let reason = "this is itself a LoRA: others can be merged into a model alone";
            return Err(Error::Request(format!("{input}: {reason}")));
        }
        if matches!(self.conversion.kind, Some(DiskKind::Fp8 | DiskKind::Fp8Scaled)) {
            return Err(Error::Request(format!("{input}: a LoRA is bf16, f16 or f32, not fp8")));
        }
        let mut metadata = metadata(&checkpoint);
        let target = self.target("", "pytorch_lora_weights");
        let path = checkpoint.files().first().map(|path| path.to_path_buf()).unwrap_or_default();
        let lora = Lora::from_checkpoint(checkpoint.clone())?;
        let beside = |patch: &Patch| patch.alpha.is_none() && patch.scale != 1.0;
        let layout = match self.conversion.layout {
            // The alphas stand in a file that does not go along.
            None if !metadata.contains_key(SETTINGS) && lora.patches().any(beside) => {
                Some(match lora.maker {
                    Some(Maker::Diffusers) => Layout::Diffusers,
                    _ => Layout::Official,
                })
            }
            layout => layout,
        };
        let Some(layout) = layout else {
            let output = Output::plain(target, checkpoint, metadata);
            let recipes = vec![self.recipes(&output, None)?];
            return Ok(Written { outputs: vec![output], recipes, encoder: Encoder::new(path, None) });
        };
        let left_out = Unplaced {
            path: lora.path.clone(),
            unknown: lora.unknown.clone(),
            twice: lora.twice.clone(),
            ..Unplaced::default()
        };
        if !left_out.is_empty() && !self.conversion.allow_partial_lora {
            return Err(Error::Lora(Box::new(left_out)));
        }
        self.notes.extend(left_out.lines().iter().map(|line| format!("left out: {line}")));
        metadata.remove(SETTINGS);
        if self.conversion.kind.is_none()
            && checkpoint.names().any(|name| checkpoint.dtype(name).is_some_and(is_fp8))
        {
            self.notes.push("its numbers in fp8 are BF16 now".into());
        }
        let second = lora.patches().any(is_flux2);
        let family = if second { ModelFamily::Flux2 } else { ModelFamily::Flux1 };
        let renames = transformer_diffusers(family);
        let mut writer = Writer {
            file: Rc::new(checkpoint.clone()),
            layout,
            renames,
            kind: self.conversion.kind,
            modules: BTreeMap::new(),
            recipes: Vec::new(),
        };
        for patches in lora.targets.values() {
            writer.module(patches)?;
        }
        let settings = writer.alphas(second)?;
        if let Some(settings) = settings {
            metadata.insert(SETTINGS.into(), settings);
        }
        let recipes = vec![writer.recipes];
        let output = Output::plain(target, checkpoint, metadata);
        Ok(Written { outputs: vec![output], recipes, encoder: Encoder::new(path, None) })
    }
}

/// Whether a change can only be one of FLUX.2, whose MLPs are gated and whose modulations are shared.
fn is_flux2(patch: &Patch) -> bool {
    let module = patch.group.target.module.as_str();
    let &[rows, columns] = &patch.shape[..] else { return false };
    match module.rsplit('.').next() {
        _ if module.contains("_stream_modulation") => true,
        Some("0") if module.contains("_mlp.") => rows == 6 * columns,
        Some("2") if module.contains("_mlp.") => columns == 3 * rows,
        Some("linear1") => patch.group.target.slot == Slot::Whole && rows == 9 * columns,
        Some("linear2") => columns == 4 * rows,
        _ => false,
    }
}

/// The scale of a written module.
struct Scaled {
    rank: i64,
    scale: f64,
    /// The type of the alpha that it had.
    alpha: Option<Dtype>,
}

/// Collects the recipes.
struct Writer {
    file: Rc<Checkpoint>,
    layout: Layout,
    renames: &'static Renames,
    kind: Option<DiskKind>,
    /// By name, those with a rank.
    modules: BTreeMap<String, Scaled>,
    recipes: Vec<Recipe>,
}

type Make = Box<dyn Fn() -> Result<Tensor>>;

impl Writer {
    /// All changes of one module.
    fn module(&mut self, patches: &[Patch]) -> Result<()> {
        let (low_rank, others): (Vec<&Patch>, Vec<&Patch>) =
            patches.iter().partition(|patch| patch.form == Form::LowRank);
        if !low_rank.is_empty() {
            self.low_rank(&low_rank)?;
        }
        others.into_iter().try_for_each(|patch| self.other(patch))
    }

    /// The names of a module in the layout, and whether its halves change places.
    fn names(&self, patch: &Patch) -> Result<(Vec<String>, bool)> {
        let target = &patch.group.target;
        let theirs = self.layout == Layout::Diffusers;
        let prefix = match (target.model, self.layout) {
            (Component::Transformer, Layout::Diffusers) => "transformer.",
            (Component::Transformer, Layout::Comfy) => "diffusion_model.",
            (Component::Transformer, _) => "",
            (Component::Clip, Layout::Diffusers) => "text_encoder.",
            (Component::T5, Layout::Diffusers) => "text_encoder_2.",
            (Component::Clip, _) => "text_encoders.clip_l.transformer.",
            (Component::T5, _) => "text_encoders.t5xxl.transformer.",
        };
        let (names, swapped) = match target.model {
            Component::Transformer if theirs && target.holder == Holder::Norm => {
                let found = self.renames.modules(&format!("{}.scale", target.module));
                let norm = |name: String| name.trim_end_matches(".weight").to_string();
                let found = found.map(|(names, _)| (names.into_iter().map(norm).collect(), false));
                found.ok_or_else(|| self.problem(&patch.name, "diffusers has no such norm".into()))?
            }
            Component::Transformer if theirs => {
                let found = self.renames.modules(&target.module);
                found.ok_or_else(|| self.problem(&patch.name, "diffusers has no such layer".into()))?
            }
            _ => (vec![target.module.clone()], false),
        };
        // A patch in diffusers' order already is what diffusers wants, and the reverse for the others.
        let swapped = swapped != (target.slot == Slot::Swapped);
        Ok((names.into_iter().map(|name| format!("{prefix}{name}")).collect(), swapped))
    }

    /// What is no pair of matrices, or none that can be taken apart: names change, and the order of halves.
    fn other(&mut self, patch: &Patch) -> Result<()> {
        let (names, swapped) = self.names(patch)?;
        let norm = patch.group.target.holder == Holder::Norm;
        if self.layout == Layout::Diffusers && !(norm && patch.form == Form::Replace) {
            let reason = "diffusers knows LoRA alone, not this form of a change: take another layout";
            return Err(self.problem(&patch.name, reason.into()));
        }
        let whole = matches!(patch.group.target.slot, Slot::Whole | Slot::Swapped);
        let ([name], true) = (&names[..], whole) else {
            let reason = "of layers that are joined or split, LoRA alone can be converted";
            return Err(self.problem(&patch.name, reason.into()));
        };
        for (part, key) in &patch.group.parts {
            // Both changes of a module, that of its weight and that of its bias, know all keys.
            if (*part == Part::DiffBias) != (patch.form == Form::Bias) {
                continue;
            }
            let has_rows = match part {
                Part::Diff | Part::DiffBias | Part::Magnitude | Part::Set => true,
                Part::Hada(which) => which.ends_with("_a"),
                _ => false,
            };
            if swapped && matches!(part, Part::Lokr(_)) {
                let reason = "the halves of its rows change places, which LoKr cannot say";
                return Err(self.problem(key, reason.into()));
            }
            let name = match part {
                Part::Set if self.layout == Layout::Diffusers => format!("{name}.weight"),
                Part::Set if self.layout == Layout::Official => format!("{name}.scale"),
                part => format!("{name}.{}", self.ending(*part)),
            };
            let (file, key) = (Rc::clone(&self.file), key.clone());
            let shape = file.shape(&key).unwrap_or_default();
            let swap = swapped && has_rows && shape.first() != Some(&1);
            let dtype = self.dtype(&key);
            self.push(
                name,
                dtype,
                shape,
                Box::new(move || {
                    let tensor = file.tensor(&key)?;
                    if swap { halves_swapped(&tensor) } else { Ok(tensor) }
                }),
            );
        }
        Ok(())
    }

    /// How the key of a part ends.
    fn ending(&self, part: Part) -> String {
        match part {
            Part::Down => "lora_A.weight".into(),
            Part::Up => "lora_B.weight".into(),
            Part::UpBias => "lora_B.bias".into(),
            Part::Alpha => "alpha".into(),
            Part::Magnitude if self.layout == Layout::Diffusers => "lora_magnitude_vector".into(),
            Part::Magnitude => "dora_scale".into(),
            Part::Diff => "diff".into(),
            Part::DiffBias => "diff_b".into(),
            Part::Set => "set_weight".into(),
            Part::Shape => "reshape_weight".into(),
            Part::Hada(which) => format!("hada_{which}"),
            Part::Lokr(which) => format!("lokr_{which}"),
            Part::Core => "lora_mid.weight".into(),
        }
    }

    /// The alphas, where a scale is not 1: a tensor each; for FLUX.2 in diffusers, which knows none, the text of its
    /// settings.
    fn alphas(&mut self, second: bool) -> Result<Option<String>> {
        let any = self.modules.values().any(|module| module.alpha.is_some() || module.scale != 1.0);
        let theirs = self.layout == Layout::Diffusers;
        let modules = std::mem::take(&mut self.modules);
        if second && theirs && any {
            let bare = |name: &str| name.trim_start_matches("transformer.").to_string();
            let ranks: BTreeMap<String, i64> = modules.iter().map(|(name, m)| (bare(name), m.rank)).collect();
            let alphas: BTreeMap<String, f64> =
                modules.iter().map(|(name, m)| (bare(name), m.scale * m.rank as f64)).collect();
            let first = modules.values().next().map_or((1, 1.0), |m| (m.rank, m.scale * m.rank as f64));
            let names: Vec<&String> = ranks.keys().collect();
            let settings = json!({
                "transformer.r": first.0,
                "transformer.lora_alpha": first.1,
                "transformer.rank_pattern": ranks,
                "transformer.alpha_pattern": alphas,
                "transformer.target_modules": names,
            });
            return Ok(Some(settings.to_string()));
        }
        for (name, Scaled { rank, scale, alpha }) in modules {
            // diffusers takes the alpha of most modules for those that have none.
            if alpha.is_none() && scale == 1.0 && !(theirs && any) {
                continue;
            }
            let dtype = alpha.filter(|dtype| !is_fp8(*dtype)).unwrap_or(Dtype::F32);
            let kind = Encoding::Plain(dtype).kind().unwrap_or(Kind::Float);
            let value = scale * rank as f64;
            let dtype = self.wanted(dtype);
            let make = move || Ok(Tensor::f_from_slice(&[value])?.f_view([0i64; 0])?.f_to_kind(kind)?);
            self.push(format!("{name}.alpha"), dtype, vec![], Box::new(make));
        }
        Ok(None)
    }

    /// The type that a float of this one is written as.
    fn wanted(&self, dtype: Dtype) -> Dtype {
        let fp8 = is_fp8(dtype);
        match self.kind {
            _ if !fp8 && !matches!(dtype, Dtype::F16 | Dtype::BF16 | Dtype::F32 | Dtype::F64) => dtype,
            Some(DiskKind::F16) => Dtype::F16,
            Some(DiskKind::F32) => Dtype::F32,
            // What is joined may be multiplied by another's scale, and a number of fp8 has no room for that.
            Some(DiskKind::Bf16) => Dtype::BF16,
            _ if fp8 => Dtype::BF16,
            _ => dtype,
        }
    }

    fn dtype(&self, key: &str) -> Dtype {
        self.wanted(self.file.dtype(key).unwrap_or(Dtype::F32))
    }

    fn push(&mut self, name: String, dtype: Dtype, shape: Vec<i64>, make: Make) {
        let planned = Planned { name, dtype, shape };
        self.recipes.push(Recipe { planned, content: Content::Made(make) });
    }

    fn problem(&self, name: &str, reason: String) -> Error {
        let path = self.file.files().first().map(|path| path.to_path_buf()).unwrap_or_default();
        Error::file(path)(FileProblem::Tensor { name: name.to_string(), reason })
    }
}

fn is_fp8(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F8_E4M3 | Dtype::F8_E5M2)
}

fn halves_swapped(tensor: &Tensor) -> Result<Tensor> {
    let mut halves = tensor.f_chunk(2, 0)?;
    halves.reverse();
    Ok(Tensor::f_cat(&halves, 0)?)
}
