//! `/v1/images`: generations, which draw from a prompt, edits, which draw from pictures as well, and the pictures that are
//! fetched by an address.

use std::sync::Arc;

use axum::extract::{Path, Request, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use multer::Multipart;

use crate::api_error::ApiError;
use crate::body::BodyReader;
use crate::encode::run_blocking;
use crate::request::GenerationRequest;
use crate::request::raw_request::{RawRequest, parse_part_name};
use crate::response::images_response;
use crate::state::{Charge, ServerState};
use crate::{jobs, sse};
use tch_flux::generation::params::{Kind, nearest_side};
use tch_flux::generation::{self, Role};

/// The most parts of a form: every field, every picture, and some that are repeated.
const MAX_PARTS: usize = 64;
/// The most bytes of a part that is text: as many as the longest prompt may have.
const MAX_TEXT_BYTES: usize = 32_000 * 4;

/// `POST /v1/images/generations`
pub(crate) async fn generate(
    State(state): State<Arc<ServerState>>,
    http_request: Request,
) -> Result<Response, ApiError> {
    let headers = http_request.headers().clone();
    let model = &state.ready_model()?.model;
    let text_limit = state.options.max_json_bytes;
    // A body that brings pictures may be as long as an edit's.
    let takes_images = model.capabilities.takes_condition_images();
    let limit = if takes_images { text_limit.max(state.options.max_edit_bytes) } else { text_limit };
    let reader = BodyReader::new(&state, http_request, "application/json", limit)?;
    let (body, charge) = reader.read_all().await?;
    let length = body.len();
    let read = move || RawRequest::from_json(&body);
    let raw_request = if length > text_limit {
        // Reading copies the texts out of the body.
        charge.grow(length)?;
        let raw_request = run_blocking(&state.codec_permits, read).await?;
        charge.shrink(length);
        raw_request
    } else {
        read()?
    };
    let request = raw_request.parse()?;
    model.check_name(request.model.as_deref())?;
    let conditioning = model.conditioning(&request, &raw_request.uploads.counts(), false)?;
    let engine_request =
        jobs::engine_request(&state, &request, model, conditioning, raw_request.uploads, &charge).await?;
    draw(&state, request, engine_request, "image_generation", &headers, charge).await
}

/// `POST /v1/images/edits`
pub(crate) async fn edit(
    State(state): State<Arc<ServerState>>,
    http_request: Request,
) -> Result<Response, ApiError> {
    let headers = http_request.headers().clone();
    let content_type = headers.get(CONTENT_TYPE).and_then(|text| text.to_str().ok()).unwrap_or_default();
    let reader = BodyReader::new(&state, http_request, "multipart/form-data", state.options.max_edit_bytes)?;
    let boundary = multer::parse_boundary(content_type).ok().filter(|boundary| !boundary.is_empty());
    let boundary = boundary.ok_or_else(|| {
        ApiError::invalid("invalid_form", "the Content-Type names no boundary of the form's parts")
    })?;
    let charge = reader.charge.clone();
    let form = read_form(reader, boundary, state.options.max_image_bytes).await?;
    let request = form.parse()?;
    let model = &state.ready_model()?.model;
    model.check_name(request.model.as_deref())?;
    let conditioning = model.conditioning(&request, &form.uploads.counts(), true)?;
    let mut engine_request =
        jobs::engine_request(&state, &request, model, conditioning, form.uploads, &charge).await?;
    if let (None, Some(edit)) = (request.size, &engine_request.edit)
        && let Some(first) = edit.images.first()
    {
        (engine_request.width, engine_request.height) = match edit.role {
            Some(Role::Reference) => {
                let (width, height) = edit.reference_size(first);
                (width.into(), height.into())
            }
            _ => size_like((first.width, first.height), model.side),
        };
    }
    draw(&state, request, engine_request, "image_edit", &headers, charge).await
}

/// Reads the fields and pictures of a form.
async fn read_form(reader: BodyReader, boundary: String, image_bytes: usize) -> Result<RawRequest, ApiError> {
    let pieces = stream::unfold(reader, |mut reader| async {
        let piece = reader.next().await.transpose()?;
        Some((piece, reader))
    });
    let mut parts = Multipart::new(pieces, boundary);
    let mut form = RawRequest::default();
    for _ in 0..MAX_PARTS {
        let Some(mut part) = parts.next_field().await.map_err(form_error)? else { return Ok(form) };
        let Some(name) = part.name().map(str::to_string) else {
            return Err(ApiError::invalid("invalid_form", "a part of the form has no name"));
        };
        let part_name = parse_part_name(&name)?;
        let is_picture = part_name.field.kind == Kind::Pictures;
        let most = if is_picture { image_bytes } else { MAX_TEXT_BYTES };
        let mut bytes = Vec::new();
        while let Some(piece) = part.chunk().await.map_err(form_error)? {
            if bytes.len() + piece.len() > most {
                let text = format!("{name} is longer than {most} bytes");
                let status = if is_picture { StatusCode::PAYLOAD_TOO_LARGE } else { StatusCode::BAD_REQUEST };
                return Err(ApiError::http(status, "part_too_large", text).param(&name));
            }
            bytes.extend_from_slice(&piece);
        }
        if is_picture {
            form.insert_picture(part_name, bytes.into())?;
        } else {
            let not_utf8 = |_| ApiError::value(&name, format!("{name} is text, and what came is not UTF-8"));
            form.insert_text(&name, part_name, String::from_utf8(bytes).map_err(not_utf8)?)?;
        }
    }
    Err(ApiError::invalid("invalid_form", format!("the form has more than {MAX_PARTS} parts")))
}

/// Returns the error for a form that cannot be read, or for the body that brings it.
fn form_error(error: multer::Error) -> ApiError {
    if let multer::Error::StreamReadFailed(source) = error {
        return match source.downcast::<ApiError>() {
            Ok(error) => *error,
            Err(other) => ApiError::invalid("broken_body", other.to_string()),
        };
    }
    ApiError::invalid("invalid_form", format!("the form cannot be read: {error}"))
}

/// Returns a size with as many pixels as a square of this side, and the aspect ratio of a picture.
fn size_like((width, height): (u32, u32), side: i64) -> (i64, i64) {
    let root_of_ratio = (f64::from(width) / f64::from(height)).sqrt();
    (nearest_side(side as f64 * root_of_ratio), nearest_side(side as f64 / root_of_ratio))
}

/// Draws a request, and responds with all pictures at once or with a stream. The charge for the request's pictures lasts as
/// long.
async fn draw(
    state: &Arc<ServerState>,
    request: GenerationRequest,
    engine_request: generation::Request,
    kind: &'static str,
    headers: &HeaderMap,
    charge: Arc<Charge>,
) -> Result<Response, ApiError> {
    let size = (engine_request.width, engine_request.height);
    let edited = engine_request.edit.as_ref().map_or(0, |edit| edit.images.len());
    let input_images = edited + engine_request.controls.len();
    let job = jobs::submit(state, engine_request)?;
    if request.stream {
        return Ok(sse::event_stream(state, request, kind, size, input_images, job, charge));
    }
    let pictures = jobs::wait_for(state, job, drop).await?;
    let response = images_response(state, request, pictures, input_images, headers).await;
    drop(charge);
    response
}

/// `GET /v1/images/{id}/content`: a picture whose address was in a response.
pub(crate) async fn content(
    State(state): State<Arc<ServerState>>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let gone = || ApiError::not_found("image_not_found", "there is no such picture, or no longer");
    let stored = state.image_store.get(&id).ok_or_else(gone)?;
    let age = format!("private, immutable, max-age={}", stored.time_left().as_secs());
    let headers = [
        (CONTENT_TYPE, HeaderValue::from_static(stored.format.mime())),
        (
            CACHE_CONTROL,
            HeaderValue::from_str(&age).map_err(|error| ApiError::internal("fault", error.to_string()))?,
        ),
    ];
    Ok((headers, stored.picture).into_response())
}
