//! Offloaded weights: they stay at their source, and are loaded when they are needed.

use std::fmt::Debug;
use std::sync::Arc;

use tch::{Device, Kind, Tensor};

use crate::error::Result;
use crate::shim;

/// The source of an offloaded weight, as a rule a mapped file.
pub(crate) trait WeightSource: Debug + Send + Sync {
    /// Returns the weight on the CPU as `kind`, without a copy where the source has that kind.
    fn load(&self, kind: Kind) -> Result<Tensor>;
    /// Prepares for a load that follows soon.
    fn prefetch(&self);
    /// Frees what a load has left in memory, since the next load is far away.
    fn evict(&self);
}

/// The offloaded weight of a linear layer.
#[derive(Debug)]
pub(super) struct Offloaded {
    source: Arc<dyn WeightSource>,
    /// The weight on its device, while its block and the block before it run.
    loaded: Option<Tensor>,
}

impl Offloaded {
    pub(super) fn new(source: Arc<dyn WeightSource>) -> Self {
        Self { source, loaded: None }
    }

    /// Returns the weight as `kind` on `device`.
    pub(super) fn load(&self, kind: Kind, device: Device) -> Result<Tensor> {
        match &self.loaded {
            Some(loaded) => Ok(loaded.shallow_clone()),
            None => Ok(self.source.load(kind)?.f_to_device(device)?),
        }
    }

    /// Begins to load the weight. On CUDA the copy runs asynchronously, and [`wait_for_copies`] must be called before the
    /// weight is used.
    pub(super) fn prefetch(&mut self, kind: Kind, device: Device) -> Result<()> {
        match device {
            Device::Cuda(_) if self.loaded.is_none() => {
                self.loaded = Some(shim::copy_async(&self.source.load(kind)?, device)?);
            }
            Device::Cuda(_) => {}
            _ => self.source.prefetch(),
        }
        Ok(())
    }

    /// Frees the weight after a product, unless its block keeps it loaded.
    pub(super) fn after_use(&self) {
        if self.loaded.is_none() {
            self.source.evict();
        }
    }

    /// Frees the weight after its block.
    pub(super) fn evict(&mut self) {
        self.loaded = None;
        self.source.evict();
    }
}

/// Makes later kernels on the device wait for the copies that were begun.
pub(super) fn wait_for_copies(device: Device) {
    if let Device::Cuda(index) = device {
        shim::wait_for_copies(index);
    }
}
