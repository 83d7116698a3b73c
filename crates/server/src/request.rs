//! The request to draw, read from its raw fields and checked against itself.

pub(crate) mod field_type;
pub(crate) mod fields;
pub(crate) mod raw_request;
pub(crate) mod synonyms;

use crate::api_error::ApiError;
use field_type::parse_size;
use fields::ROLES;
use raw_request::RawRequest;
use tch_flux::generation::{ControlPreprocess, ReduxMix, Request, Role, Variation};
use tch_flux::image::Format;
use tch_flux::models::flux1::StepCache;
use tch_flux::sampling::{Sampler, Schedule};

/// The request to draw, as its fields say it. What is absent is the model's own.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct GenerationRequest {
    /// Empty where it may be absent, since Redux has pictures.
    pub(crate) prompt: String,
    pub(crate) prompt_2: Option<String>,
    pub(crate) literal: bool,
    pub(crate) max_sequence_length: Option<usize>,
    pub(crate) model: Option<String>,
    pub(crate) n: usize,
    /// Width and height; `None` is the model's own.
    pub(crate) size: Option<(i64, i64)>,
    /// Whether the response has addresses in place of the pictures.
    pub(crate) url: bool,
    pub(crate) format: Format,
    pub(crate) quality: u8,
    pub(crate) stream: bool,
    pub(crate) partial_images: usize,
    pub(crate) seed: Option<u64>,
    pub(crate) variation: Option<Variation>,
    pub(crate) steps: Option<usize>,
    pub(crate) sampler: Option<Sampler>,
    pub(crate) schedule: Option<Schedule>,
    pub(crate) cache: Option<StepCache>,
    pub(crate) guidance: Option<f64>,
    pub(crate) true_cfg_scale: Option<f64>,
    pub(crate) negative_prompt: Option<String>,
    pub(crate) strength: Option<f64>,
    pub(crate) role: Option<Role>,
    pub(crate) keep_size: bool,
    pub(crate) preprocess: ControlPreprocess,
    pub(crate) redux: ReduxFields,
    pub(crate) control: ControlNetFields,
    pub(crate) ip_adapter: IpAdapterFields,
}

/// The fields of Redux.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct ReduxFields {
    pub(crate) strengths: Vec<f64>,
    pub(crate) pooled: Vec<f64>,
    pub(crate) mix: Option<ReduxMix>,
    pub(crate) without_text: bool,
}

/// The fields of ControlNets.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct ControlNetFields {
    pub(crate) nets: Vec<String>,
    pub(crate) modes: Vec<ControlMode>,
    pub(crate) strengths: Vec<f64>,
    pub(crate) starts: Vec<f64>,
    pub(crate) ends: Vec<f64>,
    pub(crate) canny: bool,
}

/// A mode of a union ControlNet.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct ControlMode(i64);

impl ControlMode {
    pub(crate) fn number(self) -> i64 {
        self.0
    }
}

/// The fields of IP-Adapters.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct IpAdapterFields {
    pub(crate) adapters: Vec<String>,
    /// One list for all IP-Adapters, or one for each.
    pub(crate) scales: Vec<Vec<f64>>,
}

