//! How the loop goes from one time to the next.

use tch::{Kind, Tensor};

use crate::choice::choice;
use crate::error::{Error, Result};

choice! {
    /// Ways along the velocities.
    #[derive(Default)]
    pub enum Sampler {
        /// Straight on, in the kind of the latents: the official one.
        Euler = "euler", default;
        /// Along the mean of the velocities at both ends of a step; twice the work, but for the last step.
        ///
        /// Source: diffusers 0.42.1, `FlowMatchHeunDiscreteScheduler.step`.
        Heun = "heun";
        /// DPM-Solver++ of second order in several steps: what the step before expected of the picture is taken into account.
        ///
        /// Source: diffusers 0.42.1, `DPMSolverMultistepScheduler` with `algorithm_type` `dpmsolver++`, `solver_order` 2,
        /// `prediction_type` `flow_prediction`, `use_flow_sigmas`, `final_sigmas_type` `zero`.
        Dpmpp2m = "dpmpp_2m";
        /// To the picture that is expected, and back with new noise: for models that were distilled for few steps.
        ///
        /// Source: diffusers 0.42.1, `FlowMatchLCMScheduler.step`.
        Lcm = "lcm";
    }
}

impl Sampler {
    /// The name that people read in a picture's parameters.
    pub fn title(self) -> &'static str {
        match self {
            Self::Euler => "Euler",
            Self::Heun => "Heun",
            Self::Dpmpp2m => "DPM++ 2M",
            Self::Lcm => "LCM",
        }
    }

    /// How often so many steps ask for a velocity.
    pub fn calls(self, steps: usize) -> usize {
        if self == Self::Heun { (2 * steps).saturating_sub(1) } else { steps }
    }

    /// Whether it draws new noise at every step but the last.
    pub fn draws_noise(self) -> bool {
        self == Self::Lcm
    }
}

/// A velocity of the shape of the patches, at a time `[B]` in their kind, which is the one with this number.
pub type Velocity<'a> = dyn FnMut(&Tensor, &Tensor, usize) -> Result<Tensor> + 'a;

/// Where a step led.
#[derive(Debug)]
pub struct Stepped {
    /// The patches at the next time.
    pub img: Tensor,
    /// The velocity at the step's own time.
    pub velocity: Tensor,
}

/// A walk from noise to picture. It knows no model: velocities come from a closure.
#[derive(Debug)]
pub struct Solver {
    sampler: Sampler,
    times: Vec<f64>,
    /// What the model is told at each of them.
    timesteps: Vec<f64>,
    /// What the step before expected of the picture.
    expected: Option<Tensor>,
}

impl Solver {
    /// Along these times, which fall from noise to picture.
    pub fn new(sampler: Sampler, times: &[f64]) -> Self {
        Self { sampler, times: times.to_vec(), timesteps: times.to_vec(), expected: None }
    }

    /// Tells the model other numbers than the times themselves; as many as there are times.
    pub fn with_timesteps(mut self, timesteps: &[f64]) -> Self {
        self.timesteps = timesteps.to_vec();
        self
    }

    /// How many steps there are.
    pub fn steps(&self) -> usize {
        self.times.len().saturating_sub(1)
    }

