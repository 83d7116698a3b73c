//! The answer as a stream of events: partial pictures, then the pictures.

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

use super::answer::{About, Usage, now, room, size_of, warnings};
use super::asked::Asked;
use super::coding;
use super::jobs;
use super::problem::Problem;
use super::state::{Charge, Shared};
use tch_flux::engine::{Event, Job};
use tch_flux::generation::Generated;
use tch_flux::image::Image;

const KEEP_ALIVE: &[u8] = b": keep-alive\n\n";

/// What a job has told. How far it is comes a thousand times at most, a picture on the way thirty times, and the outcome
/// once: a client that does not read makes no more of them wait.
enum Item {
    Progress(Progress),
    Partial(Image),
    Outcome(Result<Vec<Generated>, Problem>),
}

/// How far a job is. A stream says it in a comment, which the dialect's clients pass over.
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
    about: &'a About,
}

#[derive(Serialize)]
struct Completed<'a> {
    r#type: String,
    b64_json: String,
    created_at: u64,
    #[serde(flatten)]
    about: &'a About,
    seed: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    variation_seed: Option<u64>,
    usage: Usage,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
}

/// What the stream goes on with. Dropped, it takes the job along.
struct Rest {
    shared: Arc<Shared>,
    asked: Asked,
    /// `image_generation` or `image_edit`.
    kind: &'static str,
    given: usize,
    about: About,
    items: UnboundedReceiver<Item>,
    _job: Dropped,
    /// For the pictures that it was begun with.
    _charge: Arc<Charge>,
    partials: usize,
    pictures: VecDeque<Generated>,
    usage: Option<Usage>,
    ended: bool,
}

/// Ends a task when it is dropped.
struct Dropped(AbortHandle);

impl Drop for Dropped {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The stream of a job that was submitted.
pub(super) fn answer(
    shared: &Arc<Shared>,
    asked: Asked,
    kind: &'static str,
    size: (i64, i64),
    given: usize,
    job: Job,
    charge: Arc<Charge>,
) -> Response {
    let (send, items) = unbounded_channel();
    let task = tokio::spawn(listen(shared.clone(), job, send).instrument(Span::current()));
    let rest = Rest {
        shared: shared.clone(),
        about: About::new(asked.format, size),
        asked,
        kind,
        given,
        items,
        _job: Dropped(task.abort_handle()),
        _charge: charge,
        partials: 0,
        pictures: VecDeque::new(),
        usage: None,
        ended: false,
    };
    let events = stream::unfold(rest, |mut rest| async {
        let event = rest.next().await?;
        Some((Ok::<_, Infallible>(event), rest))
    });
    let headers = [
        (CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
        (CACHE_CONTROL, HeaderValue::from_static("no-cache")),
    ];
    (headers, Body::from_stream(events)).into_response()
}

/// Hears of the job at once, however slowly the client reads.
async fn listen(shared: Arc<Shared>, job: Job, send: UnboundedSender<Item>) {
    // Who does not listen any more has dropped the stream, and with it this task.
    let on_event = |event| {
        let item = match event {
            Event::Queued { ahead } => Item::Progress(Progress::Queued { queued: ahead }),
            Event::Step { image, images, step, steps } => {
                Item::Progress(Progress::Step { step, steps, image, images })
            }
            Event::Preview { picture, .. } => Item::Partial(picture),
            Event::Phase(_) | Event::Picture { .. } | Event::Finished(_) | Event::Failed(_) => return,
        };
        let _ = send.send(item);
    };
    let outcome = jobs::finish(&shared, job, on_event).await;
    let _ = send.send(Item::Outcome(outcome));
}

impl Rest {
    /// The next bytes; `None` after the last.
    async fn next(&mut self) -> Option<Bytes> {
        if let Some(picture) = self.pictures.pop_front() {
            self.ended = self.pictures.is_empty();
            let completed = self.completed(picture).await;
            return Some(self.or_end(completed));
        }
        if self.ended {
            return None;
        }
        let Ok(item) = timeout(self.shared.options.keep_alive, self.items.recv()).await else {
            return Some(Bytes::from_static(KEEP_ALIVE));
        };
        let event = match item {
            Some(Item::Progress(progress)) => comment(&progress),
            Some(Item::Partial(picture)) => self.partial(picture).await,
            Some(Item::Outcome(Ok(pictures))) => {
                self.pictures = pictures.into();
                let first = self.pictures.pop_front()?;
                self.ended = self.pictures.is_empty();
                self.completed(first).await
            }
            Some(Item::Outcome(Err(problem))) => Err(problem),
            None => Err(Problem::internal("fault", "a fault ended this job").again(1)),
        };
        Some(self.or_end(event))
    }

    /// The event, or the error that is the last.
    fn or_end(&mut self, event: Result<Bytes, Problem>) -> Bytes {
        event.unwrap_or_else(|problem| {
            self.ended = true;
            self.pictures.clear();
            Bytes::from([b"data: ", &problem.body()[..], b"\n\n"].concat())
        })
    }

    async fn partial(&mut self, picture: Image) -> Result<Bytes, Problem> {
        let (kind, index, about) = (self.kind, self.partials, self.about.clone());
        let (format, quality) = (self.asked.format, self.asked.quality);
        self.partials += 1;
        let event = move || {
            let file = coding::encode_plain(&picture, format, quality)?;
            let r#type = format!("{kind}.partial_image");
            let b64_json = BASE64_STANDARD.encode(file);
            let partial =
                Partial { r#type, partial_image_index: index, b64_json, created_at: now(), about: &about };
            event(&partial.r#type, &partial)
        };
        coding::aside(&self.shared.coders, event).await
    }

    async fn completed(&mut self, picture: Generated) -> Result<Bytes, Problem> {
        let _room = room(&self.shared, picture.image.rgb.len()).await?;
        let (shared, about, kind) = (self.shared.clone(), self.about.clone(), self.kind);
        let (asked, given, usage) = (self.asked.clone(), self.given, self.usage);
        let event = move || {
            let model = &shared.loaded()?.model;
            let file = coding::encode(&picture, model, asked.format, asked.quality)?;
            let size = size_of(std::slice::from_ref(&picture));
            let usage = usage.unwrap_or_else(|| Usage::new(model, &asked, size, given, asked.n));
            let completed = Completed {
                r#type: format!("{kind}.completed"),
                b64_json: BASE64_STANDARD.encode(file),
                created_at: now(),
                about: &about,
                seed: picture.request.seed,
                variation_seed: picture.request.variation.map(|variation| variation.seed),
                usage,
                warnings: warnings(std::slice::from_ref(&picture)),
            };
            Ok((event(&completed.r#type, &completed)?, usage))
        };
        let (event, usage) = coding::aside(&self.shared.coders, event).await?;
        self.usage = Some(usage);
        Ok(event)
    }
}

fn comment(progress: &Progress) -> Result<Bytes, Problem> {
    let mut comment = b": ".to_vec();
    serde_json::to_writer(&mut comment, progress)
        .map_err(|error| Problem::internal("encoding", error.to_string()))?;
    comment.extend_from_slice(b"\n\n");
    Ok(comment.into())
}

fn event(name: &str, data: &impl Serialize) -> Result<Bytes, Problem> {
    let mut event = format!("event: {name}\ndata: ").into_bytes();
    serde_json::to_writer(&mut event, data)
        .map_err(|error| Problem::internal("encoding", error.to_string()))?;
    event.extend_from_slice(b"\n\n");
    Ok(event.into())
}
