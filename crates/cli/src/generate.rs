//! `generate`: a prompt in, picture files out.

mod edit_input;
mod prepare;
mod request;
mod run;

pub(super) use edit_input::{EditInput, MAX_SIDE};

use std::path::{Path, PathBuf};

use clap::Args;
use tch::Device;
use tch_flux::generation::LoraFile;
use tch_flux::generation::provenance::Provenance;
use tch_flux::numerics::{Numerics, Quantize};

use super::controlnet::ControlArgs;
use super::device::{KindArg, ThreadsArg, numerics, parse_device, quantize};
use super::from_image;
use super::image_format;
use super::ip_adapter::IpAdapterArgs;
use super::memory::MemoryArgs;
use super::model_args::{ModelArgs, parse_lora};
use super::parameter_args::ParameterArgs;
use super::redux::ReduxArgs;

#[derive(Args)]
pub(super) struct Generate {
    /// What to draw; `-` reads it from standard input, here and in place of any other prompt.
    #[arg(value_name = "PROMPT")]
    positional: Option<String>,
    /// What to draw, as PROMPT; may be given several times.
    #[arg(long, conflicts_with = "positional", help_heading = "Prompt", hide_short_help = true)]
    prompt: Vec<String>,
    /// A file with a prompt on each line; `-` is standard input.
    ///
    /// In UTF-8, or in UTF-16 with a byte order mark. Blank lines and those that begin with `#` are passed over; `\#` begins a
    /// prompt with `#`.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["positional", "prompt"], help_heading = "Prompt")]
    prompt_file: Option<PathBuf>,
    /// A picture of ours, to be drawn again; other flags change what it says.
    #[arg(long, value_name = "FILE", help_heading = "Prompt")]
    from_image: Option<PathBuf>,
    #[command(flatten, next_help_heading = "Model")]
    model: ModelArgs,
    #[command(flatten, next_help_heading = "Redux")]
    redux: ReduxArgs,
    #[command(flatten)]
    parameters: ParameterArgs<false>,
    /// Draws each picture without the cache, too, and says how far it lies from it.
    #[arg(long, requires = "cache", help_heading = "Sampling", hide_short_help = true)]
    compare_cache: bool,
    #[command(flatten, next_help_heading = "Memory and speed")]
    memory: MemoryArgs,
    /// The kind of numbers to compute in. [default: the weights']
    #[arg(long, help_heading = "Memory and speed", hide_short_help = true)]
    kind: Option<KindArg>,
    /// cpu, cuda, cuda:N or mps.
    #[arg(long, default_value = "cpu", value_parser = parse_device, help_heading = "Memory and speed")]
    device: Device,
    /// Where to write, as PNG, JPEG or WebP by the name's ending; folders are made. [default: {seed}-{index}.png]
    ///
    /// {seed}, {variation_seed} and {index} are filled in; an index counts on from the first that is free. The endings are .png,
    /// .jpg, .jpeg and .webp.
    #[arg(short, long, value_name = "FILE", help_heading = "Output")]
    output: Option<PathBuf>,
    /// Replace files that stand in the way.
    #[arg(long, help_heading = "Output")]
    force: bool,
    /// The quality of a JPEG or WebP, from 0 to 100, as `output_compression` is for the server. [default: 100]
    #[arg(long, visible_alias = "output-compression", value_name = "QUALITY", value_parser = clap::value_parser!(u8).range(..=100), help_heading = "Output", hide_short_help = true)]
    output_quality: Option<u8>,
    /// All pictures on one sheet, too: a row for each prompt, or as square as can be for one.
    #[arg(long, value_name = "FILE", value_parser = image_format::parse_picture, help_heading = "Output")]
    grid: Option<PathBuf>,
    #[command(flatten, next_help_heading = "Memory and speed")]
    threads: ThreadsArg,
    /// Read the files instead of mapping them.
    #[arg(long, help_heading = "Memory and speed", hide_short_help = true)]
    no_mmap: bool,
    /// Keep fp8 and GGUF weights in memory as they are on the disk; each layer's become numbers as it runs.
    #[arg(long, help_heading = "Memory and speed", hide_short_help = true)]
    keep_quantized: bool,
    /// The official bits, or speed with no larger an error. [default: fast]
    #[arg(long, value_parser = numerics(), help_heading = "Memory and speed", hide_short_help = true)]
    numerics: Option<Numerics>,
    /// Numbers of fewer bits for the weights of the transformer's blocks: int8 on the CPU, fp8 on CUDA. [default: none]
    #[arg(long, value_parser = quantize(), help_heading = "Memory and speed")]
    quantize: Option<Quantize>,
    /// A LoRA, and its strength where it is not 1; may be given several times.
    #[arg(long, value_name = "FILE[:STRENGTH]", value_parser = parse_lora, help_heading = "Model")]
    lora: Vec<LoraFile>,
    /// Draw with a LoRA even where some of its keys cannot be placed; they are listed.
    #[arg(long, requires = "lora", help_heading = "Model", hide_short_help = true)]
    allow_partial_lora: bool,
    #[command(flatten, next_help_heading = "ControlNet")]
    control: ControlArgs,
    #[command(flatten, next_help_heading = "IP-Adapter")]
    ip_adapter: IpAdapterArgs,
    /// Decode the picture in tiles of so many pixels a side, for memory's sake; neighbours share a quarter.
    #[arg(long, value_name = "PIXELS", value_parser = clap::value_parser!(i64).range(64..), help_heading = "Memory and speed", hide_short_help = true)]
    vae_tile: Option<i64>,
    /// Keep T5 and CLIP in memory while the transformer runs.
    #[arg(long, help_heading = "Memory and speed", hide_short_help = true)]
    keep_text_encoders: bool,
    /// Check all of it and say what would be drawn, with what and where to; draw nothing.
    #[arg(long, help_heading = "Output")]
    dry_run: bool,
    /// Print one line of JSON instead of text, also where something is wrong.
    #[arg(long, help_heading = "Output")]
    json: bool,
    /// Print nothing but errors.
    #[arg(short, long, help_heading = "Output")]
    quiet: bool,
}

impl Generate {
    /// Returns the provenance of `--from-image`.
    pub(super) fn provenance(&self) -> anyhow::Result<Option<Provenance>> {
        self.from_image.as_deref().map(from_image::read).transpose()
    }

    /// Whether the call is to draw a picture again.
    pub(super) fn has_from_image(&self) -> bool {
        self.from_image.is_some()
    }

    /// Returns what the model and its transformer are called.
    pub(super) fn model_names(&self) -> impl Iterator<Item = &Path> {
        self.model.names()
    }
}
