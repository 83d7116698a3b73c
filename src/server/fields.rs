//! The fields of a request: what each may hold, said once for the check, for the error and for `/openapi.json`.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::coding::Format;
use super::problem::Problem;

/// Pixels of a side.
const SIDES: std::ops::RangeInclusive<i64> = 64..=2048;
/// Of a value that is quoted in an error.
const QUOTED: usize = 60;

/// What a field may hold. Bounds are inclusive.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Shape {
    /// Characters.
    Text {
        least: usize,
        most: usize,
    },
    Whole {
        least: u64,
        most: u64,
    },
    Number {
        least: f64,
        most: f64,
    },
    /// Above 0 and at most 1.
    Share,
    Flag,
    Choice(&'static [&'static str]),
    Size,
    /// Accepted, and without effect.
    Ignored,
}

pub(super) struct Field {
    pub(super) name: &'static str,
    pub(super) shape: Shape,
    pub(super) about: &'static str,
    /// Only pictures that begin with pictures have it.
    pub(super) edits: bool,
}

const fn field(name: &'static str, shape: Shape, about: &'static str) -> Field {
    Field { name, shape, about, edits: false }
}

const IGNORED: &str = "Accepted, and without effect.";

pub(super) const FIELDS: [Field; 22] = [
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
    field("response_format", Shape::Choice(&["b64_json", "url"]), "`b64_json` if absent."),
    field("output_format", Shape::Choice(&Format::NAMES), "`png` if absent. A PNG says how it was drawn."),
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
    Field {
        name: "strength",
        shape: Shape::Share,
        about: "How much of the picture is drawn anew: 1 forgets it, near 0 it stays. 0.6 if absent.",
        edits: true,
    },
    field("background", Shape::Ignored, "`transparent` is refused, all else ignored."),
    field("quality", Shape::Ignored, IGNORED),
    field("moderation", Shape::Ignored, IGNORED),
    field("style", Shape::Ignored, IGNORED),
    field("user", Shape::Ignored, IGNORED),
    field("safety_identifier", Shape::Ignored, IGNORED),
    Field { name: "input_fidelity", shape: Shape::Ignored, about: IGNORED, edits: true },
];

/// The fields of generations, or of edits.
pub(super) fn fields(edits: bool) -> impl Iterator<Item = &'static Field> {
    FIELDS.iter().filter(move |field| edits || !field.edits)
}

/// A request's fields, each as its shape wants it. What is null is absent.
#[derive(Debug, Default)]
pub(super) struct Values(BTreeMap<&'static str, Value>);

/// What is asked for.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Asked {
    pub(super) prompt: String,
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
    pub(super) steps: Option<usize>,
    pub(super) guidance: Option<f64>,
    pub(super) true_cfg_scale: Option<f64>,
    pub(super) negative_prompt: Option<String>,
    pub(super) strength: Option<f64>,
}

impl Values {
    /// Of a generation's body.
    pub(super) fn from_json(body: &[u8]) -> Result<Self, Problem> {
        let wrong = |problem| Problem::invalid("invalid_json", format!("the body is not JSON: {problem}"));
        let body: Value = serde_json::from_slice(body).map_err(wrong)?;
        let Value::Object(body) = body else {
            return Err(Problem::invalid("invalid_json", "the body must be a JSON object"));
        };
        Self::from_object(body)
    }

    fn from_object(body: Map<String, Value>) -> Result<Self, Problem> {
        let mut values = Self::default();
        for (name, value) in body {
            values.insert(find(&name, false)?, value)?;
        }
        Ok(values)
    }

    /// A field of a form, where everything is text.
    pub(super) fn insert_text(&mut self, name: &str, text: String) -> Result<(), Problem> {
        let field = find(name, true)?;
        let value = match field.shape {
            Shape::Whole { .. } | Shape::Number { .. } | Shape::Share | Shape::Flag => {
                serde_json::from_str(&text).unwrap_or(Value::String(text))
            }
            Shape::Text { .. } | Shape::Choice(_) | Shape::Size | Shape::Ignored => Value::String(text),
        };
        self.insert(field, value)
    }

    fn insert(&mut self, field: &'static Field, value: Value) -> Result<(), Problem> {
        if !value.is_null() {
            field.check(&value)?;
            self.0.insert(field.name, value);
        }
        Ok(())
    }

