//! The table of a request's fields: the checks, the errors and `/openapi.json` are made from it.

use serde_json::Value;

use crate::api_error::{ApiError, quote};
use crate::options::MAX_IMAGES;
use crate::request::field_type::{FieldType, nearest_size, parse_size};
use tch_flux::generation::Role;
use tch_flux::image::Format;
use tch_flux::sampling::Sampler;

pub(crate) struct Field {
    pub(crate) name: &'static str,
    pub(crate) field_type: FieldType,
    pub(crate) about: &'static str,
    /// Whether only edits have it.
    pub(crate) edits: bool,
}

const fn edits(name: &'static str, field_type: FieldType, about: &'static str) -> Field {
    Field { name, field_type, about, edits: true }
}

const fn field(name: &'static str, field_type: FieldType, about: &'static str) -> Field {
    Field { name, field_type, about, edits: false }
}

const IGNORED: &str = "Accepted, and without effect.";

/// The fields of OpenAI's API, and those that its clients commonly send to servers like this.
const OPENAI_FIELDS: [Field; 23] = [
    field("prompt", FieldType::Text { least: 1, most: 32_000 }, "What to draw. Required."),
    field(
        "model",
        FieldType::Text { least: 0, most: 256 },
        "A name of the served model; without one, it is meant.",
    ),
    field(
        "n",
        FieldType::Integer { least: 1, most: 10 },
        "How many pictures; their seeds count on. 1 if absent.",
    ),
    field(
        "size",
        FieldType::Size,
        "`auto`, the model's own, or `WxH` in pixels, multiples of 16 from 64 to 2048.",
    ),
    field(
        "response_format",
        FieldType::Choice(&["b64_json", "url"]),
        "`b64_json` if absent, but `url` where `model` is `dall-e-2` or `dall-e-3`, unless it is a stream.",
    ),
    field(
        "output_format",
        FieldType::Choice(&Format::NAMES),
        "`png` if absent. The file says how the picture was drawn.",
    ),
    field(
        "output_compression",
        FieldType::Integer { least: 0, most: 100 },
        "The quality of a JPEG or WebP, 100 if absent; a PNG loses nothing.",
    ),
    field("stream", FieldType::Boolean, "Whether the answer is a stream of events."),
    field(
        "partial_images",
        FieldType::Integer { least: 0, most: 3 },
        "Small pictures on the way, in a stream. 0 if absent.",
    ),
    field(
        "seed",
        FieldType::Integer { least: 0, most: u64::MAX },
        "The noise of the first picture. Random if absent.",
    ),
    field(
        "num_inference_steps",
        FieldType::Integer { least: 1, most: 100 },
        "Steps from noise to picture. The model's own number if absent.",
    ),
    field(
        "guidance_scale",
        FieldType::Number { least: 0.0, most: 30.0 },
        "For models that are distilled for guidance; others ignore it. The model's own if absent.",
    ),
    field(
        "true_cfg_scale",
        FieldType::Number { least: 0.0, most: 30.0 },
        "How far the picture is led away from the negative prompt's; above 1, else there is none.",
    ),
    field(
        "negative_prompt",
        FieldType::Text { least: 0, most: 32_000 },
        "What the picture shall not show: with `true_cfg_scale`.",
    ),
    edits(
        "strength",
        FieldType::Fraction,
        "How much of the picture is drawn anew: 1 forgets it, near 0 it stays. 0.6 if absent.",
    ),
    field("background", FieldType::Ignored, "`transparent` is refused, all else ignored."),
    field("quality", FieldType::Ignored, IGNORED),
    field("complexity", FieldType::Ignored, IGNORED),
    field("moderation", FieldType::Ignored, IGNORED),
    field("style", FieldType::Ignored, IGNORED),
    field("user", FieldType::Ignored, IGNORED),
    field("safety_identifier", FieldType::Ignored, IGNORED),
    edits("input_fidelity", FieldType::Ignored, IGNORED),
];

/// Numbers that are given once for all pictures of a field, or once for each.
const fn per_image(least: f64, most: f64) -> FieldType {
    FieldType::Numbers { least, most, counts: (1, MAX_IMAGES) }
}