    /// Goes from time `step` to the next. `noise` is what [`Sampler::Lcm`] adds, of the shape of the patches.
    ///
    /// # Errors
    /// [`Error::Shape`] where a velocity does not fit, [`Error::Request`] past the last step, and those of the closures.
    pub fn step(
        &mut self,
        img: &Tensor,
        step: usize,
        velocity: &mut Velocity,
        noise: &dyn Fn() -> Result<Tensor>,
    ) -> Result<Stepped> {
        let &[now, next, ..] = self.times.get(step..).unwrap_or_default() else {
            return Err(Error::Request(format!("there is no step {step}: there are {}", self.steps())));
        };
        let timesteps = &self.timesteps;
        let mut at = |img: &Tensor, index: usize| {
            let &time = timesteps.get(index).ok_or_else(|| {
                Error::Request(format!("{} timesteps are too few for step {index}", timesteps.len()))
            })?;
            let t_vec = Tensor::f_full([img.size()[0]], time, (img.kind(), img.device()))?;
            let pred = velocity(img, &t_vec, index)?;
            if pred.size() != img.size() {
                let expected = format!("{:?}, as the patches", img.size());
                return Err(Error::Shape { what: "velocity", expected, found: pred.size() });
            }
            Ok(pred)
        };
        let pred = at(img, step)?;
        let img = match self.sampler {
            Sampler::Euler => img.f_add(&pred.f_mul_scalar(next - now)?)?,
            Sampler::Heun => {
                let ahead = widened(img)?.f_add(&widened(&pred)?.f_mul_scalar(next - now)?)?;
                // At time 0 there is no velocity to ask for.
                let along = match next > 0.0 {
                    true => {
                        let there = at(&ahead.f_to_kind(img.kind())?, step + 1)?;
                        widened(&pred)?.f_add(&widened(&there)?)?.f_mul_scalar(0.5)?
                    }
                    false => widened(&pred)?,
                };
                widened(img)?.f_add(&along.f_mul_scalar(next - now)?)?.f_to_kind(img.kind())?
            }
            Sampler::Dpmpp2m => self.dpmpp_2m(img, &pred, step)?,
            Sampler::Lcm => {
                let expected = expected(img, &pred, now)?;
                let stays = expected.f_mul_scalar(1.0 - next)?;
                let there =
                    if next > 0.0 { stays.f_add(&widened(&noise()?)?.f_mul_scalar(next)?)? } else { stays };
                there.f_to_kind(img.kind())?
            }
        };
        Ok(Stepped { img, velocity: pred })
    }

    fn dpmpp_2m(&mut self, img: &Tensor, pred: &Tensor, step: usize) -> Result<Tensor> {
        let (now, next) = (self.times[step], self.times[step + 1]);
        // diffusers keeps what is expected in the kind of the model.
        let expected = expected(img, pred, now)?.f_to_kind(img.kind())?;
        let log_snr = |time: f64| (1.0 - time).ln() - time.ln();
        let h = log_snr(next) - log_snr(now);
        let there = (1.0 - next) * -(-h).exp_m1();
        let mut to =
            widened(img)?.f_mul_scalar(next / now)?.f_add(&widened(&expected)?.f_mul_scalar(there)?)?;
        // The last step, to time 0, is of first order: its h is infinite.
        if let (Some(before), true) = (&self.expected, next > 0.0) {
            let r = (log_snr(now) - log_snr(self.times[step - 1])) / h;
            let change = widened(&expected)?.f_sub(&widened(before)?)?.f_mul_scalar(1.0 / r)?;
            to = to.f_add(&change.f_mul_scalar(0.5 * there)?)?;
        }
        self.expected = Some(expected);
        Ok(to.f_to_kind(img.kind())?)
    }

    /// Goes on with these rows of the batch alone.
    ///
    /// # Errors
    /// [`Error::Tch`] for a row that there is not.
    pub fn keep(&mut self, rows: &Tensor) -> Result<()> {
        self.expected =
            self.expected.as_ref().map(|expected| expected.f_index_select(0, rows)).transpose()?;
        Ok(())
    }
}

/// What a velocity says of the picture, in f32 at least.
fn expected(img: &Tensor, pred: &Tensor, time: f64) -> Result<Tensor> {
    Ok(widened(img)?.f_sub(&widened(pred)?.f_mul_scalar(time)?)?)
}

/// In f32, where it is narrower.
fn widened(x: &Tensor) -> Result<Tensor> {
    Ok(match x.kind() {
        Kind::Double => x.shallow_clone(),
        _ => x.f_to_kind(Kind::Float)?,
    })
}
