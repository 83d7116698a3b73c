//! `inspect`: what a file or folder holds, from its headers alone.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;
use serde_json::Value;
use tch_flux::autoencoder::AutoEncoderParams;
use tch_flux::checkpoint::{Access, Checkpoint, Family};
use tch_flux::flux1::Flux1Params;
use tch_flux::pipeline::Parts;
use tch_flux::text::{ClipConfig, T5Config};

use super::{human_bytes, print_json};

#[derive(Args)]
pub(super) struct Inspect {
    /// A weight file, an index of shards, a folder of weights, or a folder with all parts of a model.
    #[arg(value_name = "FILE|DIR")]
    path: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// What is known of one set of weights.
#[derive(Serialize)]
struct Report {
    path: PathBuf,
    family: &'static str,
    variant: Option<String>,
    layout: Option<String>,
    /// The family's sizes in their official names.
    sizes: Option<Value>,
    tensors: usize,
    parameters: u64,
    bytes: u64,
    /// Bytes by type.
    kinds: BTreeMap<String, u64>,
    metadata: BTreeMap<String, String>,
    files: Vec<PathBuf>,
}

impl Inspect {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        // A file is one report, even where tokenizers beside it would make it a whole model.
        let paths = match Parts::find(&self.path) {
            Ok(parts) if self.path.is_dir() => {
                vec![parts.transformer, parts.autoencoder, parts.clip, parts.t5]
            }
            _ => vec![self.path.clone()],
        };
        let reports = paths.iter().map(|path| report(path)).collect::<Result<Vec<_>, _>>()?;
        if self.json {
            match &reports[..] {
                [one] if *one.path == *self.path => print_json(one)?,
                all => print_json(&all)?,
            }
        } else {
            reports.iter().for_each(Report::print);
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn report(path: &Path) -> Result<Report, tch_flux::Error> {
    // Reading instead of mapping: a header is all that is looked at.
    let checkpoint = Checkpoint::open(path, Access::Read)?;
    let family = checkpoint.family();
    let (name, layout) = (family.name(), family.layout());
    let files = checkpoint.files().into_iter().map(Path::to_path_buf).collect();
    let metadata = checkpoint.headers().iter().flat_map(|h| h.metadata.clone()).collect();
    let (tensors, parameters) = (checkpoint.names().count(), checkpoint.parameters());
    let (bytes, kinds) = (checkpoint.bytes(), checkpoint.types());
    let (mut variant, mut sizes) = (None, None);
    let official = checkpoint.official();
    let shape = |name: &str| official.shape(name);
    match family {
        Family::Flux1 { .. } => {
            if let Ok(params) = Flux1Params::from_shapes(shape) {
                variant = Some(params.variant().to_string());
                sizes = json(params);
            }
        }
        Family::AutoEncoder { .. } => sizes = AutoEncoderParams::from_shapes(shape).ok().and_then(json),
        Family::T5 { .. } => sizes = T5Config::from_shapes(shape).ok().and_then(json),
        Family::Clip => sizes = ClipConfig::from_shapes(shape).ok().and_then(json),
        _ => {}
    }
    let layout = layout.map(|l| l.to_string());
    let path = path.to_path_buf();
    Ok(Report {
        path,
        family: name,
        variant,
        layout,
        sizes,
        tensors,
        parameters,
        bytes,
        kinds,
        metadata,
        files,
    })
}

fn json(sizes: impl Serialize) -> Option<Value> {
    serde_json::to_value(sizes).ok()
}

impl Report {
    fn print(&self) {
        println!("{}", self.path.display());
        let variant = self.variant.as_ref().map(|v| format!(" {v}")).unwrap_or_default();
        let layout = self.layout.as_ref().map(|l| format!(", {l}")).unwrap_or_default();
        println!("  {}{variant}{layout}", self.family);
        println!("  {} parameters in {} tensors, {}", self.parameters, self.tensors, human_bytes(self.bytes));
        for (kind, bytes) in &self.kinds {
            println!("  {kind}: {}", human_bytes(*bytes));
        }
        if let Some(Value::Object(sizes)) = &self.sizes {
            sizes.iter().for_each(|(name, value)| println!("  {name} {value}"));
        }
        self.metadata.iter().for_each(|(key, text)| println!("  metadata {key}: {text}"));
        if self.files.len() > 1 {
            println!("  {} files", self.files.len());
        }
    }
}
