//! The kinds of values: how a value is checked, described in errors, read from text, and written as JSON Schema.

use std::ops::RangeInclusive;

use serde_json::{Value, json};

use crate::models::flux1::{MODES, StepCache};

/// How many pictures, or values for pictures, one parameter may have.
pub const MAX_IMAGES: usize = 16;
/// The longest side of a picture, in pixels.
const MAX_SIDE: u64 = 16_384;
/// The pixels that a side of [`Kind::Size`] may have.
const SIDES: RangeInclusive<i64> = 64..=2048;
/// The largest factor of a schedule's shift.
const MAX_SHIFT: f64 = 1e6;
/// The highest number of a ControlNet's mode.
const MAX_MODE: u64 = 99;
/// The most double blocks that a transformer may have.
const MAX_BLOCKS: usize = 64;
/// Text of as many characters as there are.
const ANY_LENGTH: usize = usize::MAX;

/// The kind of a parameter's value. Bounds are inclusive.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    /// Text of so many characters, without NUL.
    Text {
        /// The fewest characters.
        min: usize,
        /// The most characters.
        max: usize,
    },
    /// A whole number.
    Integer {
        /// The least.
        min: u64,
        /// The largest.
        max: u64,
    },
    /// A number.
    Number {
        /// The least.
        min: f64,
        /// The largest.
        max: f64,
    },
    /// A number above 0 and at most 1.
    Fraction,
    /// `true` or `false`.
    Boolean,
    /// One of some names, each with what it stands for.
    Choice(&'static [(&'static str, &'static str)]),
    /// Pixels of a side: a multiple of 16.
    Side,
    /// `auto`, or `WxH` in pixels, multiples of 16 from 64 to 2048.
    Size,
    /// A list of numbers; where one is enough, it may come without the list.
    Numbers {
        /// The least.
        min: f64,
        /// The largest.
        max: f64,
        /// The fewest and the most of them.
        counts: (usize, usize),
    },
    /// What shifts a schedule: one factor, or the shifts for few patches and for many.
    Shift,
    /// A name of a ControlNet or IP-Adapter, or a list of names.
    Names,
    /// A mode of a union ControlNet, as a number or a name, or a list of modes.
    Modes,
    /// A number, a list, or a list of lists.
    Scales {
        /// The least.
        min: f64,
        /// The largest.
        max: f64,
    },
    /// A picture or a list of pictures: files of a program or a form, base64 in JSON.
    Pictures,
    /// A step cache, as [`StepCache`] is written, or `none`.
    Cache,
    /// Any value.
    Any,
}

impl Kind {
    /// Text of any length.
    pub const TEXT: Self = Self::Text { min: 0, max: ANY_LENGTH };
    /// Numbers that are given once for all pictures, or once for each.
    pub(crate) const fn per_picture(min: f64, max: f64) -> Self {
        Self::Numbers { min, max, counts: (1, MAX_IMAGES) }
    }

    /// Whether a value is of this kind.
    pub fn accepts(self, value: &Value) -> bool {
        match self {
            Self::Text { min, max } => value
                .as_str()
                .is_some_and(|text| !text.contains('\0') && (min..=max).contains(&text.chars().count())),
            Self::Integer { min, max } => as_integer(value).is_some_and(|n| (min..=max).contains(&n)),
            Self::Number { min, max } => value.as_f64().is_some_and(|x| (min..=max).contains(&x)),
            Self::Fraction => value.as_f64().is_some_and(|x| x > 0.0 && x <= 1.0),
            Self::Boolean => value.is_boolean(),
            Self::Choice(choices) => {
                value.as_str().is_some_and(|text| choices.iter().any(|(name, _)| *name == text))
            }
            Self::Side => {
                as_integer(value).is_some_and(|side| (16..=MAX_SIDE).contains(&side) && side % 16 == 0)
            }
            Self::Size => value.as_str().is_some_and(|text| parse_size(text).is_some()),
            Self::Numbers { min, max, counts } => are_numbers(value, min, max, counts),
            Self::Shift => {
                value.as_f64().is_some_and(|x| x > 0.0 && x <= MAX_SHIFT)
                    || value.is_array() && are_numbers(value, -20.0, 20.0, (2, 2))
            }
            Self::Names => is_one_or_list(value, Value::is_string),
            Self::Modes => is_one_or_list(value, |value| as_mode(value).is_some()),
            Self::Scales { min, max } => {
                let lists = |value: &Value| are_numbers(value, min, max, (1, MAX_BLOCKS));
                lists(value)
                    || value.as_array().is_some_and(|all| {
                        (1..=MAX_IMAGES).contains(&all.len())
                            && all.iter().all(|list| list.is_array() && lists(list))
                    })
            }
            Self::Pictures => is_one_or_list(value, Value::is_string),
            Self::Cache => value
                .as_str()
                .is_some_and(|text| text == StepCache::NONE || text.parse::<StepCache>().is_ok()),
            Self::Any => true,
        }
    }

