//! Noise, positions, schedules and the Euler loop. Nothing here knows a model: [`LatentSpec`] says what a family's latents are.
//!
//! Source: `black-forest-labs/flux` at 802fb47, `src/flux/sampling.py`.

mod flow_match;
mod latent;
mod schedule;
mod scheduler;
mod solver;

use tch::{Kind, Tensor};

pub use flow_match::{FlowMatch, Spacing, TimeShift};
pub use latent::{LatentSpec, PositionAxes, Prepared};
pub use schedule::{Schedule, get_schedule};
pub(crate) use scheduler::Scheduler;
pub use solver::{Sampler, Solver, Stepped, Velocity};

use crate::error::{Error, Result};

/// How the values of a seed come about in a kind narrower than f32.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NoiseRule {
    /// Drawn in f32 and rounded, as torch does it since 2.13, whatever libtorch runs.
    #[default]
    Current,
    /// bf16 noise as torch up to 2.11 draws it, for pictures that were published with an older torch. In f32 and f16
    /// it is the same as [`NoiseRule::Current`].
    Legacy,
}

/// The noise between two of one shape, on the great circle through both: as long as they are. `strength` 0 is the first.
/// Computed in f32, in the kind of the first.
///
/// # Errors
/// [`Error::Tch`] where the shapes differ.
pub fn slerp(from: &Tensor, to: &Tensor, strength: f64) -> Result<Tensor> {
    if strength == 0.0 {
        return Ok(from.shallow_clone());
    }
    let (one, other) = (from.f_to_kind(Kind::Float)?, to.f_to_kind(Kind::Float)?);
    let cosine = one.f_mul(&other)?.f_sum(Kind::Double)?.f_div(&one.f_norm()?.f_mul(&other.f_norm()?)?)?;
    let angle = f64::try_from(cosine)?.clamp(-1.0, 1.0).acos();
    let (a, b) = match angle.sin() {
        // In one line there is no circle.
        sine if sine < 1e-4 => (1.0 - strength, strength),
        sine => (((1.0 - strength) * angle).sin() / sine, (strength * angle).sin() / sine),
    };
    Ok(one.f_mul_scalar(a)?.f_add(&other.f_mul_scalar(b)?)?.f_to_kind(from.kind())?)
}

/// Walks `img` along the velocities that `model` predicts, from each time to the next, in the kind of `img`.
///
/// `model` gets the patches, the time as `[B]` in the kind of `img`, and the step's number. It returns a velocity of
/// the shape of `img`; conditions that widen or lengthen its input are its own business.
/// Source: `sampling.py` lines 314–354.
///
/// # Errors
/// Whatever `model` returns, and [`Error::Shape`] where its velocity does not fit.
pub fn denoise(
    img: &Tensor,
    timesteps: &[f64],
    mut model: impl FnMut(&Tensor, &Tensor, usize) -> Result<Tensor>,
) -> Result<Tensor> {
    let mut solver = Solver::new(Sampler::Euler, timesteps);
    let mut img = img.shallow_clone();
    for step in 0..solver.steps() {
        img = solver.step(&img, step, &mut model, &|| Err(no_noise()))?.img;
    }
    Ok(img)
}

/// For the samplers that ask for no noise.
fn no_noise() -> Error {
    Error::Config("this sampler draws no noise".into())
}

/// bf16 normal values as torch up to 2.11 drew them on the CPU: uniform values of 8 bits, and Box–Muller with every
/// intermediate rounded to bf16. Source: PyTorch 2.11, `aten/src/ATen/native/cpu/DistributionTemplates.h` and
/// `aten/src/ATen/core/MT19937RNGEngine.h`.
mod legacy {
    use tch::{Kind, Tensor};

    use crate::error::Result;

    /// `len` is at least 16, as any latent's is.
    pub(super) fn randn_bf16(len: usize, seed: u64) -> Result<Tensor> {
        let mut generator = Mt19937::new(seed as u32);
        let mut values: Vec<f32> = (0..len).map(|_| generator.uniform_8_bits()).collect();
        for chunk in values.chunks_exact_mut(16) {
            normal_fill_16(chunk);
        }
        if !len.is_multiple_of(16) {
            // The last 16 are drawn anew, over what stood there.
            let tail = &mut values[len - 16..];
            tail.fill_with(|| generator.uniform_8_bits());
            normal_fill_16(tail);
        }
        Ok(Tensor::f_from_slice(&values)?.f_to_kind(Kind::BFloat16)?)
    }

    fn normal_fill_16(values: &mut [f32]) {
        for i in 0..8 {
            let u1 = bf16(1.0 - values[i]);
            let u2 = values[i + 8];
            let radius = bf16(bf16(-2.0 * bf16(u1.ln())).sqrt());
            let theta = (2.0 * std::f64::consts::PI * f64::from(u2)) as f32;
            let theta = bf16(theta);
            // Adding the mean makes a negative zero positive.
            values[i] = bf16(radius * bf16(theta.cos())) + 0.0;
            values[i + 8] = bf16(radius * bf16(theta.sin())) + 0.0;
        }
    }

    /// Rounded to bf16, to the nearest and to even.
    fn bf16(x: f32) -> f32 {
        let bits = x.to_bits();
        f32::from_bits((bits + 0x7fff + ((bits >> 16) & 1)) & 0xffff_0000)
    }

    /// The Mersenne twister of 32 bits.
    struct Mt19937 {
        state: [u32; 624],
        next: usize,
    }

    impl Mt19937 {
        fn new(seed: u32) -> Self {
            let mut state = [seed; 624];
            for i in 1..624 {
                let before = state[i - 1];
                state[i] = (before ^ (before >> 30)).wrapping_mul(1_812_433_253).wrapping_add(i as u32);
            }
            Self { state, next: 624 }
        }

        fn next_u32(&mut self) -> u32 {
            if self.next == 624 {
                for i in 0..624 {
                    let y = (self.state[i] & 0x8000_0000) | (self.state[(i + 1) % 624] & 0x7fff_ffff);
                    let twist = if y & 1 == 1 { 0x9908_b0df } else { 0 };
                    self.state[i] = self.state[(i + 397) % 624] ^ (y >> 1) ^ twist;
                }
                self.next = 0;
            }
            let mut y = self.state[self.next];
            self.next += 1;
            y ^= y >> 11;
            y ^= (y << 7) & 0x9d2c_5680;
            y ^= (y << 15) & 0xefc6_0000;
            y ^ (y >> 18)
        }

        fn uniform_8_bits(&mut self) -> f32 {
            (self.next_u32() & 0xff) as f32 / 256.0
        }
    }
}
