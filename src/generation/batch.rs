//! Pictures of one shape side by side: what the loop of steps computes on.

use tch::Tensor;

use super::conditions::control::{ControlNetInput, ControlNets};
use super::conditions::edit_inputs::InitLatents;
use super::conditions::ip_adapter::ImagePrompts;
use super::denoise::DenoiseInputs;
use super::drawing::{Conditioning, Drawing};
use super::loader::Loader;
use super::text::Encoded;
use super::times::Times;
use super::{Request, Variation};
use crate::error::{Error, Result};
use crate::math;
use crate::models::Transformer;
use crate::models::flux1::{Additions, StepCache};
use crate::sampling::{self, NoiseRule, Prepared};

/// A drawing as the loop has it.
pub(super) struct BatchItem<'a> {
    /// Its place among the drawings.
    pub(super) drawing: usize,
    /// What the loop begins with, `[1, L, C]`.
    img: Tensor,
    noise: Tensor,
    /// What the sampler adds at each step but the last, `[1, steps, L, C]`, where it does.
    more_noise: Option<Tensor>,
    init: Option<&'a InitLatents>,
    inputs: DenoiseInputs,
    negative: Option<DenoiseInputs>,
    true_cfg_scale: Option<f64>,
    /// What ControlNets follow, with what it is.
    controls: &'a [Tensor],
    image_prompts: &'a ImagePrompts,
    request: &'a Request,
}

impl<'a> BatchItem<'a> {
    pub(super) fn new(
        loader: &Loader,
        model: &Transformer,
        drawing: usize,
        of: &'a Drawing<'a>,
        times: &Times,
    ) -> Result<Self> {
        let (request, latent) = (&of.request, loader.latent());
        let noise = noise(loader, request)?.f_to_device(loader.settings.device)?;
        let guidance = request.guidance.unwrap_or(0.0);
        let inputs = |text: &Encoded| {
            let prepared = latent.prepare(&noise, &text.txt, text.vec.as_ref())?;
            let inputs = DenoiseInputs::new(
                model,
                &prepared,
                &times.timesteps,
                guidance,
                &of.conditioning.conditions,
            )?;
            Ok::<_, Error>((prepared, inputs))
        };
        let (Prepared { img: noise, .. }, prompt) = inputs(&of.text.prompt)?;
        let negative = of.text.negative.as_ref().map(inputs).transpose()?.map(|(_, inputs)| inputs);
        let init = of.conditioning.init.as_ref();
        let img = match init {
            Some(init) => init.noised(&noise, times.sigmas[0])?,
            None => noise.shallow_clone(),
        };
        let more_noise = request.sampler.unwrap_or_default().draws_noise().then(|| {
            let more = latent.get_more_noise(
                times.sigmas.len() as i64 - 2,
                request.height,
                request.width,
                request.seed,
            )?;
            Ok::<_, Error>(latent.pack(&more)?.f_unsqueeze(0)?.f_to_device(loader.settings.device)?)
        });
        let more_noise = more_noise.transpose()?;
        let true_cfg_scale = request.scale();
        let Conditioning { controls, image_prompts, .. } = of.conditioning;
        Ok(Self {
            drawing,
            img,
            noise,
            more_noise,
            init,
            inputs: prompt,
            negative,
            true_cfg_scale,
            controls,
            image_prompts,
            request,
        })
    }
}

/// The noise of a request's first picture.
fn noise(loader: &Loader, request: &Request) -> Result<Tensor> {
    let rule = if request.legacy_noise { NoiseRule::Legacy } else { NoiseRule::Current };
    let (latent, kind) = (loader.latent(), loader.kind);
    let of = |seed| latent.get_noise(1, request.height, request.width, kind, seed, rule);
    match request.variation {
        Some(Variation { seed, strength }) => sampling::slerp(&of(request.seed)?, &of(seed)?, strength),
        None => of(request.seed),
    }
}

/// Rows side by side along the batch.
pub(super) struct Batch<'a> {
    pub(super) img: Tensor,
    noise: Tensor,
    more_noise: Option<Tensor>,
    init: Option<InitLatents>,
    inputs: DenoiseInputs,
    /// What is led away from, and how far.
    negative: Option<(DenoiseInputs, f64)>,
    /// See [`Request::cfg_normalization`].
    cfg_normalization: bool,
    /// What ControlNets add, where there are any.
    controls: Option<ControlNetInput<'a>>,
    image_prompts: ImagePrompts,
}

