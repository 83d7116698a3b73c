//! A job, as whoever submitted it has it.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};

use async_channel::Receiver;
use futures_core::Stream;

use super::Event;
use super::queue::{Shared, Submitted};
use crate::error::{Error, Result};
use crate::generation::Generated;

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
    pub(super) fn new(Submitted { id, cancel, events }: Submitted, shared: &Arc<Shared>) -> Self {
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
