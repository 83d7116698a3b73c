//! Memory that the steps of a model share: what one is done with, the next takes again, so that the system need not
//! find and clear it anew.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use memmap2::{MmapMut, MmapOptions};
use tch::{Device, Kind, Tensor};

use super::memory::pages;
use crate::shim::{self, Memory};

/// Below this libtorch's own allocator does well.
const WORTH_KEEPING: usize = 64 << 10;
/// Blocks are multiples of this.
const STEP: usize = 16 << 10;
/// What is not worth giving back, since the next picture takes it again.
const LITTLE: usize = 16 << 20;
/// Addresses that are set aside. Memory comes to them as they are written, so what is never reached costs nothing.
const SPAN: usize = 1 << 35;

/// One span of addresses, from which blocks are cut. The lowest that is free is taken and what is free side by side is
/// joined, so that the memory in use is little more than what the blocks held together at their most.
#[derive(Debug, Default)]
pub(crate) struct Workspace {
    arena: Mutex<Option<Arena>>,
    fresh: AtomicU64,
}

#[derive(Debug)]
struct Arena {
    span: Arc<MmapMut>,
    /// Where a free stretch begins, and how long it is.
    free: BTreeMap<usize, usize>,
    /// How far the span was ever used.
    reached: usize,
}

impl Arena {
    fn new() -> io::Result<Self> {
        let span = MmapOptions::new().len(SPAN).no_reserve_swap().map_anon()?;
        // An advice: where the system knows no huge pages, the small ones do.
        #[cfg(target_os = "linux")]
        let _ = span.advise(memmap2::Advice::HugePage);
        let free = BTreeMap::from([(0, span.len())]);
        Ok(Self { span: Arc::new(span), free, reached: 0 })
    }

    fn take(&mut self, len: usize) -> Option<usize> {
        let (&start, &stretch) = self.free.iter().find(|(_, stretch)| **stretch >= len)?;
        self.free.remove(&start);
        if stretch > len {
            self.free.insert(start + len, stretch - len);
        }
        Some(start)
    }

    fn give(&mut self, mut start: usize, mut len: usize) {
        if let Some((&before, &stretch)) = self.free.range(..start).next_back()
            && before + stretch == start
        {
            self.free.remove(&before);
            (start, len) = (before, stretch + len);
        }
        if let Some(stretch) = self.free.remove(&(start + len)) {
            len += stretch;
        }
        self.free.insert(start, len);
    }

    fn is_free(&self) -> bool {
        self.free.get(&0) == Some(&self.span.len())
    }

    /// Gives the memory of what is free back to the system.
    fn tidy(&mut self) {
        #[cfg(unix)]
        for (&start, &stretch) in &self.free {
            // SAFETY: no block lies in a free stretch, so nobody reads what becomes zeros here.
            let _ = unsafe {
                self.span.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, start, stretch)
            };
        }
        let last = self.free.last_key_value().filter(|(start, stretch)| *start + *stretch == self.span.len());
        self.reached = last.map_or(self.span.len(), |(start, _)| *start);
    }
}

/// A piece of memory that goes back to its workspace.
#[derive(Debug)]
pub(crate) struct Block {
    span: Arc<MmapMut>,
    start: usize,
    len: usize,
    home: Weak<Workspace>,
}

impl Drop for Block {
    fn drop(&mut self) {
        let Some(home) = self.home.upgrade() else { return };
        if let Some(arena) = home.lock().as_mut()
            && Arc::ptr_eq(&arena.span, &self.span)
        {
            arena.give(self.start, self.len);
        }
    }
}

// SAFETY: a block's stretch of its span is no other block's until it is dropped, and spans neither move nor shrink.
unsafe impl Memory for Block {
    fn bytes(&self) -> (*mut u8, usize) {
        (self.span.as_ptr().cast_mut().wrapping_add(self.start), self.len)
    }
}

