//! Where each setting was said, so that errors name the flag, the variable or the key that its user wrote.

use std::collections::BTreeMap;

use clap::ArgMatches;
use clap::error::{ContextKind, ContextValue};
use clap::parser::ValueSource;
use tch_flux::Error;

use super::checks::{meant, nearest};
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
    let known: Vec<String> = names().iter().map(|name| variable(name)).chain([variable("config")]).collect();
    let unknown: Vec<String> = all.filter(|name| name.starts_with(PREFIX) && !known.contains(name)).collect();
    let Some(name) = unknown.first() else { return Ok(()) };
    let text = format!("{name}: {}", is_no_setting("variable", name, &known));
    let rest = name.trim_start_matches(PREFIX);
    // What Kubernetes gives every container of a service that is called `tch-flux-serve`.
    let service = rest.starts_with("SERVICE_") || rest.starts_with("PORT_");
    let hint = if service { "; Kubernetes sets it unless `enableServiceLinks` is false" } else { "" };
    Err(Error::Request(format!("{text}{hint}")).into())
}

/// The words for a name that no setting has.
pub(super) fn is_no_setting(kind: &str, name: &str, names: &[String]) -> String {
    let near = nearest(&name.to_lowercase().replace('_', "-"), &mut names.iter().map(String::as_str));
    let near = near.or_else(|| nearest(&name.to_uppercase(), &mut names.iter().map(String::as_str)));
    format!("there is no such {kind}{}", meant(near))
}

/// An error of the command line, in which what came from a variable has the variable's name.
pub(crate) fn named_by_variable(mut problem: clap::Error) -> clap::Error {
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
