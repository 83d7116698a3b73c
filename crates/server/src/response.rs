//! The response with all pictures at once.

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

use crate::api_error::ApiError;
use crate::encode::{encode, run_blocking};
use crate::model::Model;
use crate::request::GenerationRequest;
use crate::state::ServerState;
use tch_flux::generation::{Generated, Request};
use tch_flux::image::Format;

/// The bytes of a response that are passed on at once: only what is written stops counting against the limit.
const CHUNK_BYTES: usize = 64 << 10;

/// What every response says of its pictures.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct ImageInfo {
    pub(crate) background: &'static str,
    pub(crate) output_format: &'static str,
    pub(crate) size: String,
    pub(crate) quality: &'static str,
}

impl ImageInfo {
    pub(crate) fn new(format: Format, (width, height): (i64, i64)) -> Self {
        Self {
            background: "opaque",
            output_format: format.name(),
            size: format!("{width}x{height}"),
            quality: "high",
        }
    }
}

/// The numbers of tokens: of the prompt as T5 reads it, and of pictures as the transformer does, one for 16 by 16 pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct Usage {
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
    /// Counts the tokens of a request with `input_images` pictures that drew `output_images`, all of one size.
    pub(crate) fn new(
        model: &Model,
        request: &GenerationRequest,
        (width, height): (i64, i64),
        input_images: usize,
        output_images: usize,
    ) -> Self {
        let image = ((width / 16) * (height / 16)) as usize;
        let (text_tokens, image_tokens) = (
            model.count_tokens(&request.generation.prompts[0], request.generation.literal),
            input_images * image,
        );
        let (input_tokens, output_tokens) = (text_tokens + image_tokens, output_images * image);
        Self {
            input_tokens,
            input_tokens_details: InputTokens { text_tokens, image_tokens },
            output_tokens,
            total_tokens: input_tokens + output_tokens,
        }
    }
}

#[derive(Serialize)]
struct ImagesBody {
    created: u64,
    data: Vec<ImageData>,
    #[serde(flatten)]
    info: ImageInfo,
    usage: Usage,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
}

#[derive(Serialize)]
struct ImageData {
    #[serde(skip_serializing_if = "Option::is_none")]
    b64_json: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    url: Option<String>,
    seed: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    variation_seed: Option<u64>,
}

/// Returns the response with these pictures. `headers` are the request's, which say by which name the client knows the
/// server.
pub(crate) async fn images_response(
    state: &Arc<ServerState>,
    request: GenerationRequest,
    pictures: Vec<Generated>,
    input_images: usize,
    headers: &HeaderMap,
) -> Result<Response, ApiError> {
    let raw: usize = pictures.iter().map(|picture| picture.image.rgb.len()).sum();
    let permit = reserve(state, raw).await?;
    let base = base_url(state, headers);
    let server = state.clone();
    let body = move || {
        let model = &server.loaded_model()?.model;
        let file = |picture| encode(picture, model, request.format, request.quality);
        let files = pictures.iter().map(file).collect::<Result<Vec<_>, _>>()?;
        let seeds = pictures.iter().map(|picture| {
            let Request { seed, variation, .. } = &picture.request;
            (*seed, variation.map(|variation| variation.seed))
        });
        let data: Vec<_> = if request.url {
            let ids = server.image_store.put(files.into_iter().map(Bytes::from).collect(), request.format);
            let too_large = || {
                let text = "so many pictures of this size are not kept; ask for b64_json";
                ApiError::value("response_format", text)
            };
            let url = |id| Some(format!("{base}/v1/images/{id}/content"));
            let ids = ids.ok_or_else(too_large)?.into_iter();
            let datum = |(id, (seed, variation_seed))| ImageData {
                b64_json: None,
                url: url(id),
                seed,
                variation_seed,
            };
            ids.zip(seeds).map(datum).collect()
        } else {
            let datum = |(file, (seed, variation_seed)): (&Vec<u8>, (u64, Option<u64>))| ImageData {
                b64_json: Some(BASE64_STANDARD.encode(file)),
                url: None,
                seed,
                variation_seed,
            };
            files.iter().zip(seeds).map(datum).collect()
        };
        let size = image_size(&pictures);
        let usage = Usage::new(model, &request, size, input_images, pictures.len());
        let warnings = warnings(&pictures);
        let info = ImageInfo::new(request.format, size);
        let body = ImagesBody { created: now(), data, info, usage, warnings };
        serde_json::to_vec(&body).map_err(|error| ApiError::internal("encoding", error.to_string()))
    };
    let body = run_blocking(&state.codec_permits, body).await?;
    let json = [(CONTENT_TYPE, HeaderValue::from_static("application/json"))];
    Ok((json, Body::new(ChunkedBody { bytes: body.into(), _permit: permit })).into_response())
}

/// Returns the warnings about any of these pictures, each once.
pub(crate) fn warnings(pictures: &[Generated]) -> Vec<String> {
    let mut warnings: Vec<String> = Vec::new();
    for warning in pictures.iter().flat_map(|picture| &picture.warnings) {
        if !warnings.contains(warning) {
            warnings.push(warning.clone());
        }
    }
    warnings
}

/// Returns the width and height of pictures that are all of one size.
pub(crate) fn image_size(pictures: &[Generated]) -> (i64, i64) {
    pictures.first().map_or((0, 0), |picture| (picture.request.width, picture.request.height))
}

/// Returns the seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

/// Waits until the limit of unsent bytes leaves room for a response with so many bytes of pixels, and reserves it.
pub(crate) async fn reserve(state: &ServerState, raw: usize) -> Result<OwnedSemaphorePermit, ApiError> {
    let most = state.options.max_answer_bytes / 1024;
    let kibibytes = (raw / 768 + 1).min(most) as u32;
    let permit = Semaphore::acquire_many_owned(state.response_permits.clone(), kibibytes);
    let full = || ApiError::unavailable("answers_full", "too many answers wait to be read").retry_after(5);
    match timeout(state.options.write_timeout, permit).await {
        Ok(Ok(permit)) => Ok(permit),
        _ => Err(full()),
    }
}

/// Returns the server's address as the client sees it.
fn base_url(state: &ServerState, headers: &HeaderMap) -> String {
    match &state.options.public_url {
        Some(url) => url.trim_end_matches('/').into(),
        None => {
            let host = headers.get(header::HOST).and_then(|host| host.to_str().ok());
            format!("http://{}", host.unwrap_or("localhost"))
        }
    }
}

/// A complete body that is passed on in chunks.
struct ChunkedBody {
    bytes: Bytes,
    _permit: OwnedSemaphorePermit,
}

impl http_body::Body for ChunkedBody {
    type Data = Bytes;
    type Error = std::convert::Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let length = self.bytes.len().min(CHUNK_BYTES);
        Poll::Ready((length > 0).then(|| Ok(Frame::data(self.bytes.split_to(length)))))
    }

    fn is_end_stream(&self) -> bool {
        self.bytes.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.bytes.len() as u64)
    }
}
