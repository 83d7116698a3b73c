//! What values of several parameters must be to each other: for the checks, and for the schemas of `/openapi.json`.

use serde_json::Value;

use super::{Kind, Values, parameter};
use crate::error::ParameterProblem;

/// A condition on a parameter, by its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Given {
    /// It has a value.
    Any(&'static str),
    /// It is true.
    True(&'static str),
    /// It has this value.
    Is(&'static str, &'static str),
}

impl Given {
    /// Returns the parameter's key.
    pub fn key(self) -> &'static str {
        match self {
            Self::Any(key) | Self::True(key) | Self::Is(key, _) => key,
        }
    }
}

/// What must hold where a condition does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// The other condition must not hold.
    Excludes(Given, Given, &'static str),
    /// The other parameter must have a value.
    Needs(Given, &'static str, &'static str),
    /// There must be pictures: those of the other parameter.
    NeedsPictures(Given, &'static str),
}

/// All rules. A text is as [`ParameterProblem`] has it.
pub const RULES: &[Rule] = &[
    Rule::Excludes(
        Given::Any("sigmas"),
        Given::Any("schedule"),
        "{schedule} does not go with {sigmas}, which are the times: leave one of both out",
    ),
    Rule::Excludes(
        Given::Any("sigmas"),
        Given::Any("shift"),
        "{shift} does not go with {sigmas}, which are the times: leave one of both out",
    ),
    Rule::Excludes(
        Given::Is("schedule", "linear"),
        Given::Any("shift"),
        "{shift} is for a shifted schedule, and a linear one has none: leave one of both out",
    ),
    Rule::Needs(
        Given::Any("variation_seed"),
        "variation_strength",
        "{variation_seed} needs {variation_strength}: how far its noise is gone towards, from 0 to 1",
    ),
    Rule::Excludes(
        Given::True("canny"),
        Given::True("depth"),
        "{depth} does not go with {canny}: one of both is followed",
    ),
    Rule::NeedsPictures(Given::Any("prompt_embeds_scale"), "redux_image"),
    Rule::NeedsPictures(Given::Any("pooled_prompt_embeds_scale"), "redux_image"),
    Rule::NeedsPictures(Given::Any("redux_mix"), "redux_image"),
    Rule::NeedsPictures(Given::True("redux_without_text"), "redux_image"),
    Rule::NeedsPictures(Given::Any("controlnet"), "control_image"),
    Rule::NeedsPictures(Given::Any("control_mode"), "control_image"),
    Rule::NeedsPictures(Given::Any("control_strength"), "control_image"),
    Rule::NeedsPictures(Given::Any("control_start"), "control_image"),
    Rule::NeedsPictures(Given::Any("control_end"), "control_image"),
    Rule::NeedsPictures(Given::True("control_canny"), "control_image"),
    Rule::NeedsPictures(Given::Any("ip_adapter"), "ip_adapter_image"),
    Rule::NeedsPictures(Given::Any("negative_ip_adapter_image"), "ip_adapter_image"),
    Rule::NeedsPictures(Given::Any("ip_adapter_scale"), "ip_adapter_image"),
];

impl Values {
    /// Checks the values against [`RULES`]. `pictures` says whether there are pictures for a parameter, which are no values.
    ///
    /// # Errors
    /// The first rule that does not hold.
    pub fn check_rules(&self, pictures: impl Fn(&str) -> bool) -> Result<(), ParameterProblem> {
        let holds = |given: Given| match given {
            Given::Any(key) => {
                let is_pictures = parameter(key).is_some_and(|parameter| parameter.kind == Kind::Pictures);
                self.contains(key) || (is_pictures && pictures(key))
            }
            Given::True(key) => self.boolean(key) == Some(true),
            Given::Is(key, value) => self.get(key).and_then(Value::as_str) == Some(value),
        };
        for rule in RULES {
            match *rule {
                Rule::Excludes(when, other, text) if holds(when) && holds(other) => {
                    return Err(ParameterProblem::new(other.key(), text, &[]));
                }
                Rule::Needs(when, other, text) if holds(when) && !self.contains(other) => {
                    return Err(ParameterProblem::new(other, text, &[]));
                }
                Rule::NeedsPictures(when, other) if holds(when) && !pictures(other) => {
                    return Err(ParameterProblem::about_pictures(when.key(), other));
                }
                _ => {}
            }
        }
        Ok(())
    }
}
