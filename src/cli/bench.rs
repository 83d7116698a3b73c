//! `bench`: seconds, bytes and peak memory.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use clap::{Args, Subcommand};
use serde_json::json;
use tch::nn::VarStore;
use tch::{Device, Kind};
use tch_flux::autoencoder::{AutoEncoder, AutoEncoderParams};
use tch_flux::checkpoint::{Checkpoint, Family, LoadOptions, Loaded};
use tch_flux::flux1::{Flux1, Flux1Params};
use tch_flux::text::{ClipConfig, ClipText, T5Config, T5Encoder};

use super::{KindArg, access, human_bytes, kind_name, parse_device, print_json};

#[derive(Subcommand)]
pub(super) enum Bench {
    /// Open a weight file and build its model over it.
    Load(Load),
}

#[derive(Args)]
pub(super) struct Load {
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
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

impl Bench {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let Bench::Load(load) = self;
        load.run()
    }
}

impl Load {
    fn run(self) -> anyhow::Result<ExitCode> {
        let kind = self.kind.map(Kind::from);
        // libtorch and, where asked for, the device's own start are not the file's.
        let _ = tch::Tensor::zeros([1], (Kind::Float, self.device));
        let before = peak_bytes();
        let started = Instant::now();
        let checkpoint = Checkpoint::open(&self.path, access(self.no_mmap))?;
        let vs = VarStore::new(self.device);
        let (family, loaded) = build(checkpoint, &vs, LoadOptions { kind, keep_quantized: None })?;
        if let Device::Cuda(index) = self.device {
            tch::Cuda::synchronize(index as i64);
        }
        let seconds = started.elapsed().as_secs_f64();
        let peak = peak_bytes();
        let grown = before.zip(peak).map(|(before, peak)| peak - before);
        if self.json {
            print_json(&json!({
                "file": self.path, "family": family, "seconds": seconds, "bytes": loaded.bytes,
                "tensors": loaded.tensors, "borrowed": loaded.borrowed, "kind": kind_name(loaded.kind),
                "peak_bytes": peak, "peak_bytes_grown": grown,
            }))?;
        } else {
            println!("{family}");
            let kind = kind_name(loaded.kind);
            println!(
                "{} tensors ({} borrowed), {}, {kind}",
                loaded.tensors,
                loaded.borrowed,
                human_bytes(loaded.bytes)
            );
            println!("{seconds:.3} s");
            match peak.zip(grown) {
                Some((peak, grown)) => {
                    println!("peak memory {}, {} of it for this", human_bytes(peak), human_bytes(grown))
                }
                None => println!("peak memory unknown on this system"),
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

/// Builds the model that the names belong to, and fills it.
fn build(checkpoint: Checkpoint, vs: &VarStore, options: LoadOptions) -> anyhow::Result<(String, Loaded)> {
    let family = checkpoint.family();
    let checkpoint = checkpoint.official();
    let shape = |name: &str| checkpoint.shape(name);
    match &family {
        Family::Flux1 { .. } => drop(Flux1::new(vs.root(), &Flux1Params::from_shapes(shape)?)?),
        Family::AutoEncoder { .. } => {
            drop(AutoEncoder::new(vs.root(), &AutoEncoderParams::from_shapes(shape)?)?)
        }
        Family::T5 { .. } => drop(T5Encoder::new(vs.root(), &T5Config::from_shapes(shape)?)?),
        Family::Clip => drop(ClipText::new(vs.root(), &ClipConfig::from_shapes(shape)?)?),
        other => anyhow::bail!("no model is built from this file: {other}"),
    }
    Ok((family.to_string(), checkpoint.load(vs, options)?))
}

/// The most memory that the process ever held, where the system says it.
fn peak_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    let kilobytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kilobytes * 1024)
}