    /// Describes the values of this kind, for errors.
    pub fn description(self) -> String {
        match self {
            Self::Text { max: ANY_LENGTH, .. } => "text without NUL".into(),
            Self::Text { min: 0, max } => format!("text of at most {max} characters"),
            Self::Text { min, max } => format!("text of {min} to {max} characters"),
            Self::Integer { min, max } => format!("a whole number from {min} to {max}"),
            Self::Number { min, max } => format!("a number from {min} to {max}"),
            Self::Fraction => "a number above 0 and at most 1".into(),
            Self::Boolean => "true or false".into(),
            Self::Choice(choices) => {
                let names: Vec<_> = choices.iter().map(|(name, _)| *name).collect();
                format!("one of {}", names.join(", "))
            }
            Self::Side => format!("a multiple of 16 from 16 to {MAX_SIDE}"),
            Self::Size => "`auto`, or WxH with both a multiple of 16 from 64 to 2048".into(),
            Self::Numbers { min, max, counts: (1, count) } => {
                format!("a number from {min} to {max}, or a list of at most {count}")
            }
            Self::Numbers { min, max, counts: (count, _) } => {
                format!("a list of {count} numbers from {min} to {max}")
            }
            Self::Shift => {
                format!("a list of 2 numbers from -20 to 20, or one above 0 and at most {MAX_SHIFT}")
            }
            Self::Names => format!("a name, or a list of at most {MAX_IMAGES}"),
            Self::Modes => {
                format!("a number from 0 to {MAX_MODE} or one of {}, or a list of these", MODES.join(", "))
            }
            Self::Scales { min, max } => format!(
                "a number from {min} to {max}, a list of these for the double blocks, or such a list for each IP-Adapter"
            ),
            Self::Pictures => format!("a picture in base64, or a list of at most {MAX_IMAGES}"),
            Self::Cache => {
                "none, first-block[:THRESHOLD], tea-cache[:THRESHOLD] or taylor-seer[:INTERVAL[,ORDER[,WARMUP]]], of \
                 thresholds and intervals that there can be"
                    .into()
            }
            Self::Any => "anything".into(),
        }
    }

    /// Returns a hint at the nearest values of this kind, for one that is not of it.
    pub(crate) fn nearest(self, value: &Value) -> Option<String> {
        match self {
            Self::Text { min, max } => {
                let text = value.as_str()?;
                if text.contains('\0') {
                    return Some("it holds a NUL".into());
                }
                let count = text.chars().count();
                (!(min..=max).contains(&count)).then(|| format!("it has {count} characters"))
            }
            Self::Side => {
                let side = value.as_i64().filter(|side| (0..=MAX_SIDE as i64).contains(side))?;
                let below = side / 16 * 16;
                Some(match below {
                    ..16 => "the nearest is 16".into(),
                    _ if below as u64 == MAX_SIDE => format!("the nearest is {MAX_SIDE}"),
                    _ => format!("the nearest are {below} and {}", below + 16),
                })
            }
            Self::Size => {
                let side = |text: &str| text.parse::<u32>().ok().map(|side| nearest_side(f64::from(side)));
                let (width, height) = value.as_str()?.split_once('x')?;
                Some(format!("the nearest is {}x{}", side(width)?, side(height)?))
            }
            _ => None,
        }
    }