impl RawRequest {
    /// Reads the fields, and checks what concerns several of them.
    pub(crate) fn parse(&self) -> Result<GenerationRequest, ApiError> {
        let text = |name| self.text(name).map(str::to_string);
        let has_redux = !self.uploads.has_none("redux_image");
        let Some(prompt) = text("prompt").or(has_redux.then(String::new)) else {
            return Err(
                ApiError::invalid("missing_required_parameter", "a prompt is required").param("prompt")
            );
        };
        let request = GenerationRequest {
            prompt,
            prompt_2: text("prompt_2"),
            literal: self.boolean_or("literal", true),
            max_sequence_length: self.integer("max_sequence_length").map(|tokens| tokens as usize),
            model: text("model").filter(|name| !name.is_empty()),
            n: self.integer("n").unwrap_or(1) as usize,
            size: self.text("size").and_then(|size| parse_size(size).ok()).flatten(),
            url: self.wants_url(),
            format: self.text("output_format").and_then(Format::named).unwrap_or(Format::Png),
            quality: self.integer("output_compression").unwrap_or(100) as u8,
            stream: self.boolean("stream"),
            partial_images: self.integer("partial_images").unwrap_or(0) as usize,
            seed: self.integer("seed"),
            variation: self.variation()?,
            steps: self.integer("num_inference_steps").map(|steps| steps as usize),
            sampler: self.text("sampler").and_then(fields::sampler),
            schedule: self.schedule()?,
            cache: self.text("cache").and_then(|cache| cache.parse().ok()),
            guidance: self.number("guidance_scale"),
            true_cfg_scale: self.number("true_cfg_scale"),
            negative_prompt: text("negative_prompt"),
            strength: self.number("strength"),
            role: self.role(),
            keep_size: self.boolean("keep_size"),
            preprocess: self.preprocess()?,
            redux: self.redux()?,
            control: self.control(),
            ip_adapter: self.ip_adapter(),
        };
        if self.text("background") == Some("transparent") {
            return Err(ApiError::value("background", "pictures are opaque; leave `background` out"));
        }
        if request.stream && request.url {
            let text = "a stream brings pictures, not addresses: leave `response_format` out";
            return Err(ApiError::value("response_format", text));
        }
        if request.true_cfg_scale.is_some_and(|scale| scale > 1.0) && request.negative_prompt.is_none() {
            let text = "a true_cfg_scale above 1 needs a negative_prompt, which may be empty";
            return Err(ApiError::value("negative_prompt", text));
        }
        Ok(request)
    }

    /// Whether the response has addresses. Where `response_format` is absent, OpenAI answers with addresses for these models,
    /// and clients that were written for them read no other field.
    fn wants_url(&self) -> bool {
        match self.text("response_format") {
            Some(format) => format == "url",
            None => !self.boolean("stream") && matches!(self.text("model"), Some("dall-e-2" | "dall-e-3")),
        }
    }

    /// Reads the schedule of the steps.
    fn schedule(&self) -> Result<Option<Schedule>, ApiError> {
        let (name, shift, sigmas) = (self.text("schedule"), self.numbers("shift"), self.numbers("sigmas"));
        if !sigmas.is_empty() {
            if let Some((name, _)) = [("schedule", name.is_some()), ("shift", !shift.is_empty())]
                .iter()
                .find(|(_, is_given)| *is_given)
            {
                let text =
                    format!("{name} does not go with sigmas, which are the times: leave one of both out");
                return Err(ApiError::value(name, text));
            }
            let schedule = Schedule::Sigmas(sigmas);
            if schedule.check().is_err() {
                let text = "sigmas must fall from at most 1, each below the one before, down to 0 or what is above it";
                return Err(ApiError::value("sigmas", text));
            }
            if let (Some(count), Some(steps)) = (schedule.steps(), self.integer("num_inference_steps"))
                && count as u64 != steps
            {
                let text = format!(
                    "num_inference_steps is {steps}, but there are sigmas for {count}: leave one of both out"
                );
                return Err(ApiError::value("num_inference_steps", text));
            }
            return Ok(Some(schedule));
        }
        match (name, &shift[..]) {
            (Some("linear"), [_, ..]) => {
                let text =
                    "shift is for a shifted schedule, and a linear one has none: leave one of both out";
                Err(ApiError::value("shift", text))
            }
            (_, &[base, max]) => Ok(Some(Schedule::Shifted { base, max })),
            (Some("linear"), _) => Ok(Some(Schedule::Linear)),
            (Some(_), _) => Ok(Some(Schedule::SHIFTED)),
            (None, _) => Ok(None),
        }
    }

