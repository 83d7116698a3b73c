//! Errors as clients see them, in the form of OpenAI's API, and the helpers that word them.

use std::fmt;

use axum::http::header::{RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderName, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use axum::{Json, body::Body};
use serde::Serialize;

use crate::fields::{field_name, worded};
use tch_flux::{Error, ParameterProblem};

/// Clients of the `openai` package repeat some requests after an error unless this says `false`.
pub(crate) const SHOULD_RETRY: HeaderName = HeaderName::from_static("x-should-retry");
/// The most characters of a client's text that an error repeats.
const QUOTED_CHARS: usize = 60;

/// An error as a client sees it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ApiError {
    pub(crate) status: StatusCode,
    pub(crate) detail: Detail,
    /// Seconds after which the same request may succeed; `None` where it would fail again.
    pub(crate) retry_after: Option<u64>,
}

/// The object under `error`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Detail {
    message: String,
    r#type: &'static str,
    param: Option<String>,
    code: Option<&'static str>,
}

/// The body of an error's response.
#[derive(Serialize)]
struct ErrorBody<'a> {
    error: &'a Detail,
}

impl ApiError {
    fn new(status: StatusCode, r#type: &'static str, code: &'static str, message: impl Into<String>) -> Self {
        let detail = Detail { message: message.into(), r#type, param: None, code: Some(code) };
        Self { status, detail, retry_after: None }
    }

    /// A request that is wrong in itself.
    pub(crate) fn invalid(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "invalid_request_error", code, message)
    }

    /// A field whose value is wrong.
    pub(crate) fn value(param: &str, message: impl Into<String>) -> Self {
        Self::invalid("invalid_value", message).param(param)
    }

    pub(crate) fn unauthorized(message: impl Into<String>) -> Self {
        Self::new(StatusCode::UNAUTHORIZED, "authentication_error", "invalid_api_key", message)
    }

    pub(crate) fn forbidden(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "permission_error", code, message)
    }

    pub(crate) fn not_found(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "invalid_request_error", code, message)
    }

    /// A wrong request for which HTTP has a status of its own: 405, 408, 413, 415.
    pub(crate) fn http(status: StatusCode, code: &'static str, message: impl Into<String>) -> Self {
        Self::new(status, "invalid_request_error", code, message)
    }

    pub(crate) fn busy(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", code, message)
    }

    pub(crate) fn unavailable(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "server_error", code, message)
    }

    pub(crate) fn internal(code: &'static str, message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "server_error", code, message)
    }

    pub(crate) fn timeout(message: impl Into<String>) -> Self {
        Self::new(StatusCode::GATEWAY_TIMEOUT, "server_error", "timeout", message)
    }

    /// Names the field that is wrong.
    pub(crate) fn param(mut self, param: &str) -> Self {
        self.detail.param = Some(param.into());
        self
    }

    /// Tells the client that the same request may succeed after so many seconds.
    pub(crate) fn retry_after(mut self, seconds: u64) -> Self {
        // The `openai` package obeys times of up to a minute.
        self.retry_after = Some(seconds.clamp(1, 60));
        self
    }

    /// Returns the error that clients see for the engine's. `wait` is how many seconds a place in the queue takes to
    /// become free.
    pub(crate) fn from_engine(error: &Error, wait: u64) -> Self {
        let text = error.to_string();
        match error {
            Error::Full { .. } => Self::busy("queue_full", text).retry_after(wait),
            Error::Stopped => Self::unavailable("stopping", "the server is stopping").retry_after(1),
            Error::Request(_) => Self::invalid("invalid_value", text),
            Error::Parameter(problem) => problem.as_ref().into(),
            Error::TooLarge { .. } => Self::invalid("too_large", text).param("size"),
            Error::OutOfMemory(_) => Self::unavailable("out_of_memory", text).retry_after(wait),
            Error::DeviceLost { .. } => Self::unavailable("device_lost", text).retry_after(wait),
            // A fault may lie in the request, so it is repeated at the client's own pace.
            Error::Panicked(_) => Self::internal("fault", text).retry_after(1),
            Error::Cancelled => Self::unavailable("cancelled", "the job was cancelled").retry_after(1),
            // Weights that are damaged or gone stay so.
            _ => Self::internal("failed", text),
        }
    }

    /// Returns the body: `{"error": {…}}`.
    pub(crate) fn body(&self) -> Vec<u8> {
        // Text and numbers can always be written.
        serde_json::to_vec(&ErrorBody { error: &self.detail }).unwrap_or_default()
    }
}

impl From<&ParameterProblem> for ApiError {
    fn from(problem: &ParameterProblem) -> Self {
        Self::value(field_name(problem.parameter()), worded(problem))
    }
}

impl From<ParameterProblem> for ApiError {
    fn from(problem: ParameterProblem) -> Self {
        Self::from(&problem)
    }
}

impl fmt::Display for ApiError {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(&self.detail.message)
    }
}

impl std::error::Error for ApiError {}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response<Body> {
        let mut response = (self.status, Json(ErrorBody { error: &self.detail })).into_response();
        let headers = response.headers_mut();
        match self.retry_after {
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

/// Shortens a text that a client sent, so that errors and logs stay readable.
pub(crate) fn shorten(text: &str) -> String {
    match text.char_indices().nth(QUOTED_CHARS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.into(),
    }
}

/// Returns the name that is most similar to this one, if any is similar enough to be meant.
pub(crate) fn nearest<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    // A very long name is compared by its beginning alone.
    let name = shorten(name);
    let (distance, nearest) = names.map(|other| (strsim::damerau_levenshtein(&name, other), other)).min()?;
    (distance <= nearest.len().div_ceil(3)).then_some(nearest)
}