impl Workspace {
    fn lock(&self) -> MutexGuard<'_, Option<Arena>> {
        self.arena.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// At least so many bytes, whose values are whatever stands there.
    pub(crate) fn block(self: &Arc<Self>, bytes: usize) -> io::Result<Block> {
        let len = bytes.max(1).next_multiple_of(STEP);
        let mut lock = self.lock();
        if lock.is_none() {
            // Where addresses are scarce, each block has its own.
            *lock = Arena::new().ok();
        }
        if let Some(arena) = lock.as_mut()
            && let Some(start) = arena.take(len)
        {
            if start + len > arena.reached {
                arena.reached = start + len;
                self.fresh.fetch_add(1, Ordering::Relaxed);
            }
            return Ok(Block { span: arena.span.clone(), start, len, home: Arc::downgrade(self) });
        }
        self.fresh.fetch_add(1, Ordering::Relaxed);
        Ok(Block { span: Arc::new(pages(len)?), start: 0, len, home: Weak::new() })
    }

    /// A tensor on the CPU that is to be filled.
    pub(crate) fn empty(self: &Arc<Self>, size: &[i64], kind: Kind) -> Tensor {
        let bytes = size.iter().product::<i64>() as usize * kind.elt_size_in_bytes();
        if bytes >= WORTH_KEEPING
            && let Ok(block) = self.block(bytes)
            && let Some(Ok(tensor)) = shim::borrow(&Arc::new(block), 0, size, kind)
        {
            return tensor;
        }
        Tensor::empty(size, (kind, Device::Cpu))
    }

    /// How many blocks reached further than any before.
    #[cfg(test)]
    pub(crate) fn fresh(&self) -> u64 {
        self.fresh.load(Ordering::Relaxed)
    }

    /// Gives back what is free, unless it is little.
    pub(crate) fn release(&self) {
        let mut lock = self.lock();
        match lock.as_mut() {
            Some(arena) if arena.reached <= LITTLE => {}
            Some(arena) if arena.is_free() => *lock = None,
            Some(arena) => arena.tidy(),
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(block: &Block) -> (usize, usize) {
        (block.start, block.len)
    }

    #[test]
    fn the_lowest_place_is_taken_and_free_ones_are_joined() {
        let workspace = Arc::new(Workspace::default());
        let [a, b, c] = [1, 3 * STEP, STEP].map(|bytes| workspace.block(bytes).unwrap());
        assert_eq!([&a, &b, &c].map(place), [(0, STEP), (STEP, 3 * STEP), (4 * STEP, STEP)]);
        drop(b);
        drop(a);
        let joined = workspace.block(4 * STEP).unwrap();
        assert_eq!(place(&joined), (0, 4 * STEP));
        assert_eq!(workspace.fresh(), 3);
        drop((joined, c));
        let all = workspace.block(5 * STEP).unwrap();
        assert_eq!((place(&all), workspace.fresh()), ((0, 5 * STEP), 3));
    }

    #[test]
    fn what_is_held_outlives_a_release_and_its_workspace() {
        let workspace = Arc::new(Workspace::default());
        let gone = workspace.block(STEP).unwrap();
        let mut held = workspace.empty(&[STEP as i64], Kind::Float);
        let _ = held.fill_(7.0);
        drop(gone);
        workspace.release();
        assert_eq!(f64::try_from(held.min()).unwrap(), 7.0);
        let mut other = workspace.empty(&[STEP as i64], Kind::Float);
        let _ = other.fill_(8.0);
        drop(workspace);
        assert_eq!((f64::try_from(held.min()).unwrap(), f64::try_from(other.max()).unwrap()), (7.0, 8.0));
    }

    #[test]
    fn a_block_larger_than_the_span_has_memory_of_its_own() {
        let mut arena =
            Arena { span: Arc::new(pages(STEP).unwrap()), free: BTreeMap::from([(0, STEP)]), reached: 0 };
        assert_eq!(arena.take(2 * STEP), None);
        let workspace = Arc::new(Workspace { arena: Mutex::new(Some(arena)), fresh: AtomicU64::new(0) });
        let own = workspace.block(2 * STEP).unwrap();
        assert!(own.home.upgrade().is_none());
        assert_eq!(own.bytes().1, 2 * STEP);
    }
}
