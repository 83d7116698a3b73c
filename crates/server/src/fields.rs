//! The fields of a request, said once for the check, for the error and for `/openapi.json`.

use serde_json::Value;

use super::able::ROLES;
use super::edits::MAX_IMAGES;
use super::problem::Problem;
use super::shape::{Shape, nearest_size, parse_size, quote, shorten};
use super::synonyms::unknown;
use tch_flux::image::Format;
use tch_flux::sampling::Sampler;

pub(super) struct Field {
    pub(super) name: &'static str,
    pub(super) shape: Shape,
    pub(super) about: &'static str,
    /// Only pictures that begin with pictures have it.
    pub(super) edits: bool,
}

const fn edits(name: &'static str, shape: Shape, about: &'static str) -> Field {
    Field { name, shape, about, edits: true }
}

const fn field(name: &'static str, shape: Shape, about: &'static str) -> Field {
    Field { name, shape, about, edits: false }
}

const IGNORED: &str = "Accepted, and without effect.";

const FIELDS: [Field; 23] = [
    field("prompt", Shape::Text { least: 1, most: 32_000 }, "What to draw. Required."),
    field(
        "model",
        Shape::Text { least: 0, most: 256 },
        "A name of the served model; without one, it is meant.",
    ),
    field("n", Shape::Whole { least: 1, most: 10 }, "How many pictures; their seeds count on. 1 if absent."),
    field(
        "size",
        Shape::Size,
        "`auto`, the model's own, or `WxH` in pixels, multiples of 16 from 64 to 2048.",
    ),
    field(
        "response_format",
        Shape::Choice(&["b64_json", "url"]),
        "`b64_json` if absent, but `url` where `model` is `dall-e-2` or `dall-e-3`, unless it is a stream.",
    ),
    field(
        "output_format",
        Shape::Choice(&Format::NAMES),
        "`png` if absent. The file says how the picture was drawn.",
    ),
    field(
        "output_compression",
        Shape::Whole { least: 0, most: 100 },
        "The quality of a JPEG or WebP, 100 if absent; a PNG loses nothing.",
    ),
    field("stream", Shape::Flag, "Whether the answer is a stream of events."),
    field(
        "partial_images",
        Shape::Whole { least: 0, most: 3 },
        "Small pictures on the way, in a stream. 0 if absent.",
    ),
    field(
        "seed",
        Shape::Whole { least: 0, most: u64::MAX },
        "The noise of the first picture. Random if absent.",
    ),
    field(
        "num_inference_steps",
        Shape::Whole { least: 1, most: 100 },
        "Steps from noise to picture. The model's own number if absent.",
    ),
    field(
        "guidance_scale",
        Shape::Number { least: 0.0, most: 30.0 },
        "For models that are distilled for guidance; others ignore it. The model's own if absent.",
    ),
    field(
        "true_cfg_scale",
        Shape::Number { least: 0.0, most: 30.0 },
        "How far the picture is led away from the negative prompt's; above 1, else there is none.",
    ),
    field(
        "negative_prompt",
        Shape::Text { least: 0, most: 32_000 },
        "What the picture shall not show: with `true_cfg_scale`.",
    ),
    edits(
        "strength",
        Shape::Share,
        "How much of the picture is drawn anew: 1 forgets it, near 0 it stays. 0.6 if absent.",
    ),
    field("background", Shape::Ignored, "`transparent` is refused, all else ignored."),
    field("quality", Shape::Ignored, IGNORED),
    field("complexity", Shape::Ignored, IGNORED),
    field("moderation", Shape::Ignored, IGNORED),
    field("style", Shape::Ignored, IGNORED),
    field("user", Shape::Ignored, IGNORED),
    field("safety_identifier", Shape::Ignored, IGNORED),
    edits("input_fidelity", Shape::Ignored, IGNORED),
];

/// A list of numbers, one for each of some pictures, or one for all.
const fn each(least: f64, most: f64) -> Shape {
    Shape::Numbers { least, most, counts: (1, MAX_IMAGES) }
}

