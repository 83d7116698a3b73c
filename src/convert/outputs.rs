//! What is written where, under which names.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::Dtype;
use serde_json::Value;

use super::encode::{Content, Recipe};
use super::merge::Merges;
use super::{DiskKind, Job, Place, config};
use crate::checkpoint::write::{PartFile, Planned, Target, json_file};
use crate::checkpoint::{
    AUTOENCODER_DIFFUSERS, CONTROLNET_DIFFUSERS, Checkpoint, Contained, Family, Layout, Renames,
    is_embedding, transformer_diffusers,
};
use crate::error::{Error, FileProblem, Result};

/// Where ComfyUI's files keep a transformer.
const COMFY_TRANSFORMER: &str = "model.diffusion_model.";
/// What GGUF files say of their own form, which is no longer theirs once they are safetensors.
const OF_GGUF: [&str; 7] = [
    "comfy.gguf.",
    "general.alignment",
    "general.file_type",
    "general.quantization_version",
    "gguf.",
    "split.",
    "tokenizer.",
];

/// One set of weights to be written.
pub(super) struct Output {
    pub(super) target: Target,
    /// Its tensors, under the names that they will have.
    pub(super) checkpoint: Checkpoint,
    pub(super) metadata: BTreeMap<String, String>,
    /// Its `config.json`.
    config: Option<Value>,
    /// The models in it, each by the beginning of its names.
    models: Vec<(String, Family)>,
}

impl Output {
    /// One that has no `config.json` and names no models.
    pub(super) fn plain(target: Target, checkpoint: Checkpoint, metadata: BTreeMap<String, String>) -> Self {
        Self { target, checkpoint, metadata, config: None, models: Vec::new() }
    }

    pub(super) fn config_place(&self) -> Option<PathBuf> {
        self.config.as_ref().map(|_| self.target.folder.join("config.json"))
    }

    pub(super) fn write_config(&self) -> Result<Option<PartFile>> {
        self.config.as_ref().map(|config| json_file(&self.target.folder, "config.json", config)).transpose()
    }

    /// The beginning of the names of the model that a tensor belongs to, where it is the weight of a linear layer.
    fn linear_of(&self, name: &str) -> Option<&str> {
        let shape = self.checkpoint.shape(name)?;
        let (prefix, family) = self.models.iter().rev().find(|(prefix, _)| name.starts_with(prefix))?;
        let pictures = matches!(family, Family::AutoEncoder { .. });
        let linear = shape.len() == 2 && name.ends_with(".weight") && !is_embedding(name) && !pictures;
        linear.then_some(prefix.as_str())
    }
}

/// A model's files within the place.
struct Room {
    /// Below the output.
    folder: &'static str,
    stem: String,
}

