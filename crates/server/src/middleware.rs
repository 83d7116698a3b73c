//! The middleware around all routes: request ids, metrics and logs, checks of host, origin and key, CORS, and panics.
//!
//! None of it is a layer of `tower-http`: the one for CORS answers every OPTIONS request itself, with 200, the one for request
//! ids takes whatever a client sends, the limits of bodies and times are one for all requests and know no budget, and what they
//! answer is plain text, not an error as OpenAI's clients read it.

use std::net::{IpAddr, SocketAddr};
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use axum::body::{Body, Bytes};
use axum::extract::{ConnectInfo, MatchedPath, Request, State};
use axum::http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_HEADERS,
    ACCESS_CONTROL_REQUEST_METHOD, AUTHORIZATION, CONNECTION, HOST, ORIGIN, VARY, X_CONTENT_TYPE_OPTIONS,
};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures_util::FutureExt;
use http_body::{Frame, SizeHint};
use subtle::ConstantTimeEq;
use tracing::{Instrument, Span, debug, error, info, info_span};

use crate::api_error::{ApiError, shorten};
use crate::body::keep_unread_body;
use crate::image_store::random_id;
use crate::metrics::RequestLabels;
use crate::options::Options;
use crate::routes::{Access, ROUTES, Route};
use crate::state::{ActiveRequest, Phase, ServerState};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// The headers of a response that pages of other origins may read.
const EXPOSED_HEADERS: HeaderValue = HeaderValue::from_static("x-request-id, x-should-retry, retry-after");
/// nginx's status for a client that disconnects before its response begins.
const CLIENT_CLOSED_REQUEST: u16 = 499;
/// The methods that metrics call by their names.
const METHODS: [&str; 7] = ["GET", "HEAD", "POST", "OPTIONS", "PUT", "DELETE", "PATCH"];

/// Handles every request, also where there is no route.
pub(crate) async fn handle(State(state): State<Arc<ServerState>>, request: Request, next: Next) -> Response {
    let id = request_id(request.headers());
    let route = matched_route(&request);
    let mut log = RequestLog::new(&state, route, request.method());
    let client = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|ConnectInfo(at)| at.to_string());
    let span = info_span!(
        "request",
        id,
        client,
        method = log.labels.method,
        route = log.labels.route,
        path = shorten(request.uri().path()),
        status = tracing::field::Empty,
        job = tracing::field::Empty
    );
    let active = state.active_requests.enter();
    // A server that drains does not wait for requests that came later, such as probes.
    let active = (state.phase() < Phase::Draining).then_some(active);
    let origin = request.headers().get(ORIGIN).cloned();
    let (request, unread_body) = keep_unread_body(request);
    let respond = respond(&state, route, request, next).instrument(span.clone());
    let mut response = respond.await.unwrap_or_else(IntoResponse::into_response);
    let status = response.status();
    // The rest of a body that came too slowly would come no faster.
    if (status.is_client_error() || status.is_server_error()) && status != StatusCode::REQUEST_TIMEOUT {
        unread_body.discard().await;
    }
    let headers = response.headers_mut();
    if let Ok(id) = HeaderValue::from_str(&id) {
        headers.insert(REQUEST_ID, id);
    }
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if let Some(origin) = origin.filter(|origin| is_allowed_origin(&state.options, origin)) {
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED_HEADERS);
        headers.append(VARY, HeaderValue::from_static("origin"));
    }
    if state.phase() >= Phase::Draining || status == StatusCode::REQUEST_TIMEOUT {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    log.labels.status = status.as_u16();
    let _span = span.entered();
    log.write();
    response.map(|body| Body::new(ActiveBody { body, _active: active }))
}

async fn respond(
    state: &ServerState,
    route: Option<&Route>,
    request: Request,
    next: Next,
) -> Result<Response, ApiError> {
    let headers = request.headers();
    check_host(&state.options, headers)?;
    if let Some(preflight) = preflight(&state.options, request.method(), headers) {
        return Ok(preflight);
    }
    check_origin(&state.options, request.method(), headers)?;
    let access = route.map_or(Access::Open, |route| route.access);
    if access != Access::Open {
        check_key(&state.options, headers)?;
    }
    if access == Access::Engine {
        state.ready_model()?;
    }
    // A handler that panics leaves nothing behind that other requests share.
    AssertUnwindSafe(next.run(request)).catch_unwind().await.map_err(|panic| {
        let text = panic.downcast_ref::<&str>().map(|text| text.to_string());
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
        error!(text, "a fault while a request was answered");
        ApiError::internal("fault", "a fault in the server").retry_after(1)
    })
}

/// Returns the client's request id if it is plain and short, else a new one.
fn request_id(headers: &HeaderMap) -> String {
    let is_plain = |id: &&str| {
        let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte);
        (1..=128).contains(&id.len()) && id.bytes().all(is_allowed)
    };
    let id = headers.get(REQUEST_ID).and_then(|id| id.to_str().ok()).filter(is_plain);
    id.map_or_else(|| format!("req_{}", random_id()), str::to_string)
}

