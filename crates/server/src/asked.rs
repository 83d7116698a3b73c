//! What a request asks for, and whether it contradicts itself.

use super::able::ROLES;
use super::fields;
use super::problem::Problem;
use super::shape::{self, parse_size};
use super::values::Values;
use tch_flux::generation::{ControlPreprocess, ReduxMix, Request, Role, Variation};
use tch_flux::image::Format;
use tch_flux::models::flux1::StepCache;
use tch_flux::sampling::{Sampler, Schedule};

/// What is asked for.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Asked {
    /// Empty where there is none, since there are pictures to look at.
    pub(super) prompt: String,
    pub(super) prompt_2: Option<String>,
    pub(super) literal: bool,
    pub(super) max_sequence_length: Option<usize>,
    pub(super) model: Option<String>,
    pub(super) n: usize,
    /// Width and height; `None` is the model's own.
    pub(super) size: Option<(i64, i64)>,
    /// Whether an address is wanted in place of the picture.
    pub(super) url: bool,
    pub(super) format: Format,
    pub(super) quality: u8,
    pub(super) stream: bool,
    pub(super) partial_images: usize,
    pub(super) seed: Option<u64>,
    pub(super) variation: Option<Variation>,
    pub(super) steps: Option<usize>,
    pub(super) sampler: Option<Sampler>,
    pub(super) schedule: Option<Schedule>,
    pub(super) cache: Option<StepCache>,
    pub(super) guidance: Option<f64>,
    pub(super) true_cfg_scale: Option<f64>,
    pub(super) negative_prompt: Option<String>,
    pub(super) strength: Option<f64>,
    pub(super) role: Option<Role>,
    pub(super) keep_size: bool,
    pub(super) follow: ControlPreprocess,
    pub(super) look: Look,
    pub(super) control: Control,
    pub(super) like: Like,
}

/// Of Redux.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Look {
    pub(super) strengths: Vec<f64>,
    pub(super) pooled: Vec<f64>,
    pub(super) mix: Option<ReduxMix>,
    pub(super) without_text: bool,
}

/// Of ControlNets.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Control {
    pub(super) nets: Vec<String>,
    pub(super) modes: Vec<Mode>,
    pub(super) strengths: Vec<f64>,
    pub(super) starts: Vec<f64>,
    pub(super) ends: Vec<f64>,
    pub(super) canny: bool,
}

/// What a picture is to a union ControlNet.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Mode(i64);

impl Mode {
    pub(super) fn number(self) -> i64 {
        self.0
    }
}

/// Of IP-Adapters.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Like {
    pub(super) adapters: Vec<String>,
    /// One for all IP-Adapters, or one for each.
    pub(super) scales: Vec<Vec<f64>>,
}

impl Values {
    /// The whole, with what concerns several fields.
    pub(super) fn asked(&self) -> Result<Asked, Problem> {
        let text = |name| self.text(name).map(str::to_string);
        let looks = !self.pictures.is_empty_of("redux_image");
        let Some(prompt) = text("prompt").or(looks.then(String::new)) else {
            return Err(
                Problem::invalid("missing_required_parameter", "a prompt is required").param("prompt")
            );
        };
        let asked = Asked {
            prompt,
            prompt_2: text("prompt_2"),
            literal: self.flag_or("literal", true),
            max_sequence_length: self.whole("max_sequence_length").map(|tokens| tokens as usize),
            model: text("model").filter(|name| !name.is_empty()),
            n: self.whole("n").unwrap_or(1) as usize,
            size: self.text("size").and_then(|size| parse_size(size).ok()).flatten(),
            url: self.wants_url(),
            format: self.text("output_format").and_then(Format::named).unwrap_or(Format::Png),
            quality: self.whole("output_compression").unwrap_or(100) as u8,
            stream: self.flag("stream"),
            partial_images: self.whole("partial_images").unwrap_or(0) as usize,
            seed: self.whole("seed"),
            variation: self.variation()?,
            steps: self.whole("num_inference_steps").map(|steps| steps as usize),
            sampler: self.text("sampler").and_then(fields::sampler),
            schedule: self.schedule()?,
            cache: self.text("cache").and_then(|cache| cache.parse().ok()),
            guidance: self.number("guidance_scale"),
            true_cfg_scale: self.number("true_cfg_scale"),
            negative_prompt: text("negative_prompt"),
            strength: self.number("strength"),
            role: self.role(),
            keep_size: self.flag("keep_size"),
            follow: self.follow()?,
            look: self.look()?,
            control: self.control(),
            like: self.like(),
        };
        if self.text("background") == Some("transparent") {
            return Err(Problem::value("background", "pictures are opaque; leave `background` out"));
        }
        if asked.stream && asked.url {
            let text = "a stream brings pictures, not addresses: leave `response_format` out";
            return Err(Problem::value("response_format", text));
        }
        if asked.true_cfg_scale.is_some_and(|scale| scale > 1.0) && asked.negative_prompt.is_none() {
            let text = "a true_cfg_scale above 1 needs a negative_prompt, which may be empty";
            return Err(Problem::value("negative_prompt", text));
        }
        Ok(asked)
    }

    /// Whether an address is wanted. Without a word about it, OpenAI answers with addresses for these models, and clients
    /// that were written for them read no other field.
    fn wants_url(&self) -> bool {
        match self.text("response_format") {
            Some(format) => format == "url",
            None => !self.flag("stream") && matches!(self.text("model"), Some("dall-e-2" | "dall-e-3")),
        }
    }