    /// Returns the JSON Schema of this kind.
    pub fn schema(self) -> Value {
        match self {
            Self::Text { min, max } => {
                let pattern = if min == 0 { r"^[^\u0000]*$" } else { r"^[^\u0000]+$" };
                let mut schema = json!({ "type": "string", "minLength": min, "pattern": pattern });
                if max != ANY_LENGTH {
                    schema["maxLength"] = json!(max);
                }
                schema
            }
            Self::Integer { min, max } => json!({ "type": "integer", "minimum": min, "maximum": max }),
            Self::Number { min, max } => json!({ "type": "number", "minimum": min, "maximum": max }),
            Self::Fraction => json!({ "type": "number", "exclusiveMinimum": 0, "maximum": 1 }),
            Self::Boolean => json!({ "type": "boolean" }),
            Self::Choice(choices) => {
                let names: Vec<_> = choices.iter().map(|(name, _)| *name).collect();
                json!({ "type": "string", "enum": names })
            }
            Self::Side => json!({ "type": "integer", "minimum": 16, "maximum": MAX_SIDE, "multipleOf": 16 }),
            Self::Size => {
                let side = side_pattern();
                json!({ "type": "string", "pattern": format!("^(auto|{side}x{side})$") })
            }
            Self::Numbers { min, max, counts: (1, count) } => {
                one_or_list(&json!({ "type": "number", "minimum": min, "maximum": max }), count)
            }
            Self::Numbers { min, max, counts: (from, to) } => {
                let number = json!({ "type": "number", "minimum": min, "maximum": max });
                json!({ "type": "array", "minItems": from, "maxItems": to, "items": number })
            }
            Self::Shift => {
                let number = json!({ "type": "number", "minimum": -20, "maximum": 20 });
                let list = json!({ "type": "array", "minItems": 2, "maxItems": 2, "items": number });
                json!({ "anyOf": [{ "type": "number", "exclusiveMinimum": 0, "maximum": MAX_SHIFT }, list] })
            }
            Self::Names => one_or_list(&json!({ "type": "string" }), MAX_IMAGES),
            Self::Modes => {
                let number = json!({ "type": "integer", "minimum": 0, "maximum": MAX_MODE });
                one_or_list(&json!({ "anyOf": [number, { "type": "string", "enum": MODES }] }), MAX_IMAGES)
            }
            Self::Scales { min, max } => {
                let number = json!({ "type": "number", "minimum": min, "maximum": max });
                let list = list(&number, MAX_BLOCKS);
                json!({ "anyOf": [number, list, self::list(&list, MAX_IMAGES)] })
            }
            Self::Pictures => {
                one_or_list(&json!({ "type": "string", "contentEncoding": "base64" }), MAX_IMAGES)
            }
            Self::Cache => json!({
                "type": "string",
                "pattern": "^(none|(first-block|tea-cache)(:[0-9]{1,3}(\\.[0-9]{1,6})?)?\
                            |taylor-seer(:[1-9][0-9]{0,2}(,[0-8](,[0-9]{1,3})?)?)?)$",
            }),
            Self::Any => json!({}),
        }
    }

    /// Reads a value from text, as forms and command lines have it. What is no text of this kind comes back as it is, for
    /// [`Kind::accepts`] to refuse.
    pub fn parse(self, text: String) -> Value {
        match self {
            Self::Integer { .. } | Self::Number { .. } | Self::Fraction | Self::Boolean | Self::Side => {
                number_or_text(text)
            }
            Self::Numbers { .. } | Self::Shift | Self::Modes | Self::Scales { .. } => {
                if text.contains(',') && !text.trim_start().starts_with('[') {
                    Value::Array(text.split(',').map(|item| number_or_text(item.trim().into())).collect())
                } else {
                    number_or_text(text)
                }
            }
            Self::Names if text.trim_start().starts_with('[') => number_or_text(text),
            Self::Text { .. }
            | Self::Choice(_)
            | Self::Size
            | Self::Names
            | Self::Pictures
            | Self::Cache
            | Self::Any => Value::String(text),
        }
    }

