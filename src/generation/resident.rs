//! A model in memory: built, filled, changed by LoRAs.

use tch::Kind;
use tch::nn::VarStore;

use super::{Offload, Settings};
use crate::checkpoint::lora::Terms;
use crate::checkpoint::{Checkpoint, LoadOptions};
use crate::error::{Error, Result};
use crate::models::Model;

/// A loaded model with its variables and its checkpoint.
#[derive(Debug)]
pub(super) struct Resident<M> {
    pub(super) model: M,
    pub(super) kind: Kind,
    checkpoint: Checkpoint,
    vs: VarStore,
}

impl<M: Model> Resident<M> {
    /// Builds a model and loads its weights, without gradients. The settings say whether its linear layers keep quantised
    /// weights, and whether the weights of its blocks are offloaded.
    pub(super) fn load(
        settings: &Settings,
        kind: Kind,
        checkpoint: Checkpoint,
        build: impl FnOnce(tch::nn::Path) -> Result<M>,
    ) -> Result<Self> {
        let mut vs = VarStore::new(settings.device);
        let model = build(vs.root())?;
        let keep_quantized = settings.keep_quantized.then(|| model.linears());
        let offload = (settings.offload == Offload::Blocks).then(|| model.linears());
        checkpoint.load(&vs, LoadOptions { kind: Some(kind), keep_quantized, offload })?;
        vs.freeze();
        model.set_numerics(settings.numerics);
        Ok(Self { model, kind, checkpoint, vs })
    }

    /// The model, whose files must be as they were: a mapped file that shrinks takes the process with it.
    ///
    /// # Errors
    /// [`Error::Changed`].
    pub(super) fn model(&self) -> Result<&M> {
        self.checkpoint.check_unchanged()?;
        Ok(&self.model)
    }

    /// Applies LoRAs to the model, and removes those that were applied before.
    pub(super) fn adapt(self, terms: &Terms) -> Result<Self> {
        terms.put_on(&self.vs, self.model.linears())?;
        Ok(self)
    }
}

/// For a state that the order of the phases rules out.
pub(super) fn not_loaded() -> Error {
    Error::Config("a part of the pipeline is not loaded".into())
}
