//! What is computed with: the device, the kind of numbers, the threads.

use clap::builder::{PossibleValue, PossibleValuesParser, TypedValueParser};
use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};
use tch::{Cuda, Device, Kind};
use tch_flux::Error;
use tch_flux::checkpoint::Access;
use tch_flux::numerics::{Numerics, Quantize};

/// A kind of numbers to compute in.
#[derive(Clone, Copy, Debug, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum KindArg {
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
pub(super) struct ThreadsArg {
    /// Threads of an operation on the CPU. [default: libtorch's]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024), hide_short_help = true)]
    threads: Option<u16>,
}

impl ThreadsArg {
    pub(super) fn set(self) {
        if let Some(threads) = self.threads {
            tch::set_num_threads(threads.into());
        }
    }
}

/// Parses one of the names of a choice of the library, which the help then lists with what they stand for.
pub(super) fn choice<T: Clone + Send + Sync + 'static>(
    choices: &'static [(&'static str, &'static str)],
    named: fn(&str) -> Option<T>,
) -> impl TypedValueParser<Value = T> {
    PossibleValuesParser::new(choices.iter().map(possible_value))
        .try_map(move |name| named(&name).ok_or_else(|| format!("{name:?} is no such name")))
}

/// Returns a name with what it stands for. With dashes, it is as good.
pub(super) fn possible_value(&(name, about): &(&'static str, &'static str)) -> PossibleValue {
    let sentence = about.trim().split_once(". ").map_or(about.trim(), |(sentence, _)| sentence);
    let value = PossibleValue::new(name).help(sentence.trim_end_matches('.'));
    if name.contains('_') { value.alias(name.replace('_', "-")) } else { value }
}

/// Parses `--numerics`.
pub(super) fn numerics() -> impl TypedValueParser<Value = Numerics> {
    choice(Numerics::CHOICES, Numerics::named)
}

/// Parses `--quantize`.
pub(super) fn quantize() -> impl TypedValueParser<Value = Quantize> {
    choice(Quantize::CHOICES, Quantize::named)
}

/// Returns the word for a kind, as `--kind` takes it.
pub(super) fn kind_name(kind: Kind) -> String {
    match kind {
        Kind::Float => "f32".into(),
        Kind::BFloat16 => "bf16".into(),
        Kind::Half => "f16".into(),
        other => format!("{other:?}").to_lowercase(),
    }
}

/// Returns the word for a device, as `--device` takes it.
pub(super) fn device_name(device: Device) -> String {
    match device {
        Device::Cuda(index) => format!("cuda:{index}"),
        other => format!("{other:?}").to_lowercase(),
    }
}

/// Parses `cpu`, `mps`, `cuda` or `cuda:N`; a CUDA device must be there.
pub(super) fn parse_device(text: &str) -> Result<Device, String> {
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

/// Parses the kind that a picture's provenance names.
pub(super) fn parse_kind(name: &str) -> anyhow::Result<Option<Kind>> {
    let kind =
        KindArg::from_str(name, true).map_err(|_| Error::Request(format!("kind {name:?} is not known")))?;
    Ok(Some(kind.into()))
}

/// Returns how files are opened: mapped, unless `--no-mmap` is given.
pub(super) fn access(no_mmap: bool) -> Access {
    if no_mmap { Access::Read } else { Access::Map }
}
