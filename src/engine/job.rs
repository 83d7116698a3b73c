//! A job, from both of its ends.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll};

use async_channel::{Receiver, Sender};
use futures_core::Stream;

use super::Event;
use super::queue::Shared;
use crate::error::{Error, Result};
use crate::generation::Generated;

/// Where a job's events go in. It ends with exactly one [`Event::Finished`] or [`Event::Failed`], also when it is only
/// dropped.
#[derive(Debug)]
pub(super) struct Events(Mutex<Option<Sender<Event>>>);

/// Where the last one goes.
pub(super) struct Last(Sender<Event>);

impl Events {
    pub(super) fn channel() -> (Self, Receiver<Event>) {
        let (sender, receiver) = async_channel::unbounded();
        (Self(Mutex::new(Some(sender))), receiver)
    }

    pub(super) fn send(&self, event: Event) {
        if let Some(sender) = &*self.sender() {
            // Who does not listen any more has dropped the job, and that cancels it.
            let _ = sender.try_send(event);
        }
    }

    /// Once: nothing is sent behind the last.
    pub(super) fn last(&self) -> Option<Last> {
        self.sender().take().map(Last)
    }

    fn sender(&self) -> MutexGuard<'_, Option<Sender<Event>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Last {
    pub(super) fn send(self, outcome: Result<Vec<Generated>>) {
        let _ = self.0.try_send(outcome.map_or_else(Event::Failed, Event::Finished));
    }
}

impl Drop for Events {
    fn drop(&mut self) {
        if let Some(last) = self.last() {
            last.send(Err(Error::Stopped));
        }
    }
}

/// What was submitted. Dropping it cancels it.
///
/// Its events come one by one: with [`Job::recv`] where a thread may wait, with [`Job::next`] in asynchronous code of
/// any runtime, or as a [`Stream`]. After the last there are none.
#[derive(Debug)]
pub struct Job {
    id: u64,
    cancel: Arc<AtomicBool>,
    events: Pin<Box<Receiver<Event>>>,
    shared: Weak<Shared>,
}

impl Job {
    pub(super) fn new(
        id: u64,
        cancel: Arc<AtomicBool>,
        events: Receiver<Event>,
        shared: &Arc<Shared>,
    ) -> Self {
        Self { id, cancel, events: Box::pin(events), shared: Arc::downgrade(shared) }
    }

    /// Its number, unique within the engine; the spans of `tracing` have it as `id`.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// Stops it: at once while it waits or is drawn beside others, else within one block of a model. Its last event is then
    /// [`Event::Failed`] with [`Error::Cancelled`], unless it was done before.
    pub fn cancel(&self) {
        self.cancel.store(true, Ordering::Relaxed);
        if let Some(shared) = self.shared.upgrade() {
            shared.cancel(self.id);
        }
    }

    /// The next event; this thread waits for it. `None` after the last.
    pub fn recv(&self) -> Option<Event> {
        self.events.recv_blocking().ok()
    }

    /// The next event, without keeping a thread. `None` after the last.
    pub async fn next(&mut self) -> Option<Event> {
        poll_fn(|context| self.events.as_mut().poll_next(context)).await
    }

    /// The pictures; this thread waits for them.
    ///
    /// # Errors
    /// That of [`Event::Failed`].
    pub fn wait(self) -> Result<Vec<Generated>> {
        while let Some(event) = self.recv() {
            if let Some(outcome) = outcome(event) {
                return outcome;
            }
        }
        Err(Error::Stopped)
    }

    /// The pictures, without keeping a thread.
    ///
    /// # Errors
    /// That of [`Event::Failed`].
    pub async fn finished(mut self) -> Result<Vec<Generated>> {
        while let Some(event) = self.next().await {
            if let Some(outcome) = outcome(event) {
                return outcome;
            }
        }
        Err(Error::Stopped)
    }
}

fn outcome(event: Event) -> Option<Result<Vec<Generated>>> {
    match event {
        Event::Finished(pictures) => Some(Ok(pictures)),
        Event::Failed(error) => Some(Err(error)),
        _ => None,
    }
}

impl Stream for Job {
    type Item = Event;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Event>> {
        self.events.as_mut().poll_next(context)
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        self.cancel();
    }
}
