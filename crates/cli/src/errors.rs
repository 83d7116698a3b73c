//! What went wrong, as text or with `--json` as an object, and the exit status for it: 1 for a failure, 2 for a call that
//! cannot be right.

use std::ffi::OsString;
use std::fmt;
use std::process::ExitCode;

use serde_json::{Value, json};
use tch_flux::Error;

use super::hints;
use super::output::print_json;
use super::parameter_args::worded;

/// An error of a command that had done a part of its work.
#[derive(Debug)]
pub(super) struct PartialFailure {
    pub(super) error: anyhow::Error,
    /// Fields beside `error`: what was done, and what was not.
    pub(super) report: Value,
}

impl fmt::Display for PartialFailure {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&in_full(&self.error))
    }
}

impl std::error::Error for PartialFailure {}

/// Returns what went wrong, whatever was done before.
fn cause(error: &anyhow::Error) -> &anyhow::Error {
    error.downcast_ref().map_or(error, |failure: &PartialFailure| &failure.error)
}

/// Whether a call asks for JSON, as far as it can be told of one that may be wrong.
pub(super) fn asks_for_json(arguments: impl IntoIterator<Item = OsString>) -> bool {
    arguments.into_iter().take_while(|argument| argument != "--").any(|argument| argument == "--json")
}

/// Says what went wrong, and returns the exit status.
pub(super) fn report(error: &anyhow::Error, json: bool) -> ExitCode {
    let kind = kind(error);
    if json {
        let mut object = json!({ "error": { "kind": kind, "message": in_full(error) } });
        if let Some(PartialFailure { report: Value::Object(fields), .. }) = error.downcast_ref()
            && let Some(object) = object.as_object_mut()
        {
            object.extend(fields.clone());
        }
        // An object of texts can always be written.
        let _ = print_json(&object);
    } else {
        eprintln!("error: {}", in_full(error));
    }
    if kind == "request" { ExitCode::from(2) } else { ExitCode::FAILURE }
}

/// Says what is wrong with a call, or what it asked to be told: help, or the version.
pub(super) fn report_usage(problem: &clap::Error, json: bool) -> ExitCode {
    if json && problem.use_stderr() {
        let text = problem.render().to_string();
        let text = text.split("\n\nUsage:").next().unwrap_or_default();
        let text = text.split("\n\nFor more information").next().unwrap_or_default();
        let text = text.strip_prefix("error: ").unwrap_or(text).trim();
        // An object of texts can always be written.
        let _ = print_json(&json!({ "error": { "kind": "usage", "message": text } }));
    } else {
        // Where nobody reads it, nobody is missing it.
        let _ = problem.print();
    }
    ExitCode::from(u8::try_from(problem.exit_code()).unwrap_or(2))
}

/// Returns the word for an error that scripts can go by.
fn kind(error: &anyhow::Error) -> &'static str {
    let error = cause(error);
    let known = error.chain().find_map(|cause| cause.downcast_ref::<Error>());
    match known {
        Some(Error::Request(_) | Error::Parameter(_)) => "request",
        Some(Error::Io { .. }) => "io",
        Some(Error::File { .. } | Error::Mismatch(_) | Error::Tokenizer { .. } | Error::Changed { .. }) => {
            "file"
        }
        Some(Error::Lora(_)) => "lora",
        Some(Error::MissingPart { .. } | Error::UnnamedPart { .. }) => "missing_part",
        Some(Error::Hub { .. }) => "hub",
        Some(Error::Cancelled) => "cancelled",
        Some(Error::TooLarge { .. } | Error::OutOfMemory(_)) => "out_of_memory",
        Some(Error::DeviceLost { .. }) => "device_lost",
        Some(Error::NotFinite { .. }) => "not_finite",
        Some(Error::Config(_) | Error::MissingTensor { .. }) => "config",
        Some(Error::Case(_)) => "parity_case",
        Some(_) => "other",
        None if error.chain().any(|cause| cause.is::<std::io::Error>()) => "io",
        None => "other",
    }
}

/// Returns an error with its causes, but for those that its text has already, and with the flags that would help.
pub(super) fn in_full(error: &anyhow::Error) -> String {
    let text = with_causes(error);
    let library = cause(error).chain().find_map(|cause| cause.downcast_ref::<Error>());
    let flags = library.map_or(Vec::new(), hints::flags);
    let flags: Vec<&str> = flags.into_iter().filter(|flag| !text.contains(flag)).collect();
    if flags.is_empty() { text } else { format!("{text} (see {})", flags.join(", ")) }
}

fn with_causes(error: &anyhow::Error) -> String {
    // The library calls parameters by other names than flags.
    let text = |cause: &(dyn std::error::Error + 'static)| match cause.downcast_ref() {
        Some(Error::Parameter(problem)) => worded(problem),
        _ => cause.to_string(),
    };
    cause(error).chain().map(text).fold(String::new(), |said, cause| match said.as_str() {
        "" => cause,
        said if said.ends_with(&cause) => said.to_string(),
        said => format!("{said}: {cause}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_the_work_done_changes_neither_kind_nor_words() {
        let error = anyhow::Error::from(Error::Request("no".into())).context("x");
        let failure = anyhow::Error::from(PartialFailure { error, report: Value::Null });
        assert_eq!(kind(&failure), "request");
        assert_eq!(in_full(&failure), "x: no");
    }

    #[test]
    fn json_is_asked_for_before_the_end_of_the_flags() {
        let asks = |call: &[&str]| asks_for_json(call.iter().map(OsString::from));
        assert!(asks(&["x", "--json"]) && !asks(&["x", "--", "--json"]) && !asks(&["x"]));
    }
}
