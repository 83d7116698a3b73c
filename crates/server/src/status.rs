//! What the server says of itself: its health, its metrics, its model.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::HeaderValue;
use axum::http::header::CONTENT_TYPE;
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use crate::api_error::ApiError;
use crate::capabilities::Capabilities;
use crate::metrics::Gauges;
use crate::model::Model;
use crate::state::{Phase, ServerState};

#[derive(Serialize)]
struct Health {
    status: &'static str,
}

/// `GET /health`: whether the process works, or will once it has loaded.
pub(crate) async fn health(State(state): State<Arc<ServerState>>) -> Result<Response, ApiError> {
    if state.phase() == Phase::Ready {
        state.ready_model()?;
    }
    Ok(Json(Health { status: "ok" }).into_response())
}

/// `GET /ready`: whether the server takes jobs.
pub(crate) async fn ready(State(state): State<Arc<ServerState>>) -> Result<Response, ApiError> {
    state.ready_model()?;
    Ok(Json(Health { status: "ready" }).into_response())
}

/// `GET /metrics`: the metrics in Prometheus' text format.
pub(crate) async fn metrics(State(state): State<Arc<ServerState>>) -> Response {
    let text = [(CONTENT_TYPE, HeaderValue::from_static("text/plain; version=0.0.4"))];
    let gauges = Gauges {
        engine: state.engine().map(|engine| engine.stats()).unwrap_or_default(),
        active_requests: state.active_requests.count(),
        upload_bytes: state.upload_budget.taken(),
        stored_image_bytes: state.image_store.bytes(),
        devices: state.devices(),
    };
    (text, state.metrics.text(&gauges)).into_response()
}

/// The model at `/v1/models`.
#[derive(Serialize)]
struct ModelEntry<'a> {
    id: &'a str,
    object: &'static str,
    created: u64,
    owned_by: &'static str,
    /// The names that requests use for the model's ControlNets.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    controlnets: Vec<&'a str>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    ip_adapters: Vec<&'a str>,
}

#[derive(Serialize)]
struct ModelList<'a> {
    object: &'static str,
    data: Vec<ModelEntry<'a>>,
}

fn model_entry<'a>(model: &'a Model, id: &'a str) -> ModelEntry<'a> {
    let Capabilities { controlnets, ip_adapters, .. } = &model.capabilities;
    ModelEntry {
        id,
        object: "model",
        created: model.created,
        owned_by: "tch-flux",
        controlnets: controlnets.iter().map(|net| net.name.as_str()).collect(),
        ip_adapters: ip_adapters.iter().map(|adapter| adapter.name.as_str()).collect(),
    }
}

/// `GET /v1/models`
pub(crate) async fn models(State(state): State<Arc<ServerState>>) -> Result<Response, ApiError> {
    let model = &state.ready_model()?.model;
    Ok(Json(ModelList { object: "list", data: vec![model_entry(model, &model.name)] }).into_response())
}

/// `GET /v1/models/{id}`
pub(crate) async fn model(
    State(state): State<Arc<ServerState>>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let model = &state.ready_model()?.model;
    model.check_name(Some(&id))?;
    Ok(Json(model_entry(model, &id)).into_response())
}
