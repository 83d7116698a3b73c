//! Connects the table of routes to their handlers, and answers requests for which there is no route.

use std::sync::Arc;

use axum::Router;
use axum::extract::OriginalUri;
use axum::http::{Method, StatusCode};
use axum::middleware::from_fn_with_state;
use axum::routing::{MethodRouter, get, post};

use crate::api_error::ApiError;
use crate::routes::{EDITS, Endpoint, GENERATIONS, ROUTES};
use crate::state::ServerState;
use crate::{images, middleware, openapi, page, status};

/// Returns a router of all routes.
pub(crate) fn router(state: Arc<ServerState>) -> Router {
    let routes =
        ROUTES.iter().fold(Router::new(), |router, route| router.route(route.path, handler(route.endpoint)));
    routes
        .fallback(no_route)
        .method_not_allowed_fallback(no_method)
        .layer(from_fn_with_state(state.clone(), middleware::handle))
        .with_state(state)
}

fn handler(endpoint: Endpoint) -> MethodRouter<Arc<ServerState>> {
    match endpoint {
        Endpoint::Generations => post(images::generate),
        Endpoint::Edits => post(images::edit),
        Endpoint::ImageContent => get(images::content),
        Endpoint::Models => get(status::models),
        Endpoint::Model => get(status::model),
        Endpoint::Health => get(status::health),
        Endpoint::Ready => get(status::ready),
        Endpoint::Metrics => get(status::metrics),
        Endpoint::OpenApi => get(openapi::document),
        Endpoint::PageIndex => get(page::index),
        Endpoint::PageStyle => get(page::style),
        Endpoint::PageScript => get(page::script),
        Endpoint::PageHistory => get(page::history),
        Endpoint::PageServer => get(page::server),
        Endpoint::PageSettings => get(page::settings),
        Endpoint::PageStart => get(page::start),
    }
}

/// The response where there is no route.
async fn no_route(OriginalUri(uri): OriginalUri) -> ApiError {
    let hint = nearest_route(uri.path()).map_or(String::new(), |path| format!("; is {path} meant?"));
    ApiError::not_found("not_found", format!("there is nothing at {}{hint}; see /openapi.json", uri.path()))
}

/// Returns the route that is meant by an address where there is none: with another beginning or end, as clients send whose
/// base lacks `/v1` or has it twice, or of another program's API.
fn nearest_route(path: &str) -> Option<&'static str> {
    let words = |path: &str| -> Vec<String> {
        let words = path.split('/').map(str::to_ascii_lowercase);
        words.filter(|word| !["", "v1", "api"].contains(&word.as_str())).collect()
    };
    let words_of_path = words(path);
    match words_of_path.last()?.as_str() {
        "txt2img" => Some(GENERATIONS),
        "img2img" | "variations" => Some(EDITS),
        _ => ROUTES.iter().map(|route| route.path).find(|path| words(path) == words_of_path),
    }
}

/// The response where a route does not answer the request's method.
async fn no_method(method: Method, OriginalUri(uri): OriginalUri) -> ApiError {
    let text = format!("{} does not answer {method}; see /openapi.json", uri.path());
    ApiError::http(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_without_a_route_suggests_the_nearest_one() {
        for (path, expected) in [
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
            assert_eq!(nearest_route(path), Some(expected), "{path}");
        }
        for path in ["/", "//", "/v1", "/v1/", "/nowhere", "/favicon.ico", "/v1/chat/completions"] {
            assert_eq!(nearest_route(path), None, "{path}");
        }
    }
}
