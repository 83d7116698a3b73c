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
    pub(super) answer: Answer,
    /// What its errors may be, beside those that all routes of its kind have.
    pub(super) statuses: &'static [u16],
    handler: fn() -> MethodRouter<Arc<Shared>>,
}

/// What a route answers with.
pub(super) struct Answer {
    pub(super) types: &'static [&'static str],
    /// For JSON, the schema's name in `/openapi.json`.
    pub(super) schema: &'static str,
}

macro_rules! route {
    ($method:literal, $path:expr, $access:ident, $handler:expr, $answer:expr, $statuses:expr, $about:literal) => {
        Route {
            method: $method,
            path: $path,
            access: Access::$access,
            about: $about,
            answer: $answer,
            statuses: &$statuses,
            handler: || $handler,
        }
    };
}

pub(super) const GENERATIONS: &str = "/v1/images/generations";
pub(super) const EDITS: &str = "/v1/images/edits";
const CONTENT: &str = "/v1/images/{id}/content";

const fn json(schema: &'static str) -> Answer {
    Answer { types: &["application/json"], schema }
}

const fn plain(types: &'static [&'static str]) -> Answer {
    Answer { types, schema: "" }
}
const PICTURE: Answer = plain(&["image/png", "image/jpeg", "image/webp"]);
const TEXT: Answer = plain(&["text/plain"]);
const HTML: Answer = plain(&["text/html"]);
const STYLE: Answer = plain(&["text/css"]);
const SCRIPT: Answer = plain(&["text/javascript"]);
/// Of what draws.
const DRAWING: [u16; 7] = [400, 404, 408, 413, 415, 429, 504];

#[rustfmt::skip]
pub(super) const ROUTES: [Route; 15] = [
    route!("POST", GENERATIONS, Engine, post(generations::generate), json("Images"), DRAWING, "Draw pictures of a prompt."),
    route!("POST", EDITS, Engine, post(edits::edit), json("Images"), DRAWING, "Draw pictures that begin with pictures."),
    route!("GET", CONTENT, Open, get(status::content), PICTURE, [400, 404], "A picture by the address that an answer named."),
    route!("GET", "/v1/models", Engine, get(models::list), json("Models"), [], "The model that there is."),
    route!("GET", "/v1/models/{*id}", Engine, get(models::retrieve), json("Model"), [400, 404], "A model by its name."),
    route!("GET", "/health", Open, get(status::health), json("Status"), [503], "Whether the process is of use."),
    route!("GET", "/ready", Open, get(status::ready), json("Status"), [503], "Whether jobs are taken."),
    route!("GET", "/metrics", Key, get(status::metrics), TEXT, [], "Numbers for Prometheus."),
    route!("GET", "/openapi.json", Open, get(openapi::answer), json("Document"), [], "This."),
    route!("GET", "/", Open, get(page::index), HTML, [], "A page to draw with."),
    route!("GET", "/page.css", Open, get(page::style), STYLE, [], "The page's style."),
    route!("GET", "/page.js", Open, get(page::script), SCRIPT, [], "The page's script."),
    route!("GET", "/history.js", Open, get(page::history), SCRIPT, [], "A part of the page's script."),
    route!("GET", "/server.js", Open, get(page::server), SCRIPT, [], "A part of the page's script."),
    route!("GET", "/start.js", Open, get(page::start), SCRIPT, [], "A part of the page's script."),
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
    let near = near(uri.path()).map_or(String::new(), |near| format!("; is {near} meant?"));
    Problem::not_found("not_found", format!("there is nothing at {}{near}; see /openapi.json", uri.path()))
}

/// The route that is meant by an address where nothing is: with another beginning or end, as clients have it whose base
/// lacks `/v1` or has it twice, or of another program.
fn near(path: &str) -> Option<&'static str> {
    let words = |path: &str| -> Vec<String> {
        let words = path.split('/').map(str::to_ascii_lowercase);
        words.filter(|word| !["", "v1", "api"].contains(&word.as_str())).collect()
    };
    let asked = words(path);
    match asked.last()?.as_str() {
        "txt2img" => Some(GENERATIONS),
        "img2img" | "variations" => Some(EDITS),
        _ => ROUTES.iter().map(|route| route.path).find(|path| words(path) == asked),
    }
}

async fn no_method(method: Method, OriginalUri(uri): OriginalUri) -> Problem {
    let text = format!("{} does not answer {method}; see /openapi.json", uri.path());
    Problem::http(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_where_nothing_is_has_a_neighbour() {
        for (path, wanted) in [
            ("/images/generations", GENERATIONS),
            ("/v1/v1/images/generations", GENERATIONS),
            ("/v1/images/generations/", GENERATIONS),
            ("/api/v1/images/edits", EDITS),
            ("/V1/Images/Edits", EDITS),
            ("/v1/images/variations", EDITS),
            ("/sdapi/v1/txt2img", GENERATIONS),
            ("/sdapi/v1/img2img", EDITS),
            ("/models", "/v1/models"),
            ("/v1/models/", "/v1/models"),
            ("/HEALTH", "/health"),
            ("/v1/health", "/health"),
        ] {
            assert_eq!(near(path), Some(wanted), "{path}");
        }
        for path in ["/", "//", "/v1", "/v1/", "/nowhere", "/favicon.ico", "/v1/chat/completions"] {
            assert_eq!(near(path), None, "{path}");
        }
    }
}
