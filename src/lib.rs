#![doc = include_str!("../README.md")]
//!
//! # Where things are
//!
//! | module | what it holds |
//! | --- | --- |
//! | `hub` | models by their names, fetched into the cache that Python shares (feature `hub`) |
//! | [`engine`] | a pipeline on its own thread: a queue before it, events out of it |
//! | [`recipe`] | what a picture's file says about how it was drawn |
//! | [`pipeline`] | a request in, pictures out |
//! | [`convert`] | weight files into other names, other numbers and other sizes of file |
//! | [`flux1`] | the transformer, its sizes and variants; ControlNets and IP-Adapters |
//! | [`autoencoder`] | pixels to latents and back |
//! | [`vision`] | what turns a picture into states that the transformer reads |
//! | [`text`] | T5, CLIP and their tokenizers |
//! | [`vision`] | pictures to what a drawing follows |
//! | [`sampling`] | noise, positions, schedules, the Euler loop |
//! | [`layers`] | what the transformer is made of, in the official order |
//! | [`ops`] | the hot operations: what each means, and how it is done fast |
//! | [`math`] | rotary positions and attention |
//! | [`nn`] | linear, convolution, norms, embedding; parameters that cost nothing until they are filled |
//! | [`lora`] | changes to weights, run beside them or merged into them |
//! | [`quant`] | how numbers are stored, and how they become numbers that libtorch computes with |
//! | [`checkpoint`] | weight files: opened, recognised, renamed, poured into a `VarStore` |
//! | `config` | configuration files of diffusers and transformers, read key by key |
//! | [`image`] | eight-bit pictures, and their files: PNG, JPEG, WebP |
//! | [`parity`] | cases from a reference implementation, and the run that compares |
//!
//! Each uses only what stands below it in this list, but for `checkpoint`, `image` and `parity`, which stand beside:
//! models do not know files, files do not know models, and only `pipeline`, `convert` and `parity` know both.

#![warn(missing_docs)]

pub mod checkpoint;
mod config;
pub mod convert;
pub mod engine;
mod error;
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
pub use error::{Error, FileProblem, Mismatch, Result, Unplaced};
