//! What every request passes: it is named, counted and spoken of; strangers are turned away; faults are answered.

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

use super::body;
use super::metrics::Asked;
use super::options::Options;
use super::problem::Problem;
use super::routes::{Access, ROUTES, Route};
use super::shape::shorten;
use super::shelf::random_id;
use super::state::{ActiveGuard, Phase, Shared};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// What a page elsewhere may read of an answer.
const EXPOSED: HeaderValue = HeaderValue::from_static("x-request-id, x-should-retry, retry-after");
/// The client left before its answer began: nginx's status for it.
const LEFT: u16 = 499;
/// Methods that metrics have a name for.
const METHODS: [&str; 7] = ["GET", "HEAD", "POST", "OPTIONS", "PUT", "DELETE", "PATCH"];

/// Around every route, and around there being none.
pub(super) async fn pass(State(shared): State<Arc<Shared>>, request: Request, next: Next) -> Response {
    let id = request_id(request.headers());
    let route = route_of(&request);
    let mut seen = Seen::new(&shared, route, request.method());
    let client = request.extensions().get::<ConnectInfo<SocketAddr>>().map(|ConnectInfo(at)| at.to_string());
    let span = info_span!(
        "request",
        id,
        client,
        method = seen.asked.method,
        route = seen.asked.route,
        path = shorten(request.uri().path()),
        status = tracing::field::Empty,
        job = tracing::field::Empty
    );
    let active = shared.active.enter();
    // Whoever asks a server that drains how it is keeps it from nothing.
    let active = (shared.phase() < Phase::Draining).then_some(active);
    let origin = request.headers().get(ORIGIN).cloned();
    let (request, lent) = body::lend(request);
    let answered = answer(&shared, route, request, next).instrument(span.clone());
    let mut response = answered.await.unwrap_or_else(IntoResponse::into_response);
    let status = response.status();
    // Of a body that came too slowly, more would come no faster.
    if (status.is_client_error() || status.is_server_error()) && status != StatusCode::REQUEST_TIMEOUT {
        lent.discard().await;
    }
    let headers = response.headers_mut();
    if let Ok(id) = HeaderValue::from_str(&id) {
        headers.insert(REQUEST_ID, id);
    }
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    if let Some(origin) = origin.filter(|origin| is_friend(&shared.options, origin)) {
        headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
        headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
        headers.append(VARY, HeaderValue::from_static("origin"));
    }
    if shared.phase() >= Phase::Draining || status == StatusCode::REQUEST_TIMEOUT {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    seen.asked.status = status.as_u16();
    let _span = span.entered();
    seen.say();
    response.map(|body| Body::new(Counted { body, _active: active }))
}

async fn answer(
    shared: &Shared,
    route: Option<&Route>,
    request: Request,
    next: Next,
) -> Result<Response, Problem> {
    let headers = request.headers();
    check_host(&shared.options, headers)?;
    if let Some(preflight) = preflight(&shared.options, request.method(), headers) {
        return Ok(preflight);
    }
    check_origin(&shared.options, request.method(), headers)?;
    let access = route.map_or(Access::Open, |route| route.access);
    if access != Access::Open {
        check_key(&shared.options, headers)?;
    }
    if access == Access::Engine {
        shared.served()?;
    }
    // What a handler leaves behind when it panics is its own request's alone.
    AssertUnwindSafe(next.run(request)).catch_unwind().await.map_err(|panic| {
        let text = panic.downcast_ref::<&str>().map(|text| text.to_string());
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
        error!(text, "a fault while a request was answered");
        Problem::internal("fault", "a fault in the server").again(1)
    })
}

/// The client's own, if it is a name and no more; else a new one.
fn request_id(headers: &HeaderMap) -> String {
    let sane = |id: &&str| {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:".contains(&byte);
        (1..=128).contains(&id.len()) && id.bytes().all(plain)
    };
    let own = headers.get(REQUEST_ID).and_then(|id| id.to_str().ok()).filter(sane);
    own.map_or_else(|| format!("req_{}", random_id()), str::to_string)
}

fn route_of(request: &Request) -> Option<&'static Route> {
    let path = request.extensions().get::<MatchedPath>()?;
    ROUTES.iter().find(|route| path.as_str().ends_with(route.path))
}

