//! How far a drawing is, on a terminal.

use std::fmt::Write;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressState, ProgressStyle};
use tch_flux::generation::{Phase, Progress};

/// What the terminal shows of work that takes long.
#[derive(Clone, Copy)]
pub(super) struct Verbosity {
    /// A bar for each file that is fetched.
    pub(super) bars: bool,
    /// What went wrong, and whether it is tried again.
    pub(super) warnings: bool,
}

/// What is done of all pictures, and how long the rest takes. Pictures may go step by step together, or one after the other:
/// a step of any of them is a unit of work, and so is its decoding.
#[derive(Debug, Default)]
struct Work {
    images: usize,
    steps: usize,
    taken: usize,
    decoded: usize,
    /// What the steps and the decodings took that are done.
    stepping: Duration,
    decoding: Duration,
    /// When the last of them was done, or the phase began.
    last: Duration,
}

impl Work {
    /// Counts an event; `now` is the time since a fixed moment.
    fn update(&mut self, progress: &Progress, now: Duration) {
        match progress {
            Progress::Step { images, steps, .. } => {
                (self.images, self.steps) = (*images, *steps);
                self.taken += 1;
                self.stepping += now.saturating_sub(self.last);
            }
            Progress::Picture { .. } => {
                self.decoded += 1;
                self.decoding += now.saturating_sub(self.last);
            }
            Progress::Phase(_) | Progress::Preview { .. } => {}
        }
        self.last = now;
    }

    /// Returns the units that are done, and all of them, which are known from the first step on.
    fn position(&self) -> (usize, usize) {
        (self.taken + self.decoded, self.images * (self.steps + 1))
    }

    /// Estimates from the work that is done how long the rest takes, from [`Work::last`] on.
    fn left(&self) -> Option<Duration> {
        let step = self.stepping.checked_div(u32::try_from(self.taken).ok()?)?;
        // Until the first one is decoded, it is thought to take as long as a step.
        let decode = self.decoding.checked_div(u32::try_from(self.decoded).ok()?).unwrap_or(step);
        let steps = (self.images * self.steps).saturating_sub(self.taken);
        let pictures = self.images.saturating_sub(self.decoded);
        Some(
            step.saturating_mul(u32::try_from(steps).ok()?)
                + decode.saturating_mul(u32::try_from(pictures).ok()?),
        )
    }
}

/// A line for what goes before the first step, and then one bar for all pictures, which only grows.
pub(super) struct GenerationProgress {
    shown: bool,
    begun: Instant,
    work: Work,
    spinner: Option<ProgressBar>,
    bar: Option<ProgressBar>,
    /// When all will be done.
    end: Arc<Mutex<Option<Instant>>>,
}

impl GenerationProgress {
    pub(super) fn new(shown: bool) -> Self {
        let (begun, end) = (Instant::now(), Arc::default());
        Self { shown, begun, work: Work::default(), spinner: None, bar: None, end }
    }

    pub(super) fn show(&mut self, progress: &Progress) {
        if !self.shown {
            return;
        }
        self.work.update(progress, self.begun.elapsed());
        match progress {
            Progress::Phase(phase) => {
                let text = match phase {
                    Phase::Text => "reading the prompt",
                    Phase::Load => "loading the transformer",
                    Phase::Denoise => "drawing",
                    Phase::Decode => "decoding",
                };
                match &self.bar {
                    Some(bar) => bar.set_message(text),
                    None => self.spin(text),
                }
            }
            Progress::Step { step, steps, .. } => self.fill(&format!("step {step}/{steps}")),
            Progress::Picture { .. } => self.fill("decoding"),
            Progress::Preview { .. } => {}
        }
    }

    fn spin(&mut self, text: &'static str) {
        let spinner = self.spinner.get_or_insert_with(|| {
            let spinner = ProgressBar::new_spinner();
            spinner.enable_steady_tick(Duration::from_millis(120));
            spinner
        });
        spinner.set_message(text);
    }