    /// The whole, with what concerns several fields.
    pub(super) fn asked(self) -> Result<Asked, Problem> {
        let text = |name| self.0.get(name).and_then(Value::as_str);
        let whole = |name| self.0.get(name).and_then(Value::as_u64);
        let number = |name| self.0.get(name).and_then(Value::as_f64);
        let Some(prompt) = text("prompt") else {
            return Err(
                Problem::invalid("missing_required_parameter", "a prompt is required").param("prompt")
            );
        };
        let asked = Asked {
            prompt: prompt.into(),
            model: text("model").filter(|name| !name.is_empty()).map(str::to_string),
            n: whole("n").unwrap_or(1) as usize,
            size: text("size").and_then(|size| parse_size(size).ok()).flatten(),
            url: text("response_format") == Some("url"),
            format: text("output_format").and_then(Format::named).unwrap_or(Format::Png),
            quality: whole("output_compression").unwrap_or(100) as u8,
            stream: self.0.get("stream").and_then(Value::as_bool).unwrap_or(false),
            partial_images: whole("partial_images").unwrap_or(0) as usize,
            seed: whole("seed"),
            steps: whole("num_inference_steps").map(|steps| steps as usize),
            guidance: number("guidance_scale"),
            true_cfg_scale: number("true_cfg_scale"),
            negative_prompt: text("negative_prompt").map(str::to_string),
            strength: number("strength"),
        };
        if text("background") == Some("transparent") {
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
}

/// A field by its name, or the error that there is none.
fn find(name: &str, edits: bool) -> Result<&'static Field, Problem> {
    fields(edits).find(|field| field.name == name).ok_or_else(|| {
        let names = fields(edits).map(|field| field.name);
        let hint = nearest(name, names).map_or(String::new(), |near| format!("; is `{near}` meant?"));
        let name = shorten(name);
        Problem::invalid("unknown_parameter", format!("there is no parameter `{name}`{hint}")).param(&name)
    })
}

impl Field {
    fn check(&self, value: &Value) -> Result<(), Problem> {
        let right = match self.shape {
            Shape::Text { least, most } => value
                .as_str()
                .is_some_and(|text| !text.contains('\0') && (least..=most).contains(&text.chars().count())),
            Shape::Whole { least, most } => value.as_u64().is_some_and(|n| (least..=most).contains(&n)),
            Shape::Number { least, most } => value.as_f64().is_some_and(|x| (least..=most).contains(&x)),
            Shape::Share => value.as_f64().is_some_and(|x| x > 0.0 && x <= 1.0),
            Shape::Flag => value.is_boolean(),
            Shape::Choice(choices) => value.as_str().is_some_and(|text| choices.contains(&text)),
            Shape::Size => value.as_str().is_some_and(|text| parse_size(text).is_ok()),
            Shape::Ignored => true,
        };
        if right {
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

impl Shape {
    fn in_words(self) -> String {
        match self {
            Self::Text { least: 0, most } => format!("text of at most {most} characters"),
            Self::Text { least, most } => format!("text of {least} to {most} characters"),
            Self::Whole { least, most } => format!("a whole number from {least} to {most}"),
            Self::Number { least, most } => format!("a number from {least} to {most}"),
            Self::Share => "a number above 0 and at most 1".into(),
            Self::Flag => "true or false".into(),
            Self::Choice(choices) => format!("one of {}", choices.join(", ")),
            Self::Size => "`auto`, or WxH with both a multiple of 16 from 64 to 2048".into(),
            Self::Ignored => "anything".into(),
        }
    }

    /// As JSON Schema.
    pub(super) fn schema(self) -> Value {
        match self {
            Self::Text { least, most } => json!({ "type": "string", "minLength": least, "maxLength": most }),
            Self::Whole { least, most } => json!({ "type": "integer", "minimum": least, "maximum": most }),
            Self::Number { least, most } => json!({ "type": "number", "minimum": least, "maximum": most }),
            Self::Share => json!({ "type": "number", "exclusiveMinimum": 0, "maximum": 1 }),
            Self::Flag => json!({ "type": "boolean" }),
            Self::Choice(choices) => json!({ "type": "string", "enum": choices }),
            Self::Size => json!({ "type": "string", "pattern": "^(auto|[0-9]{2,4}x[0-9]{2,4})$" }),
            Self::Ignored => json!({}),
        }
    }
}

/// Width and height, or `None` for `auto`.
fn parse_size(text: &str) -> Result<Option<(i64, i64)>, ()> {
    if text == "auto" {
        return Ok(None);
    }
    let side = |text: &str| {
        let digits = text.len() <= 4 && text.bytes().all(|byte| byte.is_ascii_digit());
        let side = text.parse::<i64>().ok().filter(|side| digits && SIDES.contains(side) && side % 16 == 0);
        side.ok_or(())
    };
    let (width, height) = text.split_once('x').ok_or(())?;
    Ok(Some((side(width)?, side(height)?)))
}

/// What is nearest to a size that is one but for its numbers.
fn nearest_size(text: &str) -> String {
    let side = |text: &str| text.parse::<u32>().ok().map(|side| nearest_side(f64::from(side)));
    match text.split_once('x').map(|(width, height)| (side(width), side(height))) {
        Some((Some(width), Some(height))) => format!("; the nearest is {width}x{height}"),
        _ => String::new(),
    }
}

/// The side that is nearest to so many pixels.
pub(super) fn nearest_side(pixels: f64) -> i64 {
    ((pixels / 16.0).round() as i64 * 16).clamp(*SIDES.start(), *SIDES.end())
}

fn quote(value: &Value) -> String {
    shorten(&value.to_string())
}

fn shorten(text: &str) -> String {
    match text.char_indices().nth(QUOTED) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.into(),
    }
}

/// The name that is most like this one, if one is.
fn nearest<'a>(name: &str, names: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    // A name of the length of a book has no neighbour.
    let name = shorten(name);
    let (far, near) = names.map(|other| (strsim::damerau_levenshtein(&name, other), other)).min()?;
    (far <= near.len().div_ceil(3)).then_some(near)
}
