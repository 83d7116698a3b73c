//! What users put in front of the program: clients of their own, a browser, a proxy before several servers.
#![cfg(target_os = "linux")]

mod packages;
mod replicas;
#[path = "../../../../tests/support/mod.rs"]
mod support;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// For one test alone: they measure times, and a machine with two cores has enough to do.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}
