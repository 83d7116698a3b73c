//! The command line of tch-flux: its definition and the dispatch to one file a subcommand.

// First: the others print with its macros.
#[macro_use]
mod output;
mod parameter_args;

mod bench;
mod bytes;
mod cache;
mod cache_report;
mod controlnet;
mod convert;
mod demo_model;
mod device;
mod doctor;
mod dry_run;
mod edit;
mod errors;
mod file_names;
mod from_image;
mod generate;
mod hints;
mod hub;
mod image_format;
mod input_images;
mod inspect;
mod interrupt;
mod ip_adapter;
mod manual;
mod memory;
mod model_args;
mod parity;
mod peak_memory;
mod progress;
mod prompts;
mod redux;

mod serve;
mod targets;
mod weights;
mod writer;

#[cfg(test)]
#[path = "../../../tests/support/commands.rs"]
mod documented_commands;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

/// FLUX on libtorch: official weights, official bits.
#[derive(Parser)]
#[command(name = "tch-flux", version, about, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Draw pictures of a prompt.
    Generate(Box<generate::Generate>),
    /// Draw pictures of a prompt from other pictures: image-to-image, Kontext, Fill, Canny and Depth.
    Edit(Box<edit::Edit>),
    /// Draw pictures for clients over HTTP, in OpenAI's dialect.
    Serve(Box<serve::Serve>),
    /// Say what a weight file or a model folder holds, from its headers alone.
    Inspect(inspect::Inspect),
    /// Write weights in another layout, in other numbers, in several files, or with LoRAs merged into them.
    Convert(convert::Convert),
    /// Run parity cases: outputs of a reference implementation against ours.
    Parity(parity::Parity),
    /// Measure.
    #[command(subcommand)]
    Bench(bench::Bench),
    /// Say which libtorch and which devices there are, and what is wrong with them.
    Doctor(doctor::Doctor),
    /// Print what completes the flags in a shell.
    Completions(manual::Completions),
    /// Print the manual page, or write the pages of all subcommands to a folder.
    Man(manual::Man),
}

/// Runs the program: 0 for success, 1 for a failure, 2 for a call that cannot be right, 128 and a signal's number after that.
fn main() -> ExitCode {
    let json = errors::asks_for_json(std::env::args_os());
    let command = match parse(std::env::args_os()) {
        Ok(Cli { command }) => command,
        Err(problem) => return errors::report_usage(&problem, json),
    };
    let done = match command {
        Command::Generate(command) => command.run(),
        Command::Edit(command) => command.run(),
        Command::Serve(command) => command.run(),
        Command::Inspect(command) => command.run(),
        Command::Convert(command) => command.run(),
        Command::Parity(command) => command.run(),
        Command::Bench(command) => command.run(),
        Command::Doctor(command) => command.run(),
        Command::Completions(command) => command.run(),
        Command::Man(command) => command.run(),
    };
    let done = done.and_then(|code| match output::stdout_error() {
        Some(error) => Err(anyhow::anyhow!("standard output: {error}")),
        None => Ok(code),
    });
    done.unwrap_or_else(|error| errors::report(&error, json))
}

fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<Cli, clap::Error> {
    let matches = definition().try_get_matches_from(arguments);
    let matches = matches.map_err(serve::explain_usage_error);
    let matches = matches?;
    let cli = Cli::from_arg_matches(&matches)?;
    let cli = match (cli, matches.subcommand_matches("serve")) {
        (Cli { command: Command::Serve(serve) }, Some(matches)) => {
            Cli { command: Command::Serve(Box::new(serve.with_sources(matches))) }
        }
        (cli, _) => cli,
    };
    Ok(cli)
}

/// All subcommands and their flags.
fn definition() -> clap::Command {
    // A number below 0 is a wrong value, and no flag; subcommands of subcommands have no numbers but counts.
    let command = Cli::command().mut_subcommands(|command| {
        command.mut_args(|arg| match arg.get_action().takes_values() {
            true => arg.allow_negative_numbers(true),
            false => arg,
        })
    });
    let command = command.mut_subcommand("serve", serve::with_environment);
    command.mut_subcommand("serve", |command| command.mut_args(serve::hide_rare))
}

#[cfg(test)]
mod tests {
    use super::{documented_commands, parse};

    #[test]
    fn every_command_of_the_documents_is_one() {
        let mut seen = 0;
        for document in documented_commands::documents() {
            for command in documented_commands::commands(&document) {
                seen += 1;
                let words = std::iter::once("tch-flux").chain(command.iter().map(String::as_str));
                if let Err(problem) = parse(words.map(Into::into)) {
                    panic!("{}: {command:?}: {problem}", document.display());
                }
            }
        }
        assert!(seen > 30, "{seen}");
    }

    #[test]
    fn the_definitions_of_all_flags_agree() {
        super::definition().debug_assert();
    }
}