impl Job<'_> {
    pub(super) fn target(&self, folder: &str, stem: &str) -> Target {
        let shard_size = self.conversion.shard_size;
        match &self.place {
            Place::File { folder, stem } => Target { folder: folder.clone(), stem: stem.clone(), shard_size },
            Place::Folder(path) => Target { folder: path.join(folder), stem: stem.to_string(), shard_size },
        }
    }

    /// What is to be written of a checkpoint that holds models.
    pub(super) fn outputs(&mut self, checkpoint: &Checkpoint, family: &Family) -> Result<Vec<Output>> {
        let contained = checkpoint.contained();
        let metadata = metadata(checkpoint);
        let layout = match (self.conversion.layout, family) {
            (Some(Layout::Comfy), Family::AllInOne) => None,
            (layout, _) => layout,
        };
        let Some(layout) = layout else {
            // The names stay, of all that the file holds.
            let mut models: Vec<_> = contained.into_iter().map(|c| (c.prefix, c.family)).collect();
            if models.is_empty() {
                models.push((String::new(), family.clone()));
            }
            let one = matches!(self.place, Place::File { .. }) || *family == Family::AllInOne;
            let config = if one { None } else { self.config(checkpoint, family)? };
            if config.is_none() && *family != Family::AllInOne {
                self.note_lost(&checkpoint.clone().official(), family)?;
            }
            let diffusers = family.layout() == Some(Layout::Diffusers);
            let target = self.target("", if diffusers { "diffusion_pytorch_model" } else { "model" });
            return Ok(vec![Output { target, checkpoint: checkpoint.clone(), metadata, config, models }]);
        };
        if contained.is_empty() || contained.iter().any(|model| matches!(model.family, Family::Foreign(_))) {
            let reason = format!("{family}: names that are not known cannot be changed");
            return Err(Error::Request(format!("{}: {reason}", self.input.display())));
        }
        let several = contained.len() > 1;
        if several && matches!(self.place, Place::File { .. }) {
            let reason = "several models are in this file, which become several files: name a folder";
            return Err(Error::Request(format!("{}: {reason}", self.input.display())));
        }
        let prefixes: Vec<&str> = contained.iter().map(|c| c.prefix.as_str()).collect();
        let homeless: Vec<&str> = checkpoint
            .names()
            .filter(|name| !prefixes.iter().any(|prefix| name.starts_with(prefix)))
            .collect();
        if !homeless.is_empty() {
            self.notes.push(format!("left out, since no model has a place for it: {}", homeless.join(", ")));
        }
        contained.iter().map(|one| self.output(checkpoint, one, layout, several, &metadata)).collect()
    }

    fn output(
        &mut self,
        checkpoint: &Checkpoint,
        Contained { prefix, family }: &Contained,
        layout: Layout,
        several: bool,
        metadata: &BTreeMap<String, String>,
    ) -> Result<Output> {
        let own = checkpoint.clone().under(prefix);
        let official = official(own, family);
        self.notes
            .extend(official.warnings().iter().filter(|line| !checkpoint.warnings().contains(line)).cloned());
        let room = if several { room(family, layout, &official) } else { lone_room(family, layout) };
        let folder = matches!(self.place, Place::Folder(_));
        let config =
            if folder && layout == Layout::Diffusers { self.config(&official, family)? } else { None };
        if config.is_none() && !several {
            self.note_lost(&official, family)?;
        }
        let (checkpoint, prefix) = match (layout, family) {
            (Layout::Comfy, Family::Transformer { .. }) => {
                (official.prefixed(COMFY_TRANSFORMER), COMFY_TRANSFORMER)
            }
            (Layout::Diffusers, _) => (self.diffusers(official, family), ""),
            _ => (official, ""),
        };
        Ok(Output {
            target: self.target(room.folder, &room.stem),
            checkpoint,
            metadata: metadata.clone(),
            config,
            models: vec![(prefix.to_string(), family.clone())],
        })
    }

    /// Says what the settings beside the input say that is in none of its tensors, and so not in what is written.
    fn note_lost(&mut self, official: &Checkpoint, family: &Family) -> Result<()> {
        let Some(own) = config::beside(self.input)? else { return Ok(()) };
        let lost = config::lost(official, family, &own)?;
        if !lost.is_empty() {
            self.notes.push(format!(
                "no tensor says what the config.json of the input does ({}): put that file beside what is written",
                lost.join(", ")
            ));
        }
        Ok(())
    }

    /// Under diffusers' names; those that it has no others for are said.
    fn diffusers(&mut self, official: Checkpoint, family: &Family) -> Checkpoint {
        let Some(renames) = renames(family) else { return official };
        let theirs = official.renamed_back(renames);
        let unknown: Vec<&str> = theirs.names().filter(|name| !renames.writes(name)).collect();
        // Some of an autoencoder's names are the same in both layouts.
        let transformer = matches!(family, Family::Transformer { .. });
        if transformer && !unknown.is_empty() {
            self.notes.push(format!("kept, though diffusers does not know it: {}", unknown.join(", ")));
        }
        theirs
    }

    /// The `config.json` of a model in diffusers' layout, or the one that lies beside the input.
    fn config(&self, checkpoint: &Checkpoint, family: &Family) -> Result<Option<Value>> {
        let own = config::beside(self.input)?;
        match (self.conversion.layout, family.layout()) {
            (Some(Layout::Diffusers), _) => config::of(checkpoint, family, own),
            (None, Some(Layout::Diffusers)) => config::of(&checkpoint.clone().official(), family, own),
            _ => Ok(own.map(config::without_quantization)),
        }
    }

    /// What becomes of each tensor of an output.
    pub(super) fn recipes(&mut self, output: &Output, merges: Option<&Merges>) -> Result<Vec<Recipe>> {
        let (mut recipes, mut decoded, mut mixed, mut scaled) = (Vec::new(), 0, Vec::new(), Vec::new());
        for name in output.checkpoint.names() {
            let stored = output.checkpoint.dtype(name);
            let coded = output.checkpoint.is_coded(name);
            let merged = merges.map(|merges| merges.pieces(&output.checkpoint, name)).transpose()?.flatten();
            let linear = output.linear_of(name);
            let kept = match stored {
                Some(dtype) => dtype,
                None if coded => Dtype::BF16,
                None => Dtype::F32,
            };
            let dtype = match self.conversion.kind {
                _ if !coded && !is_float(kept) => kept,
                Some(DiskKind::Bf16) => Dtype::BF16,
                Some(DiskKind::F16) => Dtype::F16,
                Some(DiskKind::F32) => Dtype::F32,
                Some(DiskKind::Fp8 | DiskKind::Fp8Scaled) if linear.is_some() => Dtype::F8_E4M3,
                _ => kept,
            };
            let mut shape = output.checkpoint.shape(name).unwrap_or_default();
            if let Some(pieces) = &merged {
                shape.clone_from(&pieces.shape);
            }
            let planned = Planned { name: name.to_string(), dtype, shape };
            let content = match (linear, self.conversion.kind) {
                (Some(prefix), Some(DiskKind::Fp8Scaled)) => {
                    if !scaled.contains(&prefix) {
                        scaled.push(prefix);
                    }
                    recipes.push(Recipe::scale_of(name, merged.clone()));
                    Content::Scaled(merged)
                }
                _ => match merged {
                    Some(pieces) => Content::Merged(pieces),
                    None if stored == Some(dtype) => Content::Copied,
                    None => Content::Decoded,
                },
            };
            if coded && self.conversion.kind.is_none() {
                decoded += 1;
            }
            if stored.is_none() && !coded && self.conversion.kind.is_none() {
                mixed.push(name);
            }
            recipes.push(Recipe { planned, content });
        }
        for prefix in &scaled {
            let name = format!("{prefix}scaled_fp8");
            recipes.push(Recipe::bytes(Planned { name, dtype: Dtype::F8_E4M3, shape: vec![0] }, Vec::new()));
        }
        self.note(output, decoded, &mixed, &recipes);
        check_twins(self.input, &recipes)?;
        Ok(recipes)
    }

    fn note(&mut self, output: &Output, decoded: usize, mixed: &[&str], recipes: &[Recipe]) {
        if decoded > 0 {
            let types = output.checkpoint.types().into_keys().collect::<Vec<_>>().join(", ");
            self.notes.push(format!("{decoded} quantised tensors are BF16 now (the file holds {types})"));
        }
        if !mixed.is_empty() {
            self.notes.push(format!("joined from several types, and F32 now: {}", mixed.join(", ")));
        }
        let fp8 = matches!(self.conversion.kind, Some(DiskKind::Fp8 | DiskKind::Fp8Scaled));
        if fp8 && !recipes.iter().any(|recipe| recipe.planned.dtype == Dtype::F8_E4M3) {
            let name = output.models.first().map_or("this", |(_, family)| family.name());
            self.notes.push(format!("{name}: no weight of a linear layer is in it, so nothing became fp8"));
        }
        let theirs = self.conversion.layout == Some(Layout::Diffusers);
        if theirs && self.conversion.kind == Some(DiskKind::Fp8Scaled) {
            self.notes.push("diffusers itself does not read the scales of fp8 weights".into());
        }
    }
}

