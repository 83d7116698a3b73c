//! The official loop over a transformer.

use std::cell::RefCell;

use tch::Tensor;

use super::Conditions;
use super::conditions::control::ControlNetInput;
use crate::error::Result;
use crate::math;
use crate::models::flux1::{Additions, CachedSteps, Residuals, StepCache};
use crate::models::{Transformer, TransformerInput, TransformerOptions, TransformerSteps};
use crate::sampling::{self, Prepared};

/// The official loop over a transformer: every step calls the model with the time and the guidance in the latents' kind, and
/// with the conditions beside the noisy patches. `on_step` hears of each step that is done, from 1, with the patches.
///
/// Source: `black-forest-labs/flux` at 802fb47, `src/flux/sampling.py` lines 314–354.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape), [`Error::Unfilled`](crate::Error::Unfilled), and whatever `on_step` returns.
pub fn denoise(
    model: &Transformer,
    prepared: &Prepared,
    timesteps: &[f64],
    guidance: f64,
    conditions: &Conditions,
    on_step: &mut dyn FnMut(usize, &Tensor) -> Result<()>,
) -> Result<Tensor> {
    let inputs = DenoiseInputs::new(model, prepared, timesteps, guidance, conditions)?;
    let mut img = prepared.img.shallow_clone();
    for (step, times) in timesteps.windows(2).enumerate() {
        img = sampling::denoise(&img, times, |img, t_vec, _| {
            inputs.velocity(model, img, t_vec, step, &Additions::default())
        })?;
        on_step(step + 1, &img)?;
    }
    Ok(img)
}

/// What the steps of some pictures share: all that the model reads beside the noisy patches and the time.
#[derive(Debug)]
pub(super) struct DenoiseInputs {
    img_ids: Tensor,
    txt: Tensor,
    txt_ids: Tensor,
    vec: Option<Tensor>,
    guidance: Tensor,
    img_cond: Option<Tensor>,
    img_cond_seq: Option<Tensor>,
    /// Where the numerics allow it: what is computed before the first step.
    steps: Option<TransformerSteps>,
    /// Of a picture that is drawn alone.
    cached: Option<RefCell<CachedSteps>>,
}

impl DenoiseInputs {
    pub(super) fn new(
        model: &Transformer,
        prepared: &Prepared,
        timesteps: &[f64],
        guidance: f64,
        conditions: &Conditions,
    ) -> Result<Self> {
        let Prepared { img, img_ids, txt, txt_ids, vec } = prepared;
        let guidance = Tensor::f_full([img.size()[0]], guidance, (img.kind(), img.device()))?;
        let img_ids = match &conditions.img_cond_seq {
            Some((_, ids)) => Tensor::f_cat(&[img_ids, ids], 1)?,
            None => img_ids.shallow_clone(),
        };
        let mut inputs = Self {
            img_ids,
            txt: txt.shallow_clone(),
            txt_ids: txt_ids.shallow_clone(),
            vec: vec.as_ref().map(Tensor::shallow_clone),
            guidance,
            img_cond: conditions.img_cond.as_ref().map(Tensor::shallow_clone),
            img_cond_seq: conditions.img_cond_seq.as_ref().map(|(patches, _)| patches.shallow_clone()),
            steps: None,
            cached: None,
        };
        if let Some(times) = timesteps.split_last().map(|(_, times)| times).filter(|times| !times.is_empty())
        {
            let first = Tensor::f_full([img.size()[0]], times[0], (img.kind(), img.device()))?;
            inputs.steps =
                model.prepare_steps(&inputs.input(&inputs.with_conditions(img)?, &first), times)?;
        }
        Ok(inputs)
    }

    /// Those of several pictures, side by side along the batch. All must have been made for the same times, from inputs
    /// of the same shapes.
    pub(super) fn cat(inputs: &[&Self]) -> Result<Self> {
        let cat = |of: fn(&Self) -> &Tensor| {
            math::cat(&inputs.iter().map(|inputs| of(inputs)).collect::<Vec<_>>(), 0)
        };
        let cat_some = |of: fn(&Self) -> Option<&Tensor>| {
            let some: Option<Vec<_>> = inputs.iter().map(|inputs| of(inputs)).collect();
            some.filter(|some| !some.is_empty()).map(|some| math::cat(&some, 0)).transpose()
        };
        let steps: Option<Vec<_>> = inputs.iter().map(|inputs| inputs.steps.as_ref()).collect();
        Ok(Self {
            img_ids: cat(|inputs| &inputs.img_ids)?,
            txt: cat(|inputs| &inputs.txt)?,
            txt_ids: cat(|inputs| &inputs.txt_ids)?,
            vec: cat_some(|inputs| inputs.vec.as_ref())?,
            guidance: cat(|inputs| &inputs.guidance)?,
            img_cond: cat_some(|inputs| inputs.img_cond.as_ref())?,
            img_cond_seq: cat_some(|inputs| inputs.img_cond_seq.as_ref())?,
            steps: steps.map(|steps| TransformerSteps::cat(&steps)).transpose()?,
            cached: None,
        })
    }

    /// From now on some of so many calls are not computed whole.
    pub(super) fn skip(&mut self, cache: StepCache, calls: usize) {
        self.cached = Some(RefCell::new(CachedSteps::new(cache, calls)));
    }

    /// Calls that were not computed whole, and all; none where all are.
    pub(super) fn skipped(&self) -> (usize, usize) {
        self.cached.as_ref().map_or((0, 0), |cached| cached.borrow().skipped())
    }

    /// Of the noisy patches alone, though the conditions are read beside them.
    pub(super) fn velocity(
        &self,
        model: &Transformer,
        img: &Tensor,
        t_vec: &Tensor,
        step: usize,
        additions: &Additions,
    ) -> Result<Tensor> {
        let img_input = self.with_conditions(img)?;
        let input = self.input(&img_input, t_vec);
        let mut cached = self.cached.as_ref().map(|cached| cached.borrow_mut());
        let options = TransformerOptions {
            prepared: self.steps.as_ref().map(|steps| (steps, step)),
            additions: *additions,
            cache: cached.as_deref_mut(),
        };
        let pred = model.forward(&input, options)?;
        Ok(pred.f_narrow(1, 0, img.size()[1])?)
    }

    /// What ControlNets add in a step. They know the noisy patches alone.
    pub(super) fn control_residuals(
        &self,
        controls: &ControlNetInput,
        img: &Tensor,
        t_vec: &Tensor,
        step: usize,
    ) -> Result<Vec<Residuals>> {
        let img_ids = &self.img_ids.f_narrow(1, 0, img.size()[1])?;
        controls.residuals(&TransformerInput { img_ids, ..self.input(img, t_vec) }, step)
    }

    /// The patches with the conditions beside them.
    fn with_conditions(&self, img: &Tensor) -> Result<Tensor> {
        let mut img_input = img.shallow_clone();
        if let Some(img_cond) = &self.img_cond {
            img_input = Tensor::f_cat(&[&img_input, img_cond], -1)?;
        }
        if let Some(img_cond_seq) = &self.img_cond_seq {
            img_input = Tensor::f_cat(&[&img_input, img_cond_seq], 1)?;
        }
        Ok(img_input)
    }

    fn input<'a>(&'a self, img: &'a Tensor, timesteps: &'a Tensor) -> TransformerInput<'a> {
        let Self { img_ids, txt, txt_ids, vec, guidance, .. } = self;
        TransformerInput { img, img_ids, txt, txt_ids, timesteps, y: vec.as_ref(), guidance: Some(guidance) }
    }
}
