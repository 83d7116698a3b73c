//! One file a subcommand; what they share is here.

// First: the others print with its macros.
#[macro_use]
mod say;

mod again;
mod bars;
mod bench;
mod control;
mod convert;
mod doctor;
mod edit;
mod generate;
#[cfg(feature = "hub")]
mod hub;
mod inspect;
mod memory;
mod output;
mod parity;
mod pictured;
mod pictures;
mod prompts;
mod redux;
#[cfg(feature = "serve")]
mod serve;
mod tiny;
mod walk;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use serde::{Deserialize, Serialize};
use tch::{Cuda, Device, Kind};
use tch_flux::Error;
use tch_flux::checkpoint::Access;
use tch_flux::ops::{Numerics, Quantize};
use tch_flux::pipeline::{OwnParts, Parts, PreviewBy};

/// FLUX on libtorch: official weights, official bits.
#[derive(Parser)]
#[command(name = "tch-flux", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Draw pictures of a prompt.
    Generate(Box<generate::Generate>),
    /// Draw pictures of a prompt from other pictures: image-to-image, Kontext, Fill, Canny and Depth.
    Edit(Box<edit::Edit>),
    /// Draw pictures for clients over HTTP, in OpenAI's dialect.
    #[cfg(feature = "serve")]
    Serve(Box<serve::Serve>),
    /// Say what a weight file or a model folder holds, from its headers alone.
    Inspect(inspect::Inspect),
    /// Write weights in another layout, in other numbers, in several files, or with LoRAs merged into them.
    Convert(convert::Convert),
    /// Run parity cases: outputs of a reference implementation against ours.
    Parity(parity::Parity),
    /// Measure.
    #[command(subcommand)]
    Bench(bench::Bench),
    /// Say which libtorch and which devices there are, and what is wrong with them.
    Doctor(doctor::Doctor),
}

/// Runs the program: 0 for success, 1 for a failure, 2 for a call that cannot be right.
pub fn run() -> ExitCode {
    let done = match parse().command {
        Command::Generate(command) => command.run(),
        Command::Edit(command) => command.run(),
        #[cfg(feature = "serve")]
        Command::Serve(command) => command.run(),
        Command::Inspect(command) => command.run(),
        Command::Convert(command) => command.run(),
        Command::Parity(command) => command.run(),
        Command::Bench(command) => command.run(),
        Command::Doctor(command) => command.run(),
    };
    let done = done.and_then(|code| match say::unsaid() {
        Some(error) => Err(anyhow::anyhow!("standard output: {error}")),
        None => Ok(code),
    });
    done.unwrap_or_else(|error| {
        eprintln!("error: {}", in_full(&error));
        match error.downcast_ref::<Error>() {
            Some(Error::Request(_)) => ExitCode::from(2),
            _ => ExitCode::FAILURE,
        }
    })
}

fn parse() -> Cli {
    let command = Cli::command();
    #[cfg(feature = "serve")]
    let command = command.mut_subcommand("serve", serve::with_environment);
    let matches = command.try_get_matches();
    #[cfg(feature = "serve")]
    let matches = matches.map_err(serve::named_by_variable);
    let matches = matches.unwrap_or_else(|problem| problem.exit());
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|problem| problem.exit());
    #[cfg(feature = "serve")]
    let cli = match (cli, matches.subcommand_matches("serve")) {
        (Cli { command: Command::Serve(serve) }, Some(matches)) => {
            Cli { command: Command::Serve(Box::new(serve.said_in(matches))) }
        }
        (cli, _) => cli,
    };
    cli
}

/// What is said while a model is fetched.
#[derive(Clone, Copy)]
#[cfg_attr(not(feature = "hub"), expect(dead_code, reason = "without the hub nothing is fetched"))]
struct Saying {
    /// A bar for each file.
    bars: bool,
    /// What went wrong, and whether it is tried again.
    warnings: bool,
}

/// An error with its causes, but for those that it has said itself.
fn in_full(error: &anyhow::Error) -> String {
    error.chain().map(ToString::to_string).fold(String::new(), |said, cause| match said.as_str() {
        "" => cause,
        said if said.ends_with(&cause) => said.to_string(),
        said => format!("{said}: {cause}"),
    })
}

/// Where the parts of a model lie.
#[derive(Args, Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct ModelArgs {
    /// A folder as the official repositories have it, ComfyUI's file with all weights, or OWNER/NAME[@REVISION] on the
    /// hub, of which is fetched what is needed, once; without it the small model is drawn with.
    #[arg(long, value_name = "PATH|OWNER/NAME")]
    model: Option<PathBuf>,
    /// The transformer's weights, instead of the folder's.
    #[arg(long, value_name = "PATH")]
    transformer: Option<PathBuf>,
    /// A transformer to take from what the first lacks outside of the blocks, as many finetunes do.
    #[arg(long, value_name = "PATH")]
    base: Option<PathBuf>,
    /// The autoencoder's weights, instead of the folder's.
    #[arg(long, visible_alias = "vae", value_name = "PATH")]
    autoencoder: Option<PathBuf>,
    /// CLIP's weights, instead of the folder's: its text model, or a whole CLIP.
    #[arg(long, value_name = "PATH")]
    clip: Option<PathBuf>,
    /// T5's weights, instead of the folder's: its encoder, or a whole T5.
    #[arg(long, value_name = "PATH")]
    t5: Option<PathBuf>,
    /// CLIP's tokenizer, instead of the folder's.
    #[arg(long, value_name = "PATH")]
    clip_tokenizer: Option<PathBuf>,
    /// T5's tokenizer, instead of the folder's.
    #[arg(long, value_name = "PATH")]
    t5_tokenizer: Option<PathBuf>,
    /// A depth model (Depth Anything), for drawings that follow depths: a folder, or a file with config.json beside.
    #[arg(long, value_name = "PATH")]
    depth_model: Option<PathBuf>,
    /// A tiny autoencoder (TAEF1) that makes the previews.
    #[arg(long, value_name = "PATH")]
    preview_decoder: Option<PathBuf>,
    /// Factors from latents to colours that make the previews: scripts/fit_latent_rgb.py writes such a file.
    #[arg(long, value_name = "FILE", conflicts_with = "preview_decoder")]
    preview_factors: Option<PathBuf>,
}

