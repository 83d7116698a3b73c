#![doc = include_str!("../README.md")]
//!
//! # Modules
//!
//! | module | what it holds |
//! | --- | --- |
//! | [`engine`] | a queue of requests before one or more pipelines, events out of it |
//! | [`parity`] | cases of a reference implementation, and the run that compares |
//! | `hub` | models by their names on the hub, fetched into the cache that Python shares (feature `hub`) |
//! | [`generation`] | a request in, pictures out, and how each was made |
//! | [`convert`] | weight files into other names, other numbers and other sizes of file |
//! | [`checkpoint`] | weight files: opened, recognised, renamed, loaded into a `VarStore` |
//! | [`models`] | FLUX.1 with ControlNets and IP-Adapters, the autoencoders, text and image encoders |
//! | [`family`] | the families of models, a row each: how they are detected, their variants, defaults and latents |
//! | [`sampling`] | noise, positions, schedules, solvers |
//! | [`image`] | eight-bit pictures, and their files: PNG, JPEG, WebP |
//! | `config` | configuration files of diffusers and transformers, read key by key, and what other files are |
//! | [`layers`] | the layers of the transformer, in the official order |
//! | [`ops`] | the hot operations: what each means, and how it is done fast |
//! | [`nn`] | linear, convolution, norms, embedding; parameters that take no memory until they are loaded |
//! | [`lora`] | changes to weights, run beside them or merged into them |
//! | [`quant`] | how numbers are stored, and how they become numbers that libtorch computes with |
//! | [`math`] | rotary positions and attention |
//! | [`numerics`] | exact or fast, cancellation, and the memory and threads of the operations |
//! | `shim` | what libtorch has and tch lacks |
//! | `error` | every error, typed |
//! | `choice` | enums whose values have names |
//!
//! Each uses only what stands below it in this table, which a test holds against the sources. Models do not know files, and
//! `checkpoint` knows no model: `generation`, `convert` and `parity` bring them together.

#![warn(missing_docs)]

#[cfg(test)]
mod borders;
pub mod checkpoint;
mod choice;
mod config;
pub mod convert;
pub mod engine;
mod error;
pub mod family;
pub mod generation;
#[cfg(feature = "hub")]
pub mod hub;
pub mod image;
pub mod layers;
pub mod lora;
pub mod math;
pub mod models;
pub mod nn;
pub mod numerics;
pub mod ops;
pub mod parity;
pub mod quant;
pub mod sampling;
mod shim;

#[cfg(feature = "hub")]
pub use error::HubProblem;
pub use error::{Error, FileProblem, Hint, Mismatch, ParameterProblem, Result, Unplaced};

#[cfg(doctest)]
#[doc = include_str!("../docs/embedding.md")]
struct Embedding;
