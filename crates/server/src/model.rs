//! The served model, as clients know it.

use std::time::UNIX_EPOCH;

use tch::Device;

use crate::api_error::ApiError;
use crate::capabilities::Capabilities;
use tch_flux::generation::params::MAX_IMAGES;
use tch_flux::generation::provenance::ModelRecord;
use tch_flux::generation::{Parts, Pipeline, Request, Role};
use tch_flux::models::text::{Tokenizer, WeightedPrompt};

/// Names that clients have built in. Requests for any of them get the served model.
const BUILT_IN: [&str; 14] = [
    "chatgpt-image-latest",
    "dall-e-2",
    "dall-e-3",
    "gpt-image-1",
    "gpt-image-1-mini",
    "gpt-image-1.5",
    "gpt-image-2",
    "gpt-image-2-2026-04-21",
    "gpt-image-2.5-flare",
    "gpt-image-2.5-flare-2026-09-08",
    "gpt-image-2.5-sunburst",
    "gpt-image-2.5-sunburst-2026-09-08",
    "gpt-image-2.6-flare",
    "gpt-image-2.6-sunburst",
];

/// The model that a server serves, as clients know it.
#[derive(Debug)]
pub struct Model {
    /// The model's name at `/v1/models`.
    pub name: String,
    /// Other names that requests may use; by default those that clients have built in.
    pub aliases: Vec<String>,
    /// When the model's file was written, in seconds since 1970.
    pub created: u64,
    /// The side of the pictures that the model was trained for: the size `auto`.
    pub side: i64,
    /// The most pictures that an edit may begin with.
    pub images: usize,
    /// The role of those pictures; `None` leaves it to the pipeline.
    pub role: Option<Role>,
    /// What the model can do beside drawing from a prompt.
    pub capabilities: Capabilities,
    /// The provenance that is written into the files of pictures.
    pub record: ModelRecord,
    /// The devices that compute.
    pub devices: Vec<Device>,
    /// Counts the tokens of prompts; without a tokenizer, a usage counts none.
    pub tokenizer: Option<Tokenizer>,
    /// The most tokens of a prompt that are read.
    pub tokens: usize,
}

impl Model {
    /// Describes the model of a pipeline and its parts, with the name that clients ask for and the side of the pictures that
    /// it was trained for.
    pub fn from_pipeline(pipeline: &Pipeline, parts: &Parts, name: impl Into<String>, side: i64) -> Self {
        let settings = pipeline.settings();
        let file = &parts.transformer;
        let modified = file.metadata().and_then(|file| file.modified()).ok();
        let created = modified.and_then(|time| time.duration_since(UNIX_EPOCH).ok());
        let name: String = name.into();
        let role = Role::of_model(&name).or_else(|| Role::of_model(&file.to_string_lossy()));
        let role = role.or(pipeline.usual_role());
        Self {
            name,
            aliases: BUILT_IN.map(str::to_string).into(),
            created: created.map_or(0, |time| time.as_secs()),
            side,
            images: if role == Some(Role::Reference) { MAX_IMAGES } else { 1 },
            role,
            capabilities: Capabilities::from_pipeline(pipeline, parts.depth.is_some()),
            record: ModelRecord::of(pipeline, parts),
            devices: vec![settings.device],
            // The pipeline has read this file already, so it can be read.
            tokenizer: Tokenizer::t5(&parts.t5_tokenizer).ok(),
            tokens: pipeline.complete(&Request::new("", side, side)).max_sequence_length.unwrap_or(512),
        }
    }

    /// Checks that a request's model is this one.
    ///
    /// # Errors
    /// If the name is another model's.
    pub(crate) fn check_name(&self, name: Option<&str>) -> Result<(), ApiError> {
        match name {
            Some(name) if name != self.name && !self.aliases.iter().any(|alias| alias == name) => {
                let text = format!("there is no model `{name}` here; there is `{}`", self.name);
                Err(ApiError::not_found("model_not_found", text).param("model"))
            }
            _ => Ok(()),
        }
    }

    /// Returns the number of tokens of a prompt that are read.
    pub(crate) fn count_tokens(&self, prompt: &str, literal: bool) -> usize {
        let Some(tokenizer) = &self.tokenizer else { return 0 };
        let weighted = if literal { None } else { WeightedPrompt::parse(prompt) };
        let tokens = match weighted {
            Some(weighted) => {
                tokenizer.encode_weighted(&weighted, self.tokens).ok().map(|(tokens, _)| tokens)
            }
            None => tokenizer.encode(prompt, self.tokens).ok(),
        };
        tokens.map_or(0, |tokens| tokens.used)
    }
}
