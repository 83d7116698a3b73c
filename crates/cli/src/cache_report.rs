//! What a step cache saved, and what it changed.

use std::fmt::{self, Display, Formatter};
use std::ops::ControlFlow;
use std::time::Instant;

use serde::Serialize;
use tch_flux::generation::{Generated, Pipeline, Request};

/// What a step cache did.
#[derive(Serialize)]
pub(super) struct CacheReport {
    /// Calls of the transformer that were not computed whole.
    skipped: usize,
    calls: usize,
    seconds: f64,
    /// Beside the same pictures without it.
    #[serde(rename = "without")]
    uncached: Option<Uncached>,
}

#[derive(Serialize)]
struct Uncached {
    seconds: f64,
    /// The least of all pictures; none where they are the same.
    psnr: Option<f64>,
    /// Of 255.
    largest_difference: u8,
}

impl CacheReport {
    /// Counts how much the cache skipped, and with `compare` measures how far the pictures lie from those without it.
    pub(super) fn new(
        pipeline: &mut Pipeline,
        request: &Request,
        generated: &[Generated],
        seconds: f64,
        compare: bool,
    ) -> anyhow::Result<Self> {
        let sum = |count: fn(&Generated) -> usize| generated.iter().map(count).sum();
        let (skipped, calls) = (sum(|picture| picture.skipped.0), sum(|picture| picture.skipped.1));
        let mut report = Self { skipped, calls, seconds, uncached: None };
        if compare {
            let started = Instant::now();
            let whole = Request { cache: None, ..request.clone() };
            let whole = pipeline.generate(&whole, &mut |_| ControlFlow::Continue(()))?;
            let seconds = started.elapsed().as_secs_f64();
            let pairs = || whole.iter().zip(generated).map(|(whole, picture)| (&whole.image, &picture.image));
            let psnr = pairs().filter_map(|(whole, picture)| whole.psnr(picture)).min_by(f64::total_cmp);
            let largest = pairs().filter_map(|(whole, picture)| whole.largest_difference(picture)).max();
            report.uncached = Some(Uncached { seconds, psnr, largest_difference: largest.unwrap_or(0) });
        }
        Ok(report)
    }
}

impl Display for CacheReport {
    fn fmt(&self, f: &mut Formatter) -> fmt::Result {
        let Self { skipped, calls, seconds, uncached } = self;
        let share = 100.0 * *skipped as f64 / (*calls).max(1) as f64;
        write!(f, "cache: {skipped} of {calls} calls of the transformer skipped ({share:.0} %)")?;
        let Some(Uncached { seconds: whole, psnr, largest_difference }) = uncached else { return Ok(()) };
        let likeness = match psnr {
            Some(psnr) => format!("{psnr:.1} dB, at most {largest_difference} of 255"),
            None => "the same bits".into(),
        };
        write!(f, "; beside the pictures without it: {likeness}; {seconds:.1} s for {whole:.1} s")
    }
}
