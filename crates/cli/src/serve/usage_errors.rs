//! What is wrong with the names of flags and variables, in the words that their user wrote.

use clap::error::{ContextKind, ContextValue, ErrorKind};
use tch_flux::Error;

use super::config::setting_names;
use super::sources::{PREFIX, variable};
use super::suggestions::{meant, near, plain};

/// Refuses variables that look like settings and are none.
pub(super) fn check_variables() -> anyhow::Result<()> {
    let all = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    let settings: Vec<String> = setting_names().into_iter().chain(["config".to_string()]).collect();
    let known: Vec<String> = settings.iter().map(|name| variable(name)).collect();
    let mut unknown = all.filter(|name| !known.contains(name));
    let unknown = unknown.find_map(|name| Some((setting_part(&name, &settings)?.to_string(), name)));
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
fn setting_part<'a>(name: &'a str, settings: &[String]) -> Option<&'a str> {
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

/// Returns an unknown flag's error with the flag that is probably meant, which need not be the one that is spelt most like
/// it.
fn with_suggestion(mut problem: clap::Error) -> clap::Error {
    let Some(ContextValue::String(shown)) = problem.get(ContextKind::InvalidArg) else { return problem };
    if problem.kind() != ErrorKind::UnknownArgument || !shown.starts_with('-') {
        return problem;
    }
    let settings: Vec<String> =
        setting_names().into_iter().chain(["config", "print-config"].map(str::to_string)).collect();
    let name = shown.trim_start_matches('-').split('=').next().unwrap_or_default();
    match near(&name.to_lowercase().replace('_', "-"), &settings) {
        Some(near) => problem.insert(ContextKind::SuggestedArg, ContextValue::String(format!("--{near}"))),
        None => problem.remove(ContextKind::SuggestedArg),
    };
    problem
}

/// Returns an error of the command line in which what came from a variable has the variable's name.
pub(crate) fn explain_usage_error(mut problem: clap::Error) -> clap::Error {
    if std::env::args().nth(1).is_some_and(|command| command == "serve") {
        problem = with_suggestion(problem);
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
