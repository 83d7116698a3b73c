//! Pictures of one shape side by side: what the loop of steps computes on.

use tch::Tensor;

use super::Pipeline;
use super::denoise::Course;
use super::draw::{Drawing, Encoded};
use super::edit::Start;
use crate::error::{Error, Result};
use crate::flux1::Flux1;
use crate::math;
use crate::sampling::{NoiseRule, Prepared, get_noise, prepare};

/// A drawing as the loop has it.
pub(super) struct Row<'a> {
    /// Its place among the drawings.
    pub(super) drawing: usize,
    /// What the loop begins with, `[1, L, C]`.
    img: Tensor,
    noise: Tensor,
    start: Option<&'a Start>,
    course: Course,
    negative: Option<Course>,
    true_cfg_scale: Option<f64>,
}

impl<'a> Row<'a> {
    pub(super) fn new(
        pipeline: &Pipeline,
        model: &Flux1,
        drawing: usize,
        of: &Drawing<'a>,
        times: &[f64],
    ) -> Result<Self> {
        let request = &of.request;
        let rule = if request.legacy_noise { NoiseRule::Legacy } else { NoiseRule::Current };
        let noise = get_noise(1, request.height, request.width, pipeline.kind, request.seed, rule)?;
        let noise = noise.f_to_device(pipeline.settings.device)?;
        let guidance = request.guidance.unwrap_or(0.0);
        let course = |text: &Encoded| {
            let prepared = prepare(&noise, &text.txt, &text.vec)?;
            let course = Course::new(model, &prepared, times, guidance, &of.given.conditions)?;
            Ok::<_, Error>((prepared, course))
        };
        let (Prepared { img: noise, .. }, prompt) = course(&of.text.prompt)?;
        let negative = of.text.negative.as_ref().map(course).transpose()?.map(|(_, course)| course);
        let start = of.given.start.as_ref();
        let img = match start {
            Some(start) => start.noised(&noise, times[0])?,
            None => noise.shallow_clone(),
        };
        let true_cfg_scale = request.scale();
        Ok(Self { drawing, img, noise, start, course: prompt, negative, true_cfg_scale })
    }
}

/// Rows side by side along the batch.
pub(super) struct Beside {
    pub(super) img: Tensor,
    noise: Tensor,
    start: Option<Start>,
    course: Course,
    /// What is led away from, and how far.
    negative: Option<(Course, f64)>,
}

impl Beside {
    pub(super) fn of(rows: &[Row]) -> Result<Self> {
        let cat =
            |of: for<'r> fn(&'r Row) -> &'r Tensor| math::cat(&rows.iter().map(of).collect::<Vec<_>>(), 0);
        let starts: Option<Vec<_>> = rows.iter().map(|row| row.start).collect();
        let negatives: Option<Vec<_>> = rows.iter().map(|row| row.negative.as_ref()).collect();
        let negative = negatives.map(|negatives| Course::together(&negatives)).transpose()?;
        Ok(Self {
            img: cat(|row| &row.img)?,
            noise: cat(|row| &row.noise)?,
            start: starts.map(|starts| Start::together(&starts)).transpose()?,
            course: Course::together(&rows.iter().map(|row| &row.course).collect::<Vec<_>>())?,
            negative: negative.zip(rows.first().and_then(|row| row.true_cfg_scale)),
        })
    }

    /// Source of the true guidance: diffusers 0.42.1, `pipelines/flux/pipeline_flux.py` lines 934–947.
    pub(super) fn velocity(
        &self,
        model: &Flux1,
        img: &Tensor,
        t_vec: &Tensor,
        step: usize,
    ) -> Result<Tensor> {
        let pred = self.course.velocity(model, img, t_vec, step)?;
        match &self.negative {
            Some((negative, scale)) => {
                let away = negative.velocity(model, img, t_vec, step)?;
                Ok(away.f_add(&pred.f_sub(&away)?.f_mul_scalar(*scale)?)?)
            }
            None => Ok(pred),
        }
    }

    pub(super) fn keep_unmasked(&self, img: &Tensor, time: f64) -> Result<Tensor> {
        match &self.start {
            Some(start) => start.keep_unmasked(img, &self.noise, time),
            None => Ok(img.shallow_clone()),
        }
    }
}
