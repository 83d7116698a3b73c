//! Jobs of the engine: made from a request, submitted, and awaited.

use std::sync::Arc;
use std::time::Instant;

use tokio::time::sleep;
use tracing::Span;

use crate::api_error::ApiError;
use crate::conditioning::{Conditioning, ControlNetInput, IpAdapterInput, ReduxInput};
use crate::decode::DecodeLimits;
use crate::encode::run_blocking;
use crate::metrics::Metrics;
use crate::model::Model;
use crate::request::GenerationRequest;
use crate::state::{Charge, ServerState};
use crate::uploads::{UploadDecoder, Uploads};
use tch_flux::engine::{Event, Job};
use tch_flux::generation::params::EditSettings;
use tch_flux::generation::{
    Control, Edit, Generated, IpAdapterImage, Phase, Redux, ReduxImage, Request, Role,
};
use tch_flux::image::Image;

/// Returns the engine's request. Its pictures are decoded within the limits, and charged for.
pub(crate) async fn engine_request(
    state: &ServerState,
    request: &GenerationRequest,
    model: &Model,
    conditioning: Conditioning,
    uploads: Uploads,
    charge: &Arc<Charge>,
) -> Result<Request, ApiError> {
    let mut engine_request = request.generation.clone();
    (engine_request.width, engine_request.height) = request.size.unwrap_or((model.side, model.side));
    if uploads.is_empty() {
        return Ok(engine_request);
    }
    let limits = DecodeLimits { pixels: state.options.max_image_pixels, charge: charge.clone() };
    let decoder = UploadDecoder { uploads, limits, max_file_bytes: state.options.max_image_bytes };
    let request = request.clone();
    let decode = move || {
        let engine_request = add_images(engine_request, &request, conditioning, decoder)?;
        engine_request.check().map_err(|error| ApiError::from_engine(&error, 0))?;
        Ok(engine_request)
    };
    run_blocking(&state.codec_permits, decode).await
}

/// Adds the pictures, with the settings of each.
fn add_images(
    mut engine_request: Request,
    request: &GenerationRequest,
    conditioning: Conditioning,
    mut decoder: UploadDecoder,
) -> Result<Request, ApiError> {
    if let Some(role) = conditioning.role {
        engine_request.edit = Some(Arc::new(edit(request, role, &mut decoder)?));
    }
    let controls = decoder.images("control_image")?.into_iter().zip(conditioning.controlnets);
    let canny = request.values.boolean("control_canny").unwrap_or(false);
    let control = |(image, input): (Image, ControlNetInput)| {
        let ControlNetInput { net, strength, mode, start, end } = input;
        Control { net, image: Arc::new(image), strength, mode, start, end, canny }
    };
    engine_request.controls = controls.map(control).collect();
    engine_request.pictured = ip_adapter_images(conditioning.ip_adapters, &mut decoder)?;
    let images = decoder.images("redux_image")?.into_iter().zip(conditioning.redux);
    let images: Vec<_> = images
        .map(|(image, ReduxInput { strength, pooled })| ReduxImage { image, strength, pooled })
        .collect();
    if !images.is_empty() {
        let mix = request.values.redux_mix().unwrap_or_default();
        let without_text = request.values.boolean("redux_without_text").unwrap_or(false);
        engine_request.redux = Some(Arc::new(Redux { images, mix, without_text }));
    }
    Ok(engine_request)
}

/// Decodes what an edit begins with.
fn edit(request: &GenerationRequest, role: Role, decoder: &mut UploadDecoder) -> Result<Edit, ApiError> {
    let images = decoder.images("image")?;
    let mask = decoder.mask()?;
    if let (Some(mask), Some(first)) = (&mask, images.first())
        && (mask.width, mask.height) != (first.width, first.height)
    {
        let (mask, first) = ((mask.width, mask.height), (first.width, first.height));
        let text = format!("the mask is {}x{}, but the picture {}x{}", mask.0, mask.1, first.0, first.1);
        return Err(ApiError::invalid("invalid_mask", text).param("mask"));
    }
    let EditSettings { strength, keep_size, follow, .. } = request.values.edit(EditSettings::default());
    Ok(Edit { mask, strength, role: Some(role), keep_size, follow, ..Edit::new(images) })
}

