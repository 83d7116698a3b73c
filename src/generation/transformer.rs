//! The transformer of a pipeline.

use super::loader::Loader;
use super::loras::Loras;
use super::resident::{Resident, not_loaded};
use crate::error::Result;
use crate::models::{self, Model, TransformerParams};

/// The transformer: its sizes, and its model where it is loaded.
#[derive(Debug)]
pub(super) struct Transformer {
    pub(super) params: TransformerParams,
    model: Option<Resident<models::Transformer>>,
}

impl Transformer {
    pub(super) fn new(params: TransformerParams) -> Self {
        Self { params, model: None }
    }

    pub(super) fn load(&mut self, loader: &Loader, loras: &Loras) -> Result<()> {
        if self.model.is_none() {
            let transformer = loader.load_transformer(&self.params)?;
            self.model = Some(transformer.adapt(&loras.terms.transformer)?);
        }
        Ok(())
    }

    /// Applies these LoRAs, with which the transformer has these sizes, in place of those from before.
    pub(super) fn adapt(&mut self, loras: &Loras, params: TransformerParams) -> Result<()> {
        if params != self.params {
            // Another width of `img_in` is another model; the file is still open.
            self.model = None;
        }
        self.params = params;
        self.model = self.model.take().map(|model| model.adapt(&loras.terms.transformer)).transpose()?;
        Ok(())
    }

    pub(super) fn model(&self) -> Result<&models::Transformer> {
        self.model.as_ref().ok_or_else(not_loaded)?.model()
    }

    pub(super) fn is_loaded(&self) -> bool {
        self.model.is_some()
    }

    pub(super) fn release(&mut self) {
        self.model = None;
    }

    pub(super) fn release_workspace(&self) {
        self.model.iter().for_each(|transformer| transformer.model.release_workspace());
    }
}
