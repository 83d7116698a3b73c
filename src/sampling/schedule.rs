//! At which times the model is asked.

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use super::FlowMatch;
use crate::error::{Error, Result};

/// Times from 1 (noise) to 0 (picture): `num_steps + 1` values, for a picture of `image_seq_len` patches.
///
/// A shifted schedule spends more steps on noisy times, the more the larger the picture. The arithmetic is f32, as in
/// the official code. Source: `sampling.py` lines 281–311, with its defaults `base_shift` 0.5 and `max_shift` 1.15.
pub fn get_schedule(
    num_steps: usize,
    image_seq_len: i64,
    base_shift: f64,
    max_shift: f64,
    shift: bool,
) -> Vec<f64> {
    let steps = num_steps as i64;
    let mut timesteps = Tensor::linspace(1, 0, steps + 1, (Kind::Float, Device::Cpu));
    if shift {
        let (x1, x2) = (256.0, 4096.0);
        let m = (max_shift - base_shift) / (x2 - x1);
        let b = base_shift - m * x1;
        let mu = m * image_seq_len as f64 + b;
        let sigma = (timesteps.reciprocal() - 1).pow_tensor_scalar(1.0);
        timesteps = (sigma + mu.exp()).reciprocal() * mu.exp();
    }
    timesteps.to_kind(Kind::Double).iter::<f64>().map_or_else(|_| Vec::new(), Iterator::collect)
}

/// How the times of the steps are chosen.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// Even steps: schnell's.
    Linear,
    /// Shifted towards noise, the more the larger the picture: dev's.
    Shifted {
        /// Of a picture of 256 patches.
        base: f64,
        /// Of one of 4096 patches; others lie on the line through both.
        max: f64,
    },
    /// These, from at most 1 down to 0, as many as there are steps; the 0 at the end may be left out.
    Sigmas(Vec<f64>),
    /// As diffusers' flow matching schedulers have them, by their settings.
    FlowMatch(FlowMatch),
}

impl From<FlowMatch> for Schedule {
    /// The official schedule, bit for bit, where the settings say no other one; settings that nothing depends on are
    /// the usual ones.
    fn from(settings: FlowMatch) -> Self {
        let usual = FlowMatch::default();
        if settings.use_dynamic_shifting {
            let FlowMatch { base_shift: base, max_shift: max, .. } = settings;
            let settings = FlowMatch { shift: usual.shift, ..settings };
            let official =
                FlowMatch { use_dynamic_shifting: true, base_shift: base, max_shift: max, ..usual };
            return if settings == official {
                Self::Shifted { base, max }
            } else {
                Self::FlowMatch(settings)
            };
        }
        let FlowMatch {
            num_train_timesteps,
            shift,
            shift_terminal,
            spacing,
            invert_sigmas,
            use_flow_sigmas,
            ..
        } = settings;
        let settings = FlowMatch {
            num_train_timesteps,
            shift,
            shift_terminal,
            spacing,
            invert_sigmas,
            use_flow_sigmas,
            ..usual.clone()
        };
        if settings == usual { Self::Linear } else { Self::FlowMatch(settings) }
    }
}

impl Schedule {
    /// The official shift.
    pub const SHIFTED: Self = Self::Shifted { base: 0.5, max: 1.15 };

    /// As many times as there are steps, and 0. [`Schedule::Sigmas`] has as many as it has.
    pub fn times(&self, steps: usize, image_seq_len: i64) -> Vec<f64> {
        match self {
            Self::Linear => get_schedule(steps, image_seq_len, 0.5, 1.15, false),
            Self::Shifted { base, max } => get_schedule(steps, image_seq_len, *base, *max, true),
            Self::Sigmas(sigmas) => {
                let open = sigmas.last().is_some_and(|&last| last != 0.0);
                sigmas.iter().copied().chain(open.then_some(0.0)).collect()
            }
            Self::FlowMatch(settings) => settings.sigmas(steps, image_seq_len),
        }
    }

    /// What the model is told at each of these times.
    pub fn timesteps(&self, times: &[f64]) -> Vec<f64> {
        match self {
            Self::FlowMatch(settings) => settings.timesteps(times),
            Self::Linear | Self::Shifted { .. } | Self::Sigmas(_) => times.to_vec(),
        }
    }

    /// How many steps it has by itself.
    pub fn steps(&self) -> Option<usize> {
        match self {
            Self::Linear | Self::Shifted { .. } | Self::FlowMatch(_) => None,
            Self::Sigmas(sigmas) => Some(sigmas.iter().filter(|&&sigma| sigma != 0.0).count()),
        }
    }

    /// # Errors
    /// [`Error::Request`] for shifts that are no numbers, and for times that do not fall from at most 1.
    pub fn check(&self) -> Result<()> {
        let wrong = |text: String| Err(Error::Request(text));
        match self {
            Self::Linear => Ok(()),
            Self::Shifted { base, max } if base.abs() <= 20.0 && max.abs() <= 20.0 => Ok(()),
            Self::Shifted { base, max } => {
                wrong(format!("shifts must be between -20 and 20, not {base}, {max}"))
            }
            Self::FlowMatch(settings) => settings.check(),
            Self::Sigmas(sigmas) => {
                let ends = sigmas.first().is_some_and(|&first| first > 0.0 && first <= 1.0);
                let falls = sigmas.windows(2).all(|pair| pair[1] < pair[0] && pair[1] >= 0.0);
                match ends && falls {
                    true => Ok(()),
                    false => wrong(format!("sigmas must fall from at most 1 down to 0, not {sigmas:?}")),
                }
            }
        }
    }
}
