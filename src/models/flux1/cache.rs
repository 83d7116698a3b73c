//! Steps that are not computed whole, but from what the steps before left.

use std::str::FromStr;

use serde::{Deserialize, Serialize};
use tch::{Kind, Tensor};

use crate::error::{Error, Result};

/// Which steps are skipped, and what stands for them. Each is a trade of likeness for time; none is the default.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum StepCache {
    /// Where the first block changes the patches almost as it did when last all blocks ran, the others are taken to change
    /// them as they did then.
    ///
    /// Source: diffusers 0.42.1, `hooks/first_block_cache.py`.
    FirstBlock {
        /// Of the mean change between both, relative: 0.05 to 0.2 are usual, more skips more.
        threshold: f64,
    },
    /// Where the modulated input of the first block has changed little since all blocks ran, as a polynomial that was
    /// fitted to FLUX.1 weighs it, all blocks are taken to change the patches as they did then. The first and the last
    /// step are computed.
    ///
    /// Source: `ali-vilab/TeaCache`, `TeaCache4FLUX/teacache_flux.py`.
    TeaCache {
        /// Of the sum of the changes since: 0.25 to 0.8 are usual, more skips more.
        threshold: f64,
    },
    /// Velocities between computed steps are continued as a polynomial of the steps.
    ///
    /// Source: diffusers 0.42.1, `hooks/taylorseer_cache.py` in its lite mode, with factors in f32.
    TaylorSeer {
        /// One of so many steps is computed.
        interval: usize,
        /// Of the polynomial.
        order: usize,
        /// So many steps at the start are all computed.
        warmup: usize,
    },
}

impl StepCache {
    /// With the threshold of diffusers' documentation.
    pub const FIRST_BLOCK: Self = Self::FirstBlock { threshold: 0.05 };
    /// With the mildest of its authors' thresholds.
    pub const TEA_CACHE: Self = Self::TeaCache { threshold: 0.25 };
    /// With diffusers' defaults.
    pub const TAYLOR_SEER: Self = Self::TaylorSeer { interval: 5, order: 1, warmup: 3 };

    /// # Errors
    /// [`Error::Request`] for a threshold below 0 and an interval of 0.
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

/// `first-block[:THRESHOLD]`, `tea-cache[:THRESHOLD]` or `taylor-seer[:INTERVAL[,ORDER[,WARMUP]]]`; what is left out is as
/// in the constants.
impl FromStr for StepCache {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (name, numbers) = text.split_once(':').unwrap_or((text, ""));
        let numbers: Vec<&str> =
            numbers.split(',').map(str::trim).filter(|number| !number.is_empty()).collect();
        let wrong = |expected: &str| Error::Request(format!("expected {expected}, not {text:?}"));
        let threshold = |form: fn(f64) -> Self, usual: Self| match numbers[..] {
            [] => Ok(usual),
            [one] => one.parse().map(form).map_err(|_| wrong(&format!("{name}:THRESHOLD"))),
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

/// Weighs a change of the modulated input: the highest power first.
///
/// Source: `ali-vilab/TeaCache`, `TeaCache4FLUX/teacache_flux.py`.
const TEA_CACHE_WEIGHTS: [f64; 5] =
    [4.98651651e+02, -2.83781631e+02, 5.58554382e+01, -3.82021401e+00, 2.64230861e-01];

/// What the steps of one picture leave for the next.
#[derive(Debug)]
pub struct CachedSteps {
    cache: StepCache,
    /// How many calls of the model there will be.
    calls: usize,
    done: usize,
    skipped: usize,
    /// The first block's change of the patches, or its modulated input.
    seen: Option<Tensor>,
    /// How far the inputs have gone since all blocks ran.
    distance: f64,
    /// What the other blocks change.
    rest: Option<Tensor>,
    /// The velocity and its differences, each divided by the steps between.
    factors: Vec<Tensor>,
    computed: Option<usize>,
}

impl CachedSteps {
    /// For so many calls of the model.
    pub fn new(cache: StepCache, calls: usize) -> Self {
        Self {
            cache,
            calls,
            done: 0,
            skipped: 0,
            seen: None,
            distance: 0.0,
            rest: None,
            factors: Vec::new(),
            computed: None,
        }
    }

    /// Calls that were not computed whole, and all.
    pub fn skipped(&self) -> (usize, usize) {
        (self.skipped, self.done)
    }

    /// Before a call: its velocity, where it follows from those before.
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

    /// The patches after all blocks, where the modulated input of the first one says that they need not run.
    pub(super) fn after_input(
        &mut self,
        img: &Tensor,
        modulated: impl FnOnce() -> Tensor,
    ) -> Result<Option<Tensor>> {
        let StepCache::TeaCache { threshold } = self.cache else { return Ok(None) };
        let modulated = modulated();
        let change = self.seen.as_ref().map(|seen| change(&modulated, seen)).transpose()?;
        self.seen = Some(modulated);
        let ends = self.done == 1 || self.done == self.calls;
        if let (Some(change), Some(rest), false) = (change, &self.rest, ends) {
            self.distance += TEA_CACHE_WEIGHTS.iter().fold(0.0, |sum, weight| sum * change + weight);
            if self.distance < threshold {
                self.skipped += 1;
                return Ok(Some(img.f_add(rest)?));
            }
        }
        self.distance = 0.0;
        Ok(None)
    }

    /// The patches after all blocks, where the first one's change of them says that the others need not run.
    pub(super) fn after_first_block(&mut self, before: &Tensor, img: &Tensor) -> Result<Option<Tensor>> {
        let StepCache::FirstBlock { threshold } = self.cache else { return Ok(None) };
        let changed = img.f_sub(before)?;
        if let (Some(seen), Some(rest)) = (&self.seen, &self.rest)
            && change(&changed, seen)? <= threshold
        {
            self.skipped += 1;
            return Ok(Some(img.f_add(rest)?));
        }
        self.seen = Some(changed);
        Ok(None)
    }

    /// Whether what may be skipped begins after the first block.
    pub(super) fn begins_after_first_block(&self) -> bool {
        matches!(self.cache, StepCache::FirstBlock { .. })
    }

    /// After a call that was computed whole: the patches before what may be skipped and after it, and the velocity.
    pub(super) fn keep(&mut self, before: &Tensor, after: &Tensor, velocity: &Tensor) -> Result<()> {
        let StepCache::TaylorSeer { order, .. } = self.cache else {
            self.rest = Some(after.f_sub(before)?);
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

/// The mean of what has changed, relative to the mean of what was.
fn change(now: &Tensor, before: &Tensor) -> Result<f64> {
    let mean = |x: &Tensor| Ok::<_, Error>(f64::try_from(x.f_abs()?.f_mean(Kind::Float)?)?);
    Ok(mean(&now.f_sub(before)?)? / mean(before)?)
}
