//! Weights that lie elsewhere while nothing is computed with them.

use std::fmt::Debug;
use std::sync::Arc;

use tch::{Device, Kind, Tensor};

use crate::error::Result;
use crate::shim;

/// Where such a weight lies, as a rule a mapped file.
pub(crate) trait WeightSource: Debug + Send + Sync {
    /// Its numbers on the CPU, as `kind`. What lies there in that kind is not copied.
    fn numbers(&self, kind: Kind) -> Result<Tensor>;
    /// It will be needed soon.
    fn prefetch(&self);
    /// It will not be needed for a while.
    fn evict(&self);
}

/// A linear layer's weight that lies elsewhere.
#[derive(Debug)]
pub(super) struct Offloaded {
    weight: Arc<dyn WeightSource>,
    /// On its device, while its block runs and the one before.
    here: Option<Tensor>,
}

impl Offloaded {
    pub(super) fn new(weight: Arc<dyn WeightSource>) -> Self {
        Self { weight, here: None }
    }

    pub(super) fn numbers(&self, kind: Kind, device: Device) -> Result<Tensor> {
        match &self.here {
            Some(here) => Ok(here.shallow_clone()),
            None => Ok(self.weight.numbers(kind)?.f_to_device(device)?),
        }
    }

    /// Begins to prefetch it. On CUDA it is copied beside what runs there, and [`wait_for_copies`] must be called before it is used.
    pub(super) fn prefetch(&mut self, kind: Kind, device: Device) -> Result<()> {
        match device {
            Device::Cuda(_) if self.here.is_none() => {
                self.here = Some(shim::copy_async(&self.weight.numbers(kind)?, device)?);
            }
            Device::Cuda(_) => {}
            _ => self.weight.prefetch(),
        }
        Ok(())
    }

    /// After a product with it.
    pub(super) fn used(&self) {
        if self.here.is_none() {
            self.weight.evict();
        }
    }

    /// After its block.
    pub(super) fn evict(&mut self) {
        self.here = None;
        self.weight.evict();
    }
}

/// What is computed from now on waits for the copies that were begun.
pub(super) fn wait_for_copies(device: Device) {
    if let Device::Cuda(index) = device {
        shim::wait_for_copies(index);
    }
}
