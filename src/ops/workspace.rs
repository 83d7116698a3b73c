//! Memory that the steps of a model share: what one is done with, the next takes again, so that the system need not
//! find and clear it anew.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use memmap2::MmapMut;
use tch::{Device, Kind, Tensor};

use crate::quant::pages;
use crate::shim::{self, Memory};

/// Below this libtorch's own allocator does well.
const WORTH_KEEPING: usize = 256 << 10;
/// Blocks are multiples of this, so that one fits many sizes.
const STEP: usize = 2 << 20;

/// Free blocks that are kept, at most.
const MOST: usize = 32;

/// Blocks of memory that are free at present.
#[derive(Debug, Default)]
pub(crate) struct Workspace {
    free: Mutex<Vec<MmapMut>>,
    fresh: AtomicU64,
}

/// A block that goes back to its workspace.
#[derive(Debug)]
pub(crate) struct Block {
    pages: Option<MmapMut>,
    home: Weak<Workspace>,
}

impl Drop for Block {
    fn drop(&mut self) {
        if let (Some(pages), Some(home)) = (self.pages.take(), self.home.upgrade()) {
            home.free.lock().unwrap_or_else(PoisonError::into_inner).push(pages);
        }
    }
}

impl Memory for Block {
    fn bytes(&self) -> (*mut u8, usize) {
        self.pages
            .as_ref()
            .map_or((std::ptr::null_mut(), 0), |pages| (pages.as_ptr().cast_mut(), pages.len()))
    }
}

impl Workspace {
    /// At least so many bytes, whose values are whatever stands there.
    pub(crate) fn block(self: &Arc<Self>, bytes: usize) -> std::io::Result<Block> {
        let len = bytes.max(1).next_multiple_of(STEP);
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        // The smallest that is large enough, and not so large that another will miss it.
        let fits = |pages: &MmapMut| (len..=2 * len).contains(&pages.len());
        let best = (0..free.len()).filter(|&i| fits(&free[i])).min_by_key(|&i| free[i].len());
        let pages = match best {
            Some(i) => free.swap_remove(i),
            None => {
                self.fresh.fetch_add(1, Ordering::Relaxed);
                if free.len() >= MOST {
                    // Other sizes than before: what fits no more would lie here for good.
                    free.clear();
                }
                pages(len)?
            }
        };
        Ok(Block { pages: Some(pages), home: Arc::downgrade(self) })
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

    /// How many blocks came fresh from the system.
    #[cfg(test)]
    pub(crate) fn fresh(&self) -> u64 {
        self.fresh.load(Ordering::Relaxed)
    }

    /// Gives back what is free.
    pub(crate) fn release(&self) {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }
}
