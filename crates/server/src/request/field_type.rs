//! The types of fields: how a value is checked, described in errors, and written as JSON Schema.

use serde_json::{Value, json};

use crate::options::MAX_IMAGES;
use tch_flux::models::flux1::{MODES, StepCache};

/// The pixels that a side may have.
const SIDES: std::ops::RangeInclusive<i64> = 64..=2048;
/// The highest number of a ControlNet's mode.
const MAX_MODE: u64 = 99;
/// The most double blocks that a transformer may have.
const MAX_BLOCKS: usize = 64;

/// The type of a field. Bounds are inclusive.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum FieldType {
    /// Characters.
    Text {
        least: usize,
        most: usize,
    },
    Integer {
        least: u64,
        most: u64,
    },
    Number {
        least: f64,
        most: f64,
    },
    /// A number above 0 and at most 1.
    Fraction,
    Boolean,
    Choice(&'static [&'static str]),
    Size,
    /// A list of numbers, whose length has these bounds; where one is enough, it may come without the list.
    Numbers {
        least: f64,
        most: f64,
        counts: (usize, usize),
    },
    /// A name of a ControlNet or IP-Adapter, or a list of names.
    Names,
    /// A mode of a union ControlNet, as a number or a name, or a list of modes.
    Modes,
    /// A number, a list, or a list of lists.
    Scales {
        least: f64,
        most: f64,
    },
    /// A picture or a list of pictures: files in a form, base64 in JSON.
    Pictures,
    /// A step cache, as [`StepCache`] is written.
    Cache,
    /// Accepted, and without effect.
    Ignored,
}

impl FieldType {
    /// Whether a value is of this type.
    pub(crate) fn accepts(self, value: &Value) -> bool {
        match self {
            Self::Text { least, most } => value
                .as_str()
                .is_some_and(|text| !text.contains('\0') && (least..=most).contains(&text.chars().count())),
            Self::Integer { least, most } => as_integer(value).is_some_and(|n| (least..=most).contains(&n)),
            Self::Number { least, most } => value.as_f64().is_some_and(|x| (least..=most).contains(&x)),
            Self::Fraction => value.as_f64().is_some_and(|x| x > 0.0 && x <= 1.0),
            Self::Boolean => value.is_boolean(),
            Self::Choice(choices) => value.as_str().is_some_and(|text| choices.contains(&text)),
            Self::Size => value.as_str().is_some_and(|text| parse_size(text).is_ok()),
            Self::Numbers { least, most, counts } => are_numbers(value, least, most, counts),
            Self::Names => is_one_or_list(value, Value::is_string),
            Self::Modes => is_one_or_list(value, is_mode),
            Self::Scales { least, most } => {
                let lists = |value: &Value| are_numbers(value, least, most, (1, MAX_BLOCKS));
                lists(value)
                    || value.as_array().is_some_and(|all| {
                        (1..=MAX_IMAGES).contains(&all.len())
                            && all.iter().all(|list| list.is_array() && lists(list))
                    })
            }
            Self::Pictures => is_one_or_list(value, Value::is_string),
            Self::Cache => value.as_str().is_some_and(|text| text.parse::<StepCache>().is_ok()),
            Self::Ignored => true,
        }
    }

    /// Describes the values of this type, for errors.
    pub(crate) fn description(self) -> String {
        match self {
            Self::Text { least: 0, most } => format!("text of at most {most} characters"),
            Self::Text { least, most } => format!("text of {least} to {most} characters"),
            Self::Integer { least, most } => format!("a whole number from {least} to {most}"),
            Self::Number { least, most } => format!("a number from {least} to {most}"),
            Self::Fraction => "a number above 0 and at most 1".into(),
            Self::Boolean => "true or false".into(),
            Self::Choice(choices) => format!("one of {}", choices.join(", ")),
            Self::Size => "`auto`, or WxH with both a multiple of 16 from 64 to 2048".into(),
            Self::Numbers { least, most, counts: (1, count) } => {
                format!("a number from {least} to {most}, or a list of at most {count}")
            }
            Self::Numbers { least, most, counts: (count, _) } => {
                format!("a list of {count} numbers from {least} to {most}")
            }
            Self::Names => format!("a name, or a list of at most {MAX_IMAGES}"),
            Self::Modes => {
                format!("a number from 0 to {MAX_MODE} or one of {}, or a list of these", MODES.join(", "))
            }
            Self::Scales { least, most } => format!(
                "a number from {least} to {most}, a list of these for the double blocks, or such a list for each \
                 IP-Adapter"
            ),
            Self::Pictures => format!("a picture in base64, or a list of at most {MAX_IMAGES}"),
            Self::Cache => {
                "first-block[:THRESHOLD], tea-cache[:THRESHOLD] or taylor-seer[:INTERVAL[,ORDER[,WARMUP]]], of \
                 thresholds and intervals that there can be"
                    .into()
            }
            Self::Ignored => "anything".into(),
        }
    }

