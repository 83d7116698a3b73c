//! `bench`: seconds, bytes and peak memory.

mod decode;
mod load;
mod measure;
mod random;
mod step;
mod text;

use std::process::ExitCode;

use clap::Subcommand;

#[derive(Subcommand)]
pub(super) enum Bench {
    /// Open a weight file and build its model over it, beside one copy of as many bytes in memory.
    Load(load::Load),
    /// A step of the transformer, with random weights.
    Step(step::Step),
    /// From latents to a picture, with random weights.
    Decode(decode::Decode),
    /// T5's states of a prompt, with random weights.
    Text(text::Text),
}

impl Bench {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        match self {
            Bench::Load(command) => command.run(),
            Bench::Step(command) => command.run(),
            Bench::Decode(command) => command.run(),
            Bench::Text(command) => command.run(),
        }
    }
}
