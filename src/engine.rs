//! A pipeline on a thread of its own: jobs in, events out. What a server or a program with a window holds.
//!
//! An [`Engine`] is `Clone + Send + Sync`, and nothing of it blocks: [`Engine::submit`] puts a job into a bounded queue
//! or says that it is full. One thread for each pipeline takes the jobs in their order, and with the first those of the
//! same shape that wait, where they are drawn faster together; the bits of a picture do not depend on it. A job that
//! fails, panics or runs out of memory is its own affair: the next one is drawn. A [`Job`] that is dropped is cancelled,
//! which takes effect within one block of a model.
//!
//! Jobs are spans of `tracing`, and what happens to them are events with counters in the fields that metrics layers know:
//! `monotonic_counter.tch_flux_jobs` with the `outcome`, `histogram.tch_flux_wait_seconds`,
//! `histogram.tch_flux_draw_seconds`.
//!
//! ```no_run
//! use tch_flux::engine::{Engine, Event, Options};
//! use tch_flux::generation::{Parts, Pipeline, Request, Settings};
//!
//! # fn main() -> tch_flux::Result<()> {
//! let settings = Settings { keep_text_encoders: true, ..Settings::default() };
//! let pipeline = Pipeline::open(Parts::find("model")?, settings)?;
//! let engine = Engine::start([pipeline], Options::default())?;
//! let job = engine.submit(Request::new("a red circle", 1024, 1024))?;
//! while let Some(event) = job.recv() {
//!     match event {
//!         Event::Step { step, steps, .. } => println!("{step} of {steps}"),
//!         Event::Finished(pictures) => pictures[0].image.write_png("circle.png", &Default::default())?,
//!         Event::Failed(error) => return Err(error),
//!         _ => {}
//!     }
//! }
//! # Ok(())
//! # }
//! ```

mod classify;
mod events;
mod job;
mod queue;
#[cfg(test)]
mod tests;

use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;
use std::time::Instant;

use tch::Device;
use tracing::{error, info_span};

use crate::error::{Error, Result};
use crate::generation::{Generated, OnBatchProgress, Phase, Pipeline, Progress, Request};
use crate::image::Image;
use crate::numerics;
use crate::shim;
pub use job::Job;
use queue::{Batch, QueuedJob, Shared};

/// How an engine behaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// Jobs that may wait, beside those that are drawn.
    pub queue: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { queue: 64 }
    }
}

/// What becomes of a job. The last one is [`Event::Finished`] or [`Event::Failed`], and there is exactly one of these.
#[derive(Debug)]
pub enum Event {
    /// It waits; so many are before it. Told anew whenever that changes.
    Queued {
        /// Jobs that are drawn before it.
        ahead: usize,
    },
    /// A phase begins.
    Phase(Phase),
    /// A step is done.
    Step {
        /// Which picture, from 0.
        image: usize,
        /// Of how many.
        images: usize,
        /// Which step, from 1.
        step: usize,
        /// Of how many.
        steps: usize,
    },
    /// What a picture will look like: see [`Request::previews`].
    Preview {
        /// Which picture, from 0.
        image: usize,
        /// After which step, from 1.
        step: usize,
        /// At most 256 pixels a side.
        picture: Image,
    },
    /// A picture is finished: one of those that [`Event::Finished`] brings.
    Picture {
        /// Which picture, from 0.
        image: usize,
        /// Of how many.
        images: usize,
        /// The picture, and how it came about.
        picture: Arc<Generated>,
    },
    /// The pictures, in the order of [`Pipeline::generate`].
    Finished(Vec<Generated>),
    /// Why there are none.
    Failed(Error),
}

impl From<Progress> for Event {
    fn from(progress: Progress) -> Self {
        match progress {
            Progress::Phase(phase) => Self::Phase(phase),
            Progress::Step { image, images, step, steps } => Self::Step { image, images, step, steps },
            Progress::Preview { image, step, picture } => Self::Preview { image, step, picture },
            Progress::Picture { image, images, picture } => Self::Picture { image, images, picture },
        }
    }
}

/// How an engine is doing: numbers since it was started, but for the first three.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stats {
    /// Jobs that wait.
    pub waiting: usize,
    /// Jobs that are drawn at present.
    pub running: usize,
    /// Threads that draw; fewer than were started where devices were lost.
    pub workers: usize,
    /// Jobs that were drawn.
    pub finished: u64,
    /// Jobs that failed.
    pub failed: u64,
    /// Jobs that were cancelled, or dropped.
    pub cancelled: u64,
    /// Jobs that found the queue full.
    pub refused: u64,
}

