//! Every route, said once: for the router, for who may pass, and for `/openapi.json`.

use std::sync::Arc;

use axum::Router;
use axum::extract::OriginalUri;
use axum::http::{Method, StatusCode};
use axum::middleware::from_fn_with_state;
use axum::routing::{MethodRouter, get, post};

use super::problem::Problem;
use super::state::Shared;
use super::{edits, gate, generations, models, openapi, page, status};

/// What a route wants before it does anything.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Access {
    /// Nothing.
    Open,
    /// The key, where there is one.
    Key,
    /// The key, and an engine that takes jobs.
    Engine,
}

pub(super) struct Route {
    pub(super) method: &'static str,
    /// As the router has it.
    pub(super) path: &'static str,
    pub(super) access: Access,
    pub(super) about: &'static str,
    handler: fn() -> MethodRouter<Arc<Shared>>,
}

macro_rules! route {
    ($method:literal, $path:literal, $access:ident, $handler:expr, $about:literal) => {
        Route { method: $method, path: $path, access: Access::$access, about: $about, handler: || $handler }
    };
}

pub(super) const GENERATIONS: &str = "/v1/images/generations";
pub(super) const EDITS: &str = "/v1/images/edits";

pub(super) const ROUTES: [Route; 15] = [
    route!(
        "POST",
        "/v1/images/generations",
        Engine,
        post(generations::generate),
        "Draw pictures of a prompt."
    ),
    route!("POST", "/v1/images/edits", Engine, post(edits::edit), "Draw pictures that begin with pictures."),
    route!("GET", "/v1/images/{id}/content", Open, get(status::content), "A picture by its address."),
    route!("GET", "/v1/models", Engine, get(models::list), "The model that there is."),
    route!("GET", "/v1/models/{*id}", Engine, get(models::retrieve), "A model by its name."),
    route!("GET", "/health", Open, get(status::health), "Whether the process is of use."),
    route!("GET", "/ready", Open, get(status::ready), "Whether jobs are taken."),
    route!("GET", "/metrics", Key, get(status::metrics), "Numbers for Prometheus."),
    route!("GET", "/openapi.json", Open, get(openapi::answer), "This."),
    route!("GET", "/", Open, get(page::index), "A page to draw with."),
    route!("GET", "/page.css", Open, get(page::style), "The page's style."),
    route!("GET", "/page.js", Open, get(page::script), "The page's script."),
    route!("GET", "/history.js", Open, get(page::history), "A part of the page's script."),
    route!("GET", "/server.js", Open, get(page::server), "A part of the page's script."),
    route!("GET", "/start.js", Open, get(page::start), "A part of the page's script."),
];

pub(super) fn router(shared: Arc<Shared>) -> Router {
    let routed =
        ROUTES.iter().fold(Router::new(), |router, route| router.route(route.path, (route.handler)()));
    routed
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        .layer(from_fn_with_state(shared.clone(), gate::pass))
        .with_state(shared)
}

async fn no_route(OriginalUri(uri): OriginalUri) -> Problem {
    Problem::not_found("not_found", format!("there is nothing at {}; see /openapi.json", uri.path()))
}

async fn no_method(method: Method, OriginalUri(uri): OriginalUri) -> Problem {
    let text = format!("{} does not answer {method}; see /openapi.json", uri.path());
    Problem::http(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", text)
}
