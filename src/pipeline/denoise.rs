//! The official loop over a FLUX.1 transformer.

use tch::Tensor;

use crate::error::Result;
use crate::flux1::{Flux1, Flux1Input, Steps};
use crate::sampling::{self, Prepared};

/// What a picture is drawn from beside text.
#[derive(Debug, Default)]
pub struct Conditions {
    /// More channels of every patch `[B, Li, …]`: Fill's image and mask, Canny's edges, the depth.
    pub img_cond: Option<Tensor>,
    /// More patches along the sequence `[B, Lc, …]` with their positions `[B, Lc, 3]`: Kontext's reference.
    pub img_cond_seq: Option<(Tensor, Tensor)>,
}

/// The official loop over FLUX.1: every step calls the model with the time and the guidance in the latents' kind, and
/// with the conditions beside the noisy patches. `on_step` hears of each step that is done, from 1, with the patches.
///
/// Source: `black-forest-labs/flux` at 802fb47, `src/flux/sampling.py` lines 314–354.
///
/// # Errors
/// [`Error::Shape`](crate::Error::Shape), [`Error::Unfilled`](crate::Error::Unfilled), and whatever `on_step` returns.
pub fn denoise(
    model: &Flux1,
    prepared: &Prepared,
    timesteps: &[f64],
    guidance: f64,
    conditions: &Conditions,
    on_step: &mut dyn FnMut(usize, &Tensor) -> Result<()>,
) -> Result<Tensor> {
    let Prepared { img, img_ids, txt, txt_ids, vec } = prepared;
    let guidance_vec = Tensor::f_full([img.size()[0]], guidance, (img.kind(), img.device()))?;
    let len = img.size()[1];
    let mut steps: Option<Steps> = None;
    sampling::denoise(img, timesteps, |img, t_vec, step| {
        if step > 0 {
            on_step(step, img)?;
        }
        let mut img_input = img.shallow_clone();
        let mut img_input_ids = img_ids.shallow_clone();
        if let Some(img_cond) = &conditions.img_cond {
            img_input = Tensor::f_cat(&[&img_input, img_cond], -1)?;
        }
        if let Some((img_cond_seq, img_cond_seq_ids)) = &conditions.img_cond_seq {
            img_input = Tensor::f_cat(&[&img_input, img_cond_seq], 1)?;
            img_input_ids = Tensor::f_cat(&[&img_input_ids, img_cond_seq_ids], 1)?;
        }
        let input = Flux1Input {
            img: &img_input,
            img_ids: &img_input_ids,
            txt,
            txt_ids,
            timesteps: t_vec,
            y: vec,
            guidance: Some(&guidance_vec),
        };
        if step == 0 {
            steps = model.prepare_steps(&input, &timesteps[..timesteps.len() - 1])?;
        }
        let pred = match &steps {
            Some(steps) => model.forward_step(&input, steps, step)?,
            None => model.forward(&input)?,
        };
        Ok(pred.f_narrow(1, 0, len)?)
    })
    .and_then(|img| on_step(timesteps.len().saturating_sub(1), &img).map(|()| img))
}
