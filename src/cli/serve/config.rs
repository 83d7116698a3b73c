//! The settings of `serve`: flags, then the environment, then a file, then what is built in.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;
use serde::{Deserialize, Serialize};
use toml::Table;

use super::super::memory::OffloadArg;
use super::super::redux::ReduxModelArgs;
use super::super::{KindArg, ModelArgs, NumericsArg, QuantizeArg};

/// Begins the names of the environment's variables.
const PREFIX: &str = "TCH_FLUX_SERVE_";
/// In place of a key that is printed.
const REDACTED: &str = "redacted";

/// Every setting is a flag, a variable `TCH_FLUX_SERVE_…`, and a key of the file, in that order.
#[derive(Args, Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(in crate::cli) struct Serve {
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
    #[arg(long)]
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
    #[arg(long)]
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
    #[arg(long, value_name = "PIXELS")]
    pub(super) vae_tile: Option<i64>,
    /// Jobs that may wait; one more is answered 429. [default: 64]
    #[arg(long, value_name = "JOBS")]
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
    /// Seconds that jobs may go on after SIGTERM. [default: 30]
    #[arg(long, value_name = "SECONDS")]
    pub(super) grace: Option<f64>,
    /// Seconds for a request's head, and for an idle connection. [default: 10]
    #[arg(long, value_name = "SECONDS")]
    pub(super) header_timeout: Option<f64>,
    /// Seconds for a body. [default: 60]
    #[arg(long, value_name = "SECONDS")]
    pub(super) body_timeout: Option<f64>,
    /// Seconds that a body may pause. [default: 10]
    #[arg(long, value_name = "SECONDS")]
    pub(super) body_pause: Option<f64>,
    /// Seconds that a client may read next to nothing. [default: 30]
    #[arg(long, value_name = "SECONDS")]
    pub(super) write_timeout: Option<f64>,
    /// Seconds for a job, waiting included. [default: 600]
    #[arg(long, value_name = "SECONDS")]
    pub(super) job_timeout: Option<f64>,
    /// Seconds between signs of life in a stream. [default: 15]
    #[arg(long, value_name = "SECONDS")]
    pub(super) stream_keep_alive: Option<f64>,
    /// Connections at once. [default: 4096]
    #[arg(long, value_name = "COUNT")]
    pub(super) max_connections: Option<usize>,
    /// Bytes of a JSON body; where it may bring pictures, as many as an edit's. [default: 1 MiB]
    #[arg(long, value_name = "BYTES")]
    pub(super) max_json_bytes: Option<usize>,
    /// Bytes of an edit's body. [default: 64 MiB]
    #[arg(long, value_name = "BYTES")]
    pub(super) max_edit_bytes: Option<usize>,
    /// Bytes of an uploaded picture. [default: 50 MiB]
    #[arg(long, value_name = "BYTES")]
    pub(super) max_image_bytes: Option<usize>,
    /// Pixels of a request's pictures together. [default: 32000000]
    #[arg(long, value_name = "PIXELS")]
    pub(super) max_image_pixels: Option<u64>,
    /// Bytes that all uploads take at once. [default: 512 MiB]
    #[arg(long, value_name = "BYTES")]
    pub(super) max_upload_bytes: Option<usize>,
    /// Bytes that answers take until they are read. [default: 512 MiB]
    #[arg(long, value_name = "BYTES")]
    pub(super) max_answer_bytes: Option<usize>,
    /// Seconds that a picture is kept for its address. [default: 3600]
    #[arg(long, value_name = "SECONDS")]
    pub(super) url_lifetime: Option<f64>,
    /// Pictures that are kept. [default: 1000]
    #[arg(long, value_name = "COUNT")]
    pub(super) url_count: Option<usize>,
    /// Bytes of them. [default: 256 MiB]
    #[arg(long, value_name = "BYTES")]
    pub(super) url_bytes: Option<usize>,
    /// off, error, warn, info, debug or trace; also for single modules, as `info,tch_flux::engine=debug`. [default: info]
    #[arg(long, value_name = "LEVEL")]
    pub(super) log_level: Option<String>,
    /// Log in JSON.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    pub(super) log_json: Option<bool>,
}

/// Gives every flag its variable.
pub(in crate::cli) fn with_environment(command: clap::Command) -> clap::Command {
    command.mut_args(|flag| {
        let name = flag.get_id().as_str();
        if ["print_config", "help", "version"].contains(&name) {
            return flag;
        }
        let variable = format!("{PREFIX}{}", name.to_uppercase());
        flag.env(variable).hide_env_values(true)
    })
}

impl Serve {
    /// With what the file says where flags and environment say nothing.
    pub(super) fn effective(self) -> anyhow::Result<Self> {
        let Some(path) = self.config.clone() else { return Ok(self) };
        let text = std::fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let own = Table::try_from(&self).context("the settings of the flags")?;
        let table = over(&text, own).with_context(|| path.display().to_string())?;
        table.try_into().with_context(|| path.display().to_string())
    }

    /// As TOML, with what is built in said where it can be.
    pub(super) fn to_text(&self) -> anyhow::Result<String> {
        let mut shown = self.clone();
        shown.api_key = self.api_key.as_ref().map(|_| REDACTED.into());
        let mut table = defaults();
        table.extend(Table::try_from(&shown).context("writing the settings")?);
        toml::to_string(&table).context("writing the settings")
    }

    pub(super) fn key(&self) -> anyhow::Result<Option<String>> {
        let key = match (&self.api_key, &self.api_key_file) {
            (Some(key), _) => key.clone(),
            (None, Some(path)) => read_key(path)?,
            (None, None) => return Ok(None),
        };
        if key.is_empty() {
            bail!("the API key is empty: give another, or none");
        }
        Ok(Some(key))
    }
}

fn read_key(path: &Path) -> anyhow::Result<String> {
    let text = std::fs::read_to_string(path).with_context(|| path.display().to_string())?;
    Ok(text.trim().to_string())
}

/// A file's settings, with others over them. A key is wrong, not ignored, where there is no such setting.
fn over(text: &str, own: Table) -> anyhow::Result<Table> {
    let mut table: Table = text.parse()?;
    let names = names();
    if let Some(key) = table.keys().find(|key| !names.contains(key)) {
        let near = names.iter().min_by_key(|name| strsim::damerau_levenshtein(name, key));
        let near = near.map_or(String::new(), |near| format!("; is `{near}` meant?"));
        bail!("there is no setting `{key}`{near}");
    }
    // Of the two ways to give a key, the one that is nearer counts alone.
    if own.contains_key("api-key") || own.contains_key("api-key-file") {
        table.remove("api-key");
        table.remove("api-key-file");
    }
    table.extend(own);
    Ok(table)
}

/// What a file may set.
fn names() -> Vec<String> {
    let command = Serve::augment_args(clap::Command::new("serve"));
    let flags = command.get_arguments().filter_map(|flag| flag.get_long());
    let all = flags.filter(|name| !["config", "print-config"].contains(name));
    all.map(str::to_string).collect()
}

/// What is built in.
fn defaults() -> Table {
    let built_in = tch_flux::server::Options::default();
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
