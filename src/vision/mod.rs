//! Pictures to states: what the transformer reads of a picture beside text.

pub mod redux;
pub mod siglip;

pub use redux::{ReduxConfig, ReduxImageEncoder};
pub use siglip::{SiglipConfig, SiglipVision};
