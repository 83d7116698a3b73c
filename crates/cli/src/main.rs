//! The command line of tch-flux. One file a subcommand; what they share is here.

// First: the others print with its macros.
#[macro_use]
mod say;

mod again;
mod bench;
mod control;
mod convert;
mod doctor;
mod edit;
mod errors;
mod formats;
mod generate;
mod hub;
mod inspect;
mod interrupt;
mod manual;
mod memory;
mod names;
mod output;
mod parity;
mod pictured;
mod pictures;
mod plan;
mod progress;
mod prompts;
mod redux;
mod serve;
mod tiny;
mod walk;
mod writer;

#[cfg(test)]
#[path = "../../../tests/support/commands.rs"]
mod listed;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use serde::{Deserialize, Serialize};
use tch::{Cuda, Device, Kind};
use tch_flux::Error;
use tch_flux::checkpoint::Access;
use tch_flux::generation::{PartOverrides, Parts, PreviewBy};
use tch_flux::numerics::{Numerics, Quantize};

use output::Input;

/// FLUX on libtorch: official weights, official bits.
#[derive(Parser)]
#[command(name = "tch-flux", version, about, max_term_width = 100)]
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
    /// Print what completes the flags in a shell.
    Completions(manual::Completions),
    /// Print the manual page, or write the pages of all subcommands to a folder.
    Man(manual::Man),
}

/// Runs the program: 0 for success, 1 for a failure, 2 for a call that cannot be right, 128 and a signal's number after that.
fn main() -> ExitCode {
    let json = errors::asks_for_json(std::env::args_os());
    let command = match parse(std::env::args_os()) {
        Ok(Cli { command }) => command,
        Err(problem) => return errors::report_usage(&problem, json),
    };
    let done = match command {
        Command::Generate(command) => command.run(),
        Command::Edit(command) => command.run(),
        Command::Serve(command) => command.run(),
        Command::Inspect(command) => command.run(),
        Command::Convert(command) => command.run(),
        Command::Parity(command) => command.run(),
        Command::Bench(command) => command.run(),
        Command::Doctor(command) => command.run(),
        Command::Completions(command) => command.run(),
        Command::Man(command) => command.run(),
    };
    let done = done.and_then(|code| match say::unsaid() {
        Some(error) => Err(anyhow::anyhow!("standard output: {error}")),
        None => Ok(code),
    });
    done.unwrap_or_else(|error| errors::report(&error, json))
}

fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Cli, clap::Error> {
    let matches = definition().try_get_matches_from(arguments);
    let matches = matches.map_err(serve::named_by_variable);
    let matches = matches?;
    let cli = Cli::from_arg_matches(&matches)?;
    let cli = match (cli, matches.subcommand_matches("serve")) {
        (Cli { command: Command::Serve(serve) }, Some(matches)) => {
            Cli { command: Command::Serve(Box::new(serve.said_in(matches))) }
        }
        (cli, _) => cli,
    };
    Ok(cli)
}

/// All subcommands and their flags.
fn definition() -> clap::Command {
    // A number below 0 is a wrong value, and no flag; subcommands of subcommands have no numbers but counts.
    let command = Cli::command().mut_subcommands(|command| {
        command.mut_args(|arg| match arg.get_action().takes_values() {
            true => arg.allow_negative_numbers(true),
            false => arg,
        })
    });
    let command = command.mut_subcommand("serve", serve::with_environment);
    let command = command.mut_subcommand("serve", |serve| serve.mut_args(in_groups));
    command
}

/// Which heading a flag of `serve` stands under in its help, and whether it is one of the few of the short help.
fn in_groups(arg: clap::Arg) -> clap::Arg {
    let shown = [
        "help",
        "config",
        "host",
        "port",
        "model",
        "device",
        "quantize",
        "lora",
        "queue",
        "api_key_file",
        "cors_origin",
        "grace",
        "log_level",
    ];
    let heading = match arg.get_id().as_str() {
        "help" | "config" | "print_config" => None,
        "host" | "port" | "api_key" | "api_key_file" | "cors_origin" | "allowed_host" | "public_url" => {
            Some("Network")
        }
        "device" | "threads" | "kind" | "numerics" | "quantize" | "keep_quantized" | "keep_text_encoders"
        | "offload" | "no_mmap" | "vae_tile" => Some("Memory and speed"),
        "log_level" | "log_json" => Some("Log"),
        id if id.starts_with("max_") || id.starts_with("url_") || id.ends_with("_timeout") => Some("Limits"),
        "queue" | "grace" | "drain_notice" | "body_pause" | "stream_keep_alive" => Some("Limits"),
        _ => Some("Model"),
    };
    let hidden = !shown.contains(&arg.get_id().as_str());
    let arg = arg.hide_short_help(hidden);
    match heading {
        Some(heading) => arg.help_heading(heading),
        None => arg,
    }
}

/// What is said while a model is fetched.
#[derive(Clone, Copy)]
struct Saying {
    /// A bar for each file.
    bars: bool,
    /// What went wrong, and whether it is tried again.
    warnings: bool,
}

