//! A job, from its request to its pictures.

use std::time::Instant;

use tokio::time::sleep;
use tracing::Span;

use super::asked::Asked;
use super::metrics::Metrics;
use super::models::Model;
use super::problem::Problem;
use super::state::Shared;
use tch_flux::engine::{Event, Job};
use tch_flux::generation::{Generated, Phase, Request};

/// What is drawn for what is asked.
pub(super) fn request(asked: &Asked, model: &Model) -> Request {
    let (width, height) = asked.size.unwrap_or((model.side, model.side));
    Request {
        prompt_2: asked.prompt_2.clone(),
        literal: asked.literal,
        max_sequence_length: asked.max_sequence_length,
        steps: asked.steps,
        sampler: asked.sampler,
        schedule: asked.schedule.clone(),
        cache: asked.cache,
        variation: asked.variation,
        guidance: asked.guidance,
        negative_prompt: asked.negative_prompt.clone(),
        true_cfg_scale: asked.true_cfg_scale,
        seed: asked.seed.unwrap_or_else(Request::random_seed),
        num_images: asked.n,
        previews: if asked.stream { asked.partial_images } else { 0 },
        ..Request::new(asked.prompt.clone(), width, height)
    }
}

/// Puts it into the queue.
pub(super) fn submit(shared: &Shared, request: Request) -> Result<Job, Problem> {
    let job = shared.served()?.engine.submit(request);
    let job = job.map_err(|error| Problem::of_job(&error, shared.wait()))?;
    Span::current().record("job", job.id());
    Ok(job)
}

/// Waits for the pictures, and tells of all that happens on the way. Dropping this drops the job.
pub(super) async fn finish(
    shared: &Shared,
    mut job: Job,
    mut on_event: impl FnMut(Event),
) -> Result<Vec<Generated>, Problem> {
    let mut clock = Clock::new(&shared.metrics);
    let drawn = async {
        while let Some(event) = job.next().await {
            clock.hear(&event);
            match event {
                Event::Finished(pictures) => return Ok(pictures),
                Event::Failed(error) => return Err(Problem::of_job(&error, shared.wait())),
                event => on_event(event),
            }
        }
        Err(Problem::unavailable("stopping", "the server is stopping").again(1))
    };
    let limit = shared.options.job_timeout;
    tokio::select! {
        pictures = drawn => pictures,
        () = sleep(limit) => {
            Err(Problem::too_slow(format!("this took longer than {} seconds", limit.as_secs_f64())))
        }
        () = shared.stopped() => {
            Err(Problem::unavailable("stopping", "the server stopped before this was drawn").again(1))
        }
    }
}

/// Takes the times of a job.
struct Clock<'a> {
    metrics: &'a Metrics,
    queued: Instant,
    begun: Option<Instant>,
    /// When the step began that runs.
    step: Instant,
}

impl<'a> Clock<'a> {
    fn new(metrics: &'a Metrics) -> Self {
        let now = Instant::now();
        Self { metrics, queued: now, begun: None, step: now }
    }

    fn hear(&mut self, event: &Event) {
        let now = Instant::now();
        match event {
            Event::Phase(phase) => {
                if self.begun.is_none() {
                    self.metrics.wait.observe(now - self.queued);
                    self.begun = Some(now);
                }
                if *phase == Phase::Denoise {
                    self.step = now;
                }
            }
            Event::Step { .. } => {
                self.metrics.step.observe(now - self.step);
                self.step = now;
            }
            // It was made between two steps.
            Event::Preview { .. } => self.step = now,
            Event::Finished(_) => {
                if let Some(begun) = self.begun {
                    self.metrics.drawn(now - begun);
                }
            }
            Event::Queued { .. } | Event::Picture { .. } | Event::Failed(_) => {}
        }
    }
}