/// A page in a browser must not reach a server on its user's machine by a name that it has pointed there.
fn check_host(options: &Options, headers: &HeaderMap) -> Result<(), Problem> {
    let Some(host) = headers.get(HOST).filter(|_| options.check_hosts) else { return Ok(()) };
    let host = host.to_str().unwrap_or_default();
    let name = host.rsplit_once(':').filter(|(_, port)| port.bytes().all(|b| b.is_ascii_digit()));
    let name = name.map_or(host, |(name, _)| name).trim_end_matches('.');
    let address = name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
    let own = name.eq_ignore_ascii_case("localhost")
        || options.hosts.iter().any(|own| own.eq_ignore_ascii_case(name) || own.eq_ignore_ascii_case(host));
    if address || own {
        return Ok(());
    }
    let text = format!("this server is not called {host:?}; --allowed-host gives it another name");
    Err(Problem::forbidden("unknown_host", text))
}

/// Nor may a page elsewhere send what a browser sends without asking. Where there is a key, no page has it.
fn check_origin(options: &Options, method: &Method, headers: &HeaderMap) -> Result<(), Problem> {
    let safe = [Method::GET, Method::HEAD, Method::OPTIONS].contains(method);
    let Some(origin) = headers.get(ORIGIN).filter(|_| !safe && options.api_key.is_none()) else {
        return Ok(());
    };
    let text = origin.to_str().unwrap_or_default();
    let at = text.split_once("://").map_or(text, |(_, at)| at);
    let same = headers.get(HOST).is_some_and(|host| host.as_bytes().eq_ignore_ascii_case(at.as_bytes()));
    if same || is_friend(options, origin) {
        return Ok(());
    }
    let text = format!("pages of {text:?} may not call this server; --cors-origin lets them");
    Err(Problem::forbidden("unknown_origin", text))
}

fn is_friend(options: &Options, origin: &HeaderValue) -> bool {
    options.cors_origins.iter().any(|friend| friend == "*" || friend.as_bytes() == origin.as_bytes())
}

/// The answer to a browser that asks what a page may send.
fn preflight(options: &Options, method: &Method, headers: &HeaderMap) -> Option<Response> {
    let origin = headers.get(ORIGIN).filter(|origin| is_friend(options, origin))?;
    if method != Method::OPTIONS || !headers.contains_key(ACCESS_CONTROL_REQUEST_METHOD) {
        return None;
    }
    let mut allowed = HeaderMap::new();
    allowed.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin.clone());
    allowed.insert(ACCESS_CONTROL_ALLOW_METHODS, HeaderValue::from_static("GET, POST"));
    allowed.insert(ACCESS_CONTROL_MAX_AGE, HeaderValue::from_static("600"));
    if let Some(wanted) = headers.get(ACCESS_CONTROL_REQUEST_HEADERS) {
        allowed.insert(ACCESS_CONTROL_ALLOW_HEADERS, wanted.clone());
    }
    Some((StatusCode::NO_CONTENT, allowed).into_response())
}

pub(super) fn check_key(options: &Options, headers: &HeaderMap) -> Result<(), Problem> {
    let Some(key) = &options.api_key else { return Ok(()) };
    let Some(sent) = headers.get(AUTHORIZATION).map(HeaderValue::as_bytes) else {
        return Err(Problem::unauthorized("an API key is needed: `Authorization: Bearer KEY`"));
    };
    let bearer = sent.split_at_checked(7).filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"bearer "));
    let right = bearer.is_some_and(|(_, sent)| bool::from(sent.trim_ascii().ct_eq(key.as_bytes())));
    if right { Ok(()) } else { Err(Problem::unauthorized("the API key is wrong")) }
}

/// A request, from its first byte to the first of its answer. Dropped before, its client has left.
struct Seen {
    shared: Arc<Shared>,
    asked: Asked,
    begun: Instant,
}

impl Seen {
    fn new(shared: &Arc<Shared>, route: Option<&'static Route>, method: &Method) -> Self {
        let known = METHODS.into_iter().find(|known| *known == method.as_str());
        let asked = Asked {
            route: route.map_or("none", |route| route.path),
            method: known.unwrap_or("other"),
            status: LEFT,
        };
        Self { shared: shared.clone(), asked, begun: Instant::now() }
    }

    fn say(&self) {
        let (status, seconds) = (self.asked.status, self.begun.elapsed().as_secs_f64());
        Span::current().record("status", status);
        // Probes come every few seconds.
        if self.asked.route.starts_with("/v1/") || status == 500 {
            info!(seconds, "answered");
        } else {
            debug!(seconds, "answered");
        }
    }
}

impl Drop for Seen {
    fn drop(&mut self) {
        self.shared.metrics.answered(self.asked.clone(), self.begun.elapsed());
    }
}

/// A body that counts as long as it is not sent.
struct Counted {
    body: Body,
    _active: Option<ActiveGuard>,
}

impl http_body::Body for Counted {
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
