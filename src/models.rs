//! The models: each has the names and shapes of its official `state_dict`, and knows no file.

pub mod autoencoder;
pub mod flux1;
pub mod text;
mod transformer;
pub mod vision;

pub use transformer::{
    Transformer, TransformerInput, TransformerOptions, TransformerParams, TransformerSteps,
};

use crate::nn::{Linears, Parameters};
use crate::numerics::Numerics;

/// What all models have in common besides a constructor `new(vs, config)`, which allocates no weights, and their `forward`.
pub trait Model {
    /// Returns the parameters that the constructor has declared.
    fn parameters(&self) -> &Parameters;

    /// Returns the linear layers, where quantised and offloaded weights are kept and LoRAs are applied.
    fn linears(&self) -> &Linears {
        self.parameters().linears()
    }

    /// Chooses between the bits of the reference and speed. Without a choice the model obeys
    /// [`with_numerics`](crate::numerics::with_numerics) around its call, and is exact outside of it.
    fn set_numerics(&self, numerics: Numerics) {
        self.parameters().numerics().set(numerics);
    }

    /// Frees the memory that fast runs keep for the next run.
    fn release_workspace(&self) {
        self.parameters().numerics().release();
    }
}
