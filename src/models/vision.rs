//! Pictures to states: what the transformer reads of a picture beside text, and how far away each of its pixels is.

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
