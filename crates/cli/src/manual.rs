//! What is made of the definitions of all flags: completions for shells, and manual pages.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use clap_complete::Shell;
use clap_mangen::Man as Page;

use super::targets::{self, Target};

#[derive(Args)]
pub(super) struct Completions {
    /// The shell, as in `tch-flux completions bash > ~/.local/share/bash-completion/completions/tch-flux`.
    #[arg(value_enum)]
    shell: Shell,
}

impl Completions {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let mut text = Vec::new();
        clap_complete::generate(self.shell, &mut super::definition(), "tch-flux", &mut text);
        print!("{}", String::from_utf8(text)?);
        Ok(ExitCode::SUCCESS)
    }
}

#[derive(Args)]
pub(super) struct Man {
    /// A folder for the pages of all subcommands; it is made. Without one, the first page is printed.
    #[arg(value_name = "DIR")]
    folder: Option<PathBuf>,
    /// Replace files that stand in the way.
    #[arg(long, requires = "folder")]
    force: bool,
}

impl Man {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let mut command = super::definition();
        command.build();
        let Some(folder) = self.folder else {
            print!("{}", String::from_utf8(page(&command)?)?);
            return Ok(ExitCode::SUCCESS);
        };
        let mut pages = Vec::new();
        all_pages(&command, &mut pages)?;
        let target = |(name, _): &(String, _)| Target { path: folder.join(name), flag: "DIR" };
        let targets: Vec<_> = pages.iter().map(target).collect();
        targets::check(&targets, &[], self.force)?;
        targets::make_folders(&targets)?;
        for (target, (_, text)) in targets.iter().zip(&pages) {
            println!("{}", targets::save(&target.path, text, self.force)?.display());
        }
        Ok(ExitCode::SUCCESS)
    }
}

fn page(command: &clap::Command) -> anyhow::Result<Vec<u8>> {
    let mut text = Vec::new();
    Page::new(command.clone()).render(&mut text)?;
    Ok(text)
}

/// Collects the pages of a command and of its subcommands, by their files' names: `tch-flux-bench-load.1`.
fn all_pages(command: &clap::Command, pages: &mut Vec<(String, Vec<u8>)>) -> anyhow::Result<()> {
    let name = command.get_display_name().unwrap_or(command.get_name());
    pages.push((format!("{name}.1"), page(command)?));
    let others = command.get_subcommands().filter(|other| other.get_name() != "help" && !other.is_hide_set());
    others.into_iter().try_for_each(|other| all_pages(other, pages))
}
