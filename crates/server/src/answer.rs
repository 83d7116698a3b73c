//! The answer with all pictures at once.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{SystemTime, UNIX_EPOCH};

use axum::body::{Body, Bytes};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, HeaderValue, header};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http_body::{Frame, SizeHint};
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::asked::Asked;
use super::coding;
use super::models::Model;
use super::problem::Problem;
use super::state::Shared;
use tch_flux::generation::{Generated, Request};
use tch_flux::image::Format;

/// An answer is handed on in such pieces, so that it counts as long as it is not written.
const PIECE: usize = 64 << 10;

/// What every answer says of its pictures.
#[derive(Debug, Clone, Serialize)]
pub(super) struct About {
    pub(super) background: &'static str,
    pub(super) output_format: &'static str,
    pub(super) size: String,
    pub(super) quality: &'static str,
}

impl About {
    pub(super) fn new(format: Format, (width, height): (i64, i64)) -> Self {
        Self {
            background: "opaque",
            output_format: format.name(),
            size: format!("{width}x{height}"),
            quality: "high",
        }
    }
}

/// Tokens: of the prompt as T5 reads it, and of pictures as the transformer does, 16 by 16 pixels each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(super) struct Usage {
    input_tokens: usize,
    input_tokens_details: InputTokens,
    output_tokens: usize,
    total_tokens: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
struct InputTokens {
    text_tokens: usize,
    image_tokens: usize,
}

impl Usage {
    /// Of `drawn` pictures of a size that began with so many others.
    pub(super) fn new(
        model: &Model,
        asked: &Asked,
        (width, height): (i64, i64),
        given: usize,
        drawn: usize,
    ) -> Self {
        let picture = ((width / 16) * (height / 16)) as usize;
        let (text_tokens, image_tokens) = (model.count_tokens(asked), given * picture);
        let (input_tokens, output_tokens) = (text_tokens + image_tokens, drawn * picture);
        Self {
            input_tokens,
            input_tokens_details: InputTokens { text_tokens, image_tokens },
            output_tokens,
            total_tokens: input_tokens + output_tokens,
        }
    }
}

#[derive(Serialize)]
struct Answer {
    created: u64,
    data: Vec<Datum>,
    #[serde(flatten)]
    about: About,
    usage: Usage,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
}

#[derive(Serialize)]
struct Datum {
    #[serde(skip_serializing_if = "Option::is_none")]
    b64_json: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    url: Option<String>,
    seed: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    variation_seed: Option<u64>,
}

/// The answer with these pictures. `headers` are the request's: they say under which name the server is known.
pub(super) async fn answer(
    shared: &Arc<Shared>,
    asked: Asked,
    pictures: Vec<Generated>,
    given: usize,
    headers: &HeaderMap,
) -> Result<Response, Problem> {
    let raw: usize = pictures.iter().map(|picture| picture.image.rgb.len()).sum();
    let room = room(shared, raw).await?;
    let (shelf, base) = (shared.clone(), base_url(shared, headers));
    let body = move || {
        let model = &shelf.loaded()?.model;
        let encode = |picture| coding::encode(picture, model, asked.format, asked.quality);
        let files = pictures.iter().map(encode).collect::<Result<Vec<_>, _>>()?;
        let seeds = pictures.iter().map(|picture| {
            let Request { seed, variation, .. } = &picture.request;
            (*seed, variation.map(|variation| variation.seed))
        });
        let data: Vec<_> = if asked.url {
            let ids = shelf.shelf.put(files.into_iter().map(Bytes::from).collect(), asked.format);
            let too_large = || {
                let text = "so many pictures of this size are not kept; ask for b64_json";
                Problem::value("response_format", text)
            };
            let url = |id| Some(format!("{base}/v1/images/{id}/content"));
            let ids = ids.ok_or_else(too_large)?.into_iter();
            let datum =
                |(id, (seed, variation_seed))| Datum { b64_json: None, url: url(id), seed, variation_seed };
            ids.zip(seeds).map(datum).collect()
        } else {
            let datum = |(file, (seed, variation_seed)): (&Vec<u8>, (u64, Option<u64>))| Datum {
                b64_json: Some(BASE64_STANDARD.encode(file)),
                url: None,
                seed,
                variation_seed,
            };
            files.iter().zip(seeds).map(datum).collect()
        };
        let size = size_of(&pictures);
        let usage = Usage::new(model, &asked, size, given, pictures.len());
        let warnings = warnings(&pictures);
        let answer = Answer { created: now(), data, about: About::new(asked.format, size), usage, warnings };
        serde_json::to_vec(&answer).map_err(|error| Problem::internal("encoding", error.to_string()))
    };
    let body = coding::aside(&shared.coders, body).await?;
    let json = [(CONTENT_TYPE, HeaderValue::from_static("application/json"))];
    Ok((json, Body::new(Pieces { bytes: body.into(), _room: room })).into_response())
}

/// What is said of any of these pictures, once.
pub(super) fn warnings(pictures: &[Generated]) -> Vec<String> {
    let mut warnings: Vec<String> = Vec::new();
    for warning in pictures.iter().flat_map(|picture| &picture.warnings) {
        if !warnings.contains(warning) {
            warnings.push(warning.clone());
        }
    }
    warnings
}

/// Width and height of pictures that are all of one size.
pub(super) fn size_of(pictures: &[Generated]) -> (i64, i64) {
    pictures.first().map_or((0, 0), |picture| (picture.request.width, picture.request.height))
}

/// Seconds since 1970.
pub(super) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

/// Room for the answer with so many bytes of pixels, once there is some.
pub(super) async fn room(shared: &Shared, raw: usize) -> Result<OwnedSemaphorePermit, Problem> {
    let most = shared.options.answer_bytes / 1024;
    let kibibytes = (raw / 768 + 1).min(most) as u32;
    let room = Semaphore::acquire_many_owned(shared.answers.clone(), kibibytes);
    let full = || Problem::unavailable("answers_full", "too many answers wait to be read").again(5);
    match timeout(shared.options.write_timeout, room).await {
        Ok(Ok(room)) => Ok(room),
        _ => Err(full()),
    }
}

/// Where this server is, as the client sees it.
fn base_url(shared: &Shared, headers: &HeaderMap) -> String {
    match &shared.options.public_url {
        Some(url) => url.trim_end_matches('/').into(),
        None => {
            let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
            format!("http://{}", host.unwrap_or("localhost"))
        }
    }
}

/// A body that is there already, in pieces.
struct Pieces {
    bytes: Bytes,
    _room: OwnedSemaphorePermit,
}

impl http_body::Body for Pieces {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let length = self.bytes.len().min(PIECE);
        Poll::Ready((length > 0).then(|| Ok(Frame::data(self.bytes.split_to(length)))))
    }

    fn is_end_stream(&self) -> bool {
        self.bytes.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.bytes.len() as u64)
    }
}
