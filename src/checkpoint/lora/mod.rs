//! LoRA files of every maker: what their keys mean, whether they fit a model, and the terms that they make.

mod modules;
mod names;

pub use modules::{Holder, Slot};
pub use names::{Group, Maker, Model, Names, Part, Target, parse_names};
