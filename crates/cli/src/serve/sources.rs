//! Where each setting comes from, so that errors name the flag, the variable or the key that its user wrote.

use std::collections::BTreeMap;

use clap::ArgMatches;
use clap::parser::ValueSource;

/// Begins the names of the environment's variables.
pub(super) const PREFIX: &str = "TCH_FLUX_SERVE_";

/// The flag, the variable or the key that sets each setting, by the setting's name.
#[derive(Clone, Debug, Default)]
pub(crate) struct SettingSources(BTreeMap<String, String>);

impl SettingSources {
    /// Collects what the command line and the environment set.
    pub(crate) fn from_matches(matches: &ArgMatches) -> Self {
        let source = |id: &clap::Id| {
            let name = id.as_str().replace('_', "-");
            match matches.value_source(id.as_str())? {
                ValueSource::EnvVariable => Some((name, variable(id.as_str()))),
                ValueSource::CommandLine => Some((name.clone(), format!("--{name}"))),
                _ => None,
            }
        };
        Self(matches.ids().filter_map(source).collect())
    }

    /// Notes that a file sets it, at this place; what is nearer counts.
    pub(super) fn add_file(&mut self, name: &str, place: String) {
        self.0.entry(name.into()).or_insert(place);
    }

    /// Whether somebody has set it.
    pub(super) fn has(&self, name: &str) -> bool {
        self.0.contains_key(&name.replace('_', "-"))
    }

    /// Returns what an error calls a setting.
    pub(super) fn name(&self, name: &str) -> String {
        let name = name.replace('_', "-");
        self.0.get(&name).cloned().unwrap_or_else(|| format!("--{name}"))
    }
}

pub(super) fn variable(id: &str) -> String {
    format!("{PREFIX}{}", id.replace('-', "_").to_uppercase())
}