    /// Whether [`Kind::parse`] reads text as JSON: `2`, `true`, `null`.
    pub fn is_read_from_text(self) -> bool {
        match self {
            Self::Integer { .. }
            | Self::Number { .. }
            | Self::Fraction
            | Self::Boolean
            | Self::Side
            | Self::Numbers { .. }
            | Self::Shift
            | Self::Modes
            | Self::Scales { .. } => true,
            Self::Text { .. }
            | Self::Choice(_)
            | Self::Size
            | Self::Names
            | Self::Pictures
            | Self::Cache
            | Self::Any => false,
        }
    }

    /// Whether several values make a list.
    pub fn is_list(self) -> bool {
        matches!(
            self,
            Self::Numbers { .. }
                | Self::Shift
                | Self::Names
                | Self::Modes
                | Self::Scales { .. }
                | Self::Pictures
        )
    }

    /// Returns the kind with another upper bound, of what is counted: characters, items of a list, or a number.
    pub(crate) const fn at_most(self, bound: u64) -> Self {
        match self {
            Self::Text { min, .. } => Self::Text { min, max: bound as usize },
            Self::Integer { min, .. } => Self::Integer { min, max: bound },
            Self::Number { min, .. } => Self::Number { min, max: bound as f64 },
            Self::Numbers { min, max, counts: (from, _) } => {
                Self::Numbers { min, max, counts: (from, bound as usize) }
            }
            other => other,
        }
    }
}

fn number_or_text(text: String) -> Value {
    serde_json::from_str(&text).unwrap_or(Value::String(text))
}

fn list(item: &Value, max: usize) -> Value {
    json!({ "type": "array", "minItems": 1, "maxItems": max, "items": item })
}

fn one_or_list(item: &Value, max: usize) -> Value {
    json!({ "anyOf": [item, list(item, max)] })
}

/// Whether a value fits `is`, or is a list of values that do.
fn is_one_or_list(value: &Value, is: impl Fn(&Value) -> bool) -> bool {
    match value.as_array() {
        Some(all) => (1..=MAX_IMAGES).contains(&all.len()) && all.iter().all(is),
        None => is(value),
    }
}

fn are_numbers(value: &Value, min: f64, max: f64, (from, to): (usize, usize)) -> bool {
    let is = |value: &Value| value.as_f64().is_some_and(|x| (min..=max).contains(&x));
    match value.as_array() {
        Some(all) => (from..=to).contains(&all.len()) && all.iter().all(is),
        None => from == 1 && is(value),
    }
}

/// Returns a whole number, which JSON may write as `2.0`.
pub fn as_integer(value: &Value) -> Option<u64> {
    // The least that is no `u64` any more.
    let end = u64::MAX as f64;
    let float = || value.as_f64().filter(|x| x.fract() == 0.0 && (0.0..end).contains(x)).map(|x| x as u64);
    value.as_u64().or_else(float)
}

/// Returns the number of a ControlNet's mode, which may be its name in [`MODES`].
pub(crate) fn as_mode(value: &Value) -> Option<i64> {
    let number = as_integer(value).filter(|mode| *mode <= MAX_MODE).map(|mode| mode as i64);
    let by_name = || {
        let name = value.as_str()?.trim().to_lowercase().replace(['_', ' '], "-");
        MODES.iter().position(|mode| *mode == name).map(|place| place as i64)
    };
    number.or_else(by_name)
}

/// Returns the width and height of a [`Kind::Size`], or `None` for what is none. `Some(None)` is `auto`.
#[allow(clippy::option_option)]
pub fn parse_size(text: &str) -> Option<Option<(i64, i64)>> {
    if text == "auto" {
        return Some(None);
    }
    let side = |text: &str| {
        let digits = text.len() <= 4 && text.bytes().all(|byte| byte.is_ascii_digit());
        text.parse::<i64>().ok().filter(|side| digits && SIDES.contains(side) && side % 16 == 0)
    };
    let (width, height) = text.split_once('x')?;
    Some(Some((side(width)?, side(height)?)))
}

/// Returns the side of a [`Kind::Size`] that is nearest to a number of pixels.
pub fn nearest_side(pixels: f64) -> i64 {
    ((pixels / 16.0).round() as i64 * 16).clamp(*SIDES.start(), *SIDES.end())
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
