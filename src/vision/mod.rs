//! Pictures to what a drawing follows: how far away each pixel is.

pub mod dinov2;
pub mod dpt;

pub use dinov2::{Dinov2, Dinov2Config};
pub use dpt::{DepthAnything, DepthConfig};
