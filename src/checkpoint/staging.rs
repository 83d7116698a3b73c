//! The way to a CUDA device: two pinned buffers, of which one is filled while the other is copied. A copy from memory
//! that is not pinned goes through a small buffer of the driver's, and waits.

use std::ops::Range;

use tch::{Cuda, Device, Kind, Tensor};

use crate::error::Result;
use crate::shim;

/// Bytes of a buffer.
const BUFFER: usize = 64 << 20;

pub(super) struct Staging {
    device: Device,
    /// Bytes; made when they are first needed.
    buffers: [Option<Tensor>; 2],
    next: usize,
}

impl Staging {
    pub(super) fn new(device: Device) -> Self {
        Self { device, buffers: [None, None], next: 0 }
    }

    /// The numbers in runs that a buffer can hold. Each begins where a block of any format can.
    pub(super) fn runs(&self, elements: &Range<usize>, kind: Kind) -> Vec<Range<usize>> {
        let (step, end) = (BUFFER / kind.elt_size_in_bytes(), elements.end);
        elements.clone().step_by(step).map(|at| at..(at + step).min(end)).collect()
    }

    /// Fills a buffer and begins to copy it to `out`. The copy that was begun before goes on while the buffer is
    /// filled, and has ended when this returns; the buffer before it is then free.
    pub(super) fn copy(&mut self, out: &Tensor, fill: impl FnOnce(&Tensor) -> Result<()>) -> Result<()> {
        let buffer = match &mut self.buffers[self.next] {
            Some(buffer) => buffer,
            none => none.insert(shim::pinned(BUFFER)?),
        };
        let len = (out.numel() * out.kind().elt_size_in_bytes()) as i64;
        let numbers = buffer.f_narrow(0, 0, len)?.f_view_dtype(out.kind())?;
        fill(&numbers)?;
        self.finish();
        shim::begin_copy(out, &numbers)?;
        self.next = 1 - self.next;
        Ok(())
    }

    /// Waits for the copies that were begun.
    pub(super) fn finish(&self) {
        if let Device::Cuda(index) = self.device {
            Cuda::synchronize(index as i64);
        }
    }
}
