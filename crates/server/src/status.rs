//! How the server is doing.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::HeaderValue;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::metrics;
use super::problem::Problem;
use super::state::{Phase, Shared};

#[derive(Serialize)]
struct Health {
    status: &'static str,
}

/// Whether the process is of use, now or once it has loaded.
pub(super) async fn health(State(shared): State<Arc<Shared>>) -> Result<Response, Problem> {
    if shared.phase() == Phase::Ready {
        shared.served()?;
    }
    Ok(Json(Health { status: "ok" }).into_response())
}

/// Whether it takes jobs.
pub(super) async fn ready(State(shared): State<Arc<Shared>>) -> Result<Response, Problem> {
    shared.served()?;
    Ok(Json(Health { status: "ready" }).into_response())
}

pub(super) async fn metrics(State(shared): State<Arc<Shared>>) -> Response {
    let text = [(CONTENT_TYPE, HeaderValue::from_static("text/plain; version=0.0.4"))];
    (text, metrics::text(&shared)).into_response()
}

/// A picture that an answer has named the address of.
pub(super) async fn content(
    State(shared): State<Arc<Shared>>,
    Path(id): Path<String>,
) -> Result<Response, Problem> {
    let gone = || Problem::not_found("image_not_found", "there is no such picture, or no longer");
    let kept = shared.shelf.get(&id).ok_or_else(gone)?;
    let age = format!("private, immutable, max-age={}", kept.left().as_secs());
    let headers = [
        (CONTENT_TYPE, HeaderValue::from_static(kept.format.mime())),
        (
            CACHE_CONTROL,
            HeaderValue::from_str(&age).map_err(|error| Problem::internal("fault", error.to_string()))?,
        ),
    ];
    Ok((headers, kept.picture).into_response())
}