/// What an [`Engine`] runs on each of its threads: a [`Pipeline`], or a stand-in for one.
pub trait Worker: Send + 'static {
    /// The device that it computes on. Workers of the CPU lend one another their threads.
    fn device(&self) -> Device;
    /// The largest number of pictures of such a request that are drawn in one batch; at least 1.
    fn max_batch(&self, request: &Request) -> usize;
    /// Whether the pictures of both requests may be drawn in one batch.
    fn can_batch(&self, one: &Request, other: &Request) -> bool;
    /// Draws the pictures of all requests. Calls `on_progress` with the index of the request that the progress is of; where it
    /// returns [`ControlFlow::Break`], that request ends with [`Error::Cancelled`].
    ///
    /// # Errors
    /// The outer error is one for all requests; the inner ones are those of a request.
    fn draw(
        &mut self,
        requests: &[&Request],
        on_progress: &mut OnBatchProgress,
    ) -> Result<Vec<Result<Vec<Generated>>>>;
    /// Frees what an error may have left half-done. It is called after an error for all requests.
    fn release(&mut self);
}

impl Worker for Pipeline {
    fn device(&self) -> Device {
        self.settings().device
    }
    fn max_batch(&self, request: &Request) -> usize {
        Pipeline::max_batch(self, request)
    }
    fn can_batch(&self, one: &Request, other: &Request) -> bool {
        Pipeline::can_batch(self, one, other)
    }
    fn draw(
        &mut self,
        requests: &[&Request],
        on_progress: &mut OnBatchProgress,
    ) -> Result<Vec<Result<Vec<Generated>>>> {
        let checks: Vec<_> = requests.iter().map(|request| self.check_memory(request)).collect();
        let fitting: Vec<usize> = (0..checks.len()).filter(|&job| checks[job].is_ok()).collect();
        let those: Vec<&Request> = fitting.iter().map(|&job| requests[job]).collect();
        let mut drawn =
            self.generate_batch(&those, &mut |i, progress| on_progress(fitting[i], progress))?.into_iter();
        let outcome = |check: Result<()>| check.and_then(|()| drawn.next().unwrap_or(Err(Error::Cancelled)));
        Ok(checks.into_iter().map(outcome).collect())
    }
    fn release(&mut self) {
        Pipeline::release(self);
    }
}

/// A handle of the threads that draw. Clones are handles of the same ones; when the last is dropped, what waits fails
/// with [`Error::Stopped`], what is drawn is cancelled, and the threads end.
#[derive(Debug, Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    shared: Arc<Shared>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.shared.stop();
    }
}

impl Engine {
    /// Starts a thread for each pipeline: one for a device, or several on a CPU with many cores. Those of a CPU lend one
    /// another their threads while they do not draw.
    ///
    /// # Errors
    /// [`Error::Config`] without a pipeline, [`Error::Io`] where the system gives no thread.
    pub fn start(pipelines: impl IntoIterator<Item = Pipeline>, options: Options) -> Result<Self> {
        Self::start_workers(pipelines, options)
    }

    /// Starts a thread for each worker, as [`Engine::start`] does for pipelines.
    ///
    /// # Errors
    /// As [`Engine::start`].
    pub fn start_workers<W: Worker>(workers: impl IntoIterator<Item = W>, options: Options) -> Result<Self> {
        let shared = Arc::new(Shared::new(options));
        // From here on an early return ends the threads that were started.
        let engine = Self { inner: Arc::new(Inner { shared: shared.clone() }) };
        for (i, worker) in workers.into_iter().enumerate() {
            shared.join();
            let mine = shared.clone();
            let started =
                thread::Builder::new().name(format!("tch-flux {i}")).spawn(move || work(&mine, worker));
            if let Err(source) = started {
                shared.leave();
                return Err(Error::io("a thread of the engine")(source));
            }
        }
        if shared.stats().workers == 0 {
            return Err(Error::Config("an engine needs a pipeline".into()));
        }
        Ok(engine)
    }

    /// Puts a job into the queue.
    ///
    /// # Errors
    /// [`Error::Request`] for one that cannot be drawn, [`Error::Full`] where as many wait as may, [`Error::Stopped`]
    /// after [`Engine::close`], or when every device is lost.
    pub fn submit(&self, request: Request) -> Result<Job> {
        request.check()?;
        let shared = &self.inner.shared;
        Ok(Job::new(shared.submit(request)?, shared))
    }

    /// Takes no more jobs; those that were taken are drawn.
    pub fn close(&self) {
        self.inner.shared.close();
    }

