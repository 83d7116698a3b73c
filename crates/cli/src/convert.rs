//! `convert`: weight files into other names, other numbers and other sizes of file.

use std::io::IsTerminal;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use tch_flux::Error;
use tch_flux::checkpoint::Layout;
use tch_flux::convert::{Conversion, Converted, DiskKind, Progress, convert};
use tch_flux::generation::LoraFile;

use super::bytes::{human_bytes, parse_size};
use super::device::ThreadsArg;
use super::interrupt::Interrupt;
use super::model_args::parse_lora;
use super::output::print_json;
use super::targets::{self, Input, Target};

#[derive(Args)]
pub(super) struct Convert {
    /// A safetensors or GGUF file, an index of shards, or a folder with one of them: a transformer, an autoencoder, a
    /// text encoder, a LoRA, or ComfyUI's file with all of them.
    #[arg(value_name = "IN")]
    input: PathBuf,
    /// A file, if it ends in .safetensors, else a folder.
    #[arg(value_name = "OUT")]
    output: PathBuf,
    /// Whose names to write; without it they stay.
    #[arg(long)]
    layout: Option<LayoutArg>,
    /// The numbers to write; without it they stay, but for quantised ones, which become bf16.
    #[arg(long)]
    kind: Option<DiskKindArg>,
    /// The most bytes of a file, such as 5GB or 500MiB; a larger model becomes several files.
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    shard_size: Option<u64>,
    /// A LoRA to merge into the weights, and how much of it; may be given several times.
    #[arg(long, value_name = "LORA[:STRENGTH]", value_parser = parse_lora)]
    merge: Vec<LoraFile>,
    /// Leave out what has no place, of LoRAs to merge or of one to convert.
    #[arg(long)]
    allow_partial_lora: bool,
    /// Replace files that stand in the way.
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    threads: ThreadsArg,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum LayoutArg {
    Official,
    Diffusers,
    Comfy,
}

#[derive(Clone, Copy, ValueEnum)]
enum DiskKindArg {
    Bf16,
    F16,
    F32,
    /// The weights of linear layers as e4m3, rounded as they are.
    Fp8,
    /// The same, each with its scale.
    Fp8Scaled,
}

impl Convert {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        self.check()?;
        self.threads.set();
        let conversion = Conversion {
            layout: self.layout.map(|layout| match layout {
                LayoutArg::Official => Layout::Official,
                LayoutArg::Diffusers => Layout::Diffusers,
                LayoutArg::Comfy => Layout::Comfy,
            }),
            kind: self.kind.map(|kind| match kind {
                DiskKindArg::Bf16 => DiskKind::Bf16,
                DiskKindArg::F16 => DiskKind::F16,
                DiskKindArg::F32 => DiskKind::F32,
                DiskKindArg::Fp8 => DiskKind::Fp8,
                DiskKindArg::Fp8Scaled => DiskKind::Fp8Scaled,
            }),
            shard_size: self.shard_size,
            merges: self.merge.into_iter().map(|lora| (lora.path, lora.strength)).collect(),
            overwrite: self.force,
            allow_partial_lora: self.allow_partial_lora,
        };
        let interrupt = Interrupt::listen(false).context("signals")?;
        let bar = (!self.json && std::io::stderr().is_terminal()).then(bar);
        let mut show = |Progress { written, total }| {
            if let Some(bar) = &bar {
                bar.set_length(total);
                bar.set_position(written);
            }
            match interrupt.status() {
                Some(_) => ControlFlow::Break(()),
                None => ControlFlow::Continue(()),
            }
        };
        let converted = convert(&self.input, &self.output, &conversion, &mut show);
        if let Some(bar) = bar {
            bar.finish_and_clear();
        }
        if let (Err(Error::Cancelled), Some(status)) = (&converted, interrupt.status()) {
            if !self.json {
                eprintln!("stopped: nothing was written");
            }
            return Ok(status);
        }
        let Converted { files, tensors, bytes, notes } = converted?;
        if self.json {
            print_json(&json!({ "files": files, "tensors": tensors, "bytes": bytes, "notes": notes }))?;
        } else {
            notes.iter().for_each(|note| eprintln!("note: {note}"));
            files.iter().for_each(|file| println!("{}", file.display()));
            println!("{tensors} tensors, {}", human_bytes(bytes));
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Convert {
    /// Checks what can be told before anything is read: a single file here, those of a folder once it is known which.
    fn check(&self) -> anyhow::Result<()> {
        if self.output.extension().is_none_or(|ending| ending != "safetensors") {
            // Of a file with another ending, the conversion itself says that it is not written.
            return if self.output.is_file() { Ok(()) } else { targets::check_folder(&self.output) };
        }
        let mut inputs = vec![Input::new("IN", &self.input)];
        inputs.extend(self.merge.iter().map(|lora| Input::new("--merge", &lora.path)));
        let target = Target { path: self.output.clone(), flag: "OUT" };
        targets::check(&[target], &inputs, self.force)
    }
}

fn bar() -> ProgressBar {
    let bar = ProgressBar::new(0);
    let style = "{wide_bar} {bytes}/{total_bytes} {bytes_per_sec} ETA {eta}";
    if let Ok(style) = ProgressStyle::with_template(style) {
        bar.set_style(style);
    }
    bar
}