/// Those of how a picture comes about; the names are diffusers', where it has some.
const OWN: [Field; 32] = [
    field("prompt_2", Shape::Text { least: 0, most: 32_000 }, "What T5 reads in place of the prompt."),
    field(
        "literal",
        Shape::Flag,
        "Whether prompts are read to the letter. True if absent; where it is false, `(word:1.3)` weighs more, as in \
         ComfyUI.",
    ),
    field("max_sequence_length", Shape::Whole { least: 2, most: 512 }, "Tokens that T5 reads."),
    field(
        "sampler",
        Shape::Choice(&SAMPLERS),
        "How a step is made. The model's own if absent, for most `euler`.",
    ),
    field(
        "schedule",
        Shape::Choice(&["linear", "shifted"]),
        "How the times of the steps are chosen. The model's own if absent.",
    ),
    field(
        "shift",
        Shape::Numbers { least: -20.0, most: 20.0, counts: (2, 2) },
        "How far a shifted schedule leans to noise: for 256 patches and for 4096. 0.5 and 1.15 if absent.",
    ),
    field(
        "sigmas",
        Shape::Numbers { least: 0.0, most: 1.0, counts: (1, 101) },
        "The times of the steps themselves, falling from at most 1; the 0 at the end may be left out.",
    ),
    field(
        "cache",
        Shape::Cache,
        "Steps that are not computed whole: `first-block[:THRESHOLD]`, `tea-cache[:THRESHOLD]` or \
         `taylor-seer[:INTERVAL[,ORDER[,WARMUP]]]`. None if absent.",
    ),
    field(
        "variation_strength",
        Shape::Number { least: 0.0, most: 1.0 },
        "How far the noise is led towards another one; several pictures then vary one seed's.",
    ),
    field(
        "variation_seed",
        Shape::Whole { least: 0, most: u64::MAX },
        "That noise, of the first picture. Random if absent.",
    ),
    field(
        "redux_image",
        Shape::Pictures,
        "What the drawing shall look like, with its prompt or without one.",
    ),
    field(
        "prompt_embeds_scale",
        each(-10.0, 10.0),
        "What Redux sees is multiplied by it; once for all pictures of Redux, or for each. 1 if absent.",
    ),
    field(
        "pooled_prompt_embeds_scale",
        each(-10.0, 10.0),
        "The same of the pooled text, of a sum. 1 if absent.",
    ),
    field(
        "redux_mix",
        Shape::Choice(&["append", "sum"]),
        "How several pictures come together: one behind the other, or as diffusers has it, summed with the text. \
         `append` if absent.",
    ),
    field("redux_without_text", Shape::Flag, "Zeros in place of a prompt's states, which is then left out."),
    field(
        "controlnet",
        Shape::Names,
        "Which ControlNet: once for all pictures, or for each. The only one if absent.",
    ),
    field("control_image", Shape::Pictures, "What a ControlNet follows."),
    field(
        "control_mode",
        Shape::Modes,
        "What the picture is to a union ControlNet, and only to one; once for all, or for each.",
    ),
    field(
        "controlnet_conditioning_scale",
        each(-10.0, 10.0),
        "How much of what the ControlNet says is added; once for all, or for each. 1 if absent.",
    ),
    field(
        "control_guidance_start",
        each(0.0, 1.0),
        "The share of the steps after which the ControlNet begins; once for all, or for each. 0 if absent.",
    ),
    field(
        "control_guidance_end",
        each(0.0, 1.0),
        "The share of the steps after which the ControlNet ends; once for all, or for each. 1 if absent.",
    ),
    field(
        "control_canny",
        Shape::Flag,
        "Whether the pictures' edges are followed, as OpenCV's Canny finds them.",
    ),
    field(
        "ip_adapter",
        Shape::Names,
        "Which IP-Adapter: one for all pictures, or one for each. The only one if absent.",
    ),
    field("ip_adapter_image", Shape::Pictures, "What the drawing shall be like."),
    field(
        "negative_ip_adapter_image",
        Shape::Pictures,
        "What the negative prompt's drawing is like. A black picture if absent.",
    ),
    field(
        "ip_adapter_scale",
        Shape::Scales { least: -10.0, most: 10.0 },
        "How much of the IP-Adapter is added: a number, a list for the double blocks, or such a list for each \
         IP-Adapter. 1 if absent.",
    ),
    edits(
        "as",
        Shape::Choice(&ROLES),
        "What the picture is to the model: begun with, looked at, filled where the mask says, or followed. What the \
         model is made for if absent.",
    ),
    edits("keep_size", Shape::Flag, "Whether references stay as large as they are."),
    edits("canny", Shape::Flag, "Whether the picture's edges are followed, as OpenCV's Canny finds them."),
    edits("depth", Shape::Flag, "Whether it is followed how far away the picture's pixels are."),
    edits("image", Shape::Pictures, "What is begun with; references may be several. Required."),
    edits("mask", Shape::Pictures, "What is transparent in it is drawn anew; as large as the picture."),
];

const SAMPLERS: [&str; 4] = ["euler", "heun", "dpmpp_2m", "lcm"];

/// The sampler of this name.
pub(super) fn sampler(name: &str) -> Option<Sampler> {
    let place = SAMPLERS.iter().position(|other| *other == name)?;
    Some([Sampler::Euler, Sampler::Heun, Sampler::Dpmpp2m, Sampler::Lcm][place])
}

/// The fields of generations, or of edits.
pub(super) fn fields(edits: bool) -> impl Iterator<Item = &'static Field> {
    FIELDS.iter().chain(&OWN).filter(move |field| edits || !field.edits)
}

/// A field by its name, or the error that there is none.
pub(super) fn find(name: &str, edits: bool) -> Result<&'static Field, Problem> {
    fields(edits).find(|field| field.name == name).ok_or_else(|| unknown(name, edits))
}

impl Field {
    pub(super) fn check(&self, value: &Value) -> Result<(), Problem> {
        if self.shape.holds(value) {
            return Ok(());
        }
        let (name, wanted) = (self.name, self.shape.in_words());
        let text = match (self.shape, value.as_str()) {
            (Shape::Text { .. }, Some(text)) if text.contains('\0') => format!("{name} holds a NUL"),
            (Shape::Text { .. }, Some(text)) => {
                format!("{name} must be {wanted}, not {} characters", text.chars().count())
            }
            (Shape::Size, Some(text)) if parse_size(text).is_err() => {
                format!("{name} must be {wanted}, not {}{}", quote(value), nearest_size(text))
            }
            _ => format!("{name} must be {wanted}, not {}", quote(value)),
        };
        Err(Problem::value(name, text))
    }
}

/// The name that is most like this one, if one is.
pub(super) fn nearest<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    // A name of the length of a book has no neighbour.
    let name = shorten(name);
    let (far, near) = names.map(|other| (strsim::damerau_levenshtein(&name, other), other)).min()?;
    (far <= near.len().div_ceil(3)).then_some(near)
}