/// That a scale or a marker has not the name of another tensor.
fn check_twins(input: &Path, recipes: &[Recipe]) -> Result<()> {
    let mut names: Vec<&str> = recipes.iter().map(|recipe| recipe.planned.name.as_str()).collect();
    names.sort_unstable();
    match names.windows(2).find(|pair| pair[0] == pair[1]) {
        Some(pair) => {
            let (name, reason) = (pair[0].to_string(), "would be there twice".to_string());
            Err(Error::file(input)(FileProblem::Tensor { name, reason }))
        }
        None => Ok(()),
    }
}

/// What the files say of themselves, as far as it stays true; and what transformers asks for.
pub(super) fn metadata(checkpoint: &Checkpoint) -> BTreeMap<String, String> {
    let mut metadata = BTreeMap::new();
    for header in checkpoint.headers() {
        for (key, text) in &header.metadata {
            let form = key == "_quantization_metadata" || OF_GGUF.iter().any(|start| key.starts_with(start));
            if !form {
                metadata.entry(key.clone()).or_insert_with(|| text.clone());
            }
        }
    }
    metadata.entry("format".into()).or_insert_with(|| "pt".into());
    metadata
}

/// Under the official names. Text encoders in the names of transformers and SigLIP keep every tensor, also those that FLUX
/// does not use; of others those are left aside, whose names are not known.
fn official(own: Checkpoint, family: &Family) -> Checkpoint {
    let known = |name: &str| own.shape(name).is_some();
    match family {
        Family::T5 { .. } if !known("enc.blk.0.attn_q.weight") => own,
        Family::Clip if !known("transformer.resblocks.0.attn.in_proj_weight") => own,
        Family::Siglip => own,
        family => own.part("", family),
    }
}

