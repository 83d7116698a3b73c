//! Layers and models against their references.

mod cuda;
mod lora_reference;
mod math;
mod official;
mod parity;
#[path = "../support/mod.rs"]
mod support;
mod tokenizer;
