//! `inspect`: what a file or folder holds, from its headers alone; and how two files differ.

mod compare;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use serde::Serialize;
use serde_json::{Value, json};
use tch_flux::Error;
use tch_flux::checkpoint::lora::Lora;
use tch_flux::checkpoint::{Access, Checkpoint, Contained, Family};
use tch_flux::generation::Parts;
use tch_flux::models::TransformerParams;
use tch_flux::models::autoencoder::{AutoEncoderParams, TinyAutoEncoderParams};
use tch_flux::models::flux1::{ControlNetParams, IpAdapterParams};
use tch_flux::models::text::{ClipConfig, T5Config};
use tch_flux::models::vision::{ClipVisionConfig, ReduxConfig, SiglipConfig};

use super::bytes::human_bytes;
use super::output::print_json;

#[derive(Args)]
pub(super) struct Inspect {
    /// A weight file, an index of shards, a folder of weights, or a folder with all parts of a model.
    #[arg(value_name = "FILE|DIR", required_unless_present = "compare")]
    path: Option<PathBuf>,
    /// List the tensors, under the names of the file.
    #[arg(long, conflicts_with = "compare")]
    tensors: bool,
    /// Say how two files differ: names, shapes and kinds. The exit status is 1 where they do.
    #[arg(long, num_args = 2, value_names = ["A", "B"], conflicts_with = "path")]
    compare: Vec<PathBuf>,
    /// Compare the numbers, too.
    #[arg(long, requires = "compare")]
    values: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// What is known of one model's weights, or that they are missing.
#[derive(Default, Serialize)]
struct Report {
    path: PathBuf,
    /// What stands before its names in a file of several models.
    #[serde(skip_serializing_if = "String::is_empty")]
    prefix: String,
    family: String,
    /// Why it is not read, and what would work.
    #[serde(skip_serializing_if = "Option::is_none")]
    note: Option<String>,
    variant: Option<String>,
    layout: Option<String>,
    /// The family's sizes in their official names.
    sizes: Option<Value>,
    /// Of a LoRA: maker, modules, ranks, alphas.
    #[serde(skip_serializing_if = "Option::is_none")]
    lora: Option<Value>,
    tensors: usize,
    parameters: u64,
    bytes: u64,
    /// Bytes by type.
    kinds: BTreeMap<String, u64>,
    /// What a pipeline needs beside this.
    missing: Vec<String>,
    metadata: BTreeMap<String, String>,
    files: Vec<PathBuf>,
    /// What stands beside the model, and which other files were read.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    list: Option<Vec<Line>>,
}

/// A tensor of a list.
#[derive(Serialize)]
struct Line {
    name: String,
    kind: String,
    shape: Vec<i64>,
}

impl Inspect {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        if let [first, second] = &self.compare[..] {
            return compare::run(first, second, self.values, self.json);
        }
        let path = self.path.context("name a file or a folder")?;
        let mut reports = Vec::new();
        // Whoever has some parts of a model in a folder wants to know what else there has to be.
        let parts = if path.is_dir() { Parts::look(&path)? } else { Vec::new() };
        let is_a_model = parts.iter().any(|(_, found)| found.is_ok());
        for (part, found) in parts.into_iter().filter(|_| is_a_model) {
            match found {
                Ok(_) if part.is_tokenizer() => {}
                Ok(path) => reports.extend(reports_of(&path, self.tensors)?),
                Err(error) => reports.push(Report::missing(part.name(), &error)),
            }
        }
        if !is_a_model {
            reports = reports_of(&path, self.tensors)?;
            let others = PARTS.iter().filter(|part| !reports.iter().any(|r| r.family.contains(*part)));
            let others: Vec<_> = others.map(|part| part.to_string()).collect();
            let of_flux = |r: &&mut Report| r.family.contains("FLUX") || PARTS.contains(&r.family.as_str());
            let of_flux = |r: &&mut Report| of_flux(r) && r.note.is_none();
            reports.iter_mut().filter(of_flux).take(1).for_each(|r| r.missing.extend(others.clone()));
        }
        if !self.json {
            reports.iter().for_each(Report::print);
        } else if let ([report], false) = (&reports[..], is_a_model) {
            print_json(report)?;
        } else {
            print_json(&reports)?;
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// What a pipeline is made of, by words of the families' names; and what no weight file holds.
const PARTS: [&str; 6] =
    ["transformer", "autoencoder", "CLIP text model", "T5 encoder", "CLIP tokenizer", "T5 tokenizer"];

/// Returns a report for each model in a file.
fn reports_of(path: &Path, list: bool) -> Result<Vec<Report>, Error> {
    // Reading instead of mapping: a header is all that is looked at.
    let open = || Checkpoint::open(path, Access::Read);
    let contained = open()?.contained();
    match &contained[..] {
        [] | [_] => Ok(vec![Report::of(open()?, None, path, list)?]),
        several => several.iter().map(|model| Report::of(open()?, Some(model), path, list)).collect(),
    }
}

impl Report {
    /// `model`: which of several in the file.
    fn of(checkpoint: Checkpoint, model: Option<&Contained>, path: &Path, list: bool) -> Result<Self, Error> {
        let family = model.map_or_else(|| checkpoint.family(), |model| model.family.clone());
        let contained = checkpoint.contained();
        // A LoRA's names say in their own way which model they are of.
        let alone = contained.first().filter(|_| contained.len() == 1 && family != Family::Lora);
        let prefix = model.or(alone).map_or("", |model| model.prefix.as_str());
        let line = |name: &str| Line {
            name: checkpoint.name_in_file(name).unwrap_or(name).to_string(),
            kind: checkpoint.stored_as(name).unwrap_or_default(),
            shape: checkpoint.shape(name).unwrap_or_default(),
        };
        let list = list.then(|| checkpoint.names().filter(|n| n.starts_with(prefix)).map(line).collect());
        let metadata = checkpoint.headers().iter().flat_map(|h| h.metadata.clone()).collect();
        let files = checkpoint.files().into_iter().map(Path::to_path_buf).collect();
        let mut report = Self {
            path: path.to_path_buf(),
            prefix: prefix.to_string(),
            family: match &family {
                Family::Packed { packing, within: Some(within) } => {
                    format!("{within}, saved by {}", packing.name)
                }
                family => family.name().to_string(),
            },
            note: match &family {
                family if !family.is_drawn() => Some(family.to_string()),
                _ => None,
            },
            layout: family.layout().map(|layout| layout.to_string()),
            metadata,
            files,
            list,
            ..Self::default()
        };
        if family == Family::Lora {
            report.count(&checkpoint);
            report.warnings = checkpoint.warnings().to_vec();
            let opened = Lora::from_checkpoint(checkpoint)?;
            let instead = "take a LoRA that was made for FLUX.1";
            report.note =
                opened.made_for().map(|family| format!("this LoRA was made for {family}: {instead}"));
            report.lora = Some(lora(&opened));
            return Ok(report);
        }
        let official = match model {
            Some(Contained { prefix, family }) => checkpoint.part(prefix, family),
            None => checkpoint.official(),
        };
        report.warnings = official.warnings().to_vec();
        report.count(&official);
        report.look_at(&family, &official);
        Ok(report)
    }

    fn count(&mut self, checkpoint: &Checkpoint) {
        self.tensors = checkpoint.names().count();
        (self.parameters, self.bytes) = (checkpoint.parameters(), checkpoint.bytes());
        self.kinds = checkpoint.types();
    }

    /// Returns the sizes, or why there are none.
    fn look_at(&mut self, family: &Family, official: &Checkpoint) {
        let shape = |name: &str| official.shape(name);
        let sizes = match family {
            Family::Transformer { family: of, .. } if family.is_drawn() => {
                TransformerParams::from_shapes(*of, shape).and_then(|params| {
                    self.variant = Some(params.variant().to_string());
                    as_json(params)
                })
            }
            Family::ControlNet { .. } => ControlNetParams::from_shapes(shape).and_then(|params| {
                self.variant = Some(params.variant().to_string());
                as_json(params)
            }),
            Family::Transformer { .. } => {
                self.variant = Some(flux2_variant(official).to_string());
                return;
            }
            Family::AutoEncoder { .. } => AutoEncoderParams::from_shapes(shape).and_then(as_json),
            Family::TinyAutoEncoder { .. } => TinyAutoEncoderParams::from_shapes(shape).and_then(as_json),
            Family::T5 { .. } => T5Config::from_shapes(shape).and_then(as_json),
            Family::Clip => ClipConfig::from_shapes(shape).and_then(as_json),
            Family::Siglip => SiglipConfig::from_shapes(shape).and_then(as_json),
            Family::Redux => ReduxConfig::from_shapes(shape).and_then(as_json),
            Family::Depth => {
                let shape = |name: &str| official.shape(name).and_then(|shape| shape.first().copied());
                self.variant = shape("backbone.layernorm.weight").map(|width| format!("of width {width}"));
                return;
            }
            Family::ClipVision => ClipVisionConfig::from_shapes(shape).and_then(as_json),
            Family::IpAdapter => IpAdapterParams::from_shapes(shape).and_then(as_json),
            _ => return,
        };
        match sizes {
            Ok(sizes) => self.sizes = Some(sizes),
            Err(error) => self.missing.push(error.to_string()),
        }
    }

    fn missing(part: &'static str, error: &Error) -> Self {
        Self { family: "missing".into(), missing: vec![format!("{part}: {error}")], ..Self::default() }
    }

    fn print(&self) {
        if self.family == "missing" {
            self.missing.iter().for_each(|what| println!("missing: {what}"));
            return;
        }
        println!("{}", self.path.display());
        let variant = self.variant.as_ref().map(|v| format!(" {v}")).unwrap_or_default();
        let layout = self.layout.as_ref().map(|l| format!(", {l}")).unwrap_or_default();
        println!("  {}{variant}{layout}", self.family);
        if let Some(note) = &self.note {
            println!("  {note}");
        }
        if !self.prefix.is_empty() {
            println!("  names behind {}", self.prefix);
        }
        println!("  {} parameters in {} tensors, {}", self.parameters, self.tensors, human_bytes(self.bytes));
        for (kind, bytes) in &self.kinds {
            println!("  {kind}: {} ({:.1} %)", human_bytes(*bytes), share(*bytes, self.bytes));
        }
        for object in [&self.sizes, &self.lora].into_iter().flatten().filter_map(Value::as_object) {
            object.iter().for_each(|(name, value)| println!("  {name} {value}"));
        }
        // Whoever wrote the file may have written for the terminal.
        let metadata = self.metadata.iter().map(|(key, text)| (key.escape_debug(), text.escape_debug()));
        metadata.for_each(|(key, text)| println!("  metadata {key}: {text}"));
        if self.files.len() > 1 {
            println!("  {} files", self.files.len());
        }
        self.warnings.iter().for_each(|warning| println!("  note: {}", warning.escape_debug()));
        if !self.missing.is_empty() {
            println!("  for a whole pipeline it lacks: {}", self.missing.join("; "));
        }
        for Line { name, kind, shape } in self.list.iter().flatten() {
            println!("  {name} {kind} {shape:?}");
        }
    }
}

/// Rounds to hundredths.
fn share(bytes: u64, of: u64) -> f64 {
    100.0 * bytes as f64 / of.max(1) as f64
}

fn as_json(sizes: impl Serialize) -> Result<Value, Error> {
    serde_json::to_value(sizes).map_err(|error| Error::Config(error.to_string()))
}

/// Returns which FLUX.2 it is, by its width.
fn flux2_variant(official: &Checkpoint) -> &'static str {
    match official.shape("img_in.weight").and_then(|s| s.first().copied()) {
        Some(6144) => "dev",
        Some(4096) => "klein 9B",
        Some(3072) => "klein 4B",
        _ => "of an unknown size",
    }
}

/// Returns what a LoRA changes, and how.
fn lora(lora: &Lora) -> Value {
    use tch_flux::checkpoint::lora::Component;
    let counts = [("transformer", Component::Transformer), ("clip", Component::Clip), ("t5", Component::T5)];
    let modules: BTreeMap<_, _> = counts.map(|(name, model)| (name, lora.modules(model))).into();
    let mut ranks: BTreeMap<i64, usize> = BTreeMap::new();
    let mut alphas: BTreeMap<String, usize> = BTreeMap::new();
    let mut forms: BTreeMap<String, usize> = BTreeMap::new();
    for patch in lora.patches() {
        patch.rank.into_iter().for_each(|rank| *ranks.entry(rank).or_default() += 1);
        patch.alpha.into_iter().for_each(|alpha| *alphas.entry(alpha.to_string()).or_default() += 1);
        *forms.entry(patch.form.to_string()).or_default() += 1;
    }
    let targets: Vec<&str> = lora.targets.keys().map(|(_, module)| module.as_str()).collect();
    json!({
        "maker": lora.maker.map(|maker| maker.to_string()), "summary": lora.to_string(), "modules": modules,
        "made_for": lora.made_for(), "ranks": ranks, "alphas": alphas, "forms": forms, "unknown": lora.unknown, "targets": targets,
    })
}
