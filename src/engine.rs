//! A pipeline on a thread of its own: jobs in, events out. What a server or a program with a window holds.
//!
//! An [`Engine`] is `Clone + Send + Sync`, and nothing of it blocks: [`Engine::submit`] puts a job into a bounded queue
//! or says that it is full. One thread for each pipeline takes the jobs in their order. A job that fails, panics or runs
//! out of memory is its own affair: the next one is drawn. A [`Job`] that is dropped is cancelled, which takes effect
//! within one block of a model.
//!
//! ```no_run
//! use tch_flux::engine::{Engine, Event, Options};
//! use tch_flux::pipeline::{Parts, Pipeline, Request, Settings};
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

mod job;
#[cfg(test)]
mod tests;
mod trouble;

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

use tch::Device;
use tracing::{debug, error, info, info_span, warn};

use crate::error::{Error, Result};
use crate::image::Image;
use crate::ops;
use crate::pipeline::{Generated, OnProgress, Phase, Pipeline, Progress, Request};
use job::Events;
pub use job::Job;

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

/// What a worker draws with.
pub(crate) trait Draw: Send + 'static {
    fn device(&self) -> Device;
    fn draw(&mut self, request: &Request, on_progress: &mut OnProgress) -> Result<Vec<Generated>>;
    /// Lets go of all that an error may have left half-done.
    fn release(&mut self);
}

