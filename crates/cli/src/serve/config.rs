//! The settings of `serve`: flags, then the environment, then a file, then what is built in.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::{ArgAction, Args};
use serde::{Deserialize, Serialize};
use tch_flux::generation::Offload;
use tch_flux::numerics::{Numerics, Quantize};
use tch_flux::{Error, engine};
use toml::{Spanned, Table};

use super::limits::LimitArgs;
use super::sources::{SettingSources, variable};
use super::suggestions::is_no_setting;
use super::units::{Count, port, whole};
use super::{checks, log_filter};
use crate::device::{self, KindArg};
use crate::memory;
use crate::model_args::ModelArgs;
use crate::redux::ReduxModelArgs;

/// Printed in place of a key.
const REDACTED: &str = "redacted";

/// Declares the settings. What a setting must be beyond its type stands behind `where`, as a check of the value.
macro_rules! settings {
    ($(#[$about:meta])* struct $name:ident {
        $($(#[$meta:meta])* $field:ident: $type:ty $(where $value:ident => $check:expr)?,)*
    }) => {
        $(#[$about])*
        pub(crate) struct $name {
            $($(#[$meta])* pub(super) $field: $type,)*
        }

        impl $name {
            /// Refuses the settings that by themselves could never take effect.
            pub(super) fn check_each(&self) -> anyhow::Result<()> {
                $($(
                    let $value = &self.$field;
                    self.checked(stringify!($field), $check)?;
                )?)*
                Ok(())
            }
        }
    };
}

settings! {
/// The table of the settings. Each is a flag, a variable `TCH_FLUX_SERVE_…`, and a key of the file, in that order. The limits
/// have a table of their own, the server's.
#[derive(Args, Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[command(
    after_help = "A TIME is a number of seconds, or has units: 500ms, 30s, 5m, 1h30m. A SIZE is a number of bytes, or \
                        has a unit: 64MB and 1GB are powers of ten, 64MiB and 1GiB of two.\n\
                        The first SIGTERM or Ctrl-C lets jobs finish, and one that comes a second later or more ends it at once."
)]
struct Serve {
    /// A TOML file with settings, named as the flags are.
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    config: Option<PathBuf>,
    /// Print the settings that hold as TOML, and do nothing.
    #[arg(long)]
    #[serde(skip)]
    print_config: bool,
    /// The address to listen at.
    #[arg(long, help_heading = "Network", value_name = "ADDRESS", default_value = "127.0.0.1")]
    host: String where host => checks::address(host, 0),
    /// The port; 0 takes any that is free.
    #[arg(long, help_heading = "Network", value_parser = port, default_value_t = 8000)]
    port: u16,
    #[command(flatten, next_help_heading = "Model")]
    #[serde(flatten)]
    model: ModelArgs,
    /// The name of the model to clients. [default: that of the repository, folder or file]
    #[arg(long, help_heading = "Model", value_name = "NAME")]
    model_name: Option<String> where name => checks::each(name, checks::name),
    /// Another name that clients may ask for. [default: the names of OpenAI's own models]
    #[arg(long, help_heading = "Model", value_name = "NAME", value_delimiter = ',')]
    model_alias: Option<Vec<String>> where names => checks::each(names.iter().flatten(), checks::name),
    /// cpu, cuda, cuda:N or mps; given several times, pictures are drawn on each at once.
    #[arg(long, help_heading = "Memory and speed", value_delimiter = ',', default_value = "cpu")]
    device: Vec<String>,
    /// Threads that libtorch computes with. [default: as many as cores]
    #[arg(long, help_heading = "Memory and speed", value_parser = whole::<usize>)]
    threads: Option<usize> where threads => threads.map_or(Ok(0), checks::threads),
    /// The kind of numbers to compute in. [default: the weights']
    #[arg(long, help_heading = "Memory and speed", value_enum)]
    kind: Option<KindArg>,
    /// The official bits, or speed with no larger an error.
    #[arg(long, help_heading = "Memory and speed", value_parser = device::numerics(), default_value_t = Numerics::Fast)]
    numerics: Numerics,
    /// Numbers of fewer bits for the transformer's blocks: int8 on the CPU, fp8 on CUDA.
    #[arg(long, help_heading = "Memory and speed", value_parser = device::quantize(), default_value_t = Quantize::None)]
    quantize: Quantize,
    /// Keep fp8 and GGUF weights in memory as they are on the disk.
    #[arg(long, help_heading = "Memory and speed", value_name = "BOOL", action = ArgAction::Set, default_value_t = false)]
    keep_quantized: bool,
    /// Keep T5 and CLIP in memory while the transformer runs.
    #[arg(long, help_heading = "Memory and speed", value_name = "BOOL", action = ArgAction::Set, default_value_t = true)]
    keep_text_encoders: bool,
    /// What is not in memory while it does not run.
    #[arg(long, help_heading = "Memory and speed", value_parser = memory::offload(), default_value_t = Offload::None)]
    offload: Offload,
    /// Read the files instead of mapping them.
    #[arg(long, help_heading = "Memory and speed", value_name = "BOOL", action = ArgAction::Set, default_value_t = false)]
    no_mmap: bool,
    /// A LoRA, and its strength where it is not 1; may be given several times.
    #[arg(long, help_heading = "Model", value_name = "FILE[:STRENGTH]", value_delimiter = ',')]
    lora: Option<Vec<String>>,
    /// Draw with a LoRA even where some of its keys cannot be placed.
    #[arg(long, help_heading = "Model", value_name = "BOOL", action = ArgAction::Set, default_value_t = false)]
    allow_partial_lora: bool,
    #[command(flatten, next_help_heading = "Model")]
    #[serde(flatten)]
    redux: ReduxModelArgs,
    /// A ControlNet, and the name that clients have for it; may be given several times. [default: the file's name]
    #[arg(long, help_heading = "Model", value_name = "[NAME=]PATH", value_delimiter = ',')]
    controlnet: Option<Vec<String>>,
    /// An IP-Adapter in XLabs' layout, and the name that clients have for it; may be given several times. [default: the file's name]
    #[arg(long, help_heading = "Model", value_name = "[NAME=]FILE", value_delimiter = ',')]
    ip_adapter: Option<Vec<String>>,
    /// The IP-Adapters' image encoder: CLIP-L's vision model, a file or a folder.
    #[arg(long, help_heading = "Model", value_name = "PATH")]
    ip_image_encoder: Option<PathBuf>,
    /// Decode pictures in tiles of so many pixels a side, for memory's sake.
    #[arg(long, help_heading = "Memory and speed", value_name = "PIXELS", value_parser = whole::<i64>)]
    vae_tile: Option<i64> where tile => tile.map_or(Ok(()), checks::tile),
    /// Jobs that may wait; one more is answered 429.
    #[arg(long, help_heading = "Limits", value_name = "JOBS", default_value_t = Count(engine::Options::default().queue))]
    queue: Count where jobs => jobs.at_least(0),
    /// What clients must send as `Authorization: Bearer KEY`; other users of the machine can see a flag.
    #[arg(long, help_heading = "Network", value_name = "KEY")]
    api_key: Option<String>,
    /// A file with the key.
    #[arg(long, help_heading = "Network", value_name = "FILE", conflicts_with = "api_key")]
    api_key_file: Option<PathBuf>,
    /// Web pages that may call it, as `https://example.org`, or `*`; may be given several times. [default: none]
    #[arg(long, help_heading = "Network", value_name = "ORIGIN", value_delimiter = ',')]
    #[serde(default)]
    cors_origin: Vec<String> where origins => checks::origins(origins),
    /// Another name that it is called by; may be given several times. [default: addresses and `localhost`]
    #[arg(long, help_heading = "Network", value_name = "NAME", value_delimiter = ',')]
    #[serde(default)]
    allowed_host: Vec<String> where hosts => checks::each(hosts, checks::host),
    /// Begins the addresses of pictures. [default: what the client has called]
    #[arg(long, help_heading = "Network", value_name = "URL")]
    public_url: Option<String> where url => checks::each(url, checks::public_url),
    #[command(flatten)]
    #[serde(flatten)]
    limits: LimitArgs,
    /// off, error, warn, info, debug or trace; also for single modules, as `info,tch_flux::engine=debug`.
    #[arg(long, help_heading = "Log", value_name = "LEVEL", default_value = "info")]
    log_level: String where level => log_filter::parse(level),
    /// Log in JSON.
    #[arg(long, help_heading = "Log", value_name = "BOOL", action = ArgAction::Set, default_value_t = false)]
    log_json: bool,
    /// Where each setting comes from.
    #[arg(skip)]
    #[serde(skip)]
    sources: SettingSources,
}
}

/// Gives every flag its variable, and its help the default.
pub(crate) fn with_environment(command: clap::Command) -> clap::Command {
    command.mut_args(|flag| {
        let name = flag.get_id().as_str();
        if ["print_config", "help", "version"].contains(&name) {
            return flag;
        }
        let variable = variable(name);
        // What is below zero is a value that is wrong, and no flag.
        let flag = flag.allow_negative_numbers(true).env(variable).hide_env_values(true);
        let flag = match flag.get_value_names() {
            // Named alone, it is true.
            Some([name]) if name == "BOOL" => {
                flag.num_args(0..=1).require_equals(true).default_missing_value("true")
            }
            _ => flag,
        };
        match (flag.get_default_values(), flag.get_help()) {
            ([default], Some(help)) if default != "false" => {
                let help = format!("{help}. [default: {}]", default.to_string_lossy());
                flag.help(help).hide_default_value(true)
            }
            _ => flag.hide_default_value(true),
        }
    })
}

impl Serve {
    /// Adds where the command line and the environment set what.
    pub(crate) fn with_sources(self, matches: &clap::ArgMatches) -> Self {
        Self { sources: SettingSources::from_matches(matches), ..self }
    }

    /// Fills in what the file says where flags and environment say nothing.
    pub(super) fn effective(mut self) -> anyhow::Result<Self> {
        let Some(path) = self.config.clone() else { return Ok(self) };
        let named = || format!("{}: {}", self.sources.name("config"), path.display());
        let text = std::fs::read_to_string(&path).with_context(named)?;
        let settings = Table::try_from(&self).context("the settings of the flags")?;
        let table = merge_file(&text, settings, &path, &mut self.sources)?;
        let mut all: Self = table.try_into().with_context(|| path.display().to_string())?;
        all.sources = self.sources;
        Ok(all)
    }

    /// Returns the value, or an error that names the flag, the variable or the key that it came from.
    pub(super) fn checked<T>(&self, name: &str, value: Result<T, String>) -> anyhow::Result<T> {
        value.map_err(|wrong| Error::Request(format!("{}: {wrong}", self.sources.name(name))).into())
    }

    /// Returns the settings as TOML.
    pub(super) fn to_text(&self) -> anyhow::Result<String> {
        let mut shown = self.clone();
        shown.api_key = self.api_key.as_ref().map(|_| REDACTED.into());
        // A table, since a text has its plain values before the lists.
        let table = Table::try_from(&shown).context("writing the settings")?;
        toml::to_string(&table).context("writing the settings")
    }
}

/// Merges a file's settings with those that hold without it, of which those of flags and variables count first. A key that is
/// no setting is an error, and so is a value that its setting cannot have.
fn merge_file(
    text: &str,
    mut settings: Table,
    path: &Path,
    sources: &mut SettingSources,
) -> anyhow::Result<Table> {
    let file: BTreeMap<String, Spanned<toml::Value>> =
        toml::from_str(text).with_context(|| path.display().to_string())?;
    let names = setting_names();
    let nearer = sources.clone();
    let mut table = Table::new();
    for (key, value) in file {
        let line = text[..value.span().start].matches('\n').count() + 1;
        let at = format!("{}, line {line}: {key}", path.display());
        if !names.contains(&key) {
            let hint = match value.get_ref() {
                toml::Value::Table(_) => "; settings stand in no table: take the line in brackets out",
                _ => "",
            };
            bail!(Error::Request(format!("{at}: {}{hint}", is_no_setting("key", &key, &names))));
        }
        let value = value.into_inner();
        let mut with_value = settings.clone();
        with_value.insert(key.clone(), value.clone());
        with_value.try_into::<Serve>().map_err(|wrong| {
            // Its other lines show where in a text that is not the file's.
            Error::Request(format!("{at}: {}", in_words(wrong.message(), &key, &value)))
        })?;
        sources.add_file(&key, at);
        table.insert(key, value);
    }
    let keys = ["api-key", "api-key-file"];
    if keys.iter().all(|key| table.contains_key(*key)) {
        let [key, file] = keys.map(|key| sources.name(key));
        bail!(Error::Request(format!("{key} and {file}: of these two one alone can hold")));
    }
    // Of the two ways to give a key, the one that is nearer counts alone.
    if keys.iter().any(|key| nearer.has(key)) {
        table.retain(|name, _| !keys.contains(&name));
    }
    table.retain(|name, _| !nearer.has(name));
    settings.extend(table);
    Ok(settings)
}

/// Returns what is wrong with a key's value, without the names of Rust's types.
fn in_words(message: &str, key: &str, value: &toml::Value) -> String {
    if message.ends_with("expected a sequence") && value.is_str() {
        return format!("it is a list: {key} = [{value}]");
    }
    let words = [
        ("expected u16", "expected a whole number from 0 to 65535"),
        ("expected usize", "expected a whole number"),
        ("expected i64", "expected a whole number"),
        ("expected a sequence", "expected a list of texts"),
        ("expected path string", "expected a text"),
        ("expected a string", "expected a text"),
        ("expected a boolean", "expected true or false"),
    ];
    let found =
        words.iter().find_map(|(ending, words)| Some(format!("{}{words}", message.strip_suffix(ending)?)));
    found.unwrap_or_else(|| message.into())
}

/// Returns the names of all settings that a file may have.
pub(super) fn setting_names() -> Vec<String> {
    let command = Serve::augment_args(clap::Command::new("serve"));
    let flags = command.get_arguments().filter_map(|flag| flag.get_long());
    let all = flags.filter(|name| !["config", "print-config"].contains(name));
    all.map(str::to_string).collect()
}
