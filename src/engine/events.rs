//! Where the events of a job go in.

use std::sync::{Mutex, MutexGuard, PoisonError};

use async_channel::{Receiver, Sender};

use super::Event;
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