pub(super) fn renames(family: &Family) -> Option<&'static Renames> {
    match family {
        Family::Transformer { family, .. } => Some(transformer_diffusers(*family)),
        Family::ControlNet { .. } => Some(&CONTROLNET_DIFFUSERS),
        Family::AutoEncoder { .. } => Some(&AUTOENCODER_DIFFUSERS),
        _ => None,
    }
}

/// A model that is alone in its folder.
fn lone_room(family: &Family, layout: Layout) -> Room {
    let theirs = layout == Layout::Diffusers && renames(family).is_some();
    Room { folder: "", stem: if theirs { "diffusion_pytorch_model" } else { "model" }.into() }
}

/// A model among others, where [`Parts::find`](crate::generation::Parts::find) and diffusers look for it.
fn room(family: &Family, layout: Layout, official: &Checkpoint) -> Room {
    let (folder, stem) = match (family, layout) {
        (Family::T5 { .. }, _) => ("text_encoder_2", "model".into()),
        (Family::Clip, _) => ("text_encoder", "model".into()),
        (Family::AutoEncoder { .. } | Family::TinyAutoEncoder { .. }, Layout::Diffusers) => {
            ("vae", "diffusion_pytorch_model".into())
        }
        (_, Layout::Diffusers) => ("transformer", "diffusion_pytorch_model".into()),
        (Family::AutoEncoder { .. }, _) => ("", "ae".into()),
        (Family::TinyAutoEncoder { .. }, _) => ("", "taef1".into()),
        (family, _) => ("", file_stem(family, official)),
    };
    Room { folder, stem }
}

/// The name of a transformer's file: `flux1-dev`.
fn file_stem(family: &Family, official: &Checkpoint) -> String {
    let Family::Transformer { family, in_channels, out_channels, guidance, .. } = official.family() else {
        return family.name().to_lowercase().replace(' ', "-");
    };
    let stem = family.row().file_stem;
    let channels = in_channels.zip(out_channels);
    let variant = channels.and_then(|(input, output)| family.variant(input, output, guidance));
    match variant {
        Some(variant) => format!("{stem}-{}", variant.file_name),
        None if family.row().drawing.is_some() => format!("{stem}-transformer"),
        None => stem.into(),
    }
}

fn is_float(dtype: Dtype) -> bool {
    use Dtype::{BF16, F8_E4M3, F8_E5M2, F16, F32, F64};
    matches!(dtype, F64 | F32 | F16 | BF16 | F8_E4M3 | F8_E5M2)
}
