//! How the help of `serve` is arranged.

/// The flags that are most used.
const SHOWN: [&str; 13] = [
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

/// Hides a flag from the short help unless it is one of the few that are most used.
pub(crate) fn hide_rare(arg: clap::Arg) -> clap::Arg {
    let is_rare = !SHOWN.contains(&arg.get_id().as_str());
    arg.hide_short_help(is_rare)
}