    fn variation(&self) -> Result<Option<Variation>, ApiError> {
        match (self.number("variation_strength"), self.integer("variation_seed")) {
            (Some(strength), seed) => {
                Ok(Some(Variation { seed: seed.unwrap_or_else(Request::random_seed), strength }))
            }
            (None, Some(_)) => {
                let text = "variation_seed needs a variation_strength: how far its noise is gone towards, from 0 to 1";
                Err(ApiError::invalid("missing_required_parameter", text).param("variation_strength"))
            }
            (None, None) => Ok(None),
        }
    }

    fn role(&self) -> Option<Role> {
        let place = ROLES.iter().position(|role| Some(*role) == self.text("as"))?;
        Some([Role::Start, Role::Reference, Role::Fill, Role::Control][place])
    }

    fn preprocess(&self) -> Result<ControlPreprocess, ApiError> {
        match (self.boolean("canny"), self.boolean("depth")) {
            (true, true) => {
                Err(ApiError::value("depth", "depth does not go with canny: one of both is followed"))
            }
            (true, false) => Ok(ControlPreprocess::Canny),
            (false, true) => Ok(ControlPreprocess::Depth),
            (false, false) => Ok(ControlPreprocess::Picture),
        }
    }

    fn redux(&self) -> Result<ReduxFields, ApiError> {
        let mix = match self.text("redux_mix") {
            Some("sum") => Some(ReduxMix::Sum),
            Some(_) => Some(ReduxMix::Append),
            None => None,
        };
        let fields = ReduxFields {
            strengths: self.numbers("prompt_embeds_scale"),
            pooled: self.numbers("pooled_prompt_embeds_scale"),
            mix,
            without_text: self.boolean("redux_without_text"),
        };
        if fields.pooled.iter().any(|scale| *scale != 1.0) && mix != Some(ReduxMix::Sum) {
            let text = "pooled_prompt_embeds_scale is for a sum: set redux_mix to `sum`, or leave it out";
            return Err(ApiError::value("pooled_prompt_embeds_scale", text));
        }
        let texts = ["prompt", "prompt_2"];
        if let Some(name) =
            texts.into_iter().find(|name| self.text(name).is_some_and(|text| !text.is_empty()))
            && fields.without_text
        {
            let text = format!("{name} is not read where redux_without_text is true: leave one of both out");
            return Err(ApiError::value(name, text));
        }
        Ok(fields)
    }

    fn control(&self) -> ControlNetFields {
        let mode = |value: &serde_json::Value| {
            let by_name = || value.as_str().and_then(field_type::mode);
            field_type::as_integer(value).map(|mode| mode as i64).or_else(by_name).map(ControlMode)
        };
        ControlNetFields {
            nets: self.texts("controlnet"),
            modes: self.list("control_mode").iter().filter_map(mode).collect(),
            strengths: self.numbers("controlnet_conditioning_scale"),
            starts: self.numbers("control_guidance_start"),
            ends: self.numbers("control_guidance_end"),
            canny: self.boolean("control_canny"),
        }
    }

    fn ip_adapter(&self) -> IpAdapterFields {
        let lists = |value: &serde_json::Value| {
            value.as_array().map(|list| list.iter().filter_map(serde_json::Value::as_f64).collect())
        };
        let nested: Vec<Vec<f64>> = self.list("ip_adapter_scale").iter().filter_map(lists).collect();
        let flat = self.numbers("ip_adapter_scale");
        let scales = if flat.is_empty() { nested } else { vec![flat] };
        IpAdapterFields { adapters: self.texts("ip_adapter"), scales }
    }
}

impl GenerationRequest {
    /// Whether there is true classifier-free guidance, which reads the negative prompt.
    pub(crate) fn uses_true_cfg(&self) -> bool {
        self.negative_prompt.is_some() && self.true_cfg_scale.is_some_and(|scale| scale > 1.0)
    }
}
