//! Where each setting was said, so that errors name the flag, the variable or the key that its user wrote.

use std::collections::BTreeMap;

use clap::ArgMatches;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use tch_flux::Error;

use super::checks::meant;
use super::config::names;

/// Begins the names of the environment's variables.
pub(super) const PREFIX: &str = "TCH_FLUX_SERVE_";

/// The flag, the variable or the key of each setting that was said, by the setting's name.
#[derive(Clone, Debug, Default)]
pub(crate) struct Said(BTreeMap<String, String>);

impl Said {
    /// What the command line and the environment have said.
    pub(crate) fn in_matches(matches: &ArgMatches) -> Self {
        let said = |id: &clap::Id| {
            let name = id.as_str().replace('_', "-");
            match matches.value_source(id.as_str())? {
                ValueSource::EnvVariable => Some((name, variable(id.as_str()))),
                ValueSource::CommandLine => Some((name.clone(), format!("--{name}"))),
                _ => None,
            }
        };
        Self(matches.ids().filter_map(said).collect())
    }

    /// A file has said it, at this place; what is nearer counts.
    pub(super) fn in_file(&mut self, name: &str, place: String) {
        self.0.entry(name.into()).or_insert(place);
    }

    /// What an error calls a setting.
    pub(super) fn of(&self, name: &str) -> String {
        self.0.get(name).cloned().unwrap_or_else(|| format!("--{name}"))
    }
}

fn variable(id: &str) -> String {
    format!("{PREFIX}{}", id.replace('-', "_").to_uppercase())
}

/// Refuses variables that look like settings and are none.
pub(super) fn check_variables() -> anyhow::Result<()> {
    let all = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    let settings: Vec<String> = names().into_iter().chain(["config".to_string()]).collect();
    let known: Vec<String> = settings.iter().map(|name| variable(name)).collect();
    let mut unknown = all.filter(|name| !known.contains(name));
    let unknown = unknown.find_map(|name| Some((rest(&name, &settings)?.to_string(), name)));
    let Some((rest, name)) = unknown else { return Ok(()) };
    let near = near(&rest.to_lowercase().replace('_', "-"), &settings).map(|near| variable(&near));
    let text = format!("{name}: there is no such variable{}", meant(near.as_deref()));
    // What Kubernetes gives every container of a service that is called `tch-flux-serve`.
    let service = rest.starts_with("SERVICE_") || rest.starts_with("PORT_");
    let hint = if service { "; Kubernetes sets it unless `enableServiceLinks` is false" } else { "" };
    Err(Error::Request(format!("{text}{hint}")).into())
}

/// What a variable has behind the prefix that makes it a setting. One whose prefix is only like it counts where a setting's
/// name follows: other programs have variables, too.
fn rest<'a>(name: &'a str, settings: &[String]) -> Option<&'a str> {
    if let Some(rest) = name.strip_prefix(PREFIX) {
        return Some(rest);
    }
    let is_setting = |rest: &str| settings.iter().any(|setting| plain(setting) == plain(rest));
    let upper = name.to_ascii_uppercase();
    // Kubernetes gives such variables to the containers beside a service of such a name.
    if ["TCH_FLUX_SERVER_", "TCH_FLUX_SERVICE_"].iter().any(|other| upper.starts_with(other)) {
        return None;
    }
    let ends = name.char_indices().map(|(end, _)| end).filter(|end| end.abs_diff(PREFIX.len()) <= 1);
    let mut ends = ends.filter(|end| strsim::damerau_levenshtein(&upper[..*end], PREFIX) <= 1);
    ends.find_map(|end| Some(&name[end..]).filter(|rest| is_setting(rest)))
}

fn plain(name: &str) -> String {
    name.chars().filter(char::is_ascii_alphanumeric).map(|letter| letter.to_ascii_lowercase()).collect()
}

