//! What libtorch says in words alone: whether memory ran out, and whether a device is lost.

use std::any::Any;

use tch::{Device, TchError};

use super::Outcome;
use crate::error::Error;

/// Memory ran out; what was computed is gone, what comes next may be smaller.
const OUT_OF_MEMORY: [&str; 6] = [
    "out of memory",
    "can't allocate memory",
    "bad_alloc",
    "Cannot allocate memory",
    "ALLOC_FAILED",
    "OutOfMemoryError",
];

/// CUDA answers every later call of the process with the same error.
const LOST: [&str; 12] = [
    "illegal memory access",
    "illegal instruction",
    "an illegal address",
    "misaligned address",
    "invalid program counter",
    "device-side assert",
    "unspecified launch failure",
    "launch timed out",
    "hardware stack error",
    "uncorrectable",
    "fallen off the bus",
    "driver shutting down",
];

/// The error with its cause in its type, where libtorch or a panic has it in the text alone.
pub(super) fn named(problem: Error, device: Device) -> Error {
    let text = match &problem {
        Error::Tch(TchError::Torch(text)) => text.clone(),
        Error::Panicked(text) => text.clone(),
        _ => return problem,
    };
    let says = |words: &[&str]| words.iter().any(|word| text.contains(word));
    let line = || text.lines().next().unwrap_or_default().trim().to_string();
    // A device that is lost also has no memory to give.
    if device.is_cuda() && says(&LOST) {
        Error::DeviceLost { device, reason: line() }
    } else if says(&OUT_OF_MEMORY) {
        Error::OutOfMemory(line())
    } else {
        problem
    }
}

/// What went wrong for several jobs at once, as the outcome of each.
pub(super) fn for_each(problem: Error, jobs: usize) -> Vec<Outcome> {
    let again = |problem: &Error| match problem {
        Error::Cancelled => Error::Cancelled,
        Error::OutOfMemory(text) => Error::OutOfMemory(text.clone()),
        Error::DeviceLost { device, reason } => Error::DeviceLost { device: *device, reason: reason.clone() },
        other => Error::Panicked(other.to_string()),
    };
    let others = (1..jobs).map(|_| Outcome::Shared(again(&problem))).collect::<Vec<_>>();
    std::iter::once(Outcome::Shared(problem)).chain(others).take(jobs).collect()
}

/// What a panic says.
pub(super) fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|text| text.to_string());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic without words".into())
}
