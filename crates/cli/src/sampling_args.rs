//! How a picture is sampled from noise, as flags.

use clap::{Args, ValueEnum};
use tch_flux::Error;
use tch_flux::generation::{Request, Variation};
use tch_flux::models::flux1::StepCache;
use tch_flux::sampling::{FlowMatch, Sampler, Schedule};

#[derive(Args)]
pub(super) struct SamplingArgs {
    /// Steps from noise to picture. [default: schnell 4, dev 50]
    #[arg(long, visible_alias = "num-steps")]
    steps: Option<usize>,
    /// How a step is made. [default: what the model's folder says, else euler]
    #[arg(long, value_enum, hide_short_help = true)]
    sampler: Option<SamplerArg>,
    /// How the times of the steps are chosen. [default: what the model's folder says in scheduler/scheduler_config.json,
    /// else linear for schnell and shifted for the others]
    #[arg(long, value_enum, conflicts_with = "sigmas", hide_short_help = true)]
    schedule: Option<ScheduleArg>,
    /// How far a shifted schedule leans to noise: for 256 patches and for 4096, or by the same factor for every size, as
    /// `shift` in a scheduler_config.json without dynamic shifting. [default: 0.5,1.15]
    #[arg(long, value_name = "BASE,MAX|SHIFT", value_parser = parse_shift, conflicts_with = "sigmas", hide_short_help = true)]
    shift: Option<ShiftArg>,
    /// The times themselves, from 1 (noise) down; the 0 at the end may be left out.
    #[arg(long, value_name = "S1,S2,…", value_delimiter = ',', hide_short_help = true)]
    sigmas: Vec<f64>,
    /// Steps that are not computed whole: first-block[:THRESHOLD], tea-cache[:THRESHOLD] or
    /// taylor-seer[:INTERVAL[,ORDER[,WARMUP]]]; how many were skipped is said. [default: none]
    #[arg(long, value_name = "CACHE", value_parser = parse_cache, hide_short_help = true)]
    cache: Option<CacheArg>,
    /// Draws each picture without the cache, too, and says how far it lies from it.
    #[arg(long, requires = "cache", hide_short_help = true)]
    pub(super) compare_cache: bool,
    /// Leads the noise towards that of another seed so far, from 0 to 1; several pictures then vary one seed's.
    #[arg(long, value_name = "STRENGTH", hide_short_help = true)]
    variation_strength: Option<f64>,
    /// The noise to vary with. [default: another one each time; it is printed]
    #[arg(long, value_name = "SEED", requires = "variation_strength", hide_short_help = true)]
    variation_seed: Option<u64>,
}

#[derive(Clone, Copy, ValueEnum)]
enum SamplerArg {
    /// Straight on: the official one.
    Euler,
    /// Along the mean of both ends of a step; twice the work.
    Heun,
    /// DPM-Solver++ of second order in several steps.
    #[value(name = "dpmpp_2m", alias = "dpmpp-2m")]
    Dpmpp2m,
    /// For models that were distilled for few steps: new noise at each.
    Lcm,
}

#[derive(Clone, Copy, ValueEnum)]
enum ScheduleArg {
    Linear,
    Shifted,
}

impl SamplingArgs {
    /// Applies the flags to a request; what they do not say stays.
    pub(super) fn apply(&self, request: &mut Request) -> Result<(), Error> {
        let schedule = match (self.schedule, &self.shift, &self.sigmas[..]) {
            (Some(ScheduleArg::Linear), Some(_), _) => {
                return Err(Error::Request("a linear schedule has no shift".into()));
            }
            (_, Some(ShiftArg(schedule)), _) => Some(schedule.clone()),
            (Some(ScheduleArg::Linear), None, _) => Some(Schedule::Linear),
            (Some(ScheduleArg::Shifted), None, _) => Some(Schedule::SHIFTED),
            (None, None, []) => None,
            (None, None, sigmas) => Some(Schedule::Sigmas(sigmas.to_vec())),
        };
        // Explicit sigmas say how many steps there are, whatever the request said before.
        if let Some(steps) = schedule.as_ref().and_then(Schedule::steps) {
            request.steps = Some(steps);
        }
        request.steps = self.steps.or(request.steps);
        if let (Some(steps), Some(before)) = (self.steps, &request.schedule)
            && schedule.is_none()
            && before.steps().is_some_and(|scheduled| scheduled != steps)
        {
            request.schedule = None;
        }
        request.schedule = schedule.or(request.schedule.take());
        if let Some(CacheArg(cache)) = self.cache {
            request.cache = cache;
        }
        request.sampler = self.sampler.map(Sampler::from).or(request.sampler);
        if let Some(strength) = self.variation_strength {
            let before = request.variation.map(|variation| variation.seed);
            let seed = self.variation_seed.or(before).unwrap_or_else(Request::random_seed);
            request.variation = Some(Variation { seed, strength });
        }
        Ok(())
    }
}

impl From<SamplerArg> for Sampler {
    fn from(sampler: SamplerArg) -> Self {
        match sampler {
            SamplerArg::Euler => Self::Euler,
            SamplerArg::Heun => Self::Heun,
            SamplerArg::Dpmpp2m => Self::Dpmpp2m,
            SamplerArg::Lcm => Self::Lcm,
        }
    }
}

/// A step cache, or `none`, which a picture's file may have said otherwise.
#[derive(Clone, Copy)]
struct CacheArg(Option<StepCache>);

fn parse_cache(text: &str) -> Result<CacheArg, String> {
    if text == "none" {
        return Ok(CacheArg(None));
    }
    text.parse().map(|cache| CacheArg(Some(cache))).map_err(|error: Error| format!("{error}; none is none"))
}

/// A schedule that is shifted by so much.
#[derive(Clone)]
struct ShiftArg(Schedule);

fn parse_shift(text: &str) -> Result<ShiftArg, String> {
    let number = |text: &str| text.trim().parse::<f64>().ok();
    let schedule = match text.split_once(',') {
        Some((base, max)) => number(base).zip(number(max)).map(|(base, max)| Schedule::Shifted { base, max }),
        None => number(text).map(|shift| FlowMatch { shift, ..FlowMatch::default() }.into()),
    };
    schedule.map(ShiftArg).ok_or_else(|| "expected two numbers, BASE,MAX, or one, SHIFT".into())
}

/// Parses a seed. Other programs take -1 for one that is chosen each time.
pub(super) fn parse_seed(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| {
        format!("a seed is a whole number from 0 to {}; left out, it is another one each time", u64::MAX)
    })
}
