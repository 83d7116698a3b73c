//! The two text encoders and their tokenizers: prompts to states.

pub mod clip;
mod prompt_weights;
pub mod t5;
pub mod tokenizer;

pub use clip::{ClipConfig, ClipText};
pub use prompt_weights::{WeightedPart, WeightedPrompt};
pub use t5::{T5Config, T5Encoder};
pub use tokenizer::{Tokenizer, Tokens};

use std::path::Path;

use serde::de::DeserializeOwned;

use crate::error::{Error, FileProblem, Result};

/// Returns the rows and columns of a matrix that a model must have.
pub(crate) fn matrix(
    model: &str,
    shape: &dyn Fn(&str) -> Option<Vec<i64>>,
    name: &str,
) -> Result<(i64, i64)> {
    match shape(name).as_deref() {
        Some(&[rows, columns]) => Ok((rows, columns)),
        Some(other) => Err(Error::Config(format!("{name} must be a matrix, but its shape is {other:?}"))),
        None => Err(Error::Config(format!("this is no {model}: {name} is missing"))),
    }
}

/// Reads a `config.json` of Hugging Face, of a model alone or of a larger one that holds its settings under `key`, where
/// settings with a default may be left out.
pub(crate) fn read_nested_config<T: DeserializeOwned>(
    path: &Path,
    key: &str,
    defaults: &[(&str, i64)],
) -> Result<T> {
    let mut whole: serde_json::Map<String, serde_json::Value> = read_config(path)?;
    let config = match whole.remove(key) {
        Some(serde_json::Value::Object(mut nested)) => {
            for (name, value) in defaults {
                nested.entry(*name).or_insert((*value).into());
            }
            nested
        }
        _ => whole,
    };
    serde_json::from_value(config.into())
        .map_err(|e| Error::file(path)(FileProblem::Settings { reason: e.to_string() }))
}

/// Reads a `config.json` of Hugging Face.
pub(crate) fn read_config<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = std::fs::read_to_string(path).map_err(Error::io(path))?;
    serde_json::from_str(&text)
        .map_err(|e| Error::file(path)(FileProblem::Settings { reason: e.to_string() }))
}
