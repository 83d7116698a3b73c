//! The loop of steps: noise to the latents of pictures that are computed together.

use tch::Tensor;

use super::batch::{Batch, BatchItem};
use super::drawing::Drawing;
use super::jobs::Jobs;
use super::loader::Loader;
use super::models::Models;
use super::times::Times;
use super::{Progress, Request};
use crate::error::{Error, Result};
use crate::sampling::Solver;

/// The latent of a picture.
pub(super) struct Latent {
    /// The place of the picture among the drawings.
    pub(super) drawing: usize,
    /// `[1, L, C]`.
    pub(super) patches: Tensor,
    /// Calls of the model that were skipped, and all.
    pub(super) skipped: (usize, usize),
}

/// Noise to latents of drawings of one shape: those that nobody stopped.
pub(super) fn latents(
    loader: &Loader,
    models: &Models,
    times: &Times,
    drawings: &[Drawing],
    mut group: Vec<usize>,
    jobs: &mut Jobs,
) -> Result<Vec<Latent>> {
    group.retain(|&i| jobs.lives(drawings[i].job));
    let Some(&first) = group.first() else { return Ok(Vec::new()) };
    let model = models.transformer.model()?;
    let steps = times.steps();
    let rows = group.iter().map(|&i| BatchItem::new(loader, model, i, &drawings[i], times));
    let mut rows = rows.collect::<Result<Vec<_>>>()?;
    let mut batch = Batch::new(&models.controlnets, &rows, steps)?;
    let Request { cache, sampler, .. } = drawings[first].request;
    let sampler = sampler.unwrap_or_default();
    cache.iter().for_each(|&cache| batch.skip(cache, sampler.calls(steps)));
    let mut solver = Solver::new(sampler, &times.sigmas).with_timesteps(&times.timesteps);
    for step in 0..steps {
        let before = batch.img.shallow_clone();
        let mut velocity = |img: &Tensor, t_vec: &Tensor, index| batch.velocity(model, img, t_vec, index);
        if jobs.is_stopped() {
            return Ok(Vec::new());
        }
        let mut take = || solver.step(&before, step, &mut velocity, &|| batch.noise(step));
        let stepped = match step + 1 == steps {
            true => take(),
            false => jobs.until_stopped(loader.settings.device, take),
        };
        let stepped = match stepped {
            Err(Error::Cancelled) if jobs.is_stopped() => return Ok(Vec::new()),
            stepped => stepped?,
        };
        let expected = || Ok(before.f_sub(&stepped.velocity.f_mul_scalar(times.sigmas[step])?)?);
        report_step(loader, models, &rows, drawings, (step + 1, steps), &expected, jobs)?;
        // At the end the picture is whole, whatever the last time is.
        let time = if step + 1 == steps { 0.0 } else { times.sigmas[step + 1] };
        batch.img = batch.keep_unmasked(&stepped.img, time)?;
        let living: Vec<_> = rows.iter().map(|row| jobs.lives(drawings[row.drawing].job)).collect();
        if living.contains(&false) {
            let places: Vec<i64> = (0..).zip(&living).filter(|(_, lives)| **lives).map(|(i, _)| i).collect();
            let mut lives = living.into_iter();
            rows.retain(|_| lives.next().unwrap_or(false));
            if rows.is_empty() {
                return Ok(Vec::new());
            }
            let places = Tensor::f_from_slice(&places)?.f_to_device(batch.img.device())?;
            solver.keep(&places)?;
            batch.keep(&models.controlnets, &rows, steps, &places)?;
        }
    }
    let mut latents = Vec::new();
    for (i, row) in (0..).zip(&rows) {
        let latent = batch.img.f_narrow(0, i, 1)?;
        if bool::try_from(latent.isfinite().all())? {
            latents.push(Latent { drawing: row.drawing, patches: latent, skipped: batch.skipped() });
        } else {
            let hint = "a weight file is damaged, or the kind is too narrow: try bf16 or f32";
            jobs.or_fails::<()>(
                drawings[row.drawing].job,
                Err(Error::NotFinite { what: "the latent", hint }),
            );
        }
    }
    Ok(latents)
}

fn report_step(
    loader: &Loader,
    models: &Models,
    rows: &[BatchItem],
    drawings: &[Drawing],
    (step, steps): (usize, usize),
    expected: &dyn Fn() -> Result<Tensor>,
    jobs: &mut Jobs,
) -> Result<()> {
    let mut patches = None;
    for (i, row) in (0..).zip(rows) {
        let Drawing { job, image, images, ref request, .. } = drawings[row.drawing];
        jobs.report(job, Progress::Step { image, images, step, steps });
        if jobs.lives(job) && request.previews_after(step, steps) {
            if patches.is_none() {
                patches = Some(expected()?);
            }
            let Some(patches) = &patches else { continue };
            let picture = models.preview(loader, &patches.f_narrow(0, i, 1)?, request)?;
            jobs.report(job, Progress::Preview { image, step, picture });
        }
    }
    Ok(())
}
