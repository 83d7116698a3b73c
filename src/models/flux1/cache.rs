//! Step caches: a part of a step is skipped, and what earlier steps have left replaces it.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::error::{Error, Result};

/// Which steps are skipped, and what replaces them. Each saves time at the cost of quality; none is the default.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepCache {
    /// Where the first block changes the patches almost as it did when all blocks last ran, the change that the other blocks
    /// made then is reused.
    ///
    /// Source: diffusers 0.42.1, `hooks/first_block_cache.py`.
    FirstBlock {
        /// The largest relative mean difference between both changes: 0.05 to 0.2 are usual, and more skips more.
        threshold: f64,
    },
    /// Where the modulated input of the first block has changed little since all blocks last ran, by the measure of a
    /// polynomial that was fitted to FLUX.1, the change that all blocks made then is reused. The first and the last step are
    /// computed.
    ///
    /// Source: `ali-vilab/TeaCache`, `TeaCache4FLUX/teacache_flux.py`.
    TeaCache {
        /// The limit of the sum of the changes since then: 0.25 to 0.8 are usual, and more skips more.
        threshold: f64,
    },
    /// Velocities between computed steps are extrapolated by a polynomial of the steps.
    ///
    /// Source: diffusers 0.42.1, `hooks/taylorseer_cache.py` in its lite mode, with factors in f32.
    TaylorSeer {
        /// A step is computed, then `interval - 1` steps are predicted.
        interval: usize,
        /// Order of the polynomial.
        order: usize,
        /// Count of steps at the start that are all computed.
        warmup: usize,
    },
}

impl StepCache {
    /// What stands for no cache, where a cache is written.
    pub const NONE: &'static str = "none";
    /// With the threshold of diffusers' documentation.
    pub const FIRST_BLOCK: Self = Self::FirstBlock { threshold: 0.05 };
    /// With the mildest of its authors' thresholds.
    pub const TEA_CACHE: Self = Self::TeaCache { threshold: 0.25 };
    /// With diffusers' defaults.
    pub const TAYLOR_SEER: Self = Self::TaylorSeer { interval: 5, order: 1, warmup: 3 };

    /// Checks the settings.
    ///
    /// # Errors
    /// [`Error::Request`] for a threshold below 0, an interval of 0 and an order above 8.
    pub fn check(self) -> Result<()> {
        match self {
            Self::FirstBlock { threshold } | Self::TeaCache { threshold }
                if !threshold.is_finite() || threshold < 0.0 =>
            {
                Err(Error::Request(format!("the threshold {threshold} of a step cache is not at least 0")))
            }
            Self::TaylorSeer { interval, order, .. } if interval == 0 || order > 8 => {
                Err(Error::Request(format!(
                    "a step cache needs an interval of at least 1 and an order of at most 8, not {interval} and {order}"
                )))
            }
            _ => Ok(()),
        }
    }
}

/// Writes a cache as it is read.
impl fmt::Display for StepCache {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::FirstBlock { threshold } => write!(f, "first-block:{threshold}"),
            Self::TeaCache { threshold } => write!(f, "tea-cache:{threshold}"),
            Self::TaylorSeer { interval, order, warmup } => {
                write!(f, "taylor-seer:{interval},{order},{warmup}")
            }
        }
    }
}

/// Reads `first-block[:THRESHOLD]`, `tea-cache[:THRESHOLD]` or `taylor-seer[:INTERVAL[,ORDER[,WARMUP]]]`. What is left out
/// is as in the constants.
impl FromStr for StepCache {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (name, numbers) = text.split_once(':').unwrap_or((text, ""));
        let numbers: Vec<&str> =
            numbers.split(',').map(str::trim).filter(|number| !number.is_empty()).collect();
        let wrong = |expected: &str| Error::Request(format!("expected {expected}, not {text:?}"));
        let threshold = |form: fn(f64) -> Self, usual: Self| match numbers[..] {
            [] => Ok(usual),
            [number] => number.parse().map(form).map_err(|_| wrong(&format!("{name}:THRESHOLD"))),
            _ => Err(wrong(&format!("{name}:THRESHOLD"))),
        };
        let cache = match name {
            "first-block" => threshold(|threshold| Self::FirstBlock { threshold }, Self::FIRST_BLOCK)?,
            "tea-cache" => threshold(|threshold| Self::TeaCache { threshold }, Self::TEA_CACHE)?,
            "taylor-seer" => {
                let expected = || wrong("taylor-seer:INTERVAL[,ORDER[,WARMUP]]");
                let numbers: std::result::Result<Vec<usize>, _> =
                    numbers.iter().map(|number| number.parse()).collect();
                let (interval, order, warmup) = match numbers.map_err(|_| expected())?[..] {
                    [] => (5, 1, 3),
                    [interval] => (interval, 1, 3),
                    [interval, order] => (interval, order, 3),
                    [interval, order, warmup] => (interval, order, warmup),
                    _ => return Err(expected()),
                };
                Self::TaylorSeer { interval, order, warmup }
            }
            _ => return Err(wrong("first-block, tea-cache or taylor-seer")),
        };
        cache.check()?;
        Ok(cache)
    }
}

/// The coefficients of the polynomial that weighs a change of the modulated input, those of the highest power first.
///
/// Source: `ali-vilab/TeaCache`, `TeaCache4FLUX/teacache_flux.py`.
const TEA_CACHE_COEFFICIENTS: [f64; 5] =
    [4.98651651e+02, -2.83781631e+02, 5.58554382e+01, -3.82021401e+00, 2.64230861e-01];