/// Fields that OpenAI's API lacks. They have diffusers' names, where it has such a parameter.
const EXTENSIONS: [Field; 32] = [
    field("prompt_2", FieldType::Text { least: 0, most: 32_000 }, "What T5 reads in place of the prompt."),
    field(
        "literal",
        FieldType::Boolean,
        "Whether prompts are read to the letter. True if absent; where it is false, `(word:1.3)` weighs more, as in \
         ComfyUI.",
    ),
    field("max_sequence_length", FieldType::Integer { least: 2, most: 512 }, "Tokens that T5 reads."),
    field(
        "sampler",
        FieldType::Choice(&SAMPLERS),
        "How a step is made. The model's own if absent, for most `euler`.",
    ),
    field(
        "schedule",
        FieldType::Choice(&["linear", "shifted"]),
        "How the times of the steps are chosen. The model's own if absent.",
    ),
    field(
        "shift",
        FieldType::Numbers { least: -20.0, most: 20.0, counts: (2, 2) },
        "How far a shifted schedule leans to noise: for 256 patches and for 4096. 0.5 and 1.15 if absent.",
    ),
    field(
        "sigmas",
        FieldType::Numbers { least: 0.0, most: 1.0, counts: (1, 101) },
        "The times of the steps themselves, falling from at most 1; the 0 at the end may be left out.",
    ),
    field(
        "cache",
        FieldType::Cache,
        "Steps that are not computed whole: `first-block[:THRESHOLD]`, `tea-cache[:THRESHOLD]` or \
         `taylor-seer[:INTERVAL[,ORDER[,WARMUP]]]`. None if absent.",
    ),
    field(
        "variation_strength",
        FieldType::Number { least: 0.0, most: 1.0 },
        "How far the noise is led towards another one; several pictures then vary one seed's.",
    ),
    field(
        "variation_seed",
        FieldType::Integer { least: 0, most: u64::MAX },
        "That noise, of the first picture. Random if absent.",
    ),
    field(
        "redux_image",
        FieldType::Pictures,
        "What the drawing shall look like, with its prompt or without one.",
    ),
    field(
        "prompt_embeds_scale",
        per_image(-10.0, 10.0),
        "What Redux sees is multiplied by it; once for all pictures of Redux, or for each. 1 if absent.",
    ),
    field(
        "pooled_prompt_embeds_scale",
        per_image(-10.0, 10.0),
        "The same of the pooled text, of a sum. 1 if absent.",
    ),
    field(
        "redux_mix",
        FieldType::Choice(&["append", "sum"]),
        "How several pictures come together: one behind the other, or as diffusers has it, summed with the text. \
         `append` if absent.",
    ),
    field(
        "redux_without_text",
        FieldType::Boolean,
        "Zeros in place of a prompt's states, which is then left out.",
    ),
    field(
        "controlnet",
        FieldType::Names,
        "Which ControlNet: once for all pictures, or for each. The only one if absent.",
    ),
    field("control_image", FieldType::Pictures, "What a ControlNet follows."),
    field(
        "control_mode",
        FieldType::Modes,
        "What the picture is to a union ControlNet, and only to one; once for all, or for each.",
    ),
    field(
        "controlnet_conditioning_scale",
        per_image(-10.0, 10.0),
        "How much of what the ControlNet says is added; once for all, or for each. 1 if absent.",
    ),
    field(
        "control_guidance_start",
        per_image(0.0, 1.0),
        "The share of the steps after which the ControlNet begins; once for all, or for each. 0 if absent.",
    ),
    field(
        "control_guidance_end",
        per_image(0.0, 1.0),
        "The share of the steps after which the ControlNet ends; once for all, or for each. 1 if absent.",
    ),
    field(
        "control_canny",
        FieldType::Boolean,
        "Whether the pictures' edges are followed, as OpenCV's Canny finds them.",
    ),
    field(
        "ip_adapter",
        FieldType::Names,
        "Which IP-Adapter: one for all pictures, or one for each. The only one if absent.",
    ),
    field("ip_adapter_image", FieldType::Pictures, "What the drawing shall be like."),
    field(
        "negative_ip_adapter_image",
        FieldType::Pictures,
        "What the negative prompt's drawing is like. A black picture if absent.",
    ),
    field(
        "ip_adapter_scale",
        FieldType::Scales { least: -10.0, most: 10.0 },
        "How much of the IP-Adapter is added: a number, a list for the double blocks, or such a list for each \
         IP-Adapter. 1 if absent.",
    ),
    edits(
        "as",
        FieldType::Choice(&ROLES),
        "What the picture is to the model: begun with, looked at, filled where the mask says, or followed. What the \
         model is made for if absent.",
    ),
    edits("keep_size", FieldType::Boolean, "Whether references stay as large as they are."),
    edits(
        "canny",
        FieldType::Boolean,
        "Whether the picture's edges are followed, as OpenCV's Canny finds them.",
    ),
    edits("depth", FieldType::Boolean, "Whether it is followed how far away the picture's pixels are."),
    edits("image", FieldType::Pictures, "What is begun with; references may be several. Required."),
    edits("mask", FieldType::Pictures, "What is transparent in it is drawn anew; as large as the picture."),
];

const SAMPLERS: [&str; 4] = ["euler", "heun", "dpmpp_2m", "lcm"];

/// Returns the sampler of a name in [`SAMPLERS`].
pub(crate) fn sampler(name: &str) -> Option<Sampler> {
    let place = SAMPLERS.iter().position(|other| *other == name)?;
    Some([Sampler::Euler, Sampler::Heun, Sampler::Dpmpp2m, Sampler::Lcm][place])
}

/// Returns the fields of edits, or of generations.
pub(crate) fn fields(edits: bool) -> impl Iterator<Item = &'static Field> {
    OPENAI_FIELDS.iter().chain(&EXTENSIONS).filter(move |field| edits || !field.edits)
}

/// Returns the name of a role in requests.
pub(crate) fn role_name(role: Role) -> &'static str {
    ROLES[match role {
        Role::Start => 0,
        Role::Reference => 1,
        Role::Fill => 2,
        Role::Control => 3,
    }]
}

/// The names of the roles, as [`role_name`] returns them.
pub(crate) const ROLES: [&str; 4] = ["start", "reference", "fill", "control"];

impl Field {
    pub(crate) fn check(&self, value: &Value) -> Result<(), ApiError> {
        if self.field_type.accepts(value) {
            return Ok(());
        }
        let (name, expected) = (self.name, self.field_type.description());
        let text = match (self.field_type, value.as_str()) {
            (FieldType::Text { .. }, Some(text)) if text.contains('\0') => format!("{name} holds a NUL"),
            (FieldType::Text { .. }, Some(text)) => {
                format!("{name} must be {expected}, not {} characters", text.chars().count())
            }
            (FieldType::Size, Some(text)) if parse_size(text).is_err() => {
                format!("{name} must be {expected}, not {}{}", quote(value), nearest_size(text))
            }
            _ => format!("{name} must be {expected}, not {}", quote(value)),
        };
        Err(ApiError::value(name, text))
    }
}
