//! The page at `/`, and its files.

use axum::http::header::{
    CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, REFERRER_POLICY, X_FRAME_OPTIONS,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue};
use axum::response::{IntoResponse, Response};

/// The page loads nothing from other origins, has no inline scripts or styles, and is shown in no frame.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; \
                      connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// Defines the handler of a file of the page.
macro_rules! file {
    ($handler:ident, $name:literal, $type:literal) => {
        pub(crate) async fn $handler() -> Response {
            file_response($type, include_str!(concat!("page/", $name)))
        }
    };
}

file!(index, "index.html", "text/html; charset=utf-8");
file!(style, "page.css", "text/css; charset=utf-8");
file!(script, "page.js", "text/javascript; charset=utf-8");
file!(history, "history.js", "text/javascript; charset=utf-8");
file!(server, "server.js", "text/javascript; charset=utf-8");
file!(settings, "settings.js", "text/javascript; charset=utf-8");
file!(start, "start.js", "text/javascript; charset=utf-8");

fn file_response(r#type: &'static str, text: &'static str) -> Response {
    let mut headers = HeaderMap::new();
    let mut set = |name: HeaderName, value| headers.insert(name, HeaderValue::from_static(value));
    set(CONTENT_TYPE, r#type);
    set(CONTENT_SECURITY_POLICY, POLICY);
    set(X_FRAME_OPTIONS, "DENY");
    set(REFERRER_POLICY, "no-referrer");
    set(HeaderName::from_static("cross-origin-opener-policy"), "same-origin");
    set(CACHE_CONTROL, "no-cache");
    (headers, text).into_response()
}
