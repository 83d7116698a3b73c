//! What the fuzz targets share: the promises that they test, and a limit on memory.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

#[path = "../../tests/support/targets.rs"]
pub mod targets;

/// What reading may take beside as many bytes as the file has.
const ALLOWANCE: usize = 64 << 20;

#[global_allocator]
static ALLOCATOR: Limited = Limited;
static TAKEN: AtomicUsize = AtomicUsize::new(0);
static LIMIT: AtomicUsize = AtomicUsize::new(usize::MAX);

/// Runs a target. Where it would hold more memory than a file of these bytes may cost, the process aborts, which the
/// fuzzer takes for a crash.
pub fn run(data: &[u8], target: fn(&[u8])) {
    let before = TAKEN.load(Ordering::Relaxed);
    LIMIT.store(before + data.len() + ALLOWANCE, Ordering::Relaxed);
    target(data);
    LIMIT.store(usize::MAX, Ordering::Relaxed);
}

/// The system's allocator with a count of the bytes that are taken.
struct Limited;

// SAFETY: all is left to the system's allocator.
unsafe impl GlobalAlloc for Limited {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let taken = TAKEN.fetch_add(layout.size(), Ordering::Relaxed).saturating_add(layout.size());
        if taken > LIMIT.load(Ordering::Relaxed) {
            // The message, too, takes memory.
            LIMIT.store(usize::MAX, Ordering::Relaxed);
            eprintln!("a target asks for {} bytes and would then hold {taken}", layout.size());
            std::process::abort();
        }
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        TAKEN.fetch_sub(layout.size(), Ordering::Relaxed);
        unsafe { System.dealloc(pointer, layout) }
    }
}
