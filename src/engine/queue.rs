//! What waits and what is drawn: the state that handles and threads share.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use async_channel::Receiver;
use tracing::{debug, info, warn};

use super::events::Events;
use super::{Event, Options, Stats, Worker};
use crate::error::{Error, Result};
use crate::generation::{Generated, Request};

/// A job, as the engine has it.
#[derive(Debug, Clone)]
pub(super) struct QueuedJob {
    pub(super) id: u64,
    pub(super) request: Arc<Request>,
    pub(super) events: Arc<Events>,
    pub(super) since: Instant,
    cancel: Arc<AtomicBool>,
}

impl QueuedJob {
    pub(super) fn is_cancelled(&self) -> bool {
        self.cancel.load(Ordering::Relaxed)
    }

    fn pictures(&self) -> usize {
        self.request.prompts.len() * self.request.num_images
    }

    fn say(&self, begun: Option<Instant>, outcome: &Result<Vec<Generated>>) {
        let job = self.id;
        let wait_s = begun.map_or(self.since.elapsed(), |begun| begun - self.since).as_secs_f64();
        let draw_s = begun.map_or(0.0, |begun| begun.elapsed().as_secs_f64());
        match outcome {
            Ok(pictures) => info!(
                monotonic_counter.tch_flux_jobs = 1u64,
                histogram.tch_flux_wait_seconds = wait_s,
                histogram.tch_flux_draw_seconds = draw_s,
                outcome = "finished",
                pictures = pictures.len(),
                job,
                "drawn"
            ),
            Err(Error::Cancelled) => debug!(
                monotonic_counter.tch_flux_jobs = 1u64,
                outcome = "cancelled",
                wait_s,
                draw_s,
                job,
                "cancelled"
            ),
            Err(problem) => warn!(
                monotonic_counter.tch_flux_jobs = 1u64,
                outcome = "failed",
                wait_s,
                draw_s,
                job,
                %problem,
                "failed"
            ),
        }
    }
}

/// Jobs that are drawn together.
#[derive(Debug, Clone)]
pub(super) struct Batch {
    pub(super) tickets: Vec<QueuedJob>,
    /// Set when none of them is wanted any more.
    pub(super) stop: Arc<AtomicBool>,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<QueuedJob>,
    /// What each thread that is not idle draws; what was let go of is not among it.
    running: Vec<Batch>,
    workers: usize,
    closed: bool,
    next: u64,
}

impl State {
    fn tell_places(&self) {
        self.waiting.iter().enumerate().for_each(|(ahead, job)| job.events.send(Event::Queued { ahead }));
    }

    /// The first that waits, and those behind it that are like it, up to so many pictures.
    fn take(&mut self, most: usize, alike: impl Fn(&Request) -> bool) -> Vec<QueuedJob> {
        let mut tickets = Vec::from_iter(self.waiting.pop_front());
        let mut pictures: usize = tickets.iter().map(QueuedJob::pictures).sum();
        let mut i = 0;
        while let Some(other) = self.waiting.get(i).filter(|_| pictures < most) {
            if pictures + other.pictures() <= most && alike(&other.request) {
                pictures += other.pictures();
                tickets.extend(self.waiting.remove(i));
            } else {
                i += 1;
            }
        }
        tickets
    }

    /// A job that ends at once, since it waits or is drawn beside others.
    fn let_go(&mut self, id: u64) -> Option<QueuedJob> {
        if let Some(i) = self.waiting.iter().position(|ticket| ticket.id == id) {
            let ticket = self.waiting.remove(i);
            self.tell_places();
            return ticket;
        }
        let batch =
            self.running.iter_mut().find(|batch| batch.tickets.iter().any(|ticket| ticket.id == id))?;
        if batch.tickets.len() == 1 {
            batch.stop.store(true, Ordering::Relaxed);
            return None;
        }
        let i = batch.tickets.iter().position(|ticket| ticket.id == id)?;
        Some(batch.tickets.remove(i))
    }
}

/// What was put into the queue: its number, what cancels it, and where its events come out.
pub(super) struct Submitted {
    pub(super) id: u64,
    pub(super) cancel: Arc<AtomicBool>,
    pub(super) events: Receiver<Event>,
}

