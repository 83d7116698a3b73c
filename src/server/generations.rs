//! `POST /v1/images/generations`: a prompt in, pictures out.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::Response;

use super::answer;
use super::body::Reader;
use super::fields::{Asked, Values};
use super::jobs;
use super::problem::Problem;
use super::state::Shared;
use super::stream;
use crate::pipeline;

pub(super) async fn generate(
    State(shared): State<Arc<Shared>>,
    request: Request,
) -> Result<Response, Problem> {
    let headers = request.headers().clone();
    let reader = Reader::new(&shared, request, "application/json", shared.options.json_bytes)?;
    let (body, _charge) = reader.whole().await?;
    let asked = Values::from_json(&body)?.asked()?;
    drop(body);
    let model = &shared.served()?.model;
    model.check_name(asked.model.as_deref())?;
    let request = jobs::request(&asked, model);
    draw(&shared, asked, request, "image_generation", &headers).await
}

/// Draws it, and answers with all at once or with a stream.
pub(super) async fn draw(
    shared: &Arc<Shared>,
    asked: Asked,
    request: pipeline::Request,
    kind: &'static str,
    headers: &axum::http::HeaderMap,
) -> Result<Response, Problem> {
    let size = (request.width, request.height);
    let given = request.edit.as_ref().map_or(0, |edit| edit.images.len());
    let job = jobs::submit(shared, request)?;
    if asked.stream {
        return Ok(stream::answer(shared, asked, kind, size, given, job));
    }
    let pictures = jobs::finish(shared, job, drop).await?;
    answer::answer(shared, asked, pictures, given, headers).await
}
