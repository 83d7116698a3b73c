//! What went wrong, in the one form that all answers have for it.

use std::fmt;

use axum::http::header::{RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::{Json, body::Body};
use serde::Serialize;

use tch_flux::Error;

/// The package's clients repeat some errors unless this says `false`.
pub(super) const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");

/// An error as a client sees it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Problem {
    pub(super) status: StatusCode,
    pub(super) detail: Detail,
    /// Seconds after which the same request may fare better; `None` where it would fail again.
    pub(super) again: Option<u64>,
}

/// What stands under `error`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Detail {
    message: String,
    r#type: &'static str,
    param: Option<String>,
    code: Option<&'static str>,
}

/// The whole body.
#[derive(Serialize)]
struct Form<'a> {
    error: &'a Detail,
}

impl Problem {
    fn new(status: StatusCode, r#type: &'static str, code: &'static str, message: impl Into<String>) -> Self {
        let detail = Detail { message: message.into(), r#type, param: None, code: Some(code) };
        Self { status, detail, again: None }
    }

    /// A request that is wrong in itself.
    pub(super) fn invalid(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", code, message)
    }

    /// A field whose value is wrong.
    pub(super) fn value(param: &str, message: impl Into<String>) -> Self {
        Self::invalid("invalid_value", message).param(param)
    }

    pub(super) fn unauthorized(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "authentication_error", "invalid_api_key", message)
    }

    pub(super) fn forbidden(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "permission_error", code, message)
    }

    pub(super) fn not_found(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "invalid_request_error", code, message)
    }

    /// A request that HTTP has a word for: 405, 408, 413, 415.
    pub(super) fn http(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self::new(status, "invalid_request_error", code, message)
    }

    pub(super) fn busy(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", code, message)
    }

    pub(super) fn unavailable(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", code, message)
    }

    pub(super) fn internal(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", code, message)
    }

    pub(super) fn too_slow(message: impl Into<String>) -> Self {
        Self::new(StatusCode::GATEWAY_TIMEOUT, "server_error", "timeout", message)
    }

    /// Names the field.
    pub(super) fn param(mut self, param: &str) -> Self {
        self.detail.param = Some(param.into());
        self
    }

    /// The same request may fare better after so many seconds.
    pub(super) fn again(mut self, seconds: u64) -> Self {
        // The package follows what it is told up to a minute.
        self.again = Some(seconds.clamp(1, 60));
        self
    }

    /// What an engine says of a job. `wait` is how long a place in the queue takes to come free.
    pub(super) fn of_job(error: &Error, wait: u64) -> Self {
        let text = error.to_string();
        match error {
            Error::Full { .. } => Self::busy("queue_full", text).again(wait),
            Error::Stopped => Self::unavailable("stopping", "the server is stopping").again(1),
            Error::Request(_) => Self::invalid("invalid_value", text),
            Error::TooLarge { .. } => Self::invalid("too_large", text).param("size"),
            Error::OutOfMemory(_) => Self::unavailable("out_of_memory", text).again(wait),
            Error::DeviceLost { .. } => Self::unavailable("device_lost", text).again(wait),
            // A fault may lie in the request, so it is repeated at the client's own pace.
            Error::Panicked(_) => Self::internal("fault", text).again(1),
            Error::Cancelled => Self::unavailable("cancelled", "the job was cancelled").again(1),
            // Weights that are damaged or gone stay so.
            _ => Self::internal("failed", text),
        }
    }

    /// `{"error": {…}}`.
    pub(super) fn body(&self) -> Vec<u8> {
        // Text and numbers can always be written.
        serde_json::to_vec(&Form { error: &self.detail }).unwrap_or_default()
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.detail.message)
    }
}

impl std::error::Error for Problem {}

impl IntoResponse for Problem {
    fn into_response(self) -> Response<Body> {
        let mut response = (self.status, Json(Form { error: &self.detail })).into_response();
        let headers = response.headers_mut();
        match self.again {
            Some(seconds) => {
                headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
            }
            None => {
                headers.insert(SHOULD_RETRY, HeaderValue::from_static("false"));
            }
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        response
    }
}
