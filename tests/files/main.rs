//! Weight files: what is read, what is refused, what is written.

mod bad_files;
mod bad_gguf;
mod gguf;
mod layouts;
mod loading;
mod mutations;
#[path = "../support/mod.rs"]
mod support;
