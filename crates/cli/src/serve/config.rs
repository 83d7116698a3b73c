//! The settings of `serve`: flags, then the environment, then a file, then what is built in.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;
use serde::{Deserialize, Serialize};
use tch_flux::Error;
use toml::{Spanned, Table};

use super::sources::{PREFIX, SettingSources};
use super::suggestions::is_no_setting;
use super::units::{Pixels, Size, Time, port, whole};
use crate::device::{KindArg, NumericsArg, QuantizeArg};
use crate::memory::OffloadArg;
use crate::model_args::ModelArgs;
use crate::redux::ReduxModelArgs;

/// Printed in place of a key.
const REDACTED: &str = "redacted";
/// Every setting is a flag, a variable `TCH_FLUX_SERVE_…`, and a key of the file, in that order.
#[derive(Args, Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[command(
    after_help = "A TIME is a number of seconds, or has units: 500ms, 30s, 5m, 1h30m. A SIZE is a number of bytes, or \
                        has a unit: 64MB and 1GB are powers of ten, 64MiB and 1GiB of two.\n\
                        The first SIGTERM or Ctrl-C lets jobs finish, and one that comes a second later or more ends it at once."
)]
pub(crate) struct Serve {
    /// A TOML file with settings, named as the flags are.
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    pub(super) config: Option<PathBuf>,
    /// Print the settings that hold as TOML, and do nothing.
    #[arg(long)]
    #[serde(skip)]
    pub(super) print_config: bool,
    /// The address to listen at. [default: 127.0.0.1]
    #[arg(long, value_name = "ADDRESS")]
    pub(super) host: Option<String>,
    /// The port; 0 takes any that is free. [default: 8000]
    #[arg(long, value_parser = port)]
    pub(super) port: Option<u16>,
    #[command(flatten)]
    #[serde(flatten)]
    pub(super) model: ModelArgs,
    /// The name of the model to clients. [default: that of the repository, folder or file]
    #[arg(long, value_name = "NAME")]
    pub(super) model_name: Option<String>,
    /// Another name that clients may ask for. [default: the names of OpenAI's own models]
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub(super) model_alias: Option<Vec<String>>,
    /// cpu, cuda, cuda:N or mps; given several times, pictures are drawn on each at once. [default: cpu]
    #[arg(long, value_delimiter = ',')]
    pub(super) device: Option<Vec<String>>,
    /// Threads that libtorch computes with. [default: as many as cores]
    #[arg(long, value_parser = whole::<usize>)]
    pub(super) threads: Option<usize>,
    /// The kind of numbers to compute in. [default: the weights']
    #[arg(long, value_enum)]
    pub(super) kind: Option<KindArg>,
    /// The official bits, or speed with no larger an error. [default: fast]
    #[arg(long, value_enum)]
    pub(super) numerics: Option<NumericsArg>,
    /// Numbers of fewer bits for the transformer's blocks: int8 on the CPU, fp8 on CUDA. [default: none]
    #[arg(long, value_enum)]
    pub(super) quantize: Option<QuantizeArg>,
    /// Keep fp8 and GGUF weights in memory as they are on the disk.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(super) keep_quantized: Option<bool>,
    /// Keep T5 and CLIP in memory while the transformer runs. [default: true]
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(super) keep_text_encoders: Option<bool>,
    /// What is not in memory while it does not run. [default: none]
    #[arg(long, value_enum)]
    pub(super) offload: Option<OffloadArg>,
    /// Read the files instead of mapping them.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(super) no_mmap: Option<bool>,
    /// A LoRA, and its strength where it is not 1; may be given several times.
    #[arg(long, value_name = "FILE[:STRENGTH]", value_delimiter = ',')]
    pub(super) lora: Option<Vec<String>>,
    /// Draw with a LoRA even where some of its keys cannot be placed.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(super) allow_partial_lora: Option<bool>,
    #[command(flatten)]
    #[serde(flatten)]
    pub(super) redux: ReduxModelArgs,
    /// A ControlNet, and the name that clients have for it; may be given several times. [default: the file's name]
    #[arg(long, value_name = "[NAME=]PATH", value_delimiter = ',')]
    pub(super) controlnet: Option<Vec<String>>,
    /// An IP-Adapter in XLabs' layout, and the name that clients have for it; may be given several times. [default: the file's name]
    #[arg(long, value_name = "[NAME=]FILE", value_delimiter = ',')]
    pub(super) ip_adapter: Option<Vec<String>>,
    /// The IP-Adapters' image encoder: CLIP-L's vision model, a file or a folder.
    #[arg(long, value_name = "PATH")]
    pub(super) ip_image_encoder: Option<PathBuf>,
    /// Decode pictures in tiles of so many pixels a side, for memory's sake.
    #[arg(long, value_name = "PIXELS", value_parser = whole::<i64>)]
    pub(super) vae_tile: Option<i64>,
    /// Jobs that may wait; one more is answered 429. [default: 64]
    #[arg(long, value_name = "JOBS", value_parser = whole::<usize>)]
    pub(super) queue: Option<usize>,
    /// What clients must send as `Authorization: Bearer KEY`; other users of the machine can see a flag.
    #[arg(long, value_name = "KEY")]
    pub(super) api_key: Option<String>,
    /// A file with the key.
    #[arg(long, value_name = "FILE", conflicts_with = "api_key")]
    pub(super) api_key_file: Option<PathBuf>,
    /// Web pages that may call it, as `https://example.org`, or `*`; may be given several times. [default: none]
    #[arg(long, value_name = "ORIGIN", value_delimiter = ',')]
    pub(super) cors_origin: Option<Vec<String>>,
    /// Another name that it is called by; may be given several times. [default: addresses and `localhost`]
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    pub(super) allowed_host: Option<Vec<String>>,
    /// Begins the addresses of pictures. [default: what the client has called]
    #[arg(long, value_name = "URL")]
    pub(super) public_url: Option<String>,
    /// How long jobs may go on after SIGTERM. [default: 30s]
    #[arg(long, value_name = "TIME")]
    pub(super) grace: Option<Time>,
    /// How long at least it goes on answering after SIGTERM, with 503 at /ready, so that balancers see it. [default: 1s]
    #[arg(long, value_name = "TIME")]
    pub(super) drain_notice: Option<Time>,
    /// How long a request's head may take, and a connection idle. [default: 10s]
    #[arg(long, value_name = "TIME")]
    pub(super) header_timeout: Option<Time>,
    /// How long a body may take. [default: 60s]
    #[arg(long, value_name = "TIME")]
    pub(super) body_timeout: Option<Time>,
    /// How long a body may pause. [default: 10s]
    #[arg(long, value_name = "TIME")]
    pub(super) body_pause: Option<Time>,
    /// How long a client may read next to nothing. [default: 30s]
    #[arg(long, value_name = "TIME")]
    pub(super) write_timeout: Option<Time>,
    /// How long a job may take, waiting included. [default: 10m]
    #[arg(long, value_name = "TIME")]
    pub(super) job_timeout: Option<Time>,
    /// How long a stream may be silent before it says that it is there. [default: 15s]
    #[arg(long, value_name = "TIME")]
    pub(super) stream_keep_alive: Option<Time>,
    /// Connections at once. [default: 4096]
    #[arg(long, value_name = "COUNT", value_parser = whole::<usize>)]
    pub(super) max_connections: Option<usize>,
    /// Size of a JSON body; where it may bring pictures, as large as an edit's. [default: 1MiB]
    #[arg(long, value_name = "SIZE")]
    pub(super) max_json_bytes: Option<Size>,
    /// Size of an edit's body. [default: 64MiB]
    #[arg(long, value_name = "SIZE")]
    pub(super) max_edit_bytes: Option<Size>,
    /// Size of an uploaded picture's file. [default: 50MiB]
    #[arg(long, value_name = "SIZE")]
    pub(super) max_image_bytes: Option<Size>,
    /// Pixels of a request's pictures together. [default: 32MP]
    #[arg(long, value_name = "PIXELS")]
    pub(super) max_image_pixels: Option<Pixels>,
    /// Size of all uploads at once. [default: 512MiB]
    #[arg(long, value_name = "SIZE")]
    pub(super) max_upload_bytes: Option<Size>,
    /// Size of all answers that are not read yet. [default: 512MiB]
    #[arg(long, value_name = "SIZE")]
    pub(super) max_answer_bytes: Option<Size>,
    /// How long a picture is kept for its address. [default: 1h]
    #[arg(long, value_name = "TIME")]
    pub(super) url_lifetime: Option<Time>,
    /// Pictures that are kept. [default: 1000]
    #[arg(long, value_name = "COUNT", value_parser = whole::<usize>)]
    pub(super) url_count: Option<usize>,
    /// Size of them. [default: 256MiB]
    #[arg(long, value_name = "SIZE")]
    pub(super) url_bytes: Option<Size>,
    /// off, error, warn, info, debug or trace; also for single modules, as `info,tch_flux::engine=debug`. [default: info]
    #[arg(long, value_name = "LEVEL")]
    pub(super) log_level: Option<String>,
    /// Log in JSON.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(super) log_json: Option<bool>,
    /// Where each setting comes from.
    #[arg(skip)]
    #[serde(skip)]
    pub(super) sources: SettingSources,
}

