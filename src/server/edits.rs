//! `POST /v1/images/edits`: pictures and a prompt in, pictures out.

use std::sync::Arc;

use axum::body::Bytes;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::Response;
use futures_util::stream;
use multer::Multipart;

use super::body::Reader;
use super::coding;
use super::fields::{Asked, Values, nearest_side};
use super::generations::draw;
use super::jobs;
use super::problem::Problem;
use super::state::{Charge, Shared};
use super::upload::{self, Bounds};
use crate::pipeline::{Edit, Role};

/// Pictures of one request.
pub(super) const MAX_IMAGES: usize = 16;
/// Parts of a form: every field, every picture, and some that are repeated.
const MAX_PARTS: usize = 64;
/// Bytes of a part that is text: as many as the longest prompt may have.
const MAX_TEXT: usize = 32_000 * 4;

/// A form, taken apart.
#[derive(Default)]
struct Form {
    values: Values,
    images: Vec<Bytes>,
    mask: Option<Bytes>,
}

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
    let asked = form.values.asked()?;
    let model = &shared.served()?.model;
    model.check_name(asked.model.as_deref())?;
    if form.images.len() > model.images {
        let text = format!("this model takes at most {} images", model.images);
        return Err(Problem::invalid("too_many_images", text).param("image"));
    }
    let (asked, mut edit) = decode(&shared, asked, form.images, form.mask, charge.clone()).await?;
    edit.role = model.role;
    let first = &edit.images[0];
    let mut request = jobs::request(&asked, model);
    if asked.size.is_none() {
        (request.width, request.height) = match model.role {
            Some(Role::Reference) => {
                let (width, height) = edit.reference_size(first);
                (width.into(), height.into())
            }
            _ => size_like((first.width, first.height), model.side),
        };
    }
    request.edit = Some(Arc::new(edit));
    let answer = draw(&shared, asked, request, "image_edit", &headers).await;
    drop(charge);
    answer
}

async fn read_form(reader: Reader, boundary: String, image_bytes: usize) -> Result<Form, Problem> {
    let pieces = stream::unfold(reader, |mut reader| async {
        let piece = reader.next().await.transpose()?;
        Some((piece, reader))
    });
    let mut parts = Multipart::new(pieces, boundary);
    let mut form = Form::default();
    for _ in 0..MAX_PARTS {
        let Some(mut part) = parts.next_field().await.map_err(broken)? else { return Ok(form) };
        let Some(name) = part.name().map(str::to_string) else {
            return Err(Problem::invalid("invalid_form", "a part of the form has no name"));
        };
        let (picture, most) = match name.as_str() {
            "image" | "image[]" => ("image", image_bytes),
            "mask" => ("mask", image_bytes),
            _ => ("", MAX_TEXT),
        };
        let mut bytes = Vec::new();
        while let Some(piece) = part.chunk().await.map_err(broken)? {
            if bytes.len() + piece.len() > most {
                let text = format!("{name} is longer than {most} bytes");
                let status =
                    if picture.is_empty() { StatusCode::BAD_REQUEST } else { StatusCode::PAYLOAD_TOO_LARGE };
                return Err(Problem::http(status, "part_too_large", text).param(&name));
            }
            bytes.extend_from_slice(&piece);
        }
        match picture {
            "image" if form.images.len() == MAX_IMAGES => {
                let text = format!("there are more than {MAX_IMAGES} images");
                return Err(Problem::invalid("too_many_images", text).param("image"));
            }
            "image" => form.images.push(bytes.into()),
            "mask" => form.mask = Some(bytes.into()),
            _ => {
                let wrong = |_| Problem::value(&name, format!("{name} is not UTF-8"));
                form.values.insert_text(&name, String::from_utf8(bytes).map_err(wrong)?)?;
            }
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

async fn decode(
    shared: &Shared,
    asked: Asked,
    images: Vec<Bytes>,
    mask: Option<Bytes>,
    charge: Arc<Charge>,
) -> Result<(Asked, Edit), Problem> {
    if images.is_empty() {
        let text = "an edit begins with a picture: send one as `image`";
        return Err(Problem::invalid("missing_required_parameter", text).param("image"));
    }
    let mut bounds = Bounds { pixels: shared.options.image_pixels, charge };
    let work = move || {
        let decode = |file: &Bytes| upload::image(file, &mut bounds);
        let pictures = images.iter().map(decode).collect::<Result<Vec<_>, _>>()?;
        let mask = mask.map(|file| upload::mask(&file, &mut bounds)).transpose()?;
        let first = &pictures[0];
        if let Some(mask) = &mask
            && (mask.width, mask.height) != (first.width, first.height)
        {
            let (mask, first) = ((mask.width, mask.height), (first.width, first.height));
            let text = format!("the mask is {}x{}, but the picture {}x{}", mask.0, mask.1, first.0, first.1);
            return Err(Problem::invalid("invalid_mask", text).param("mask"));
        }
        let strength = asked.strength.unwrap_or(Edit::STRENGTH);
        Ok((asked, Edit { mask, strength, ..Edit::new(pictures) }))
    };
    coding::aside(&shared.coders, work).await
}

/// As many pixels as a square of this side has, in the shape of a picture.
fn size_like((width, height): (u32, u32), side: i64) -> (i64, i64) {
    let shape = (f64::from(width) / f64::from(height)).sqrt();
    (nearest_side(side as f64 * shape), nearest_side(side as f64 / shape))
}