/// What the handles and the threads share.
#[derive(Debug)]
pub(super) struct Shared {
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
    pub(super) fn new(options: Options) -> Self {
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

    pub(super) fn submit(&self, request: Request) -> Result<Submitted> {
        let mut state = self.lock();
        if state.closed || state.workers == 0 {
            return Err(Error::Stopped);
        }
        let idle = state.workers.saturating_sub(state.running.len());
        let waiting = state.waiting.len();
        if waiting >= self.options.queue + idle {
            self.refused.fetch_add(1, Ordering::Relaxed);
            debug!(waiting, monotonic_counter.tch_flux_refused = 1u64, "refused: the queue is full");
            // Those that an idle worker is about to take do not wait.
            return Err(Error::Full { waiting: waiting - idle, queue: self.options.queue });
        }
        let id = state.next;
        state.next += 1;
        let cancel = Arc::new(AtomicBool::new(false));
        let (events, receiver) = Events::channel();
        events.send(Event::Queued { ahead: waiting });
        debug!(job = id, ahead = waiting, "queued");
        state.waiting.push_back(QueuedJob {
            id,
            request: Arc::new(request),
            cancel: cancel.clone(),
            events: Arc::new(events),
            since: Instant::now(),
        });
        drop(state);
        self.changed.notify_all();
        Ok(Submitted { id, cancel, events: receiver })
    }

    /// The next job, once there is one, with those that are drawn with it; `None` when there will be none.
    pub(super) fn next<W: Worker>(&self, worker: &W) -> Option<Batch> {
        let mut state = self.lock();
        loop {
            let Some(first) = state.waiting.front().cloned() else {
                if state.closed {
                    return None;
                }
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            // What there is of memory is asked of the system, so not under the lock.
            drop(state);
            let most = worker.max_batch(&first.request);
            state = self.lock();
            if state.waiting.front().is_some_and(|ticket| ticket.id == first.id) {
                let tickets = state.take(most, |other| worker.can_batch(&first.request, other));
                let batch = Batch { tickets, stop: Arc::default() };
                state.running.push(batch.clone());
                state.tell_places();
                return Some(batch);
            }
        }
    }

    /// A job was drawn from `begun` on, or was not.
    pub(super) fn done(&self, ticket: &QueuedJob, begun: Instant, outcome: Result<Vec<Generated>>) {
        let mut state = self.lock();
        state.running.iter_mut().for_each(|batch| batch.tickets.retain(|other| other.id != ticket.id));
        state.running.retain(|batch| !batch.tickets.is_empty());
        drop(state);
        // In this order, whoever hears the last event finds the place free.
        self.finish(ticket, Some(begun), outcome);
        self.changed.notify_all();
    }

    /// A job is not wanted any more. One that waits, or is drawn beside others, ends at once; one that is drawn alone at
    /// its next block.
    pub(super) fn cancel(&self, id: u64) {
        let mut state = self.lock();
        let Some(ticket) = state.let_go(id) else { return };
        drop(state);
        self.finish(&ticket, None, Err(Error::Cancelled));
        self.changed.notify_all();
    }

    /// The last event of a job, if it has not had it.
    fn finish(&self, ticket: &QueuedJob, begun: Option<Instant>, outcome: Result<Vec<Generated>>) {
        let Some(last) = ticket.events.last() else { return };
        let counter = match &outcome {
            Ok(_) => &self.finished,
            Err(Error::Cancelled) => &self.cancelled,
            Err(_) => &self.failed,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        ticket.say(begun, &outcome);
        last.send(outcome);
    }

    /// Takes no more jobs.
    pub(super) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_all();
    }

    /// Waits until nothing waits and nothing is drawn. Whether it came to that.
    pub(super) fn drain(&self, deadline: Instant) -> bool {
        let mut state = self.lock();
        while !state.waiting.is_empty() || !state.running.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            state = self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    pub(super) fn stats(&self) -> Stats {
        let count = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let state = self.lock();
        Stats {
            waiting: state.waiting.len(),
            running: state.running.iter().map(|batch| batch.tickets.len()).sum(),
            workers: state.workers,
            finished: count(&self.finished),
            failed: count(&self.failed),
            cancelled: count(&self.cancelled),
            refused: count(&self.refused),
        }
    }

    /// A thread begins.
    pub(super) fn join(&self) {
        self.lock().workers += 1;
    }

    /// A thread ends. Without any, nothing that waits will be drawn.
    pub(super) fn leave(&self) {
        let mut state = self.lock();
        state.workers -= 1;
        let waiting = if state.workers == 0 { std::mem::take(&mut state.waiting) } else { VecDeque::new() };
        drop(state);
        waiting.iter().for_each(|ticket| self.finish(ticket, None, Err(Error::Stopped)));
        self.changed.notify_all();
    }

    /// Nobody holds the engine any more.
    pub(super) fn stop(&self) {
        let mut state = self.lock();
        state.closed = true;
        for batch in &state.running {
            batch.tickets.iter().for_each(|ticket| ticket.cancel.store(true, Ordering::Relaxed));
            batch.stop.store(true, Ordering::Relaxed);
        }
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        waiting.iter().for_each(|ticket| self.finish(ticket, None, Err(Error::Stopped)));
        self.changed.notify_all();
    }
}