/// Decodes the pictures of IP-Adapters. A single IP-Adapter has all of them; if there are several, each has its own.
fn ip_adapter_images(
    inputs: Vec<IpAdapterInput>,
    decoder: &mut UploadDecoder,
) -> Result<Vec<IpAdapterImage>, ApiError> {
    let arcs = |images: Vec<Image>| images.into_iter().map(Arc::new).collect::<Vec<_>>();
    let images = arcs(decoder.images("ip_adapter_image")?);
    let negative = arcs(decoder.images("negative_ip_adapter_image")?);
    let are_several = inputs.len() > 1;
    let ip_adapter_image = |(i, IpAdapterInput { adapter, scales }): (usize, IpAdapterInput)| {
        let images = if are_several { images.get(i).cloned().into_iter().collect() } else { images.clone() };
        IpAdapterImage { adapter, images, negative: negative.clone(), scales }
    };
    Ok(inputs.into_iter().enumerate().map(ip_adapter_image).collect())
}

/// Puts a request into the engine's queue.
pub(crate) fn submit(state: &ServerState, request: Request) -> Result<Job, ApiError> {
    let job = state.ready_model()?.engine.submit(request);
    let job = job.map_err(|error| ApiError::from_engine(&error, state.queue_wait_seconds()))?;
    Span::current().record("job", job.id());
    Ok(job)
}

/// Waits for the pictures, and passes the events on the way to `on_event`. Dropping the future drops the job.
pub(crate) async fn wait_for(
    state: &ServerState,
    mut job: Job,
    mut on_event: impl FnMut(Event),
) -> Result<Vec<Generated>, ApiError> {
    let mut timer = JobTimer::new(&state.metrics);
    let outcome = async {
        while let Some(event) = job.next().await {
            timer.record(&event);
            match event {
                Event::Finished(pictures) => return Ok(pictures),
                Event::Failed(error) => {
                    return Err(ApiError::from_engine(&error, state.queue_wait_seconds()));
                }
                event => on_event(event),
            }
        }
        Err(ApiError::unavailable("stopping", "the server is stopping").retry_after(1))
    };
    let limit = state.options.job_timeout;
    tokio::select! {
        pictures = outcome => pictures,
        () = sleep(limit) => {
            Err(ApiError::timeout(format!("this took longer than {} seconds", limit.as_secs_f64())))
        }
        () = state.stopped() => {
            Err(ApiError::unavailable("stopping", "the server stopped before this was drawn").retry_after(1))
        }
    }
}

/// Measures a job and its steps for the metrics.
struct JobTimer<'a> {
    metrics: &'a Metrics,
    queued: Instant,
    started: Option<Instant>,
    /// When the current step began.
    step: Instant,
}

impl<'a> JobTimer<'a> {
    fn new(metrics: &'a Metrics) -> Self {
        let now = Instant::now();
        Self { metrics, queued: now, started: None, step: now }
    }

    fn record(&mut self, event: &Event) {
        let now = Instant::now();
        match event {
            Event::Phase(phase) => {
                if self.started.is_none() {
                    self.metrics.wait.record(now - self.queued);
                    self.started = Some(now);
                }
                if *phase == Phase::Denoise {
                    self.step = now;
                }
            }
            Event::Step { .. } => {
                self.metrics.step.record(now - self.step);
                self.step = now;
            }
            // The preview was made between two steps.
            Event::Preview { .. } => self.step = now,
            Event::Finished(_) => {
                if let Some(started) = self.started {
                    self.metrics.observe_job(now - started);
                }
            }
            Event::Queued { .. } | Event::Picture { .. } | Event::Failed(_) => {}
        }
    }
}
