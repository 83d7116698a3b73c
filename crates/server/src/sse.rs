//! The response as a stream of server-sent events: partial pictures, then the pictures.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::http::HeaderValue;
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use futures_util::stream;
use serde::Serialize;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::AbortHandle;
use tokio::time::timeout;
use tracing::{Instrument, Span};

use crate::api_error::ApiError;
use crate::encode::{encode, encode_plain, run_blocking};
use crate::jobs;
use crate::request::GenerationRequest;
use crate::response::{ImageInfo, Usage, image_size, now, reserve, warnings};
use crate::state::{Charge, ServerState};
use tch_flux::engine::{Event, Job};
use tch_flux::generation::Generated;
use tch_flux::image::Image;

const KEEP_ALIVE: &[u8] = b": keep-alive\n\n";

/// What a job reports: its progress a thousand times at most, a partial picture thirty times, and its outcome once. However
/// slowly a client reads, no more of them wait.
enum JobUpdate {
    Progress(Progress),
    Partial(Image),
    Outcome(Result<Vec<Generated>, ApiError>),
}

/// The progress of a job. It is sent in a comment, which OpenAI's clients ignore.
#[derive(Serialize)]
#[serde(untagged)]
enum Progress {
    Queued { queued: usize },
    Step { step: usize, steps: usize, image: usize, images: usize },
}

#[derive(Serialize)]
struct Partial<'a> {
    r#type: String,
    partial_image_index: usize,
    b64_json: String,
    created_at: u64,
    #[serde(flatten)]
    info: &'a ImageInfo,
}

#[derive(Serialize)]
struct Completed<'a> {
    r#type: String,
    b64_json: String,
    created_at: u64,
    #[serde(flatten)]
    info: &'a ImageInfo,
    seed: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    variation_seed: Option<u64>,
    usage: Usage,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
}

/// The state of a stream. Dropping it ends the job.
struct EventStream {
    state: Arc<ServerState>,
    request: GenerationRequest,
    /// `image_generation` or `image_edit`.
    kind: &'static str,
    input_images: usize,
    info: ImageInfo,
    updates: UnboundedReceiver<JobUpdate>,
    _job: AbortOnDrop,
    /// The charge for the request's pictures.
    _charge: Arc<Charge>,
    partials: usize,
    pictures: VecDeque<Generated>,
    usage: Option<Usage>,
    ended: bool,
}

