//! Reads the bodies of requests, within limits of bytes and of time.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::Request;
use axum::http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, EXPECT};
use axum::http::{HeaderMap, StatusCode};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout, timeout_at};

use crate::api_error::ApiError;
use crate::state::{Charge, ServerState};

/// How much of an unread body is read after an error: a client that still writes would not see the response.
const DISCARDED_BYTES: usize = 256 << 20;
const DISCARDED_TIME: Duration = Duration::from_secs(10);
const DISCARDED_PAUSE: Duration = Duration::from_millis(500);

/// Reads a body piece by piece, and charges for it.
pub(crate) struct BodyReader {
    body: Body,
    limit: usize,
    read: usize,
    deadline: Instant,
    pause: Duration,
    pub(crate) charge: Arc<Charge>,
}

impl BodyReader {
    /// Reads the body of a request, which must be of this type and have at most `limit` bytes.
    pub(crate) fn new(
        state: &ServerState,
        request: Request,
        r#type: &str,
        limit: usize,
    ) -> Result<Self, ApiError> {
        let headers = request.headers();
        check_type(headers, r#type)?;
        let announced = headers.get(CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        if announced.is_some_and(|length: u64| length > limit as u64) {
            return Err(too_long(limit));
        }
        Ok(Self {
            body: request.into_body(),
            limit,
            read: 0,
            deadline: Instant::now() + state.options.body_timeout,
            pause: state.options.body_pause,
            charge: Arc::new(state.upload_budget.charge()),
        })
    }

    /// Returns the next piece; `None` after the last.
    pub(crate) async fn next(&mut self) -> Result<Option<Bytes>, ApiError> {
        loop {
            let deadline = self.deadline.min(Instant::now() + self.pause);
            let frame = timeout_at(deadline, self.body.frame()).await.map_err(|_| too_slow())?;
            let Some(frame) = frame else { return Ok(None) };
            let frame = frame
                .map_err(|error| ApiError::invalid("broken_body", format!("the body broke off: {error}")))?;
            // Trailers are ignored.
            let Ok(bytes) = frame.into_data() else { continue };
            self.read += bytes.len();
            if self.read > self.limit {
                return Err(too_long(self.limit));
            }
            self.charge.grow(bytes.len())?;
            return Ok(Some(bytes));
        }
    }

    /// Reads the whole body.
    pub(crate) async fn read_all(mut self) -> Result<(Vec<u8>, Arc<Charge>), ApiError> {
        let mut body = Vec::new();
        while let Some(bytes) = self.next().await? {
            body.extend_from_slice(&bytes);
        }
        Ok((body, self.charge))
    }
}

fn check_type(headers: &HeaderMap, expected: &str) -> Result<(), ApiError> {
    let unsupported = |code, text| Err(ApiError::http(StatusCode::UNSUPPORTED_MEDIA_TYPE, code, text));
    let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or("?").trim());
    let found = text(CONTENT_TYPE).unwrap_or("none");
    let essence = found.split(';').next().unwrap_or_default().trim();
    if !essence.eq_ignore_ascii_case(expected) {
        return unsupported(
            "unsupported_content_type",
            format!("the Content-Type must be {expected}, not {found}"),
        );
    }
    match text(CONTENT_ENCODING) {
        None | Some("identity") => Ok(()),
        Some(other) => unsupported(
            "unsupported_content_encoding",
            format!("bodies are taken as they are, not in {other}"),
        ),
    }
}

fn too_long(limit: usize) -> ApiError {
    let text = format!("the body is longer than {limit} bytes");
    ApiError::http(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", text)
}

fn too_slow() -> ApiError {
    let text = "the body did not come in time";
    ApiError::http(StatusCode::REQUEST_TIMEOUT, "body_timeout", text).retry_after(1)
}

/// Wraps the body of a request, so that what its handler leaves unread comes back.
pub(crate) fn keep_unread_body(request: Request) -> (Request, UnreadBody) {
    let expects_continue = request.headers().contains_key(EXPECT);
    let (sender, receiver) = oneshot::channel();
    let wrap = |body| Body::new(ReturningBody { body, sender: Some(sender) });
    (request.map(wrap), UnreadBody { receiver, expects_continue })
}

/// What the handler has left of a body.
pub(crate) struct UnreadBody {
    receiver: oneshot::Receiver<Body>,
    /// Whether the client waits for `100 Continue` before it sends the body, which reading would make it do.
    expects_continue: bool,
}

impl UnreadBody {
    /// Reads the rest, if there is one, so that the client reads the response instead of failing to write.
    pub(crate) async fn discard(mut self) {
        let Ok(mut body) = self.receiver.try_recv() else { return };
        if self.expects_continue {
            return;
        }
        let discard = async {
            let mut left = DISCARDED_BYTES;
            while let Ok(Some(Ok(frame))) = timeout(DISCARDED_PAUSE, body.frame()).await {
                left = left.saturating_sub(frame.data_ref().map_or(1, Bytes::len));
                if left == 0 {
                    break;
                }
            }
        };
        // After this time the rest is not waited for.
        let _ = timeout(DISCARDED_TIME, discard).await;
    }
}

/// A body that is sent back when it is dropped before its end.
struct ReturningBody {
    body: Body,
    sender: Option<oneshot::Sender<Body>>,
}

impl http_body::Body for ReturningBody {
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

impl Drop for ReturningBody {
    fn drop(&mut self) {
        if let Some(sender) = self.sender.take().filter(|_| !self.body.is_end_stream()) {
            // The receiver may be gone.
            let _ = sender.send(std::mem::take(&mut self.body));
        }
    }
}
