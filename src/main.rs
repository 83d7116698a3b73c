//! The command line of tch-flux.

mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::run()
}
