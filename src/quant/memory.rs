//! Memory for weights that are about to be written.

use std::sync::Arc;

use memmap2::MmapMut;
use tch::{Device, Kind, Tensor};

use crate::error::Result;
use crate::shim::{self, Memory};

/// Below this, huge pages save nothing.
const WORTH_MAPPING: usize = 4 << 20;

/// Pages of the system's, zero until they are written.
struct Pages(MmapMut);

impl Memory for Pages {
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

fn pages(len: usize) -> std::io::Result<MmapMut> {
    let pages = MmapMut::map_anon(len)?;
    // An advice: where the system knows no huge pages, the small ones do.
    #[cfg(target_os = "linux")]
    let _ = pages.advise(memmap2::Advice::HugePage);
    Ok(pages)
}