    fn fill(&mut self, text: &str) {
        if let Some(spinner) = self.spinner.take() {
            spinner.finish_and_clear();
        }
        let (done, all) = self.work.position();
        let end = &self.end;
        let bar = self.bar.get_or_insert_with(|| {
            let bar = ProgressBar::new(all as u64);
            let end = end.clone();
            let left = move |_: &ProgressState, out: &mut dyn Write| {
                let end = end.lock().ok().and_then(|end| *end);
                // Where it cannot be written, nobody reads it.
                let _ = match end {
                    Some(end) => out.write_str(&clock(end.saturating_duration_since(Instant::now()))),
                    None => out.write_str("?"),
                };
            };
            let style = "{prefix}{msg} {wide_bar} {percent}% {elapsed} ETA {left}";
            if let Ok(style) = ProgressStyle::with_template(style) {
                bar.set_style(style.with_key("left", left));
            }
            bar.enable_steady_tick(Duration::from_secs(1));
            bar
        });
        if let Ok(mut end) = self.end.lock() {
            *end = self.work.left().map(|left| self.begun + self.work.last + left);
        }
        if self.work.images > 1 {
            bar.set_prefix(format!("{} of {} pictures, ", self.work.decoded, self.work.images));
        }
        bar.set_message(text.to_string());
        bar.set_position(done as u64);
    }

    /// Prints lines above the bar.
    pub(super) fn above(&self, print: impl FnOnce()) {
        match self.bar.as_ref().or(self.spinner.as_ref()) {
            Some(bar) => bar.suspend(print),
            None => print(),
        }
    }

    pub(super) fn clear(&mut self) {
        [self.bar.take(), self.spinner.take()].into_iter().flatten().for_each(|bar| bar.finish_and_clear());
    }
}

/// `1:02:03`, or `2:03`.
fn clock(time: Duration) -> String {
    let seconds = time.as_secs();
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match hours {
        0 => format!("{minutes}:{seconds:02}"),
        _ => format!("{hours}:{minutes:02}:{seconds:02}"),
    }
}

#[cfg(test)]
mod tests {
    use tch_flux::generation::{Generated, Request};
    use tch_flux::image::Image;

    use super::*;

    fn picture(image: usize, images: usize) -> Progress {
        let (image_of, request) = (Image { width: 1, height: 1, rgb: vec![0; 3] }, Request::new("", 16, 16));
        let picture = Generated { image: image_of, request, warnings: Vec::new(), skipped: (0, 0) };
        Progress::Picture { image, images, picture: Arc::new(picture) }
    }

    /// Pictures in groups that go step by step together, a step of a group taking 2 s and a decoding 5 s.
    fn drawing(images: usize, steps: usize, group: usize) -> Vec<(Progress, Duration)> {
        let (mut events, mut now) = (Vec::new(), 0);
        for first in (0..images).step_by(group) {
            let members = first..(first + group).min(images);
            // The model is loaded anew, which is no step.
            now += 100;
            events.push((Progress::Phase(Phase::Denoise), now));
            for step in 1..=steps {
                now += 2;
                events.extend(
                    members.clone().map(|image| (Progress::Step { image, images, step, steps }, now)),
                );
            }
            events.push((Progress::Phase(Phase::Decode), now));
            for image in members {
                now += 5;
                events.push((picture(image, images), now));
            }
        }
        events.into_iter().map(|(event, now)| (event, Duration::from_secs(now))).collect()
    }

    #[test]
    fn the_bar_only_grows_and_ends_full() {
        for (images, steps, group) in [(1, 4, 1), (5, 4, 2), (60, 3, 7), (3, 1, 3)] {
            let (mut work, mut before) = (Work::default(), 0);
            for (event, now) in drawing(images, steps, group) {
                work.update(&event, now);
                let (done, all) = work.position();
                assert!(
                    done >= before && (all == 0 || done <= all),
                    "{images} {steps} {group}: {done}/{all}"
                );
                before = done;
            }
            assert_eq!(work.position(), (images * (steps + 1), images * (steps + 1)));
            assert_eq!(work.left(), Some(Duration::ZERO));
        }
    }

    #[test]
    fn the_time_that_is_left_is_that_of_the_steps_and_of_the_decodings() {
        let mut work = Work::default();
        let events = drawing(6, 10, 2);
        // After the first group: 2 × 10 steps of 1 s each, 2 decodings of 5 s; four pictures are left.
        let first = events.iter().position(|(event, _)| *event == picture(1, 6)).unwrap();
        events[..=first].iter().for_each(|(event, now)| work.update(event, *now));
        assert_eq!(work.left(), Some(Duration::from_secs(4 * 10 + 4 * 5)));
        assert_eq!(Work::default().left(), None);
    }

    #[test]
    fn times_are_written_as_on_a_clock() {
        assert_eq!(clock(Duration::from_secs(3723)), "1:02:03");
        assert_eq!(clock(Duration::from_secs(59)), "0:59");
    }
}
