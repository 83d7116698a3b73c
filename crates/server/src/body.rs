//! Request bodies: bounded in bytes and in time.

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

use super::problem::Problem;
use super::state::{Charge, Shared};

/// Of a body that nobody wants, so much is read before the answer: a client that still writes would not see it.
const DISCARDED_BYTES: usize = 256 << 20;
const DISCARDED_TIME: Duration = Duration::from_secs(10);
const DISCARDED_PAUSE: Duration = Duration::from_millis(500);

/// A body that is read piece by piece, and charged for.
pub(super) struct Reader {
    body: Body,
    limit: usize,
    read: usize,
    until: Instant,
    pause: Duration,
    pub(super) charge: Arc<Charge>,
}

impl Reader {
    /// Of a request with a body of this type and of so many bytes at most.
    pub(super) fn new(
        shared: &Shared,
        request: Request,
        r#type: &str,
        limit: usize,
    ) -> Result<Self, Problem> {
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
            until: Instant::now() + shared.options.body_timeout,
            pause: shared.options.body_pause,
            charge: Arc::new(shared.uploads.charge()),
        })
    }

    /// The next piece; `None` after the last.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Problem> {
        loop {
            let until = self.until.min(Instant::now() + self.pause);
            let frame = timeout_at(until, self.body.frame()).await.map_err(|_| too_slow())?;
            let Some(frame) = frame else { return Ok(None) };
            let frame = frame
                .map_err(|error| Problem::invalid("broken_body", format!("the body broke off: {error}")))?;
            // Trailers mean nothing here.
            let Ok(bytes) = frame.into_data() else { continue };
            self.read += bytes.len();
            if self.read > self.limit {
                return Err(too_long(self.limit));
            }
            self.charge.grow(bytes.len())?;
            return Ok(Some(bytes));
        }
    }

    /// All of it.
    pub(super) async fn whole(mut self) -> Result<(Vec<u8>, Arc<Charge>), Problem> {
        let mut whole = Vec::new();
        while let Some(bytes) = self.next().await? {
            whole.extend_from_slice(&bytes);
        }
        Ok((whole, self.charge))
    }
}

fn check_type(headers: &HeaderMap, wanted: &str) -> Result<(), Problem> {
    let wrong = |code, text| Err(Problem::http(StatusCode::UNSUPPORTED_MEDIA_TYPE, code, text));
    let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or("?").trim());
    let found = text(CONTENT_TYPE).unwrap_or("none");
    let essence = found.split(';').next().unwrap_or_default().trim();
    if !essence.eq_ignore_ascii_case(wanted) {
        return wrong("unsupported_content_type", format!("the Content-Type must be {wanted}, not {found}"));
    }
    match text(CONTENT_ENCODING) {
        None | Some("identity") => Ok(()),
        Some(other) => {
            wrong("unsupported_content_encoding", format!("bodies are taken as they are, not in {other}"))
        }
    }
}

fn too_long(limit: usize) -> Problem {
    let text = format!("the body is longer than {limit} bytes");
    Problem::http(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", text)
}

fn too_slow() -> Problem {
    let text = "the body did not come in time";
    Problem::http(StatusCode::REQUEST_TIMEOUT, "body_timeout", text).again(1)
}

/// Lends the body out: what its borrower has not read comes back.
pub(super) fn lend(request: Request) -> (Request, Lent) {
    let expects = request.headers().contains_key(EXPECT);
    let (back, lent) = oneshot::channel();
    let lend = |body| Body::new(Borrowed { body, back: Some(back) });
    (request.map(lend), Lent { lent, expects })
}

/// A body that is lent out.
pub(super) struct Lent {
    lent: oneshot::Receiver<Body>,
    /// The client waits before it sends: reading would make it.
    expects: bool,
}

impl Lent {
    /// Reads the rest, if there is one, so that the client reads the answer instead of failing to write.
    pub(super) async fn discard(mut self) {
        let Ok(mut body) = self.lent.try_recv() else { return };
        if self.expects {
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
        // Whatever of it came is enough.
        let _ = timeout(DISCARDED_TIME, discard).await;
    }
}

struct Borrowed {
    body: Body,
    back: Option<oneshot::Sender<Body>>,
}

impl http_body::Body for Borrowed {
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

impl Drop for Borrowed {
    fn drop(&mut self) {
        if let Some(back) = self.back.take().filter(|_| !self.body.is_end_stream()) {
            // The lender may be gone.
            let _ = back.send(std::mem::take(&mut self.body));
        }
    }
}
