//! The times of diffusers' flow matching schedulers, as their settings say them.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// The settings of diffusers' `FlowMatchEulerDiscreteScheduler` under their own names and with their own defaults, and
/// the times that `FluxPipeline` walks with them.
///
/// Source: diffusers 0.42.1, `schedulers/scheduling_flow_match_euler_discrete.py`, `set_timesteps`, and
/// `pipelines/flux/pipeline_flux.py`, `calculate_shift`. The arithmetic is f32 where theirs is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FlowMatch {
    /// The model is told `sigma · num_train_timesteps / 1000`.
    #[serde(skip_serializing_if = "is_thousand")]
    pub num_train_timesteps: i64,
    /// How far the times lean to noise where the shift is not dynamic; 1 is not at all.
    pub shift: f64,
    /// Whether the shift depends on the size of the picture.
    pub use_dynamic_shifting: bool,
    /// Of a picture of `base_image_seq_len` patches.
    pub base_shift: f64,
    /// Of one of `max_image_seq_len` patches; others lie on the line through both.
    pub max_shift: f64,
    /// Patches.
    pub base_image_seq_len: i64,
    /// Patches.
    pub max_image_seq_len: i64,
    /// What a dynamic shift is made of.
    pub time_shift_type: TimeShift,
    /// The last time before 0, to which the others are stretched.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shift_terminal: Option<f64>,
    /// How the times lie between the first and the last.
    #[serde(skip_serializing_if = "is_uniform")]
    pub spacing: Spacing,
    /// Whether the walk leads from 0 to 1, as Mochi's does.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub invert_sigmas: bool,
    /// The times of `DPMSolverMultistepScheduler` with `use_flow_sigmas`: they begin below 1, and the model is told them
    /// cut off to thousandths. Its `flow_shift` is [`shift`](Self::shift).
    ///
    /// Source: diffusers 0.42.1, `schedulers/scheduling_dpmsolver_multistep.py`, `set_timesteps`.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub use_flow_sigmas: bool,
}

/// What a dynamic shift of μ makes of a time t.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TimeShift {
    /// `exp(μ) / (exp(μ) + 1/t − 1)`.
    #[default]
    Exponential,
    /// `μ / (μ + 1/t − 1)`.
    Linear,
}

/// How times lie between the first and the last.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Spacing {
    /// Evenly before they are shifted.
    #[default]
    Uniform,
    /// `use_karras_sigmas`: evenly in their seventh roots.
    Karras,
    /// `use_exponential_sigmas`: evenly in their logarithms.
    Exponential,
    /// `use_beta_sigmas`: at the quantiles of a beta distribution of 0.6 and 0.6.
    Beta,
}

fn is_thousand(count: &i64) -> bool {
    *count == 1000
}

fn is_uniform(spacing: &Spacing) -> bool {
    *spacing == Spacing::Uniform
}

impl Default for FlowMatch {
    fn default() -> Self {
        Self {
            num_train_timesteps: 1000,
            shift: 1.0,
            use_dynamic_shifting: false,
            base_shift: 0.5,
            max_shift: 1.15,
            base_image_seq_len: 256,
            max_image_seq_len: 4096,
            time_shift_type: TimeShift::Exponential,
            shift_terminal: None,
            spacing: Spacing::Uniform,
            invert_sigmas: false,
            use_flow_sigmas: false,
        }
    }
}

impl FlowMatch {
    /// Times from noise to picture for a picture of so many patches: as many as there are steps, and the end.
    pub fn sigmas(&self, steps: usize, image_seq_len: i64) -> Vec<f64> {
        if self.use_flow_sigmas {
            return self.dpm_solver_sigmas(steps, image_seq_len);
        }
        let mut sigmas: Vec<f32> = linspace(1.0, 1.0 / steps as f64, steps).map(|t| t as f32).collect();
        let shift = match (self.use_dynamic_shifting, self.time_shift_type) {
            (true, TimeShift::Exponential) => self.mu(image_seq_len).exp() as f32,
            (true, TimeShift::Linear) => self.mu(image_seq_len) as f32,
            (false, _) => self.shift as f32,
        };
        for t in &mut sigmas {
            *t = match self.use_dynamic_shifting {
                true => shift / (shift + (1.0 / *t - 1.0)),
                false => shift * *t / (1.0 + (self.shift - 1.0) as f32 * *t),
            };
        }
        if let (Some(terminal), Some(&last)) = (self.shift_terminal, sigmas.last()) {
            let scale = (1.0 - last) / (1.0 - terminal) as f32;
            sigmas.iter_mut().for_each(|t| *t = 1.0 - (1.0 - *t) / scale);
        }
        let sigmas = match (self.spacing, &sigmas[..]) {
            (Spacing::Uniform, _) | (_, []) => sigmas,
            (spacing, &[max, .., min] | &[max @ min]) => spacing.between(max.into(), min.into(), steps),
        };
        let invert = |t: f32| if self.invert_sigmas { 1.0 - t } else { t };
        sigmas.into_iter().chain([0.0]).map(|t| invert(t).into()).collect()
    }

