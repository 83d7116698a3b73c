//! What there is to say of the served model.

use std::sync::Arc;
use std::time::UNIX_EPOCH;

use axum::Json;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use tch::Device;

use super::able::Abilities;
use super::asked::Asked;
use super::edits::MAX_IMAGES;
use super::problem::Problem;
use super::state::Shared;
use tch_flux::generation::provenance::ModelRecord;
use tch_flux::generation::{Parts, Pipeline, Request, Role};
use tch_flux::models::text::{Tokenizer, Weighted};

/// Names that clients have built in. Whoever asks for one of them gets the model that there is.
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

/// The model that a server serves, as it tells clients.
#[derive(Debug)]
pub struct Model {
    /// Its name at `/v1/models`.
    pub name: String,
    /// Other names that requests may have for it; by default those that clients have built in.
    pub aliases: Vec<String>,
    /// When it came to be, in seconds since 1970.
    pub created: u64,
    /// The side of the pictures that it was trained for: what the size `auto` is.
    pub side: i64,
    /// How many pictures an edit may begin with.
    pub images: usize,
    /// What those are to it; `None` leaves it to the pipeline.
    pub role: Option<Role>,
    /// What it can be asked beside a prompt.
    pub able: Abilities,
    /// What the files of pictures say.
    pub means: ModelRecord,
    /// Where it computes.
    pub devices: Vec<Device>,
    /// Counts the tokens of prompts; without one they are counted as none.
    pub tokenizer: Option<Tokenizer>,
    /// Tokens of a prompt that are read.
    pub tokens: usize,
}

impl Model {
    /// That of a pipeline and its parts, with the name that clients ask for and the side of the pictures that it was trained for.
    pub fn of(pipeline: &Pipeline, parts: &Parts, name: impl Into<String>, side: i64) -> Self {
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
            able: Abilities::of(pipeline, parts.depth.is_some()),
            means: ModelRecord::of(pipeline, parts),
            devices: vec![settings.device],
            // The pipeline has read it before, so it can be read.
            tokenizer: Tokenizer::t5(&parts.t5_tokenizer).ok(),
            tokens: pipeline.complete(&Request::new("", side, side)).max_sequence_length.unwrap_or(512),
        }
    }

    /// # Errors
    /// A problem where the name is another model's.
    pub(super) fn check_name(&self, name: Option<&str>) -> Result<(), Problem> {
        match name {
            Some(name) if name != self.name && !self.aliases.iter().any(|alias| alias == name) => {
                let text = format!("there is no model `{name}` here; there is `{}`", self.name);
                Err(Problem::not_found("model_not_found", text).param("model"))
            }
            _ => Ok(()),
        }
    }

    /// How many tokens of a request's prompt it reads.
    pub(super) fn count_tokens(&self, asked: &Asked) -> usize {
        let Some(tokenizer) = &self.tokenizer else { return 0 };
        let weighted = if asked.literal { None } else { Weighted::parse(&asked.prompt) };
        let tokens = match weighted {
            Some(weighted) => {
                tokenizer.encode_weighted(&weighted, self.tokens).ok().map(|(tokens, _)| tokens)
            }
            None => tokenizer.encode(&asked.prompt, self.tokens).ok(),
        };
        tokens.map_or(0, |tokens| tokens.used)
    }
}

/// A model as clients see it.
#[derive(Serialize)]
struct Entry<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
    /// Names that a request may have for what was put on it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    controlnets: Vec<&'a str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ip_adapters: Vec<&'a str>,
}

#[derive(Serialize)]
struct List<'a> {
    object: &'static str,
    data: Vec<Entry<'a>>,
}

fn entry<'a>(model: &'a Model, id: &'a str) -> Entry<'a> {
    let Abilities { controlnets, ip_adapters, .. } = &model.able;
    Entry {
        id,
        object: "model",
        created: model.created,
        owned_by: "tch-flux",
        controlnets: controlnets.iter().map(|net| net.name.as_str()).collect(),
        ip_adapters: ip_adapters.iter().map(|adapter| adapter.name.as_str()).collect(),
    }
}

pub(super) async fn list(State(shared): State<Arc<Shared>>) -> Result<Response, Problem> {
    let model = &shared.served()?.model;
    Ok(Json(List { object: "list", data: vec![entry(model, &model.name)] }).into_response())
}

pub(super) async fn retrieve(
    State(shared): State<Arc<Shared>>,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    let model = &shared.served()?.model;
    model.check_name(Some(&id))?;
    Ok(Json(entry(model, &id)).into_response())
}