    /// Waits until nothing waits and nothing is drawn, at most until `deadline`. Whether it is so.
    pub fn drain(&self, deadline: Instant) -> bool {
        self.inner.shared.drain(deadline)
    }

    /// How it is doing.
    pub fn stats(&self) -> Stats {
        self.inner.shared.stats()
    }
}

/// The life of a thread: job after job, until the engine is gone or the device lost.
fn work<W: Worker>(shared: &Shared, mut worker: W) {
    let device = worker.device();
    while let Some(batch) = shared.next(&worker) {
        if let Some(reason) = work_on(shared, &mut worker, &batch) {
            error!(reason, ?device, "the device is lost: its thread ends");
            // What it holds cannot be given back to a device that does not answer.
            std::mem::forget(worker);
            break;
        }
    }
    shared.leave();
}

/// Draws what was taken, and says what became of it. Why the device is lost, if it is.
fn work_on<W: Worker>(shared: &Shared, worker: &mut W, batch: &Batch) -> Option<String> {
    let ids: Vec<u64> = batch.tickets.iter().map(|ticket| ticket.id).collect();
    let _span = info_span!("jobs", ?ids, device = ?worker.device()).entered();
    let begun = Instant::now();
    let _lend = (worker.device() == Device::Cpu).then(|| shim::ThreadLending::enter(shared.stats().workers));
    let mut outcomes = draw(worker, batch, &batch.tickets);
    if outcomes.len() > 1 && outcomes.iter().any(|outcome| matches!(outcome, Outcome::Shared(_))) {
        // What went wrong may be one's alone: the others shall not fail with it.
        outcomes = batch
            .tickets
            .iter()
            .zip(outcomes)
            .map(|(ticket, outcome)| match outcome {
                Outcome::Shared(problem) if !is_lost(&problem) => draw_alone(worker, batch, ticket),
                outcome => outcome,
            })
            .collect();
    }
    let outcomes = outcomes.into_iter().map(Outcome::into_result).collect::<Vec<_>>();
    let lost = outcomes.iter().find_map(|outcome| match outcome {
        Err(Error::DeviceLost { reason, .. }) => Some(reason.clone()),
        _ => None,
    });
    batch.tickets.iter().zip(outcomes).for_each(|(ticket, outcome)| shared.done(ticket, begun, outcome));
    lost
}

fn is_lost(problem: &Error) -> bool {
    matches!(problem, Error::DeviceLost { .. })
}

/// What became of a job of several.
enum Outcome {
    Own(Result<Vec<Generated>>),
    /// What went wrong for all of them.
    Shared(Error),
}

impl Outcome {
    fn into_result(self) -> Result<Vec<Generated>> {
        match self {
            Self::Own(result) => result,
            Self::Shared(problem) => Err(problem),
        }
    }
}

fn draw_alone<W: Worker>(worker: &mut W, batch: &Batch, ticket: &QueuedJob) -> Outcome {
    if ticket.is_cancelled() {
        return Outcome::Own(Err(Error::Cancelled));
    }
    draw(worker, batch, std::slice::from_ref(ticket)).pop().unwrap_or(Outcome::Own(Err(Error::Cancelled)))
}

/// Some jobs of a batch, whatever happens in them.
fn draw<W: Worker>(worker: &mut W, batch: &Batch, tickets: &[QueuedJob]) -> Vec<Outcome> {
    let requests: Vec<&Request> = tickets.iter().map(|ticket| &*ticket.request).collect();
    let mut on_progress = |job: usize, progress: Progress| {
        let ticket = &tickets[job];
        ticket.events.send(progress.into());
        if ticket.is_cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let drawn = catch_unwind(AssertUnwindSafe(|| {
        numerics::with_cancel(&batch.stop, || worker.draw(&requests, &mut on_progress))
    }));
    let device = worker.device();
    let drawn = drawn.unwrap_or_else(|panic| Err(Error::Panicked(classify::panic_text(&*panic))));
    let outcomes: Vec<Outcome> = match drawn {
        Ok(results) => results
            .into_iter()
            .map(|result| Outcome::Own(result.map_err(|problem| classify::named(problem, device))))
            .collect(),
        Err(problem) => classify::for_each(classify::named(problem, device), tickets.len()),
    };
    let broken = |outcome: &Outcome| {
        let (Outcome::Own(Err(problem)) | Outcome::Shared(problem)) = outcome else { return false };
        matches!(problem, Error::Panicked(_) | Error::OutOfMemory(_))
    };
    if outcomes.iter().any(broken) {
        // What is let go of may fail in its turn: the thread lives on, and the job's own fault is told.
        let _ = catch_unwind(AssertUnwindSafe(|| worker.release()));
    }
    outcomes
}
