//! How requests that are drawn together fare.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tch::Device;

use super::{OnBatchProgress, Phase, Progress};
use crate::error::{Error, Result};
use crate::numerics;

/// How the requests fare: each goes on until an error of its own.
pub(super) struct Jobs<'a, 'b> {
    pub(super) failed: Vec<Option<Error>>,
    /// The phase that each was told of last.
    phases: Vec<Option<Phase>>,
    /// Once it is true, no further step is begun.
    stop: Option<&'a Arc<AtomicBool>>,
    on_progress: &'a mut OnBatchProgress<'b>,
}

impl<'a, 'b> Jobs<'a, 'b> {
    /// The state of so many requests at the beginning.
    pub(super) fn new(
        count: usize,
        stop: Option<&'a Arc<AtomicBool>>,
        on_progress: &'a mut OnBatchProgress<'b>,
    ) -> Self {
        Self { failed: (0..count).map(|_| None).collect(), phases: vec![None; count], stop, on_progress }
    }

    pub(super) fn lives(&self, job: usize) -> bool {
        self.failed[job].is_none()
    }

    pub(super) fn living(&self) -> Vec<usize> {
        (0..self.failed.len()).filter(|&job| self.lives(job)).collect()
    }

    pub(super) fn report(&mut self, job: usize, progress: Progress) {
        if self.lives(job) && (self.on_progress)(job, progress).is_break() {
            self.failed[job] = Some(Error::Cancelled);
        }
    }

    pub(super) fn begin(&mut self, phase: Phase) {
        self.living().into_iter().for_each(|job| self.enter(job, phase));
    }

    /// Tells a job of the phase that begins for it, unless it is in it.
    pub(super) fn enter(&mut self, job: usize, phase: Phase) {
        if self.phases[job].replace(phase) != Some(phase) {
            self.report(job, Progress::Phase(phase));
        }
    }

    pub(super) fn is_stopped(&self) -> bool {
        self.stop.is_some_and(|stop| stop.load(Ordering::Relaxed))
    }

    /// Runs what may be given up once it is to be stopped. On a GPU a model waits between its blocks to be stopped there,
    /// and a step is soon over.
    pub(super) fn until_stopped<R>(&self, device: Device, f: impl FnOnce() -> R) -> R {
        match self.stop {
            Some(stop) if device == Device::Cpu => numerics::with_cancel(stop, f),
            _ => f(),
        }
    }

    /// The value, or `None` and the job is done for.
    pub(super) fn or_fails<T>(&mut self, job: usize, result: Result<T>) -> Option<T> {
        result.map_err(|error| self.failed[job] = Some(error)).ok()
    }
}