    /// The times of the steps.
    fn schedule(&self) -> Result<Option<Schedule>, Problem> {
        let (name, shift, sigmas) = (self.text("schedule"), self.numbers("shift"), self.numbers("sigmas"));
        if !sigmas.is_empty() {
            if let Some(other) =
                [("schedule", name.is_some()), ("shift", !shift.is_empty())].iter().find(|o| o.1)
            {
                let text = format!(
                    "{} does not go with sigmas, which are the times: leave one of both out",
                    other.0
                );
                return Err(Problem::value(other.0, text));
            }
            let schedule = Schedule::Sigmas(sigmas);
            if schedule.check().is_err() {
                let text = "sigmas must fall from at most 1, each below the one before, down to 0 or what is above it";
                return Err(Problem::value("sigmas", text));
            }
            if let (Some(own), Some(steps)) = (schedule.steps(), self.whole("num_inference_steps"))
                && own as u64 != steps
            {
                let text = format!(
                    "num_inference_steps is {steps}, but there are sigmas for {own}: leave one of both out"
                );
                return Err(Problem::value("num_inference_steps", text));
            }
            return Ok(Some(schedule));
        }
        match (name, &shift[..]) {
            (Some("linear"), [_, ..]) => {
                let text =
                    "shift is for a shifted schedule, and a linear one has none: leave one of both out";
                Err(Problem::value("shift", text))
            }
            (_, &[base, max]) => Ok(Some(Schedule::Shifted { base, max })),
            (Some("linear"), _) => Ok(Some(Schedule::Linear)),
            (Some(_), _) => Ok(Some(Schedule::SHIFTED)),
            (None, _) => Ok(None),
        }
    }

    fn variation(&self) -> Result<Option<Variation>, Problem> {
        match (self.number("variation_strength"), self.whole("variation_seed")) {
            (Some(strength), seed) => {
                Ok(Some(Variation { seed: seed.unwrap_or_else(Request::random_seed), strength }))
            }
            (None, Some(_)) => {
                let text = "variation_seed needs a variation_strength: how far its noise is gone towards, from 0 to 1";
                Err(Problem::invalid("missing_required_parameter", text).param("variation_strength"))
            }
            (None, None) => Ok(None),
        }
    }

    fn role(&self) -> Option<Role> {
        let place = ROLES.iter().position(|role| Some(*role) == self.text("as"))?;
        Some([Role::Start, Role::Reference, Role::Fill, Role::Control][place])
    }

    fn follow(&self) -> Result<ControlPreprocess, Problem> {
        match (self.flag("canny"), self.flag("depth")) {
            (true, true) => {
                Err(Problem::value("depth", "depth does not go with canny: one of both is followed"))
            }
            (true, false) => Ok(ControlPreprocess::Canny),
            (false, true) => Ok(ControlPreprocess::Depth),
            (false, false) => Ok(ControlPreprocess::Picture),
        }
    }

    fn look(&self) -> Result<Look, Problem> {
        let mix = match self.text("redux_mix") {
            Some("sum") => Some(ReduxMix::Sum),
            Some(_) => Some(ReduxMix::Append),
            None => None,
        };
        let look = Look {
            strengths: self.numbers("prompt_embeds_scale"),
            pooled: self.numbers("pooled_prompt_embeds_scale"),
            mix,
            without_text: self.flag("redux_without_text"),
        };
        if look.pooled.iter().any(|scale| *scale != 1.0) && mix != Some(ReduxMix::Sum) {
            let text = "pooled_prompt_embeds_scale is for a sum: set redux_mix to `sum`, or leave it out";
            return Err(Problem::value("pooled_prompt_embeds_scale", text));
        }
        let texts = ["prompt", "prompt_2"];
        if let Some(name) =
            texts.into_iter().find(|name| self.text(name).is_some_and(|text| !text.is_empty()))
            && look.without_text
        {
            let text = format!("{name} is not read where redux_without_text is true: leave one of both out");
            return Err(Problem::value(name, text));
        }
        Ok(look)
    }

    fn control(&self) -> Control {
        let mode = |value: &serde_json::Value| {
            let named = || value.as_str().and_then(shape::mode);
            shape::whole(value).map(|mode| mode as i64).or_else(named).map(Mode)
        };
        Control {
            nets: self.texts("controlnet"),
            modes: self.all("control_mode").iter().filter_map(mode).collect(),
            strengths: self.numbers("controlnet_conditioning_scale"),
            starts: self.numbers("control_guidance_start"),
            ends: self.numbers("control_guidance_end"),
            canny: self.flag("control_canny"),
        }
    }

    fn like(&self) -> Like {
        let lists = |value: &serde_json::Value| {
            value.as_array().map(|list| list.iter().filter_map(serde_json::Value::as_f64).collect())
        };
        let nested: Vec<Vec<f64>> = self.all("ip_adapter_scale").iter().filter_map(lists).collect();
        let flat = self.numbers("ip_adapter_scale");
        let scales = if flat.is_empty() { nested } else { vec![flat] };
        Like { adapters: self.texts("ip_adapter"), scales }
    }
}

impl Asked {
    /// Whether the picture is led away from the negative prompt's.
    pub(super) fn is_led_away(&self) -> bool {
        self.negative_prompt.is_some() && self.true_cfg_scale.is_some_and(|scale| scale > 1.0)
    }
}
