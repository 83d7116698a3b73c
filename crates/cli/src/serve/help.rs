//! How the help of `serve` is arranged.

/// Gives a flag its heading, and hides it from the short help unless it is one of the few that are most used.
pub(crate) fn with_heading(arg: clap::Arg) -> clap::Arg {
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
