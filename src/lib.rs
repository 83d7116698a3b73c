#![doc = "probe"]

pub mod autoencoder;
pub mod checkpoint;
mod error;
pub mod flux1;
pub mod image;
pub mod layers;
pub mod math;
pub mod nn;
pub mod parity;
pub mod pipeline;
pub mod sampling;
mod shim;
pub mod text;

pub use error::{Error, Result};