/// Ends a task when it is dropped.
struct AbortOnDrop(AbortHandle);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// Returns the response that streams the events of a job.
pub(crate) fn event_stream(
    state: &Arc<ServerState>,
    request: GenerationRequest,
    kind: &'static str,
    size: (i64, i64),
    input_images: usize,
    job: Job,
    charge: Arc<Charge>,
) -> Response {
    let (sender, updates) = unbounded_channel();
    let task = tokio::spawn(listen(state.clone(), job, sender).instrument(Span::current()));
    let events = EventStream {
        state: state.clone(),
        info: ImageInfo::new(request.format, size),
        request,
        kind,
        input_images,
        updates,
        _job: AbortOnDrop(task.abort_handle()),
        _charge: charge,
        partials: 0,
        pictures: VecDeque::new(),
        usage: None,
        ended: false,
    };
    let events = stream::unfold(events, |mut events| async {
        let event = events.next().await?;
        Some((Ok::<_, Infallible>(event), events))
    });
    let headers = [
        (CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
        (CACHE_CONTROL, HeaderValue::from_static("no-cache")),
    ];
    (headers, Body::from_stream(events)).into_response()
}

/// Receives the job's events at once, however slowly the client reads.
async fn listen(state: Arc<ServerState>, job: Job, sender: UnboundedSender<JobUpdate>) {
    // Sending fails once the stream is dropped, which ends this task as well.
    let on_event = |event| {
        let update = match event {
            Event::Queued { ahead } => JobUpdate::Progress(Progress::Queued { queued: ahead }),
            Event::Step { image, images, step, steps } => {
                JobUpdate::Progress(Progress::Step { step, steps, image, images })
            }
            Event::Preview { picture, .. } => JobUpdate::Partial(picture),
            Event::Phase(_) | Event::Picture { .. } | Event::Finished(_) | Event::Failed(_) => return,
        };
        let _ = sender.send(update);
    };
    let outcome = jobs::wait_for(&state, job, on_event).await;
    let _ = sender.send(JobUpdate::Outcome(outcome));
}

impl EventStream {
    /// Returns the next bytes; `None` after the last.
    async fn next(&mut self) -> Option<Bytes> {
        if let Some(picture) = self.pictures.pop_front() {
            self.ended = self.pictures.is_empty();
            let completed = self.completed(picture).await;
            return Some(self.or_end(completed));
        }
        if self.ended {
            return None;
        }
        let Ok(update) = timeout(self.state.options.stream_keep_alive, self.updates.recv()).await else {
            return Some(Bytes::from_static(KEEP_ALIVE));
        };
        let event = match update {
            Some(JobUpdate::Progress(progress)) => comment(&progress),
            Some(JobUpdate::Partial(picture)) => self.partial(picture).await,
            Some(JobUpdate::Outcome(Ok(pictures))) => {
                self.pictures = pictures.into();
                let first = self.pictures.pop_front()?;
                self.ended = self.pictures.is_empty();
                self.completed(first).await
            }
            Some(JobUpdate::Outcome(Err(error))) => Err(error),
            None => Err(ApiError::internal("fault", "a fault ended this job").retry_after(1)),
        };
        Some(self.or_end(event))
    }

    /// Returns the event, or the error, which ends the stream.
    fn or_end(&mut self, event: Result<Bytes, ApiError>) -> Bytes {
        event.unwrap_or_else(|error| {
            self.ended = true;
            self.pictures.clear();
            Bytes::from([b"data: ", &error.body()[..], b"\n\n"].concat())
        })
    }

    async fn partial(&mut self, picture: Image) -> Result<Bytes, ApiError> {
        let (kind, index, info) = (self.kind, self.partials, self.info.clone());
        let (format, quality) = (self.request.format, self.request.quality);
        self.partials += 1;
        let event = move || {
            let file = encode_plain(&picture, format, quality)?;
            let r#type = format!("{kind}.partial_image");
            let b64_json = BASE64_STANDARD.encode(file);
            let partial =
                Partial { r#type, partial_image_index: index, b64_json, created_at: now(), info: &info };
            event(&partial.r#type, &partial)
        };
        run_blocking(&self.state.codec_permits, event).await
    }

    async fn completed(&mut self, picture: Generated) -> Result<Bytes, ApiError> {
        let _permit = reserve(&self.state, picture.image.rgb.len()).await?;
        let (state, info, kind) = (self.state.clone(), self.info.clone(), self.kind);
        let (request, input_images, usage) = (self.request.clone(), self.input_images, self.usage);
        let event = move || {
            let model = &state.loaded_model()?.model;
            let file = encode(&picture, model, request.format, request.quality)?;
            let size = image_size(std::slice::from_ref(&picture));
            let usage = usage.unwrap_or_else(|| {
                Usage::new(model, &request, size, input_images, request.generation.num_images)
            });
            let completed = Completed {
                r#type: format!("{kind}.completed"),
                b64_json: BASE64_STANDARD.encode(file),
                created_at: now(),
                info: &info,
                seed: picture.request.seed,
                variation_seed: picture.request.variation.map(|variation| variation.seed),
                usage,
                warnings: warnings(std::slice::from_ref(&picture)),
            };
            Ok((event(&completed.r#type, &completed)?, usage))
        };
        let (event, usage) = run_blocking(&self.state.codec_permits, event).await?;
        self.usage = Some(usage);
        Ok(event)
    }
}

fn comment(progress: &Progress) -> Result<Bytes, ApiError> {
    let mut comment = b": ".to_vec();
    serde_json::to_writer(&mut comment, progress)
        .map_err(|error| ApiError::internal("encoding", error.to_string()))?;
    comment.extend_from_slice(b"\n\n");
    Ok(comment.into())
}

fn event(name: &str, data: &impl Serialize) -> Result<Bytes, ApiError> {
    let mut event = format!("event: {name}\ndata: ").into_bytes();
    serde_json::to_writer(&mut event, data)
        .map_err(|error| ApiError::internal("encoding", error.to_string()))?;
    event.extend_from_slice(b"\n\n");
    Ok(event.into())
}