/// What other servers call a setting.
const SYNONYMS: [(&str, &str); 34] = [
    ("address", "host"),
    ("backlog", "queue"),
    ("base-url", "public-url"),
    ("bind", "host"),
    ("checkpoint", "model"),
    ("concurrency", "queue"),
    ("cors", "cors-origin"),
    ("cors-allow-origins", "cors-origin"),
    ("cors-origins", "cors-origin"),
    ("cpu-offload", "offload"),
    ("debug", "log-level"),
    ("dtype", "kind"),
    ("fp8", "quantize"),
    ("gpu", "device"),
    ("gpus", "device"),
    ("int8", "quantize"),
    ("ip", "host"),
    ("key", "api-key"),
    ("listen", "host"),
    ("log-format", "log-json"),
    ("low-vram", "offload"),
    ("lowvram", "offload"),
    ("max-queue", "queue"),
    ("max-queue-size", "queue"),
    ("p", "port"),
    ("precision", "kind"),
    ("queue-size", "queue"),
    ("served-model-name", "model-name"),
    ("shutdown-timeout", "grace"),
    ("timeout", "job-timeout"),
    ("token", "api-key"),
    ("vae", "autoencoder"),
    ("verbose", "log-level"),
    ("workers", "threads"),
];

/// The setting that is meant by a name that none has: by what other servers call it, by its letters, or since it is one of
/// its words.
fn near(name: &str, settings: &[String]) -> Option<String> {
    let synonym = SYNONYMS.iter().find(|(other, _)| plain(other) == plain(name)).map(|(_, setting)| *setting);
    let by_letters = || {
        let same = settings.iter().map(String::as_str).find(|setting| plain(setting) == plain(name));
        let far = |setting: &&str| strsim::damerau_levenshtein(name, setting);
        let close = settings.iter().map(String::as_str).min_by_key(far);
        same.or(close.filter(|setting| far(setting) <= setting.len().max(name.len()) / 3))
    };
    let by_words =
        || settings.iter().map(String::as_str).find(|setting| setting.split('-').any(|word| word == name));
    synonym.or_else(by_letters).or_else(by_words).map(str::to_string)
}

/// The words for a name that no setting has.
pub(super) fn is_no_setting(kind: &str, name: &str, settings: &[String]) -> String {
    format!(
        "there is no such {kind}{}",
        meant(near(&name.to_lowercase().replace('_', "-"), settings).as_deref())
    )
}

/// An unknown flag's error, with the flag that is meant in place of the one whose letters are like it.
fn with_the_flag_meant(mut problem: clap::Error) -> clap::Error {
    let Some(ContextValue::String(shown)) = problem.get(ContextKind::InvalidArg) else { return problem };
    if problem.kind() != ErrorKind::UnknownArgument || !shown.starts_with('-') {
        return problem;
    }
    let settings: Vec<String> =
        names().into_iter().chain(["config", "print-config"].map(str::to_string)).collect();
    let name = shown.trim_start_matches('-').split('=').next().unwrap_or_default();
    match near(&name.to_lowercase().replace('_', "-"), &settings) {
        Some(near) => problem.insert(ContextKind::SuggestedArg, ContextValue::String(format!("--{near}"))),
        None => problem.remove(ContextKind::SuggestedArg),
    };
    problem
}

/// An error of the command line, in which what came from a variable has the variable's name.
pub(crate) fn named_by_variable(mut problem: clap::Error) -> clap::Error {
    if std::env::args().nth(1).is_some_and(|command| command == "serve") {
        problem = with_the_flag_meant(problem);
    }
    let given = |flag: &str| {
        let with_value = format!("{flag}=");
        std::env::args().any(|text| text == flag || text.starts_with(&with_value))
    };
    for kind in [ContextKind::InvalidArg, ContextKind::PriorArg] {
        let Some(ContextValue::String(shown)) = problem.get(kind) else { continue };
        let flag = shown.split([' ', '=', '[']).next().unwrap_or_default().to_string();
        let Some(name) = flag.strip_prefix("--") else { continue };
        let variable = variable(name);
        if !given(&flag) && std::env::var_os(&variable).is_some() {
            problem.insert(kind, ContextValue::String(variable));
        }
    }
    problem
}
