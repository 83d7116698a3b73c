//! Image encoders, whose states the transformer reads together with text, and depth models.

pub mod clip;
pub mod dinov2;
pub mod dpt;
pub mod redux;
pub mod siglip;

pub use clip::{ClipVision, ClipVisionConfig};
pub use dinov2::{Dinov2, Dinov2Config};
pub use dpt::{DepthAnything, DepthConfig};
pub use redux::{ReduxConfig, ReduxImageEncoder};
pub use siglip::{SiglipConfig, SiglipVision};