    /// What the model is told at each of these times.
    pub fn timesteps(&self, sigmas: &[f64]) -> Vec<f64> {
        let train = self.num_train_timesteps as f64;
        let told = |&sigma: &f64| match (self.use_flow_sigmas, self.num_train_timesteps) {
            (true, _) => (sigma * train).trunc() / 1000.0,
            (false, 1000) => sigma,
            (false, _) => sigma * train / 1000.0,
        };
        sigmas.iter().map(told).collect()
    }

    /// The shift of a picture of so many patches.
    fn mu(&self, image_seq_len: i64) -> f64 {
        let (base, max) = (self.base_image_seq_len as f64, self.max_image_seq_len as f64);
        let m = (self.max_shift - self.base_shift) / (max - base);
        image_seq_len as f64 * m + (self.base_shift - m * base)
    }

    fn dpm_solver_sigmas(&self, steps: usize, image_seq_len: i64) -> Vec<f64> {
        let shift = if self.use_dynamic_shifting { self.mu(image_seq_len).exp() } else { self.shift };
        let alphas = linspace(1.0, 1.0 / self.num_train_timesteps as f64, steps + 1);
        let shifted = alphas.map(|alpha| {
            let sigma = 1.0 - alpha;
            shift * sigma / (1.0 + (shift - 1.0) * sigma)
        });
        let mut sigmas: Vec<f64> = shifted.collect();
        sigmas.reverse();
        sigmas
    }

    /// # Errors
    /// [`Error::Request`] for values from which no times can be made.
    pub fn check(&self) -> Result<()> {
        let wrong = |text: String| Err(Error::Request(text));
        let Self { shift, base_shift, max_shift, base_image_seq_len, max_image_seq_len, .. } = *self;
        if !(1..=1_000_000).contains(&self.num_train_timesteps) {
            return wrong(format!(
                "num_train_timesteps {} is not between 1 and 1000000",
                self.num_train_timesteps
            ));
        }
        let is_in_range = shift > 0.0 && shift <= 1e6;
        if !self.use_dynamic_shifting && !is_in_range {
            return wrong(format!("a shift of {shift} is not above 0 and at most 1000000"));
        }
        if self.use_dynamic_shifting {
            if !(base_shift.abs() <= 20.0 && max_shift.abs() <= 20.0) {
                return wrong(format!("shifts must be between -20 and 20, not {base_shift}, {max_shift}"));
            }
            if base_image_seq_len == max_image_seq_len {
                return wrong(format!(
                    "no line leads through base_image_seq_len and max_image_seq_len, which are both {max_image_seq_len}"
                ));
            }
        }
        if self.use_dynamic_shifting && self.use_flow_sigmas && self.time_shift_type == TimeShift::Linear {
            return wrong("use_flow_sigmas takes an exponential time_shift_type, not a linear one".into());
        }
        match self.shift_terminal {
            Some(terminal) if !(terminal > 0.0 && terminal < 1.0) => {
                wrong(format!("a shift_terminal of {terminal} is not between 0 and 1"))
            }
            _ => Ok(()),
        }
    }
}

impl Spacing {
    fn between(self, max: f64, min: f64, steps: usize) -> Vec<f32> {
        let ramp = linspace(0.0, 1.0, steps);
        let sigmas: Vec<f64> = match self {
            Self::Uniform => linspace(max, min, steps).collect(),
            Self::Karras => {
                const RHO: f64 = 7.0;
                let (max, min) = (max.powf(1.0 / RHO), min.powf(1.0 / RHO));
                ramp.map(|t| (max + t * (min - max)).powf(RHO)).collect()
            }
            Self::Exponential => linspace(max.ln(), min.ln(), steps).map(f64::exp).collect(),
            Self::Beta => ramp.map(|t| min + beta_quantile(1.0 - t) * (max - min)).collect(),
        };
        sigmas.into_iter().map(|sigma| sigma as f32).collect()
    }
}

/// As numpy's: the last value is exactly `stop`, unless it is the only one.
fn linspace(start: f64, stop: f64, count: usize) -> impl Iterator<Item = f64> {
    let step = (stop - start) / count.saturating_sub(1).max(1) as f64;
    (0..count).map(move |i| if i > 0 && i + 1 == count { stop } else { start + i as f64 * step })
}

/// Where the share `p` of a beta distribution of 0.6 and 0.6 lies to the left.
fn beta_quantile(p: f64) -> f64 {
    const A: f64 = 0.6;
    if p > 0.5 {
        // The distribution is symmetric.
        return 1.0 - beta_quantile(1.0 - p);
    }
    // The incomplete beta function as its power series, which for x up to 1/2 loses half of the rest with each term.
    let incomplete = |x: f64| {
        let (mut term, mut sum) = (1.0, 0.0);
        for k in 0..80 {
            sum += term / (A + f64::from(k));
            term *= x * (f64::from(k) + 1.0 - A) / (f64::from(k) + 1.0);
        }
        x.powf(A) * sum
    };
    let target = p * 2.0 * incomplete(0.5);
    let (mut low, mut high) = (0.0, 0.5);
    for _ in 0..200 {
        let middle = 0.5 * (low + high);
        if incomplete(middle) < target { low = middle } else { high = middle }
    }
    0.5 * (low + high)
}
