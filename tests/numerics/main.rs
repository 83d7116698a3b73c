//! Layers and models against their references.

mod cuda;
mod lora_reference;
mod math;
mod official;
mod parity;
#[path = "../support/mod.rs"]
mod support;
mod tokenizer;

use std::sync::{Mutex, MutexGuard, PoisonError};

/// For a test that sets libtorch's threads: two at once would disturb each other.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}