    /// Returns the JSON Schema of this type.
    pub(crate) fn schema(self) -> Value {
        match self {
            Self::Text { least, most } => {
                let pattern = if least == 0 { r"^[^\u0000]*$" } else { r"^[^\u0000]+$" };
                json!({ "type": "string", "minLength": least, "maxLength": most, "pattern": pattern })
            }
            Self::Integer { least, most } => json!({ "type": "integer", "minimum": least, "maximum": most }),
            Self::Number { least, most } => json!({ "type": "number", "minimum": least, "maximum": most }),
            Self::Fraction => json!({ "type": "number", "exclusiveMinimum": 0, "maximum": 1 }),
            Self::Boolean => json!({ "type": "boolean" }),
            Self::Choice(choices) => json!({ "type": "string", "enum": choices }),
            Self::Size => {
                let side = side_pattern();
                json!({ "type": "string", "pattern": format!("^(auto|{side}x{side})$") })
            }
            Self::Numbers { least, most, counts: (1, count) } => {
                one_or_list(&json!({ "type": "number", "minimum": least, "maximum": most }), count)
            }
            Self::Numbers { least, most, counts: (from, to) } => {
                let number = json!({ "type": "number", "minimum": least, "maximum": most });
                json!({ "type": "array", "minItems": from, "maxItems": to, "items": number })
            }
            Self::Names => one_or_list(&json!({ "type": "string" }), MAX_IMAGES),
            Self::Modes => {
                let number = json!({ "type": "integer", "minimum": 0, "maximum": MAX_MODE });
                one_or_list(&json!({ "anyOf": [number, { "type": "string", "enum": MODES }] }), MAX_IMAGES)
            }
            Self::Scales { least, most } => {
                let number = json!({ "type": "number", "minimum": least, "maximum": most });
                let list = list(&number, MAX_BLOCKS);
                json!({ "anyOf": [number, list, self::list(&list, MAX_IMAGES)] })
            }
            Self::Pictures => {
                one_or_list(&json!({ "type": "string", "contentEncoding": "base64" }), MAX_IMAGES)
            }
            Self::Cache => json!({
                "type": "string",
                "pattern": "^((first-block|tea-cache)(:[0-9]{1,3}(\\.[0-9]{1,6})?)?\
                            |taylor-seer(:[1-9][0-9]{0,2}(,[0-8](,[0-9]{1,3})?)?)?)$",
            }),
            Self::Ignored => json!({}),
        }
    }

    /// Whether a form's text is read as JSON: `2`, `true`, `null`.
    pub(crate) fn is_read_from_text(self) -> bool {
        match self {
            Self::Integer { .. }
            | Self::Number { .. }
            | Self::Fraction
            | Self::Boolean
            | Self::Numbers { .. }
            | Self::Modes
            | Self::Scales { .. } => true,
            Self::Text { .. }
            | Self::Choice(_)
            | Self::Size
            | Self::Names
            | Self::Pictures
            | Self::Cache
            | Self::Ignored => false,
        }
    }

    /// Whether several values make a list.
    pub(crate) fn is_list(self) -> bool {
        matches!(
            self,
            Self::Numbers { .. } | Self::Names | Self::Modes | Self::Scales { .. } | Self::Pictures
        )
    }
}

fn list(item: &Value, most: usize) -> Value {
    json!({ "type": "array", "minItems": 1, "maxItems": most, "items": item })
}

fn one_or_list(item: &Value, most: usize) -> Value {
    json!({ "anyOf": [item, list(item, most)] })
}

/// Whether a value fits `is`, or is a list of values that do.
fn is_one_or_list(value: &Value, is: impl Fn(&Value) -> bool) -> bool {
    match value.as_array() {
        Some(all) => (1..=MAX_IMAGES).contains(&all.len()) && all.iter().all(is),
        None => is(value),
    }
}

fn are_numbers(value: &Value, least: f64, most: f64, (from, to): (usize, usize)) -> bool {
    let is = |value: &Value| value.as_f64().is_some_and(|x| (least..=most).contains(&x));
    match value.as_array() {
        Some(all) => (from..=to).contains(&all.len()) && all.iter().all(is),
        None => from == 1 && is(value),
    }
}

fn is_mode(value: &Value) -> bool {
    as_integer(value).is_some_and(|mode| mode <= MAX_MODE)
        || value.as_str().is_some_and(|name| mode(name).is_some())
}

/// A whole number, which JSON may write as `2.0`.
pub(crate) fn as_integer(value: &Value) -> Option<u64> {
    // The least that is no `u64` any more.
    let end = u64::MAX as f64;
    let float = || value.as_f64().filter(|x| x.fract() == 0.0 && (0.0..end).contains(x)).map(|x| x as u64);
    value.as_u64().or_else(float)
}

/// Returns the number of the ControlNet mode of this name.
pub(crate) fn mode(name: &str) -> Option<i64> {
    MODES.iter().position(|mode| *mode == name).map(|place| place as i64)
}

/// Returns width and height, or `None` for `auto`.
pub(crate) fn parse_size(text: &str) -> Result<Option<(i64, i64)>, ()> {
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

/// Returns a regular expression of the sides. Leading zeros are allowed, up to four digits.
fn side_pattern() -> String {
    let sides = SIDES.filter(|side| side % 16 == 0).map(|side| match side {
        ..100 => format!("0{{0,2}}{side}"),
        100..1000 => format!("0?{side}"),
        _ => side.to_string(),
    });
    format!("({})", sides.collect::<Vec<_>>().join("|"))
}

/// Returns a hint at the nearest allowed size, for a text that is a size but for its numbers.
pub(crate) fn nearest_size(text: &str) -> String {
    let side = |text: &str| text.parse::<u32>().ok().map(|side| nearest_side(f64::from(side)));
    match text.split_once('x').map(|(width, height)| (side(width), side(height))) {
        Some((Some(width), Some(height))) => format!("; the nearest is {width}x{height}"),
        _ => String::new(),
    }
}

/// Returns the allowed side that is nearest to a number of pixels.
pub(crate) fn nearest_side(pixels: f64) -> i64 {
    ((pixels / 16.0).round() as i64 * 16).clamp(*SIDES.start(), *SIDES.end())
}
