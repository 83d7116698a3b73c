//! Weight files: what is read, what is refused, what is written.

mod convert;
mod formats;
#[path = "../../../../tests/support/mod.rs"]
mod support;
