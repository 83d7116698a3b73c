//! What is logged: `--log-level`.

use tracing::level_filters::LevelFilter;
use tracing_subscriber::filter::Targets;

use super::suggestions::{meant, nearest};

/// The library's modules, and that of the program that logs.
const MODULES: [&str; 22] = [
    "checkpoint",
    "choice",
    "config",
    "convert",
    "engine",
    "error",
    "family",
    "generation",
    "hub",
    "image",
    "layers",
    "lora",
    "math",
    "models",
    "nn",
    "numerics",
    "ops",
    "parity",
    "quant",
    "sampling",
    "serve",
    "shim",
];
/// Modules and packages by names that older settings have for them.
const RENAMED: [(&str, &str); 9] = [
    ("tch_flux::autoencoder", "tch_flux::models::autoencoder"),
    ("tch_flux::cli", "tch_flux"),
    ("tch_flux::flux1", "tch_flux::models::flux1"),
    ("tch_flux::pipeline", "tch_flux::generation"),
    ("tch_flux::recipe", "tch_flux::generation::provenance"),
    ("tch_flux::server", "tch_flux_server"),
    ("tch_flux::text", "tch_flux::models::text"),
    ("tch_flux::vision", "tch_flux::models::vision"),
    ("tch_flux_server::gate", "tch_flux_server::middleware"),
];
/// Levels by the names that other programs have for them.
const LEVELS: [(&str, &[&str]); 6] = [
    ("off", &["none", "quiet", "silent", "false", "0"]),
    ("error", &["err", "critical", "fatal", "crit"]),
    ("warn", &["warning", "warnings"]),
    ("info", &["notice", "information", "normal", "true"]),
    ("debug", &["verbose", "dbg"]),
    ("trace", &["all", "everything", "max"]),
];

/// Parses a level, levels of modules, or both.
pub(super) fn parse(text: &str) -> Result<Targets, String> {
    let parts: Vec<String> = text.split(',').map(|part| current_name(part.trim())).collect();
    for part in &parts {
        match part.split_once('=') {
            Some((module, level)) => {
                check_module(module.trim())?;
                check_level(level.trim())?;
            }
            None if part.starts_with("tch_flux") => {
                return Err(format!("{part:?} is a module: say its level, as {part}=debug"));
            }
            None => check_level(part)?,
        }
    }
    let levels: Vec<&String> = parts.iter().filter(|part| !part.contains('=')).collect();
    if let [first, second, ..] = levels[..] {
        return Err(format!("{first} and {second} are two levels of everything: one alone can hold"));
    }
    parts.join(",").parse().map_err(|wrong| format!("{text:?}: {wrong}"))
}

/// Returns a part of the text in which a module has the name that it has now.
fn current_name(part: &str) -> String {
    RENAMED.iter().fold(part.to_string(), |part, (old, new)| match part.strip_prefix(old) {
        Some(rest) if rest.is_empty() || rest.starts_with("::") || rest.trim_start().starts_with('=') => {
            format!("{new}{rest}")
        }
        _ => part,
    })
}

fn check_level(text: &str) -> Result<(), String> {
    // Other programs count otherwise: what a number means is not known.
    let is_number = text.starts_with(|first: char| first.is_ascii_digit());
    if text.parse::<LevelFilter>().is_ok() && !text.is_empty() && !is_number {
        return Ok(());
    }
    let lower = text.to_lowercase();
    let known = LEVELS.iter().find(|(_, others)| others.contains(&lower.as_str()));
    let names = LEVELS.iter().map(|(name, _)| *name);
    let near = known.map(|(name, _)| *name).or_else(|| nearest(&lower, names.clone()));
    Err(format!("there is no level {text:?}, only {}{}", names.collect::<Vec<_>>().join(", "), meant(near)))
}

fn check_module(text: &str) -> Result<(), String> {
    let (root, rest) = text.split_once("::").unwrap_or((text, ""));
    if root == "tch_flux_server" {
        return Ok(());
    }
    if root != "tch_flux" {
        return Err(format!("nothing is logged by {text:?}: modules begin with tch_flux"));
    }
    let first = rest.split("::").next().unwrap_or_default();
    if rest.is_empty() || MODULES.contains(&first) {
        return Ok(());
    }
    let near = nearest(first, MODULES.into_iter()).map(|near| format!("tch_flux::{near}"));
    Err(format!("there is no module {text:?}{}", meant(near.as_deref())))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(check: fn(&str) -> Result<(), String>, cases: &[(&str, &str)]) {
        for (text, expected) in cases {
            let said = check(text).expect_err(text);
            assert!(said.contains(expected), "{text:?}: {said}");
        }
    }

    fn taken(check: fn(&str) -> Result<(), String>, cases: &[&str]) {
        for text in cases {
            assert_eq!(check(text), Ok(()), "{text:?}");
        }
    }

    fn level(text: &str) -> Result<(), String> {
        parse(text).map(|_| ())
    }

    #[test]
    fn a_log_level_is_one_that_there_is() {
        taken(
            level,
            &[
                "off",
                "error",
                "warn",
                "info",
                "debug",
                "trace",
                "INFO",
                "info,tch_flux::engine=debug",
                "tch_flux=trace",
                "warn, tch_flux::cli::serve=info",
                "tch_flux::pipeline=debug",
            ],
        );
        refused(
            level,
            &[
                ("loud", "no level \"loud\""),
                ("verbose", "`debug`"),
                ("warning", "`warn`"),
                ("infoo", "`info`"),
                ("dbug", "`debug`"),
                ("", "off, error, warn, info, debug, trace"),
                ("info,", "no level \"\""),
                ("info,loud", "loud"),
                ("tch_flux=loud", "loud"),
                ("tch_flux::engine", "tch_flux::engine=debug"),
                ("tch_flux::engin=debug", "`tch_flux::engine`"),
                ("tch_flux::textt=debug", "no module"),
                ("hyperr=debug", "hyperr"),
                ("=debug", "tch_flux"),
                ("7", "no level"),
                ("5", "no level"),
                ("0", "no level"),
                ("info,debug", "two levels"),
                ("info,tch_flux::engine=debug,warn", "two levels"),
            ],
        );
    }

    /// The list of modules is that of the library.
    #[test]
    fn every_module_of_the_library_can_be_named() {
        let library = include_str!("../../../../src/lib.rs").replace("#[cfg(test)]\nmod", "#[cfg(test)] mod");
        let modules = library
            .lines()
            .filter_map(|line| line.trim_start_matches("pub ").strip_prefix("mod ")?.strip_suffix(';'));
        let mut all: Vec<_> = modules.chain(["serve"]).collect();
        all.sort_unstable();
        assert_eq!(all, MODULES);
    }

    #[test]
    fn a_module_is_known_by_the_name_that_it_had() {
        assert_eq!(parse("tch_flux::server::gate=debug"), parse("tch_flux_server::middleware=debug"));
        for (old, new) in RENAMED {
            assert_eq!(parse(&format!("{old}=debug")), parse(&format!("{new}=debug")), "{old}");
        }
    }
}