impl ModelArgs {
    /// What the model and its transformer are called.
    fn names(&self) -> impl Iterator<Item = &Path> {
        [&self.model, &self.transformer].into_iter().flatten().map(PathBuf::as_path)
    }

    fn parts(
        &self,
        #[cfg_attr(not(feature = "hub"), allow(unused))] saying: Saying,
    ) -> anyhow::Result<Parts> {
        let own = OwnParts {
            transformer: self.transformer.clone(),
            base: self.base.clone(),
            autoencoder: self.autoencoder.clone(),
            clip: self.clip.clone(),
            t5: self.t5.clone(),
            clip_tokenizer: self.clip_tokenizer.clone(),
            t5_tokenizer: self.t5_tokenizer.clone(),
            redux: None,
            image_encoder: None,
            preview: match (&self.preview_factors, &self.preview_decoder) {
                (Some(path), _) => Some(PreviewBy::Factors(path.clone())),
                (None, Some(path)) => Some(PreviewBy::Decoder(path.clone())),
                (None, None) => None,
            },
            depth: self.depth_model.clone(),
            scheduler: None,
        };
        if let Some(parts) = own.whole() {
            return Ok(parts);
        }
        match &self.model {
            #[cfg(feature = "hub")]
            Some(model) if !model.exists() => hub::parts(model, own, saying),
            #[cfg(not(feature = "hub"))]
            Some(model) if !model.exists() => anyhow::bail!(
                "{}: there is no such folder; names on the hub need a tch-flux with the feature `hub`",
                model.display(),
            ),
            Some(folder) => Ok(Parts::find_rest(own, folder)?),
            None => Ok(Parts::find_rest(own, tiny::folder()?)?),
        }
    }
}

/// A kind of numbers to compute in.
#[derive(Clone, Copy, Debug, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum KindArg {
    F32,
    Bf16,
    F16,
}

impl From<KindArg> for Kind {
    fn from(kind: KindArg) -> Kind {
        match kind {
            KindArg::F32 => Kind::Float,
            KindArg::Bf16 => Kind::BFloat16,
            KindArg::F16 => Kind::Half,
        }
    }
}

/// How numbers come about.
#[derive(Clone, Copy, Debug, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum NumericsArg {
    /// The bits of the official PyTorch code.
    Exact,
    /// As fast as the device can, no less accurate.
    Fast,
}

impl From<NumericsArg> for Numerics {
    fn from(numerics: NumericsArg) -> Numerics {
        match numerics {
            NumericsArg::Exact => Numerics::Exact,
            NumericsArg::Fast => Numerics::Fast,
        }
    }
}

/// Numbers of fewer bits for weights.
#[derive(Clone, Copy, Debug, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum QuantizeArg {
    None,
    Int8,
    Fp8,
}

impl From<QuantizeArg> for Quantize {
    fn from(quantize: QuantizeArg) -> Quantize {
        match quantize {
            QuantizeArg::None => Quantize::None,
            QuantizeArg::Int8 => Quantize::Int8,
            QuantizeArg::Fp8 => Quantize::Fp8,
        }
    }
}

/// The word for a kind, as `--kind` takes it.
fn kind_name(kind: Kind) -> String {
    match kind {
        Kind::Float => "f32".into(),
        Kind::BFloat16 => "bf16".into(),
        Kind::Half => "f16".into(),
        other => format!("{other:?}").to_lowercase(),
    }
}

/// `cpu`, `mps`, `cuda` or `cuda:N`; a CUDA device must be there.
fn parse_device(text: &str) -> Result<Device, String> {
    let device = match text.split_once(':') {
        None if text == "cpu" => return Ok(Device::Cpu),
        None if text == "mps" => return Ok(Device::Mps),
        None if text == "cuda" => 0,
        Some(("cuda", number)) => {
            number.parse().map_err(|_| format!("{number:?} is no number of a device"))?
        }
        _ => return Err("expected cpu, cuda, cuda:N or mps".into()),
    };
    match Cuda::device_count() {
        count if (device as i64) < count => Ok(Device::Cuda(device)),
        0 => Err("libtorch sees no CUDA device; `tch-flux doctor` says why".into()),
        count => Err(format!("there are {count} CUDA devices, counted from 0")),
    }
}

/// Where compiled CUDA kernels are kept, if the user has a cache folder.
fn kernel_cache() -> Option<PathBuf> {
    tiny::cache_folder().ok().map(|folder| folder.join("kernels"))
}

/// Files are mapped unless told otherwise.
fn access(no_mmap: bool) -> Access {
    if no_mmap { Access::Read } else { Access::Map }
}

/// Prints a value as JSON on one line.
fn print_json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    println!("{}", serde_json::to_string(value).context("writing JSON")?);
    Ok(())
}

/// `1.5 GB`, in powers of ten as file managers count.
fn human_bytes(bytes: u64) -> String {
    let units = ["B", "kB", "MB", "GB", "TB"];
    let (mut value, mut unit) = (bytes as f64, 0);
    while value >= 1000.0 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 { format!("{bytes} B") } else { format!("{value:.2} {}", units[unit]) }
}