/// The state of a step cache: what the steps of a picture leave for the next step.
#[derive(Debug)]
pub struct CachedSteps {
    cache: StepCache,
    /// How many calls of the model the picture takes.
    calls: usize,
    done: usize,
    skipped: usize,
    /// How the first block has changed the patches, or its modulated input.
    first_block: Option<Tensor>,
    /// The sum of the weighed changes of the inputs since all blocks last ran.
    distance: f64,
    /// How the skipped blocks have changed the patches.
    residual: Option<Tensor>,
    /// The velocity and its differences, each divided by the count of steps between.
    factors: Vec<Tensor>,
    /// The last call that was computed whole.
    computed: Option<usize>,
}

impl CachedSteps {
    /// The state before the first of `calls` calls of the model.
    pub fn new(cache: StepCache, calls: usize) -> Self {
        Self {
            cache,
            calls,
            done: 0,
            skipped: 0,
            first_block: None,
            distance: 0.0,
            residual: None,
            factors: Vec::new(),
            computed: None,
        }
    }

    /// Returns the count of calls that were not computed whole, and the count of all calls.
    pub fn skipped(&self) -> (usize, usize) {
        (self.skipped, self.done)
    }

    /// Begins a call. Returns its velocity, where it is extrapolated from those before.
    pub(super) fn predicted(&mut self) -> Result<Option<Tensor>> {
        let call = self.done;
        self.done += 1;
        let StepCache::TaylorSeer { interval, warmup, .. } = self.cache else { return Ok(None) };
        let (Some(computed), Some(last)) = (self.computed, self.factors.first()) else { return Ok(None) };
        if call < warmup || (call + interval - warmup % interval - 1).is_multiple_of(interval) {
            return Ok(None);
        }
        let ahead = (call - computed) as f64;
        let (mut velocity, mut weight) = (last.f_zeros_like()?, 1.0);
        for (factor, order) in self.factors.iter().zip(1..) {
            velocity = velocity.f_add(&factor.f_mul_scalar(weight)?)?;
            weight *= ahead / f64::from(order);
        }
        self.skipped += 1;
        Ok(Some(velocity))
    }

    /// Returns the patches after all blocks, where the modulated input of the first block allows skipping them.
    pub(super) fn after_input(
        &mut self,
        img: &Tensor,
        modulated: impl FnOnce() -> Tensor,
    ) -> Result<Option<Tensor>> {
        let StepCache::TeaCache { threshold } = self.cache else { return Ok(None) };
        let modulated = modulated();
        let change = self.first_block.as_ref().map(|before| change(&modulated, before)).transpose()?;
        self.first_block = Some(modulated);
        let is_first_or_last = self.done == 1 || self.done == self.calls;
        if let (Some(change), Some(residual), false) = (change, &self.residual, is_first_or_last) {
            self.distance +=
                TEA_CACHE_COEFFICIENTS.iter().fold(0.0, |sum, coefficient| sum * change + coefficient);
            if self.distance < threshold {
                self.skipped += 1;
                return Ok(Some(img.f_add(residual)?));
            }
        }
        self.distance = 0.0;
        Ok(None)
    }

    /// Returns the patches after all blocks, where the change that the first block made allows skipping the others.
    pub(super) fn after_first_block(&mut self, before: &Tensor, img: &Tensor) -> Result<Option<Tensor>> {
        let StepCache::FirstBlock { threshold } = self.cache else { return Ok(None) };
        let changed = img.f_sub(before)?;
        if let (Some(before), Some(residual)) = (&self.first_block, &self.residual)
            && change(&changed, before)? <= threshold
        {
            self.skipped += 1;
            return Ok(Some(img.f_add(residual)?));
        }
        self.first_block = Some(changed);
        Ok(None)
    }

    /// Returns whether the blocks that may be skipped begin after the first block.
    pub(super) fn begins_after_first_block(&self) -> bool {
        matches!(self.cache, StepCache::FirstBlock { .. })
    }

    /// Keeps the result of a call that was computed whole: the patches before and after the blocks that may be skipped, and
    /// the velocity.
    pub(super) fn keep(&mut self, before: &Tensor, after: &Tensor, velocity: &Tensor) -> Result<()> {
        let StepCache::TaylorSeer { order, .. } = self.cache else {
            self.residual = Some(after.f_sub(before)?);
            return Ok(());
        };
        let call = self.done - 1;
        let mut factors = vec![velocity.copy()];
        if let Some(computed) = self.computed {
            let between = (call - computed) as f64;
            for (i, before) in self.factors.iter().take(order).enumerate() {
                let wide = |x: &Tensor| {
                    x.f_to_kind(if x.kind() == Kind::Double { Kind::Double } else { Kind::Float })
                };
                factors.push(wide(&factors[i])?.f_sub(&wide(before)?)?.f_div_scalar(between)?);
            }
        }
        self.factors = factors;
        self.computed = Some(call);
        Ok(())
    }
}

/// Returns the mean absolute change relative to the mean absolute value before.
fn change(now: &Tensor, before: &Tensor) -> Result<f64> {
    let mean = |x: &Tensor| Ok::<_, Error>(f64::try_from(x.f_abs()?.f_mean(Kind::Float)?)?);
    Ok(mean(&now.f_sub(before)?)? / mean(before)?)
}
