//! What all requests of a server share.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use tch::Device;
use tokio::sync::{Notify, Semaphore, watch};

use super::metrics::Metrics;
use super::models::Model;
use super::options::Options;
use super::problem::Problem;
use super::shelf::Shelf;
use tch_flux::engine::Engine;

/// Pictures that are encoded or decoded at once: more would take the cores from the engine.
const CODERS: usize = 2;

/// Where a server is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    Loading,
    Ready,
    /// Takes no more jobs.
    Draining,
    /// Waits for none.
    Stopped,
}

/// The engine, and what there is to say of its model.
pub(super) struct Served {
    pub(super) engine: Engine,
    pub(super) model: Model,
}

pub(super) struct Shared {
    pub(super) options: Options,
    pub(super) metrics: Metrics,
    pub(super) shelf: Shelf,
    /// Bodies, and what is decoded from them.
    pub(super) uploads: Arc<Budget>,
    /// Kibibytes of answers that are not sent yet.
    pub(super) answers: Arc<Semaphore>,
    pub(super) coders: Arc<Semaphore>,
    pub(super) active: Arc<Active>,
    phase: watch::Sender<Phase>,
    served: OnceLock<Served>,
}

impl Shared {
    pub(super) fn new(options: Options) -> Self {
        Self {
            metrics: Metrics::default(),
            shelf: Shelf::new(&options),
            uploads: Arc::new(Budget::new(options.upload_bytes)),
            answers: Arc::new(Semaphore::new(options.answer_bytes / 1024)),
            coders: Arc::new(Semaphore::new(CODERS)),
            active: Arc::default(),
            phase: watch::Sender::new(Phase::Loading),
            served: OnceLock::new(),
            options,
        }
    }

    pub(super) fn serve(&self, engine: Engine, model: Model) {
        if self.served.set(Served { engine, model }).is_ok() {
            self.enter(Phase::Ready);
        }
    }

    /// Phases only follow one another.
    pub(super) fn enter(&self, phase: Phase) {
        self.phase.send_if_modified(|now| {
            let later = phase > *now;
            *now = phase.max(*now);
            later
        });
    }

    pub(super) fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Ends when nothing is waited for any more.
    pub(super) async fn stopped(&self) {
        // The sender lives as long as `self`.
        let _ = self.phase.subscribe().wait_for(|phase| *phase == Phase::Stopped).await;
    }

    /// What draws, or why nothing does.
    pub(super) fn served(&self) -> Result<&Served, Problem> {
        let unavailable = |code, text| Err(Problem::unavailable(code, text).again(1));
        match (self.phase(), self.served.get()) {
            (Phase::Ready, Some(served)) => match served.engine.stats().workers {
                0 => unavailable("device_lost", "every device is lost: the server must be started anew"),
                _ => Ok(served),
            },
            (Phase::Ready | Phase::Loading, _) => unavailable("loading", "the model is being loaded"),
            (Phase::Draining | Phase::Stopped, _) => unavailable("stopping", "the server is stopping"),
        }
    }

    /// What has drawn, even if it draws nothing more.
    pub(super) fn loaded(&self) -> Result<&Served, Problem> {
        let loading = || Problem::unavailable("loading", "the model is being loaded").again(1);
        self.served.get().ok_or_else(loading)
    }

    /// The engine, from when it is there on.
    pub(super) fn engine(&self) -> Option<&Engine> {
        self.served.get().map(|served| &served.engine)
    }

    pub(super) fn devices(&self) -> &[Device] {
        self.served.get().map_or(&[], |served| &served.model.devices)
    }

    /// Seconds until a place in the queue comes free, as far as can be told.
    pub(super) fn wait(&self) -> u64 {
        let workers = self.engine().map_or(1, |engine| engine.stats().workers.max(1));
        (self.metrics.mean_job_seconds() / workers as f64).ceil() as u64
    }
}

/// Bytes that may be taken, by all together.
#[derive(Debug)]
pub(super) struct Budget {
    most: usize,
    taken: AtomicUsize,
}

impl Budget {
    fn new(most: usize) -> Self {
        Self { most, taken: AtomicUsize::new(0) }
    }

    pub(super) fn taken(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }

    /// A charge of nothing yet.
    pub(super) fn charge(self: &Arc<Self>) -> Charge {
        Charge { budget: self.clone(), bytes: AtomicUsize::new(0) }
    }
}

/// What one request has taken of a budget; given back when it is dropped.
#[derive(Debug)]
pub(super) struct Charge {
    budget: Arc<Budget>,
    bytes: AtomicUsize,
}

impl Charge {
    /// Takes more, or says that there is no more.
    pub(super) fn grow(&self, bytes: usize) -> Result<(), Problem> {
        let most = self.budget.most;
        let within = |taken: usize| taken.checked_add(bytes).filter(|sum| *sum <= most);
        match self.budget.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, within) {
            Ok(_) => {
                self.bytes.fetch_add(bytes, Ordering::Relaxed);
                Ok(())
            }
            Err(_) => {
                Err(Problem::unavailable("uploads_full", "too much is being uploaded at once").again(5))
            }
        }
    }

    /// Gives some back.
    pub(super) fn shrink(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.budget.taken.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.budget.taken.fetch_sub(*self.bytes.get_mut(), Ordering::Relaxed);
    }
}

/// Requests that are not answered to the end.
#[derive(Debug, Default)]
pub(super) struct Active {
    count: AtomicUsize,
    fewer: Notify,
}

impl Active {
    pub(super) fn enter(self: &Arc<Self>) -> ActiveGuard {
        self.count.fetch_add(1, Ordering::Relaxed);
        ActiveGuard(self.clone())
    }

    pub(super) fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// Ends when there are none.
    pub(super) async fn none(&self) {
        loop {
            let fewer = self.fewer.notified();
            if self.count() == 0 {
                return;
            }
            fewer.await;
        }
    }
}

#[derive(Debug)]
pub(super) struct ActiveGuard(Arc<Active>);

impl Drop for ActiveGuard {
    fn drop(&mut self) {
        self.0.count.fetch_sub(1, Ordering::Relaxed);
        self.0.fewer.notify_waiters();
    }
}
