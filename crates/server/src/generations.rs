//! `POST /v1/images/generations`: a prompt in, pictures out.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;

use super::asked::Asked;
use super::body::Reader;
use super::problem::Problem;
use super::state::{Charge, Shared};
use super::values::Values;
use super::{answer, coding, jobs, pictures, stream};
use tch_flux::generation;

pub(super) async fn generate(
    State(shared): State<Arc<Shared>>,
    request: Request,
) -> Result<Response, Problem> {
    let headers = request.headers().clone();
    let model = &shared.served()?.model;
    let short = shared.options.json_bytes;
    // What brings pictures may be as long as an edit.
    let limit = if model.able.reads_pictures() { short.max(shared.options.edit_bytes) } else { short };
    let reader = Reader::new(&shared, request, "application/json", limit)?;
    let (body, charge) = reader.whole().await?;
    let length = body.len();
    let read = move || Values::from_json(&body);
    let values = if length > short {
        // Its texts are copied out of it.
        charge.grow(length)?;
        let values = coding::aside(&shared.coders, read).await?;
        charge.shrink(length);
        values
    } else {
        read()?
    };
    let asked = values.asked()?;
    model.check_name(asked.model.as_deref())?;
    let plan = model.plan(&asked, &values.pictures.counts(), false)?;
    let request = jobs::request(&asked, model);
    let request = pictures::put_on(&shared, request, &asked, values.pictures, plan, &charge).await?;
    draw(&shared, asked, request, "image_generation", &headers, charge).await
}

/// Draws it, and answers with all at once or with a stream. The charge for its pictures lasts as long.
pub(super) async fn draw(
    shared: &Arc<Shared>,
    asked: Asked,
    request: generation::Request,
    kind: &'static str,
    headers: &axum::http::HeaderMap,
    charge: Arc<Charge>,
) -> Result<Response, Problem> {
    let size = (request.width, request.height);
    let given = request.edit.as_ref().map_or(0, |edit| edit.images.len()) + request.controls.len();
    let job = jobs::submit(shared, request)?;
    if asked.stream {
        return Ok(stream::answer(shared, asked, kind, size, given, job, charge));
    }
    let pictures = jobs::finish(shared, job, drop).await?;
    let answer = answer::answer(shared, asked, pictures, given, headers).await;
    drop(charge);
    answer
}