/// Where the parts of a model lie.
#[derive(Args, Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct ModelArgs {
    /// A model's folder, a file with all weights, or OWNER/NAME[@REVISION] on the hub. [default: the small model]
    ///
    /// A folder is as the official repositories have it, a file with all weights ComfyUI's. Of a name on the hub is fetched
    /// what is needed, once.
    #[arg(long, value_name = "PATH|OWNER/NAME")]
    model: Option<PathBuf>,
    /// The transformer's weights, instead of the folder's.
    #[arg(long, value_name = "PATH")]
    transformer: Option<PathBuf>,
    /// A transformer to take from what the first lacks outside of the blocks, as many finetunes do.
    #[arg(long, value_name = "PATH", hide_short_help = true)]
    base: Option<PathBuf>,
    /// The autoencoder's weights, instead of the folder's.
    #[arg(long, visible_alias = "vae", value_name = "PATH", hide_short_help = true)]
    autoencoder: Option<PathBuf>,
    /// CLIP's weights, instead of the folder's: its text model, or a whole CLIP.
    #[arg(long, value_name = "PATH", hide_short_help = true)]
    clip: Option<PathBuf>,
    /// T5's weights, instead of the folder's: its encoder, or a whole T5.
    #[arg(long, value_name = "PATH", hide_short_help = true)]
    t5: Option<PathBuf>,
    /// CLIP's tokenizer, instead of the folder's.
    #[arg(long, value_name = "PATH", hide_short_help = true)]
    clip_tokenizer: Option<PathBuf>,
    /// T5's tokenizer, instead of the folder's.
    #[arg(long, value_name = "PATH", hide_short_help = true)]
    t5_tokenizer: Option<PathBuf>,
    /// A depth model (Depth Anything), for drawings that follow depths: a folder, or a file with config.json beside.
    #[arg(long, value_name = "PATH", hide_short_help = true)]
    depth_model: Option<PathBuf>,
    /// A tiny autoencoder (TAEF1) that makes the previews.
    #[arg(long, value_name = "PATH", hide_short_help = true)]
    preview_decoder: Option<PathBuf>,
    /// Factors from latents to colours that make the previews: scripts/fit_latent_rgb.py writes such a file.
    #[arg(long, value_name = "FILE", conflicts_with = "preview_decoder", hide_short_help = true)]
    preview_factors: Option<PathBuf>,
}

impl ModelArgs {
    /// What the model and its transformer are called.
    fn names(&self) -> impl Iterator<Item = &Path> {
        [&self.model, &self.transformer].into_iter().flatten().map(PathBuf::as_path)
    }

    /// What names the files of a model.
    const FLAGS: [&str; 11] = [
        "--model",
        "--transformer",
        "--base",
        "--autoencoder",
        "--clip",
        "--t5",
        "--clip-tokenizer",
        "--t5-tokenizer",
        "--depth-model",
        "--preview-decoder",
        "--preview-factors",
    ];