/// Gives every flag its variable.
pub(crate) fn with_environment(command: clap::Command) -> clap::Command {
    command.mut_args(|flag| {
        let name = flag.get_id().as_str();
        if ["print_config", "help", "version"].contains(&name) {
            return flag;
        }
        let variable = format!("{PREFIX}{}", name.to_uppercase());
        // What is below zero is a value that is wrong, and no flag.
        let flag = flag.allow_negative_numbers(true);
        flag.env(variable).hide_env_values(true)
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
        let flags = Table::try_from(&self).context("the settings of the flags")?;
        let table = merge_file(&text, flags, &path, &mut self.sources)?;
        let mut all: Self = table.try_into().with_context(|| path.display().to_string())?;
        all.sources = self.sources;
        Ok(all)
    }

    /// Returns the value, or an error that names the flag, the variable or the key that it came from.
    pub(super) fn checked<T>(&self, name: &str, value: Result<T, String>) -> anyhow::Result<T> {
        value.map_err(|wrong| Error::Request(format!("{}: {wrong}", self.sources.name(name))).into())
    }

    /// Returns the settings as TOML, with the defaults of those that have one.
    pub(super) fn to_text(&self) -> anyhow::Result<String> {
        let mut shown = self.clone();
        shown.api_key = self.api_key.as_ref().map(|_| REDACTED.into());
        let mut table = defaults();
        table.extend(Table::try_from(&shown).context("writing the settings")?);
        toml::to_string(&table).context("writing the settings")
    }
}

/// Merges a file's settings with those of flags, which count first. A key that is no setting is an error, and so is a value
/// that its setting cannot have.
fn merge_file(text: &str, flags: Table, path: &Path, sources: &mut SettingSources) -> anyhow::Result<Table> {
    let file: BTreeMap<String, Spanned<toml::Value>> =
        toml::from_str(text).with_context(|| path.display().to_string())?;
    let names = setting_names();
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
        Table::from_iter([(key.clone(), value.clone())]).try_into::<Serve>().map_err(|wrong| {
            // Its other lines show where in a text that is not the file's.
            Error::Request(format!("{at}: {}", in_words(wrong.message(), &key, &value)))
        })?;
        sources.add_file(&key, at);
        table.insert(key, value);
    }
    if table.contains_key("api-key") && table.contains_key("api-key-file") {
        let (key, file) = (sources.name("api-key"), sources.name("api-key-file"));
        bail!(Error::Request(format!("{key} and {file}: of these two one alone can hold")));
    }
    // Of the two ways to give a key, the one that is nearer counts alone.
    if flags.contains_key("api-key") || flags.contains_key("api-key-file") {
        table.remove("api-key");
        table.remove("api-key-file");
    }
    table.extend(flags);
    Ok(table)
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

/// Returns the defaults of the settings that have one.
fn defaults() -> Table {
    let built_in = tch_flux_server::Options::default();
    let seconds = |time: std::time::Duration| toml::Value::Float(time.as_secs_f64());
    let number = |number: usize| toml::Value::Integer(number as i64);
    Table::from_iter([
        ("host".to_string(), "127.0.0.1".into()),
        ("port".to_string(), toml::Value::Integer(8000)),
        ("device".to_string(), vec!["cpu"].into()),
        ("numerics".to_string(), "fast".into()),
        ("quantize".to_string(), "none".into()),
        ("keep-quantized".to_string(), false.into()),
        ("keep-text-encoders".to_string(), true.into()),
        ("no-mmap".to_string(), false.into()),
        ("allow-partial-lora".to_string(), false.into()),
        ("queue".to_string(), number(tch_flux::engine::Options::default().queue)),
        ("cors-origin".to_string(), Vec::<String>::new().into()),
        ("allowed-host".to_string(), Vec::<String>::new().into()),
        ("grace".to_string(), seconds(built_in.grace)),
        ("drain-notice".to_string(), seconds(built_in.drain_notice)),
        ("header-timeout".to_string(), seconds(built_in.header_timeout)),
        ("body-timeout".to_string(), seconds(built_in.body_timeout)),
        ("body-pause".to_string(), seconds(built_in.body_pause)),
        ("write-timeout".to_string(), seconds(built_in.write_timeout)),
        ("job-timeout".to_string(), seconds(built_in.job_timeout)),
        ("stream-keep-alive".to_string(), seconds(built_in.keep_alive)),
        ("max-connections".to_string(), number(built_in.connections)),
        ("max-json-bytes".to_string(), number(built_in.json_bytes)),
        ("max-edit-bytes".to_string(), number(built_in.edit_bytes)),
        ("max-image-bytes".to_string(), number(built_in.image_bytes)),
        ("max-image-pixels".to_string(), number(built_in.image_pixels as usize)),
        ("max-upload-bytes".to_string(), number(built_in.upload_bytes)),
        ("max-answer-bytes".to_string(), number(built_in.answer_bytes)),
        ("url-lifetime".to_string(), seconds(built_in.url_lifetime)),
        ("url-count".to_string(), number(built_in.url_count)),
        ("url-bytes".to_string(), number(built_in.url_bytes)),
        ("log-level".to_string(), "info".into()),
        ("log-json".to_string(), false.into()),
    ])
}
