//! How far a drawing is, on a terminal.

use std::ops::ControlFlow;

use indicatif::{ProgressBar, ProgressStyle};
use tch_flux::pipeline::{Phase, Progress};

/// A line for the phase and a bar for the steps, on a terminal.
pub(super) struct Bars {
    bar: Option<ProgressBar>,
    shown: bool,
}

impl Bars {
    pub(super) fn new(shown: bool) -> Self {
        Self { bar: None, shown }
    }

    pub(super) fn show(&mut self, progress: Progress) -> ControlFlow<()> {
        if !self.shown {
            return ControlFlow::Continue(());
        }
        match progress {
            Progress::Phase(phase) => {
                self.clear();
                let bar = ProgressBar::new_spinner();
                bar.set_message(match phase {
                    Phase::Text => "reading the prompt",
                    Phase::Load => "loading the transformer",
                    Phase::Denoise => "drawing",
                    Phase::Decode => "decoding",
                });
                bar.enable_steady_tick(std::time::Duration::from_millis(120));
                self.bar = Some(bar);
            }
            Progress::Step { image, images, step, steps } => {
                let total = (images * steps) as u64;
                if self.bar.as_ref().is_none_or(|bar| bar.length() != Some(total)) {
                    self.clear();
                    let bar = ProgressBar::new(total);
                    let style = "{msg} {wide_bar} step {pos}/{len} {elapsed} ETA {eta}";
                    if let Ok(style) = ProgressStyle::with_template(style) {
                        bar.set_style(style);
                    }
                    self.bar = Some(bar);
                }
                if let Some(bar) = &self.bar {
                    bar.set_message(format!("picture {}/{images}", image + 1));
                    bar.set_position((image * steps + step) as u64);
                }
            }
            Progress::Preview { .. } => {}
        }
        ControlFlow::Continue(())
    }

    pub(super) fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}