impl<'a> Batch<'a> {
    /// Returns these rows, for a loop of so many steps.
    pub(super) fn new(controlnets: &'a ControlNets, rows: &[BatchItem<'a>], steps: usize) -> Result<Self> {
        let cat = |of: for<'r> fn(&'r BatchItem<'a>) -> &'r Tensor| {
            math::cat(&rows.iter().map(of).collect::<Vec<_>>(), 0)
        };
        let inits: Option<Vec<_>> = rows.iter().map(|row| row.init).collect();
        let negatives: Option<Vec<_>> = rows.iter().map(|row| row.negative.as_ref()).collect();
        let negative = negatives.map(|negatives| DenoiseInputs::cat(&negatives)).transpose()?;
        let more_noise: Option<Vec<_>> = rows.iter().map(|row| row.more_noise.as_ref()).collect();
        let controls = rows.first().map_or(&[][..], |row| &row.request.controls);
        let embedded = |i: usize| rows.iter().filter_map(|row| row.controls.get(i)).collect();
        let embedded: Vec<Vec<&Tensor>> = (0..controls.len()).map(embedded).collect();
        let control_input = (!controls.is_empty())
            .then(|| ControlNetInput::new(controlnets, controls, &embedded, steps))
            .transpose()?;
        let image_prompts: Vec<_> = rows.iter().map(|row| row.image_prompts).collect();
        Ok(Self {
            controls: control_input,
            image_prompts: ImagePrompts::cat(&image_prompts)?,
            img: cat(|row| &row.img)?,
            noise: cat(|row| &row.noise)?,
            more_noise: more_noise.map(|more| math::cat(&more, 0)).transpose()?,
            init: inits.map(|inits| InitLatents::cat(&inits)).transpose()?,
            inputs: DenoiseInputs::cat(&rows.iter().map(|row| &row.inputs).collect::<Vec<_>>())?,
            negative: negative.zip(rows.first().and_then(|row| row.true_cfg_scale)),
            cfg_normalization: rows.first().is_some_and(|row| row.request.cfg_normalization),
        })
    }

    /// Source of the true guidance: diffusers 0.42.1, `pipelines/flux/pipeline_flux.py` lines 934–947.
    pub(super) fn velocity(
        &self,
        model: &Transformer,
        img: &Tensor,
        t_vec: &Tensor,
        step: usize,
    ) -> Result<Tensor> {
        let residuals = match &self.controls {
            Some(controls) if controls.counts_in(step) => {
                self.inputs.control_residuals(controls, img, t_vec, step)?
            }
            _ => Vec::new(),
        };
        let ImagePrompts { prompt, negative: others } = &self.image_prompts;
        let additions = Additions { residuals: &residuals, image_prompts: prompt };
        let pred = self.inputs.velocity(model, img, t_vec, step, &additions)?;
        match &self.negative {
            Some((negative, scale)) => {
                let additions = Additions { image_prompts: others, ..additions };
                let away = negative.velocity(model, img, t_vec, step, &additions)?;
                let guided = away.f_add(&pred.f_sub(&away)?.f_mul_scalar(*scale)?)?;
                if self.cfg_normalization { with_length_of(&guided, &pred) } else { Ok(guided) }
            }
            None => Ok(pred),
        }
    }

    /// From now on some of so many calls of the model are not computed whole. For a picture that is drawn alone.
    pub(super) fn skip(&mut self, cache: StepCache, calls: usize) {
        self.inputs.skip(cache, calls);
        self.negative.iter_mut().for_each(|(negative, _)| negative.skip(cache, calls));
    }

    /// Calls of the model that were not computed whole, and all that could have been skipped.
    pub(super) fn skipped(&self) -> (usize, usize) {
        let (skipped, calls) = self.inputs.skipped();
        let (more, more_calls) = self.negative.as_ref().map_or((0, 0), |(negative, _)| negative.skipped());
        (skipped + more, calls + more_calls)
    }

    /// Goes on with these rows alone, which stood at these places.
    pub(super) fn keep(
        &mut self,
        controlnets: &'a ControlNets,
        rows: &[BatchItem<'a>],
        steps: usize,
        places: &Tensor,
    ) -> Result<()> {
        let img = self.img.f_index_select(0, places)?;
        *self = Self { img, ..Self::new(controlnets, rows, steps)? };
        Ok(())
    }

    /// What the sampler adds after a step.
    pub(super) fn noise(&self, step: usize) -> Result<Tensor> {
        match &self.more_noise {
            Some(more) => Ok(more.f_select(1, step as i64)?),
            None => Err(Error::Config("no noise was drawn for this sampler".into())),
        }
    }

    pub(super) fn keep_unmasked(&self, img: &Tensor, time: f64) -> Result<Tensor> {
        match &self.init {
            Some(init) => init.keep_unmasked(img, &self.noise, time),
            None => Ok(img.shallow_clone()),
        }
    }
}

/// Returns `velocity` `[B, L, C]` with the length that each patch has in `of`.
///
/// Source: diffusers 0.42.1, `pipelines/lumina2/pipeline_lumina2.py` lines 698–701.
fn with_length_of(velocity: &Tensor, of: &Tensor) -> Result<Tensor> {
    let length = |x: &Tensor| x.f_norm_scalaropt_dim(2, [-1], true);
    Ok(velocity.f_mul(&length(of)?.f_div(&length(velocity)?)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    #[test]
    fn a_normalised_velocity_has_its_own_direction_and_the_length_of_the_other() {
        let random = |seed| {
            tch::manual_seed(seed);
            Tensor::randn([2, 5, 64], (Kind::Double, Device::Cpu))
        };
        let (velocity, of) = (random(1) * 7, random(2));
        let scaled = with_length_of(&velocity, &of).unwrap();
        let dot = |a: &Tensor, b: &Tensor| (a * b).sum_dim_intlist(-1, false, Kind::Double);
        let lengths = (dot(&scaled, &scaled) - dot(&of, &of)).abs().max().double_value(&[]);
        let cosine = dot(&scaled, &velocity) / (dot(&scaled, &scaled) * dot(&velocity, &velocity)).sqrt();
        assert!(lengths < 1e-10 && (cosine - 1).abs().max().double_value(&[]) < 1e-12);
    }
}
