//! `POST /v1/images/edits`: pictures and a prompt in, pictures out.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::Response;
use futures_util::stream;
use multer::Multipart;

use super::body::Reader;
use super::generations::draw;
use super::problem::Problem;
use super::shape::{Shape, nearest_side};
use super::state::Shared;
use super::values::{Values, find_part};
use super::{jobs, pictures};
use tch_flux::generation::Role;

/// Pictures of one field.
pub(super) const MAX_IMAGES: usize = 16;
/// Parts of a form: every field, every picture, and some that are repeated.
const MAX_PARTS: usize = 64;
/// Bytes of a part that is text: as many as the longest prompt may have.
const MAX_TEXT: usize = 32_000 * 4;

pub(super) async fn edit(State(shared): State<Arc<Shared>>, request: Request) -> Result<Response, Problem> {
    let headers = request.headers().clone();
    let content_type = headers.get(CONTENT_TYPE).and_then(|text| text.to_str().ok()).unwrap_or_default();
    let reader = Reader::new(&shared, request, "multipart/form-data", shared.options.edit_bytes)?;
    let boundary = multer::parse_boundary(content_type).ok().filter(|boundary| !boundary.is_empty());
    let boundary = boundary.ok_or_else(|| {
        Problem::invalid("invalid_form", "the Content-Type names no boundary of the form's parts")
    })?;
    let charge = reader.charge.clone();
    let form = read_form(reader, boundary, shared.options.image_bytes).await?;
    let asked = form.asked()?;
    let model = &shared.served()?.model;
    model.check_name(asked.model.as_deref())?;
    let plan = model.plan(&asked, &form.pictures.counts(), true)?;
    let request = jobs::request(&asked, model);
    let mut request = pictures::put_on(&shared, request, &asked, form.pictures, plan, &charge).await?;
    if let (None, Some(edit)) = (asked.size, &request.edit)
        && let Some(first) = edit.images.first()
    {
        (request.width, request.height) = match edit.role {
            Some(Role::Reference) => {
                let (width, height) = edit.reference_size(first);
                (width.into(), height.into())
            }
            _ => size_like((first.width, first.height), model.side),
        };
    }
    draw(&shared, asked, request, "image_edit", &headers, charge).await
}

async fn read_form(reader: Reader, boundary: String, image_bytes: usize) -> Result<Values, Problem> {
    let pieces = stream::unfold(reader, |mut reader| async {
        let piece = reader.next().await.transpose()?;
        Some((piece, reader))
    });
    let mut parts = Multipart::new(pieces, boundary);
    let mut form = Values::default();
    for _ in 0..MAX_PARTS {
        let Some(mut part) = parts.next_field().await.map_err(broken)? else { return Ok(form) };
        let Some(name) = part.name().map(str::to_string) else {
            return Err(Problem::invalid("invalid_form", "a part of the form has no name"));
        };
        let found = find_part(&name)?;
        let is_picture = found.field.shape == Shape::Pictures;
        let most = if is_picture { image_bytes } else { MAX_TEXT };
        let mut bytes = Vec::new();
        while let Some(piece) = part.chunk().await.map_err(broken)? {
            if bytes.len() + piece.len() > most {
                let text = format!("{name} is longer than {most} bytes");
                let status = if is_picture { StatusCode::PAYLOAD_TOO_LARGE } else { StatusCode::BAD_REQUEST };
                return Err(Problem::http(status, "part_too_large", text).param(&name));
            }
            bytes.extend_from_slice(&piece);
        }
        if is_picture {
            form.insert_picture(found, bytes.into())?;
        } else {
            let wrong = |_| Problem::value(&name, format!("{name} is text, and what came is not UTF-8"));
            form.insert_text(&name, found, String::from_utf8(bytes).map_err(wrong)?)?;
        }
    }
    Err(Problem::invalid("invalid_form", format!("the form has more than {MAX_PARTS} parts")))
}

/// What is wrong with a form, or with the body that brings it.
fn broken(error: multer::Error) -> Problem {
    if let multer::Error::StreamReadFailed(problem) = error {
        return match problem.downcast::<Problem>() {
            Ok(problem) => *problem,
            Err(other) => Problem::invalid("broken_body", other.to_string()),
        };
    }
    Problem::invalid("invalid_form", format!("the form cannot be read: {error}"))
}

/// As many pixels as a square of this side has, in the shape of a picture.
fn size_like((width, height): (u32, u32), side: i64) -> (i64, i64) {
    let shape = (f64::from(width) / f64::from(height)).sqrt();
    (nearest_side(side as f64 * shape), nearest_side(side as f64 / shape))
}
