//! How the way from noise to picture is walked, as flags.

use clap::{Args, ValueEnum};
use tch_flux::Error;
use tch_flux::pipeline::{Request, Variation};
use tch_flux::sampling::{Sampler, Schedule};

use super::generate::random_seed;

#[derive(Args)]
pub(super) struct Walk {
    /// Steps from noise to picture. [default: schnell 4, dev 50]
    #[arg(long, visible_alias = "num-steps")]
    steps: Option<usize>,
    /// How a step is made. [default: euler]
    #[arg(long, value_enum)]
    sampler: Option<SamplerArg>,
    /// How the times of the steps are chosen. [default: linear for schnell, shifted for the others]
    #[arg(long, value_enum, conflicts_with = "sigmas")]
    schedule: Option<ScheduleArg>,
    /// How far a shifted schedule leans to noise: for 256 patches and for 4096. [default: 0.5,1.15]
    #[arg(long, value_name = "BASE,MAX", value_parser = parse_shift, conflicts_with = "sigmas")]
    shift: Option<(f64, f64)>,
    /// The times themselves, from 1 (noise) down; the 0 at the end may be left out.
    #[arg(long, value_name = "S1,S2,…", value_delimiter = ',')]
    sigmas: Vec<f64>,
    /// Leads the noise towards that of another seed so far, from 0 to 1; several pictures then vary one seed's.
    #[arg(long, value_name = "STRENGTH")]
    variation_strength: Option<f64>,
    /// The noise to vary with. [default: another one each time; it is in the picture's file]
    #[arg(long, value_name = "SEED", requires = "variation_strength")]
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

impl Walk {
    /// What is asked for, over what the request says already.
    pub(super) fn put_on(&self, request: &mut Request) -> Result<(), Error> {
        let schedule = match (self.schedule, self.shift, &self.sigmas[..]) {
            (Some(ScheduleArg::Linear), Some(_), _) => {
                return Err(Error::Request("a linear schedule has no shift".into()));
            }
            (_, Some((base, max)), _) => Some(Schedule::Shifted { base, max }),
            (Some(ScheduleArg::Linear), None, _) => Some(Schedule::Linear),
            (Some(ScheduleArg::Shifted), None, _) => Some(Schedule::SHIFTED),
            (None, None, []) => None,
            (None, None, sigmas) => Some(Schedule::Sigmas(sigmas.to_vec())),
        };
        // Times of one's own are as many as they are, whatever was before.
        if let Some(own) = schedule.as_ref().and_then(Schedule::steps) {
            request.steps = Some(own);
        }
        request.steps = self.steps.or(request.steps);
        if let (Some(steps), Some(before)) = (self.steps, &request.schedule)
            && schedule.is_none()
            && before.steps().is_some_and(|own| own != steps)
        {
            request.schedule = None;
        }
        request.schedule = schedule.or(request.schedule.take());
        request.sampler = self.sampler.map_or(request.sampler, Sampler::from);
        if let Some(strength) = self.variation_strength {
            let seed = self.variation_seed.unwrap_or_else(random_seed);
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

fn parse_shift(text: &str) -> Result<(f64, f64), String> {
    let numbers = text
        .split_once(',')
        .and_then(|(base, max)| Some((base.trim().parse().ok()?, max.trim().parse().ok()?)));
    numbers.ok_or_else(|| "expected two numbers: BASE,MAX".into())
}
