//! The request to draw, read from its raw fields and checked against itself.

pub(crate) mod raw_request;
pub(crate) mod synonyms;

use crate::api_error::ApiError;
use raw_request::RawRequest;
use tch_flux::generation::Request;
use tch_flux::generation::params::{Values, parse_size};
use tch_flux::image::Format;

/// The request to draw, as its fields say it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct GenerationRequest {
    /// What to draw, without its pictures. What is absent is the model's own. An empty prompt may be absent, since Redux has
    /// pictures.
    pub(crate) generation: Request,
    /// What is said of the pictures.
    pub(crate) values: Values,
    /// Width and height; `None` is the model's own.
    pub(crate) size: Option<(i64, i64)>,
    pub(crate) model: Option<String>,
    /// Whether the response has addresses in place of the pictures.
    pub(crate) url: bool,
    pub(crate) format: Format,
    pub(crate) quality: u8,
    pub(crate) stream: bool,
}

impl RawRequest {
    /// Reads the fields, and checks what concerns several of them.
    pub(crate) fn parse(&self) -> Result<GenerationRequest, ApiError> {
        let values = &self.values;
        let has_pictures = |key: &str| !self.uploads.has_none(key);
        let prompt = values.text("prompts").or(has_pictures("redux_image").then_some(""));
        let Some(prompt) = prompt else {
            return Err(
                ApiError::invalid("missing_required_parameter", "a prompt is required").param("prompt")
            );
        };
        values.check_rules(has_pictures)?;
        let size = values.text("size").and_then(parse_size).flatten();
        let (width, height) = size.unwrap_or((1024, 1024));
        let mut generation = Request::new(prompt, width, height);
        // Clients of OpenAI's API know of no weights.
        generation.literal = true;
        generation.seed = Request::random_seed();
        generation.apply(values);
        let stream = values.boolean("stream").unwrap_or(false);
        if !stream {
            generation.previews = 0;
        }
        let request = GenerationRequest {
            generation,
            values: values.clone(),
            size,
            model: values.text("model").filter(|name| !name.is_empty()).map(str::to_string),
            url: self.wants_url(stream),
            format: values.text("output_format").and_then(Format::named).unwrap_or(Format::Png),
            quality: values.integer("output_compression").unwrap_or(100) as u8,
            stream,
        };
        if values.text("background") == Some("transparent") {
            return Err(ApiError::value("background", "pictures are opaque; leave `background` out"));
        }
        if request.stream && request.url {
            let text = "a stream brings pictures, not addresses: leave `response_format` out";
            return Err(ApiError::value("response_format", text));
        }
        request.generation.check().map_err(|error| ApiError::from_engine(&error, 0))?;
        Ok(request)
    }

    /// Whether the response has addresses. Where `response_format` is absent, OpenAI answers with addresses for these models,
    /// and clients that were written for them read no other field.
    fn wants_url(&self, stream: bool) -> bool {
        match self.values.text("response_format") {
            Some(format) => format == "url",
            None => !stream && matches!(self.values.text("model"), Some("dall-e-2" | "dall-e-3")),
        }
    }
}
