//! Memory for weights that are about to be written.

use std::sync::Arc;
use std::time::Instant;

use memmap2::MmapMut;
use tch::{Device, Kind, Tensor};

use super::parallel::par_for;
use crate::error::{Error, Result};
use crate::shim::{self, Memory};

/// Below this, huge pages save nothing.
const WORTH_MAPPING: usize = 4 << 20;

/// Pages of the system's, zero until they are written.
struct Pages(MmapMut);

// SAFETY: pages of the process that only this value knows, and that neither move nor shrink.
unsafe impl Memory for Pages {
    fn bytes(&self) -> (*mut u8, usize) {
        (self.0.as_ptr().cast_mut(), self.0.len())
    }
}

/// A tensor on the CPU that is to be filled. A large one lies in huge pages where the system has them: the first write
/// to a page costs a trap into the kernel, and these are 512 times fewer.
pub(crate) fn empty(shape: &[i64], kind: Kind) -> Result<Tensor> {
    let count = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(usize::try_from(d).ok()?));
    let len = count.and_then(|n| n.checked_mul(kind.elt_size_in_bytes()));
    if let Some(len) = len.filter(|&len| len >= WORTH_MAPPING)
        && let Ok(pages) = pages(len)
        && let Some(tensor) = shim::borrow(&Arc::new(Pages(pages)), 0, shape, kind)
    {
        return Ok(tensor?);
    }
    Ok(Tensor::f_empty(shape, (kind, Device::Cpu))?)
}

/// Fresh pages from the system, in huge ones where it has them.
pub(crate) fn pages(len: usize) -> std::io::Result<MmapMut> {
    let pages = MmapMut::map_anon(len)?;
    // An advice: where the system knows no huge pages, the small ones do.
    #[cfg(target_os = "linux")]
    let _ = pages.advise(memmap2::Advice::HugePage);
    Ok(pages)
}

/// Seconds that this machine takes to copy `bytes` bytes once: on all cores, from memory that no cache holds into memory
/// that is fresh from the system, in huge pages where there are any. What reads and writes as many bytes in all as this
/// does, twice `bytes`, cannot be much faster. It takes 256 MB itself, whatever `bytes` is.
///
/// # Errors
/// [`Error::Io`] where the system gives no memory.
pub fn copy_seconds(bytes: u64) -> Result<f64> {
    const PIECE: usize = 128 << 20;
    let source = vec![1u8; PIECE];
    let (mut seconds, mut left) = (0.0, bytes);
    while left > 0 {
        let len = PIECE.min(usize::try_from(left).unwrap_or(PIECE));
        let mut fresh = pages(len).map_err(Error::io("memory"))?;
        let begin = Instant::now();
        let tasks = fresh.chunks_mut(2 << 20).zip(source.chunks(2 << 20));
        par_for(tasks, len, |(to, from), _| {
            to.copy_from_slice(&from[..to.len()]);
            Ok(())
        })?;
        seconds += begin.elapsed().as_secs_f64();
        left -= len as u64;
    }
    Ok(seconds)
}
