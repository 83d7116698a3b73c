//! The flags of the library's table of parameters.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use clap::builder::{PossibleValue, StringValueParser, TypedValueParser};
use clap::error::ErrorKind;
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches, value_parser};
use serde_json::Value;
use tch_flux::generation::params::{Flag, Group, Kind, Parameter, Values, parameter, parameters};
use tch_flux::{Error, ParameterProblem};

use super::device::possible_value;
use super::targets::Input;

/// The values of the table's flags: those of the pictures that an edit begins with, or all others.
#[derive(Clone, Debug, Default)]
pub(super) struct ParameterArgs<const EDIT: bool> {
    pub(super) values: Values,
    /// What is wrong with the first value that cannot be.
    problem: Option<ParameterProblem>,
    files: BTreeMap<&'static str, Vec<PathBuf>>,
}

impl<const EDIT: bool> ParameterArgs<EDIT> {
    /// The parameters that are flags here.
    fn flags() -> impl Iterator<Item = (&'static Parameter, Flag)> {
        let is_here = |parameter: &&Parameter| (parameter.group == Group::Picture) == EDIT;
        parameters().filter(is_here).filter_map(|parameter| Some((parameter, parameter.flag?)))
    }

    /// Checks that every value can be.
    ///
    /// # Errors
    /// [`Error::Parameter`]
    pub(super) fn check(&self) -> Result<(), Error> {
        self.problem.clone().map_or(Ok(()), |problem| Err(problem.into()))
    }

    /// Returns the files of a parameter's pictures.
    pub(super) fn files(&self, key: &str) -> &[PathBuf] {
        self.files.get(key).map_or(&[], Vec::as_slice)
    }

    /// Returns all files that the flags name.
    pub(super) fn inputs(&self) -> Vec<Input> {
        let named = |(parameter, flag): (&Parameter, Flag)| {
            self.files(parameter.key).iter().map(move |path| Input::new(flag.name, path))
        };
        Self::flags().flat_map(named).collect()
    }

    /// Returns the only file of a parameter's pictures.
    pub(super) fn file(&self, key: &str) -> Option<&Path> {
        self.files(key).first().map(PathBuf::as_path)
    }
}

/// Returns what the program calls a parameter.
pub(super) fn flag_name(key: &str) -> String {
    match parameter(key).and_then(|parameter| parameter.flag) {
        Some(flag) => flag.name.into(),
        None if key == "prompts" => "PROMPT".into(),
        None if ["redux_image", "prompt_embeds_scale", "pooled_prompt_embeds_scale"].contains(&key) => {
            "--redux".into()
        }
        None if key == "controlnet" => "--controlnet".into(),
        None if key == "ip_adapter" => "--ip-adapter".into(),
        None => key.into(),
    }
}

/// Returns the text of a problem, with the names of flags.
pub(super) fn worded(problem: &ParameterProblem) -> String {
    problem.worded(flag_name)
}

fn arg(parameter: &'static Parameter, flag: Flag) -> Arg {
    let value_name = match flag.value_name {
        Some(name) => name.into(),
        None if parameter.kind == Kind::Boolean => "BOOL".into(),
        None => parameter.key.to_uppercase(),
    };
    let help = |about: &str| match parameter.default {
        Some(default) if parameter.kind != Kind::Boolean => format!("{about} [default: {default}]"),
        _ => about.trim_end_matches('.').to_string(),
    };
    let about = parameter.about();
    let sentence = about.find(". ").map_or(about, |end| &about[..=end]);
    let arg = Arg::new(parameter.key)
        .long(flag.name.trim_start_matches("--"))
        .value_name(value_name)
        .help(help(sentence))
        .long_help(help(about))
        .help_heading(parameter.group.title())
        .hide_short_help(!flag.is_common)
        .action(if parameter.kind.is_list() { ArgAction::Append } else { ArgAction::Set });
    let arg = match flag.short {
        Some(short) => arg.short(short),
        None => arg,
    };
    let arg = match flag.alias {
        Some(alias) => arg.visible_alias(alias.trim_start_matches("--")),
        None => arg,
    };
    match parameter.kind {
        Kind::Pictures if parameter.key == "mask" => {
            arg.value_parser(value_parser!(PathBuf)).action(ArgAction::Set)
        }
        Kind::Pictures => arg.value_parser(value_parser!(PathBuf)),
        Kind::Boolean => arg.num_args(0..=1).require_equals(true).default_missing_value("true"),
        Kind::Choice(choices) => arg.value_parser(Named(choices)),
        _ => arg,
    }
}

/// Takes any text, which the table refuses in its own words, and lists the names for the help and for shells.
#[derive(Clone)]
struct Named(&'static [(&'static str, &'static str)]);

impl TypedValueParser for Named {
    type Value = String;

    fn parse_ref(&self, command: &Command, arg: Option<&Arg>, value: &OsStr) -> Result<String, clap::Error> {
        StringValueParser::new().parse_ref(command, arg, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new(self.0.iter().map(possible_value)))
    }
}

/// Reads a value. A flag that is given says something: `null` is no value here.
fn read(kind: Kind, text: String) -> Value {
    match kind.parse(text) {
        Value::Null => Value::String("null".into()),
        value => value,
    }
}

/// Returns the value of a flag's occurrences.
fn value(kind: Kind, mut texts: Vec<String>) -> Option<Value> {
    if texts.is_empty() {
        return None;
    }
    if texts.len() == 1 {
        return texts.pop().map(|text| match kind {
            Kind::Choice(choices) => {
                let named = choices.iter().find(|(name, _)| *name == text || name.replace('_', "-") == text);
                Value::String(named.map_or(text, |(name, _)| (*name).to_string()))
            }
            _ => read(kind, text),
        });
    }
    let items = texts.into_iter().map(|text| match read(kind, text) {
        Value::Array(items) => items,
        item => vec![item],
    });
    Some(match kind {
        // Each occurrence is the list of one IP-Adapter.
        Kind::Scales { .. } => Value::Array(items.map(Value::Array).collect()),
        _ => Value::Array(items.flatten().collect()),
    })
}

impl<const EDIT: bool> FromArgMatches for ParameterArgs<EDIT> {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut args = Self::default();
        args.update_from_arg_matches(matches)?;
        Ok(args)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        for (parameter, _) in Self::flags() {
            if parameter.kind == Kind::Pictures {
                let files = matches.get_many::<PathBuf>(parameter.key).unwrap_or_default().cloned();
                self.files.insert(parameter.key, files.collect());
                continue;
            }
            let texts = matches.get_many::<String>(parameter.key).unwrap_or_default().cloned().collect();
            if let Some(value) = value(parameter.kind, texts) {
                // What is no number at all is a wrong call; a number that cannot be, a wrong request.
                let is_misread = parameter.kind.is_read_from_text() && value.is_string();
                match self.values.insert(parameter, value) {
                    Err(problem) if is_misread => {
                        let text = format!("{}\n", worded(&problem));
                        return Err(clap::Error::raw(ErrorKind::ValueValidation, text));
                    }
                    Err(problem) => self.problem = self.problem.take().or(Some(problem)),
                    Ok(()) => {}
                }
            }
        }
        Ok(())
    }
}

impl<const EDIT: bool> Args for ParameterArgs<EDIT> {
    fn augment_args(command: Command) -> Command {
        Self::flags().fold(command, |command, (parameter, flag)| command.arg(arg(parameter, flag)))
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}
