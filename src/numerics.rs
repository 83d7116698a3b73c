//! Which form of the operations runs, whether the work is still wanted, and the memory that steps share: what every
//! operation obeys.

mod memory;
mod parallel;
mod scope;
mod workspace;

pub use memory::copy_seconds;
pub(crate) use memory::empty;
pub(crate) use parallel::par_for;
#[cfg(test)]
pub(crate) use scope::torch_only;
pub(crate) use scope::{
    Guard, NumericsSetting, at_least_f32, check_cancelled, fitting, is_fast, torch_everywhere,
    with_reference_f64, workspace,
};
pub use scope::{with_cancel, with_numerics};
pub(crate) use workspace::Block as WorkspaceBlock;

use crate::choice::choice;

choice! {
    /// How numbers come about.
    #[derive(Default)]
    pub enum Numerics {
        /// The bits of the official PyTorch code on the same libtorch, device and number of threads.
        Exact = "exact", default;
        /// As fast as the device can, no less accurate: against an f64 reference, at most 1.1 times the error of `Exact`.
        Fast = "fast";
    }
}

choice! {
    /// Numbers of fewer bits for the weights of a transformer's blocks, and for the products with them.
    #[derive(Default)]
    pub enum Quantize {
        /// As they were loaded.
        None = "none", default;
        /// On the CPU: a scale for each row of a weight and for each token.
        Int8 = "int8";
        /// e4m3 on CUDA from SM 8.9 on, scaled likewise.
        Fp8 = "fp8";
    }
}