fn matched_route(request: &Request) -> Option<&'static Route> {
    let path = request.extensions().get::<MatchedPath>()?;
    ROUTES.iter().find(|route| path.as_str().ends_with(route.path))
}

/// Checks the host's name, so that a page in a browser cannot reach a server on its user's machine by a name that the page's
/// owner has pointed there.
fn check_host(options: &Options, headers: &HeaderMap) -> Result<(), ApiError> {
    let Some(host) = headers.get(HOST).filter(|_| options.check_hosts) else { return Ok(()) };
    let host = host.to_str().unwrap_or_default();
    let name = host.rsplit_once(':').filter(|(_, port)| port.bytes().all(|b| b.is_ascii_digit()));
    let name = name.map_or(host, |(name, _)| name).trim_end_matches('.');
    let is_address = name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
    let is_own_name = name.eq_ignore_ascii_case("localhost")
        || options
            .hosts
            .iter()
            .any(|known| known.eq_ignore_ascii_case(name) || known.eq_ignore_ascii_case(host));
    if is_address || is_own_name {
        return Ok(());
    }
    let text = format!("this server is not called {host:?}; --allowed-host gives it another name");
    Err(ApiError::forbidden("unknown_host", text))
}

/// Checks the origin, so that pages of other origins cannot send what a browser sends without a preflight. A server with a
/// key need not check it, since no page knows the key.
fn check_origin(options: &Options, method: &Method, headers: &HeaderMap) -> Result<(), ApiError> {
    let is_safe = [Method::GET, Method::HEAD, Method::OPTIONS].contains(method);
    let Some(origin) = headers.get(ORIGIN).filter(|_| !is_safe && options.api_key.is_none()) else {
        return Ok(());
    };
    let text = origin.to_str().unwrap_or_default();
    let authority = text.split_once("://").map_or(text, |(_, authority)| authority);
    let is_same =
        headers.get(HOST).is_some_and(|host| host.as_bytes().eq_ignore_ascii_case(authority.as_bytes()));
    if is_same || is_allowed_origin(options, origin) {
        return Ok(());
    }
    let text = format!("pages of {text:?} may not call this server; --cors-origin lets them");
    Err(ApiError::forbidden("unknown_origin", text))
}

fn is_allowed_origin(options: &Options, origin: &HeaderValue) -> bool {
    options.cors_origins.iter().any(|allowed| allowed == "*" || allowed.as_bytes() == origin.as_bytes())
}

/// Returns the response to a browser's preflight request.
fn preflight(options: &Options, method: &Method, headers: &HeaderMap) -> Option<Response> {
    let origin = headers.get(ORIGIN).filter(|origin| is_allowed_origin(options, origin))?;
    if method != Method::OPTIONS || !headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD) {
        return None;
    }
    let mut response_headers = HeaderMap::new();
    response_headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
    response_headers.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST"));
    response_headers.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
    if let Some(requested) = headers.get(ACCESS_CONTROL_REQUEST_HEADERS) {
        response_headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, requested.clone());
    }
    Some((StatusCode::NO_CONTENT, response_headers).into_response())
}

/// Checks the API key, if the server has one.
pub(crate) fn check_key(options: &Options, headers: &HeaderMap) -> Result<(), ApiError> {
    let Some(key) = &options.api_key else { return Ok(()) };
    let Some(sent) = headers.get(AUTHORIZATION).map(HeaderValue::as_bytes) else {
        return Err(ApiError::unauthorized("an API key is needed: `Authorization: Bearer KEY`"));
    };
    let bearer = sent.split_at_checked(7).filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"bearer "));
    let is_right = bearer.is_some_and(|(_, sent)| bool::from(sent.trim_ascii().ct_eq(key.as_bytes())));
    if is_right { Ok(()) } else { Err(ApiError::unauthorized("the API key is wrong")) }
}

/// Logs and counts a request, from its first byte to the first of its response. If it is dropped earlier, the client has
/// disconnected.
struct RequestLog {
    state: Arc<ServerState>,
    labels: RequestLabels,
    started: Instant,
}

impl RequestLog {
    fn new(state: &Arc<ServerState>, route: Option<&'static Route>, method: &Method) -> Self {
        let known = METHODS.into_iter().find(|known| *known == method.as_str());
        let labels = RequestLabels {
            route: route.map_or("none", |route| route.path),
            method: known.unwrap_or("other"),
            status: CLIENT_CLOSED_REQUEST,
        };
        Self { state: state.clone(), labels, started: Instant::now() }
    }

    fn write(&self) {
        let (status, seconds) = (self.labels.status, self.started.elapsed().as_secs_f64());
        Span::current().record("status", status);
        // Probes come every few seconds.
        if self.labels.route.starts_with("/v1/") || status == 500 {
            info!(seconds, "answered");
        } else {
            debug!(seconds, "answered");
        }
    }
}

impl Drop for RequestLog {
    fn drop(&mut self) {
        self.state.metrics.observe_request(&self.labels, self.started.elapsed());
    }
}

/// A response's body. The request is active until it is sent.
struct ActiveBody {
    body: Body,
    _active: Option<ActiveRequest>,
}

impl http_body::Body for ActiveBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
