//! Pictures to states: what the transformer reads of a picture beside text.

pub mod clip;

pub use clip::{ClipVision, ClipVisionConfig};
