//! The state that all requests of a server share.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use tch::Device;
use tokio::sync::{Notify, Semaphore, watch};

use crate::api_error::ApiError;
use crate::image_store::ImageStore;
use crate::metrics::Metrics;
use crate::model::Model;
use crate::options::Options;
use tch_flux::engine::Engine;

/// The most pictures that are encoded or decoded at once: more would take the cores from the engine.
const CODECS: usize = 2;

/// The phases of a server's life, in their order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    Loading,
    Ready,
    /// Takes no more jobs.
    Draining,
    /// Waits for no job any more.
    Stopped,
}

/// The engine and the model that it draws with.
pub(crate) struct LoadedModel {
    pub(crate) engine: Engine,
    pub(crate) model: Model,
}

/// The state of a server.
pub(crate) struct ServerState {
    pub(crate) options: Options,
    pub(crate) metrics: Metrics,
    pub(crate) image_store: ImageStore,
    /// Bytes of bodies, and of the pictures decoded from them.
    pub(crate) upload_budget: Arc<Budget>,
    /// Permits for kibibytes of responses that are not sent yet.
    pub(crate) response_permits: Arc<Semaphore>,
    /// Permits to encode or decode.
    pub(crate) codec_permits: Arc<Semaphore>,
    pub(crate) active_requests: Arc<ActiveRequests>,
    phase: watch::Sender<Phase>,
    loaded_model: OnceLock<LoadedModel>,
}

impl ServerState {
    pub(crate) fn new(options: Options) -> Self {
        Self {
            metrics: Metrics::new(),
            image_store: ImageStore::new(&options),
            upload_budget: Arc::new(Budget::new(options.max_upload_bytes)),
            response_permits: Arc::new(Semaphore::new(options.max_answer_bytes / 1024)),
            codec_permits: Arc::new(Semaphore::new(CODECS)),
            active_requests: Arc::default(),
            phase: watch::Sender::new(Phase::Loading),
            loaded_model: OnceLock::new(),
            options,
        }
    }

    /// Sets the model, once; later calls have no effect.
    pub(crate) fn set_model(&self, engine: Engine, model: Model) {
        if self.loaded_model.set(LoadedModel { engine, model }).is_ok() {
            self.enter(Phase::Ready);
        }
    }

    /// Enters a phase, unless a later one was entered.
    pub(crate) fn enter(&self, phase: Phase) {
        self.phase.send_if_modified(|now| {
            let later = phase > *now;
            *now = phase.max(*now);
            later
        });
    }

    pub(crate) fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// Waits until the phase is [`Phase::Stopped`].
    pub(crate) async fn stopped(&self) {
        // The sender lives as long as `self`.
        let _ = self.phase.subscribe().wait_for(|phase| *phase == Phase::Stopped).await;
    }

    /// Returns the model if it takes jobs, or the error why it does not.
    pub(crate) fn ready_model(&self) -> Result<&LoadedModel, ApiError> {
        let unavailable = |code, text| Err(ApiError::unavailable(code, text).retry_after(1));
        match (self.phase(), self.loaded_model.get()) {
            (Phase::Ready, Some(loaded)) => match loaded.engine.stats().workers {
                0 => unavailable("device_lost", "every device is lost: the server must be started anew"),
                _ => Ok(loaded),
            },
            (Phase::Ready | Phase::Loading, _) => unavailable("loading", "the model is being loaded"),
            (Phase::Draining | Phase::Stopped, _) => unavailable("stopping", "the server is stopping"),
        }
    }

    /// Returns the model from when it is loaded on, even when it takes no more jobs.
    pub(crate) fn loaded_model(&self) -> Result<&LoadedModel, ApiError> {
        let loading = || ApiError::unavailable("loading", "the model is being loaded").retry_after(1);
        self.loaded_model.get().ok_or_else(loading)
    }

    /// Returns the engine, once it is loaded.
    pub(crate) fn engine(&self) -> Option<&Engine> {
        self.loaded_model.get().map(|loaded| &loaded.engine)
    }

    pub(crate) fn devices(&self) -> &[Device] {
        self.loaded_model.get().map_or(&[], |loaded| &loaded.model.devices)
    }

    /// Estimates the seconds until a place in the queue becomes free.
    pub(crate) fn queue_wait_seconds(&self) -> u64 {
        let workers = self.engine().map_or(1, |engine| engine.stats().workers.max(1));
        (self.metrics.mean_job_seconds() / workers as f64).ceil() as u64
    }
}

/// A budget of bytes for all requests together.
#[derive(Debug)]
pub(crate) struct Budget {
    most: usize,
    taken: AtomicUsize,
}

impl Budget {
    fn new(most: usize) -> Self {
        Self { most, taken: AtomicUsize::new(0) }
    }

    pub(crate) fn taken(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }

    /// Returns an empty charge on this budget.
    pub(crate) fn charge(self: &Arc<Self>) -> Charge {
        Charge { budget: self.clone(), bytes: AtomicUsize::new(0) }
    }
}

/// The bytes that one request has taken of a budget. Dropping it gives them back.
#[derive(Debug)]
pub(crate) struct Charge {
    budget: Arc<Budget>,
    bytes: AtomicUsize,
}

impl Charge {
    /// Takes bytes of the budget.
    ///
    /// # Errors
    /// If so many are not left.
    pub(crate) fn grow(&self, bytes: usize) -> Result<(), ApiError> {
        let most = self.budget.most;
        let within = |taken: usize| taken.checked_add(bytes).filter(|sum| *sum <= most);
        match self.budget.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, within) {
            Ok(_) => {
                self.bytes.fetch_add(bytes, Ordering::Relaxed);
                Ok(())
            }
            Err(_) => {
                Err(ApiError::unavailable("uploads_full", "too much is being uploaded at once")
                    .retry_after(5))
            }
        }
    }

    /// Gives bytes back.
    pub(crate) fn shrink(&self, bytes: usize) {
        self.bytes.fetch_sub(bytes, Ordering::Relaxed);
        self.budget.taken.fetch_sub(bytes, Ordering::Relaxed);
    }
}

impl Drop for Charge {
    fn drop(&mut self) {
        self.budget.taken.fetch_sub(*self.bytes.get_mut(), Ordering::Relaxed);
    }
}

/// Counts the requests whose responses are not sent completely.
#[derive(Debug, Default)]
pub(crate) struct ActiveRequests {
    count: AtomicUsize,
    fewer: Notify,
}

impl ActiveRequests {
    pub(crate) fn enter(self: &Arc<Self>) -> ActiveRequest {
        self.count.fetch_add(1, Ordering::Relaxed);
        ActiveRequest(self.clone())
    }

    pub(crate) fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// Waits until no request is active.
    pub(crate) async fn wait_for_none(&self) {
        loop {
            let fewer = self.fewer.notified();
            if self.count() == 0 {
                return;
            }
            fewer.await;
        }
    }
}

/// Counts as one active request until it is dropped.
#[derive(Debug)]
pub(crate) struct ActiveRequest(Arc<ActiveRequests>);

impl Drop for ActiveRequest {
    fn drop(&mut self) {
        self.0.count.fetch_sub(1, Ordering::Relaxed);
        self.0.fewer.notify_waiters();
    }
}