impl Draw for Pipeline {
    fn device(&self) -> Device {
        self.settings().device
    }
    fn draw(&mut self, request: &Request, on_progress: &mut OnProgress) -> Result<Vec<Generated>> {
        self.check_memory(request)?;
        self.generate(request, on_progress)
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
    /// Starts a thread for each pipeline: one for a device, or several on a CPU with many cores.
    ///
    /// # Errors
    /// [`Error::Config`] without a pipeline, [`Error::Io`] where the system gives no thread.
    pub fn start(pipelines: impl IntoIterator<Item = Pipeline>, options: Options) -> Result<Self> {
        Self::start_with(pipelines, options)
    }

    pub(crate) fn start_with<D: Draw>(artists: impl IntoIterator<Item = D>, options: Options) -> Result<Self> {
        let shared = Arc::new(Shared::new(options));
        // From here on an early return ends the threads that were started.
        let engine = Self { inner: Arc::new(Inner { shared: shared.clone() }) };
        for (i, artist) in artists.into_iter().enumerate() {
            shared.lock().workers += 1;
            let mine = shared.clone();
            let started =
                thread::Builder::new().name(format!("tch-flux {i}")).spawn(move || work(&mine, artist));
            if let Err(source) = started {
                shared.lock().workers -= 1;
                return Err(Error::io("a thread of the engine")(source));
            }
        }
        if shared.lock().workers == 0 {
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
        self.inner.shared.submit(request)
    }

    /// Takes no more jobs; those that were taken are drawn.
    pub fn close(&self) {
        let shared = &self.inner.shared;
        shared.lock().closed = true;
        shared.changed.notify_all();
    }

    /// Waits until nothing waits and nothing is drawn, at most until `deadline`. Whether it is so.
    pub fn drain(&self, deadline: Instant) -> bool {
        let shared = &self.inner.shared;
        let mut state = shared.lock();
        while !state.waiting.is_empty() || !state.running.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state = shared.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// How it is doing.
    pub fn stats(&self) -> Stats {
        let shared = &self.inner.shared;
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let state = shared.lock();
        Stats {
            waiting: state.waiting.len(),
            running: state.running.len(),
            workers: state.workers,
            finished: count(&shared.finished),
            failed: count(&shared.failed),
            cancelled: count(&shared.cancelled),
            refused: count(&shared.refused),
        }
    }
}

/// A job that waits.
#[derive(Debug)]
struct Waiting {
    id: u64,
    request: Request,
    cancel: Arc<AtomicBool>,
    events: Events,
    since: Instant,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Waiting>,
    running: Vec<(u64, Arc<AtomicBool>)>,
    workers: usize,
    closed: bool,
    next: u64,
}

/// What the handles and the threads share.
#[derive(Debug)]
struct Shared {
    options: Options,
    state: Mutex<State>,
    /// Told of every change of the state.
    changed: Condvar,
    finished: AtomicU64,
    failed: AtomicU64,
    cancelled: AtomicU64,
    refused: AtomicU64,
}

impl Shared {
    fn new(options: Options) -> Self {
        Self {
            options,
            state: Mutex::default(),
            changed: Condvar::new(),
            finished: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            cancelled: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing that can panic runs under the lock.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn submit(self: &Arc<Self>, request: Request) -> Result<Job> {
        let mut state = self.lock();
        if state.closed || state.workers == 0 {
            return Err(Error::Stopped);
        }
        let idle = state.workers.saturating_sub(state.running.len());
        let waiting = state.waiting.len();
        if waiting >= self.options.queue + idle {
            self.refused.fetch_add(1, Ordering::Relaxed);
            debug!(waiting, "refused: the queue is full");
            return Err(Error::Full { waiting });
        }
        let id = state.next;
        state.next += 1;
        let cancel = Arc::new(AtomicBool::new(false));
        let (events, receiver) = Events::channel();
        events.send(Event::Queued { ahead: waiting });
        debug!(job = id, ahead = waiting, "queued");
        state.waiting.push_back(Waiting {
            id,
            request,
            cancel: cancel.clone(),
            events,
            since: Instant::now(),
        });
        drop(state);
        self.changed.notify_all();
        Ok(Job::new(id, cancel, receiver, self))
    }

    /// The next job, once there is one; `None` when there will be none.
    fn next(&self) -> Option<Waiting> {
        let mut state = self.lock();
        loop {
            if let Some(job) = state.waiting.pop_front() {
                state.running.push((job.id, job.cancel.clone()));
                state.tell_places();
                return Some(job);
            }
            if state.closed {
                return None;
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// A job was drawn, or was not.
    fn done(&self, id: u64) {
        self.lock().running.retain(|(other, _)| *other != id);
        self.changed.notify_all();
    }

    fn count(&self, outcome: &Result<Vec<Generated>>) {
        let counter = match outcome {
            Ok(_) => &self.finished,
            Err(Error::Cancelled) => &self.cancelled,
            Err(_) => &self.failed,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// A job is not wanted any more. One that waits goes at once, one that is drawn at its next block.
    fn cancel(&self, id: u64) {
        let mut state = self.lock();
        let Some(i) = state.waiting.iter().position(|job| job.id == id) else { return };
        let Some(job) = state.waiting.remove(i) else { return };
        state.tell_places();
        drop(state);
        self.finish(job.events, Err(Error::Cancelled));
        self.changed.notify_all();
    }

    fn finish(&self, events: Events, outcome: Result<Vec<Generated>>) {
        self.count(&outcome);
        events.finish(outcome);
    }

    /// Nobody holds the engine any more.
    fn stop(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.running.iter().for_each(|(_, cancel)| cancel.store(true, Ordering::Relaxed));
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        waiting.into_iter().for_each(|job| self.finish(job.events, Err(Error::Stopped)));
        self.changed.notify_all();
    }

    /// A thread ends. Without any, nothing that waits will be drawn.
    fn leave(&self) {
        let mut state = self.lock();
        state.workers -= 1;
        let waiting = if state.workers == 0 { std::mem::take(&mut state.waiting) } else { VecDeque::new() };
        drop(state);
        waiting.into_iter().for_each(|job| self.finish(job.events, Err(Error::Stopped)));
        self.changed.notify_all();
    }
}

impl State {
    fn tell_places(&self) {
        self.waiting.iter().enumerate().for_each(|(ahead, job)| job.events.send(Event::Queued { ahead }));
    }
}

/// The life of a thread: job after job, until the engine is gone or the device lost.
fn work<D: Draw>(shared: &Shared, mut artist: D) {
    let device = artist.device();
    while let Some(Waiting { id, request, cancel, events, since }) = shared.next() {
        let _span = info_span!("job", id, ?device).entered();
        let (begun, waited) = (Instant::now(), since.elapsed());
        let outcome = draw(&mut artist, &request, &cancel, &events);
        let (waited_s, drawn_s) = (waited.as_secs_f64(), begun.elapsed().as_secs_f64());
        let lost = match &outcome {
            Ok(pictures) => {
                info!(waited_s, drawn_s, pictures = pictures.len(), "drawn");
                None
            }
            Err(Error::Cancelled) => {
                debug!(waited_s, drawn_s, "cancelled");
                None
            }
            Err(problem) => {
                warn!(waited_s, drawn_s, %problem, "failed");
                match problem {
                    Error::DeviceLost { reason, .. } => Some(reason.clone()),
                    _ => None,
                }
            }
        };
        // In this order, whoever hears the last event finds the place free.
        shared.done(id);
        shared.finish(events, outcome);
        if let Some(reason) = lost {
            error!(reason, "the device is lost: its thread ends");
            // What it holds cannot be given back to a device that does not answer.
            std::mem::forget(artist);
            break;
        }
    }
    shared.leave();
}

/// One job, whatever happens in it.
fn draw<D: Draw>(
    artist: &mut D,
    request: &Request,
    cancel: &Arc<AtomicBool>,
    events: &Events,
) -> Result<Vec<Generated>> {
    let mut on_progress = |progress: Progress| {
        events.send(progress.into());
        if cancel.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let drawn = catch_unwind(AssertUnwindSafe(|| {
        ops::with_cancel(cancel, || artist.draw(request, &mut on_progress))
    }));
    let outcome = drawn.unwrap_or_else(|panic| Err(Error::Panicked(trouble::panic_text(&*panic))));
    outcome.map_err(|problem| {
        let problem = trouble::named(problem, artist.device());
        if matches!(problem, Error::Panicked(_) | Error::OutOfMemory(_)) {
            // What is let go of may fail in its turn: the thread lives on, and the job's own fault is told.
            let _ = catch_unwind(AssertUnwindSafe(|| artist.release()));
        }
        problem
    })
}