    /// The files that are named, each with its flag.
    fn inputs(&self) -> Vec<Input> {
        let paths = [
            &self.model,
            &self.transformer,
            &self.base,
            &self.autoencoder,
            &self.clip,
            &self.t5,
            &self.clip_tokenizer,
            &self.t5_tokenizer,
            &self.depth_model,
            &self.preview_decoder,
            &self.preview_factors,
        ];
        let named = |(path, flag): (&Option<PathBuf>, &'static str)| Some(Input::new(flag, path.as_ref()?));
        paths.into_iter().zip(Self::FLAGS).filter_map(named).collect()
    }

    fn parts(&self, saying: Saying) -> anyhow::Result<Parts> {
        let own = PartOverrides {
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
            Some(model) if !model.exists() => hub::parts(model, own, saying),
            Some(folder) => Parts::find_rest(own, folder).map_err(|error| self.incomplete(folder, error)),
            None => Ok(Parts::find_rest(own, tiny::folder()?)?),
        }
    }
}

impl ModelArgs {
    /// What to do about a folder that holds some parts of a model alone.
    fn incomplete(&self, folder: &Path, error: Error) -> anyhow::Error {
        let Error::MissingPart { part, .. } = &error else { return error.into() };
        let found = Parts::look(folder).unwrap_or_default();
        let found: Vec<_> = found.into_iter().filter_map(|(part, path)| Some((part, path.ok()?))).collect();
        let advice = match &found[..] {
            [(part, path)] if misplaced(folder).is_none() => format!(
                "{} holds {} {part} alone: name it by {} {}, and by --model the folder of a model that has the rest",
                folder.display(),
                if part.starts_with('a') { "an" } else { "a" },
                part_flag(part),
                path.display()
            ),
            _ => misplaced(folder).unwrap_or_else(|| {
                format!("name that part by {}, or another folder by --model", part_flag(part))
            }),
        };
        anyhow::Error::from(error).context(advice)
    }
}

/// Of a folder that is no model's, but has models in it as programs keep them, what to name instead.
fn misplaced(folder: &Path) -> Option<String> {
    let shown = folder.display();
    let below = |name: &str| folder.join(name).is_dir();
    let one = |names: &[&'static str]| names.iter().find(|name| below(name)).copied();
    let transformers = one(&["diffusion_models", "unet", "checkpoints", "Stable-diffusion"]);
    let encoders = one(&["text_encoders", "clip", "text_encoder"]);
    if let (Some(transformers), Some(encoders)) = (transformers, encoders)
        && encoders != "text_encoder"
    {
        let flags = [
            ("--transformer", transformers),
            ("--clip", encoders),
            ("--t5", encoders),
            ("--autoencoder", one(&["vae", "VAE"]).unwrap_or("vae")),
        ];
        let flags = flags.map(|(flag, name)| format!("{flag} {}", folder.join(name).join("FILE").display()));
        let flags = flags.join(", ");
        return Some(format!(
            "{shown} is laid out as ComfyUI's models, of which any could be meant: name the files by {flags}, and the \
             tokenizers by --clip-tokenizer and --t5-tokenizer"
        ));
    }
    // The cache of the hub keeps the files of a repository in a folder for each revision.
    let names = |folder: &Path| {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let mut folders: Vec<_> = entries.map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
        folders.sort();
        folders
    };
    let snapshots = folder.join("snapshots");
    let within = if snapshots.is_dir() { names(&snapshots) } else { names(folder) };
    let whole =
        |path: &&PathBuf| Parts::look(path).is_ok_and(|parts| parts.iter().all(|(_, place)| place.is_ok()));
    let model = within.iter().take(100).find(whole)?;
    Some(format!("{shown} is no model's folder, but {} is: name that by --model", model.display()))
}

/// The flag that names a part.
fn part_flag(part: &str) -> &'static str {
    match part {
        "transformer" => "--transformer",
        "autoencoder" => "--autoencoder",
        "CLIP" | "CLIP text model" => "--clip",
        "T5" | "T5 encoder" => "--t5",
        "CLIP tokenizer" => "--clip-tokenizer",
        "T5 tokenizer" => "--t5-tokenizer",
        _ => "its flag",
    }
}

/// A seed. Other programs take -1 for one that is chosen each time.
fn parse_seed(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| {
        format!("a seed is a whole number from 0 to {}; left out, it is another one each time", u64::MAX)
    })
}

/// A kind of numbers to compute in.
#[derive(Clone, Copy, Debug, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum KindArg {
    #[value(aliases = ["fp32", "float32", "F32"])]
    #[serde(alias = "fp32", alias = "float32")]
    F32,
    #[value(aliases = ["bfloat16", "BF16"])]
    #[serde(alias = "bfloat16")]
    Bf16,
    #[value(aliases = ["fp16", "float16", "half", "F16"])]
    #[serde(alias = "fp16", alias = "float16", alias = "half")]
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

/// How many threads compute.
#[derive(Args, Clone, Copy, Debug)]
struct ThreadsArg {
    /// Threads of an operation on the CPU. [default: libtorch's]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024), hide_short_help = true)]
    threads: Option<u16>,
}

impl ThreadsArg {
    fn set(self) {
        if let Some(threads) = self.threads {
            tch::set_num_threads(threads.into());
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

/// The word for a device, as `--device` takes it.
fn device_name(device: Device) -> String {
    match device {
        Device::Cuda(index) => format!("cuda:{index}"),
        other => format!("{other:?}").to_lowercase(),
    }
}

/// `cpu`, `mps`, `cuda` or `cuda:N`; a CUDA device must be there.
fn parse_device(text: &str) -> Result<Device, String> {
    let device = match text.split_once(':') {
        None if text == "cpu" => return Ok(Device::Cpu),
        None if text == "mps" && tch::utils::has_mps() => return Ok(Device::Mps),
        None if text == "mps" => {
            return Err("libtorch sees no MPS device, which are the GPUs of Apple".into());
        }
        None if text == "cuda" => 0,
        Some(("cuda", number)) => {
            number.parse().map_err(|_| format!("{number:?} is no number of a device"))?
        }
        None if ["gpu", "nvidia", "rocm", "hip", "auto"].contains(&text) => {
            return Err("expected cpu, cuda, cuda:N or mps; a GPU is cuda, or mps on a Mac".into());
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

#[cfg(test)]
mod tests {
    use super::{listed, parse};

    #[test]
    fn every_command_of_the_documents_is_one() {
        let mut seen = 0;
        for document in listed::documents() {
            for command in listed::commands(&document) {
                seen += 1;
                let words = std::iter::once("tch-flux").chain(command.iter().map(String::as_str));
                if let Err(problem) = parse(words.map(Into::into)) {
                    panic!("{}: {command:?}: {problem}", document.display());
                }
            }
        }
        assert!(seen > 30, "{seen}");
    }

    #[test]
    fn the_definitions_of_all_flags_agree() {
        super::definition().debug_assert();
    }
}
