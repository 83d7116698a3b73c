//! Models by their names on the hub.

use std::ops::ControlFlow;
use std::path::Path;

use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};
use tch_flux::generation::{PartOverrides, Parts};
use tch_flux::hub::{Event, Hub, Repository};
use tch_flux::{Error, HubProblem};

use super::progress::Verbosity;

/// Fetches the parts of the repository that `model` names, which is no folder here.
pub(super) fn parts(model: &Path, overrides: PartOverrides, verbosity: Verbosity) -> anyhow::Result<Parts> {
    let name = model.to_string_lossy();
    let repository: Repository =
        name.parse().context("there is no such folder, nor is it a name on the hub")?;
    let mut progress = DownloadProgress::new(verbosity);
    match Hub::from_env()?.fetch(&repository, overrides, &mut |event| progress.show(event)) {
        Err(error @ Error::Hub { problem: HubProblem::NotFound { .. }, .. }) => {
            Err(error).context("there is no such folder here")
        }
        fetched => Ok(fetched?),
    }
}

/// Fetches the models of Redux from the repository that `model` names.
pub(super) fn redux(model: &Path, verbosity: Verbosity) -> anyhow::Result<PartOverrides> {
    let name = model.to_string_lossy();
    let repository: Repository =
        name.parse().context("there is no such file or folder, nor is it a name on the hub")?;
    let mut progress = DownloadProgress::new(verbosity);
    match Hub::from_env()?.fetch_redux(&repository, &mut |event| progress.show(event)) {
        Err(error @ Error::Hub { problem: HubProblem::NotFound { .. }, .. }) => {
            Err(error).context("there is no such file or folder here")
        }
        fetched => Ok(fetched?),
    }
}

/// A bar for each file that is fetched.
pub(super) struct DownloadProgress {
    verbosity: Verbosity,
    name: String,
    bar: Option<ProgressBar>,
}

impl DownloadProgress {
    pub(super) fn new(verbosity: Verbosity) -> Self {
        Self { verbosity, name: String::new(), bar: None }
    }

    pub(super) fn show(&mut self, event: Event) -> ControlFlow<()> {
        match event {
            Event::File { name, have: fetched, size } => self.file(name, fetched, size),
            Event::Waiting { name } => self.warn(&format!("{name}: another process is fetching it; waiting")),
            Event::Retry { reason, wait } => {
                self.warn(&format!("{reason}; trying again in {} s", wait.as_secs_f32()));
            }
            Event::Stale { reason } => self.warn(&format!("{reason}; what the cache holds is taken")),
            _ => {}
        }
        ControlFlow::Continue(())
    }

    fn file(&mut self, name: &str, fetched: u64, size: u64) {
        if !self.verbosity.bars {
            return;
        }
        if self.name != name {
            let bar = ProgressBar::new(size);
            let style = "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} ETA {eta}";
            if let Ok(style) = ProgressStyle::with_template(style) {
                bar.set_style(style);
            }
            bar.set_message(name.to_string());
            (self.name, self.bar) = (name.to_string(), Some(bar));
        }
        if let Some(bar) = &self.bar {
            bar.set_position(fetched);
            if fetched == size {
                bar.finish();
            }
        }
    }

    fn warn(&self, text: &str) {
        match &self.bar {
            _ if !self.verbosity.warnings => {}
            Some(bar) => bar.suspend(|| eprintln!("warning: {text}")),
            None => eprintln!("warning: {text}"),
        }
    }
}
