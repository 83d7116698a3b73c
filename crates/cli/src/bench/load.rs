//! `bench load`: from a file to a model.

use std::any::Any;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::bail;
use clap::Args;
use clap::builder::TypedValueParser;
use serde_json::json;
use tch::nn::VarStore;
use tch::{Device, Kind};
use tch_flux::checkpoint::{Checkpoint, Contained, Family, LoadOptions, Loaded};
use tch_flux::models::autoencoder::{AutoEncoder, AutoEncoderParams, TinyAutoEncoder, TinyAutoEncoderParams};
use tch_flux::models::text::{ClipConfig, ClipText, T5Config, T5Encoder};
use tch_flux::models::vision::{ReduxConfig, ReduxImageEncoder, SiglipConfig, SiglipVision};
use tch_flux::models::{Model, Transformer, TransformerParams};
use tch_flux::nn::Linears;
use tch_flux::numerics;

use super::measure::synchronize;
use crate::bytes::human_bytes;
use crate::device::{KindArg, access, kind_name, parse_device};
use crate::output::print_json;
use crate::peak_memory::peak_bytes;

#[derive(Args)]
pub(crate) struct Load {
    /// A weight file, an index of shards, or a folder of weights.
    #[arg(value_name = "FILE")]
    path: PathBuf,
    /// cpu, cuda, cuda:N or mps.
    #[arg(long, default_value = "cpu", value_parser = parse_device)]
    device: Device,
    /// The kind in memory. [default: the file's]
    #[arg(long)]
    kind: Option<KindArg>,
    /// Read the file instead of mapping it.
    #[arg(long)]
    no_mmap: bool,
    /// Keep fp8 and GGUF weights in memory as they are on the disk.
    #[arg(long)]
    keep_quantized: bool,
    /// Load so many times and take the median: memory that the system has given once, it gives faster again.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=1000).map(usize::from))]
    repeat: usize,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Load {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let kind = self.kind.map(Kind::from);
        // libtorch and, where asked for, the device's own start are not the file's.
        let _ = tch::Tensor::zeros([1], (Kind::Float, self.device));
        let before = peak_bytes();
        let mut seconds = Vec::new();
        let (family, read, loaded) = loop {
            let (took, family, read, loaded) = self.once(kind)?;
            seconds.push(took);
            if seconds.len() == self.repeat {
                break (family, read, loaded);
            }
        };
        let first = seconds[0];
        seconds.sort_by(f64::total_cmp);
        let seconds = seconds[seconds.len() / 2];
        let peak = peak_bytes();
        let grown = before.zip(peak).map(|(before, peak)| peak - before);
        let copy = if loaded.moved > 0 { Some(numerics::copy_seconds(loaded.moved / 2)?) } else { None };
        if self.json {
            print_json(&json!({
                "file": self.path, "family": family, "seconds": seconds, "first_seconds": first, "bytes": loaded.bytes,
                "bytes_in_file": read, "bytes_moved": loaded.moved, "tensors": loaded.tensors, "borrowed": loaded.borrowed,
                "quantized": loaded.quantized, "kind": kind_name(loaded.kind), "copy_seconds": copy,
                "share_of_copy_speed": copy.map(|copy| copy / seconds), "peak_bytes": peak,
                "peak_bytes_grown": grown,
            }))?;
            return Ok(ExitCode::SUCCESS);
        }
        println!("{family}");
        let Loaded { tensors, borrowed, quantized, bytes, kind, .. } = loaded;
        println!(
            "{tensors} tensors ({borrowed} borrowed, {quantized} kept quantised), {} of {} in the file, {}",
            human_bytes(bytes),
            human_bytes(read),
            kind_name(kind)
        );
        match self.repeat {
            1 => println!("{seconds:.3} s"),
            n => println!("{seconds:.3} s, the median of {n}; the first time {first:.3} s"),
        }
        match copy {
            Some(copy) => println!(
                "one copy that reads and writes as many bytes takes {copy:.3} s: {:.0} % of its speed",
                100.0 * copy / seconds
            ),
            None => println!("nothing was read or copied: the weights lie in the mapped file"),
        }
        match peak.zip(grown) {
            Some((peak, grown)) => {
                println!("peak memory {}, {} of it for this", human_bytes(peak), human_bytes(grown));
            }
            None => println!("peak memory unknown on this system"),
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Load {
    /// From the file to a model, which is then released again: seconds, family, bytes in the file, and what was loaded.
    fn once(&self, kind: Option<Kind>) -> anyhow::Result<(f64, String, u64, Loaded)> {
        let started = Instant::now();
        let checkpoint = Checkpoint::open(&self.path, access(self.no_mmap))?;
        let vs = VarStore::new(self.device);
        let contained = checkpoint.contained();
        let [Contained { prefix, family }] = &contained[..] else {
            bail!("no single model is in this file: {}", checkpoint.family());
        };
        let checkpoint = checkpoint.part(prefix, family);
        let (model, loaded) = build(&checkpoint, family, &vs, kind, self.keep_quantized)?;
        synchronize(self.device);
        let seconds = started.elapsed().as_secs_f64();
        drop(model);
        Ok((seconds, family.to_string(), checkpoint.bytes(), loaded))
    }
}

/// Builds the model that the names belong to, and fills it. Returns it, so that nothing is released while its memory is
/// measured.
fn build(
    checkpoint: &Checkpoint,
    family: &Family,
    vs: &VarStore,
    kind: Option<Kind>,
    keep: bool,
) -> anyhow::Result<(Box<dyn Any>, Loaded)> {
    let shape = |name: &str| checkpoint.shape(name);
    let load = |linears: Option<&Linears>| {
        checkpoint
            .load(vs, LoadOptions { kind, keep_quantized: linears.filter(|_| keep), ..Default::default() })
    };
    match family {
        Family::Transformer { family: of, .. } if family.is_drawn() => {
            let model = Transformer::new(vs.root(), &TransformerParams::from_shapes(*of, shape)?)?;
            let loaded = load(Some(model.linears()))?;
            Ok((Box::new(model), loaded))
        }
        Family::AutoEncoder { .. } if family.is_drawn() => {
            let model = AutoEncoder::new(vs.root(), &AutoEncoderParams::from_shapes(shape)?)?;
            let loaded = load(None)?;
            Ok((Box::new(model), loaded))
        }
        Family::TinyAutoEncoder { .. } => {
            let model = TinyAutoEncoder::new(vs.root(), &TinyAutoEncoderParams::from_shapes(shape)?)?;
            let loaded = load(None)?;
            Ok((Box::new(model), loaded))
        }
        Family::T5 { .. } => {
            let model = T5Encoder::new(vs.root(), &T5Config::from_shapes(shape)?)?;
            let loaded = load(Some(model.linears()))?;
            Ok((Box::new(model), loaded))
        }
        Family::Clip => {
            let model = ClipText::new(vs.root(), &ClipConfig::from_shapes(shape)?)?;
            let loaded = load(Some(model.linears()))?;
            Ok((Box::new(model), loaded))
        }
        Family::Siglip => {
            let model = SiglipVision::new(vs.root(), &SiglipConfig::from_shapes(shape)?)?;
            let loaded = load(Some(model.linears()))?;
            Ok((Box::new(model), loaded))
        }
        Family::Redux => {
            let model = ReduxImageEncoder::new(vs.root(), &ReduxConfig::from_shapes(shape)?)?;
            let loaded = load(Some(model.linears()))?;
            Ok((Box::new(model), loaded))
        }
        other => bail!("no model is built from this file yet: {other}"),
    }
}
