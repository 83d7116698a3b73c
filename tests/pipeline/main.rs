//! Pipelines and engines over the small models.

mod engine;
mod pipeline;
#[path = "../support/mod.rs"]
mod support;
mod tiny;
mod tiny_additions;
mod walks;
