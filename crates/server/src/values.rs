//! A request's fields as they come: in JSON, or as parts of a form.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt;

use axum::body::Bytes;
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use super::edits::MAX_IMAGES;
use super::fields::{Field, find};
use super::pictures::Sources;
use super::problem::Problem;
use super::shape::{Shape, shorten, whole};

/// Values of a body, with those in lists and objects: each takes far more memory than its text.
const MAX_VALUES: usize = 4096;

/// A request's fields, each as its shape wants it, and its pictures. What is null is absent.
#[derive(Debug, Default)]
pub(super) struct Values {
    fields: BTreeMap<&'static str, Value>,
    pub(super) pictures: Sources,
    /// The places of each field's pictures, as far as their names have them.
    places: BTreeMap<&'static str, Vec<usize>>,
}

/// What a part of a form is named.
#[derive(Clone, Copy)]
pub(super) struct Part {
    pub(super) field: &'static Field,
    /// `1` of `image[1]`.
    place: Option<usize>,
}

impl Values {
    /// Of a generation's body.
    pub(super) fn from_json(body: &[u8]) -> Result<Self, Problem> {
        let no_json = |problem: &dyn fmt::Display| {
            Problem::invalid("invalid_json", format!("the body is not JSON: {problem}"))
        };
        let wrong = |problem: serde_json::Error| no_json(&problem);
        match body {
            [] => return Err(no_json(&"it is empty")),
            [0xef, 0xbb, 0xbf, ..] => {
                return Err(no_json(&"it begins with a byte order mark, of which JSON has none"));
            }
            [0xff, 0xfe, ..] | [0xfe, 0xff, ..] | [_, 0, ..] | [0, _, ..] => {
                return Err(no_json(&"it is UTF-16 or UTF-32, and JSON is sent in UTF-8"));
            }
            _ => {}
        }
        if std::str::from_utf8(body).is_err() {
            return Err(no_json(&"it is no UTF-8"));
        }
        let left = Cell::new(MAX_VALUES);
        let mut reader = serde_json::Deserializer::from_slice(body);
        let body = Counted(&left).deserialize(&mut reader).map_err(wrong)?;
        reader.end().map_err(wrong)?;
        let Value::Object(body) = body else {
            return Err(Problem::invalid("invalid_json", "the body must be a JSON object"));
        };
        let mut values = Self::default();
        for (name, value) in body {
            values.insert(find(&name, false)?, value)?;
        }
        Ok(values)
    }

    /// A part of a form that is text. Where several make a list, they may come one by one, as `name`, `name[]` or
    /// `name[0]`, `name[1]` and so on.
    pub(super) fn insert_text(&mut self, name: &str, part: Part, text: String) -> Result<(), Problem> {
        let Part { field, place } = part;
        let before = self.all(field.name).len();
        if let Some(place) = place.filter(|place| *place != before) {
            let text = format!("{}[{place}] comes where {0}[{before}] is expected", field.name);
            return Err(Problem::value(field.name, text));
        }
        let value = match field.shape {
            Shape::Whole { .. } | Shape::Number { .. } | Shape::Share | Shape::Flag => number_or_text(text),
            Shape::Numbers { .. } | Shape::Modes | Shape::Scales { .. } => {
                let listed =
                    |text: &str| text.split(',').map(|one| number_or_text(one.trim().into())).collect();
                if text.contains(',') && !text.trim_start().starts_with('[') {
                    Value::Array(listed(&text))
                } else {
                    number_or_text(text)
                }
            }
            Shape::Names if text.trim_start().starts_with('[') => number_or_text(text),
            Shape::Text { .. }
            | Shape::Choice(_)
            | Shape::Size
            | Shape::Names
            | Shape::Pictures
            | Shape::Cache
            | Shape::Ignored => Value::String(text),
        };
        let value = match self.fields.remove(field.name) {
            Some(before) if field.shape.is_list() => joined(before, value),
            Some(_) if field.shape != Shape::Ignored => {
                let text = format!("{} comes twice: which is meant cannot be known", field.name);
                return Err(Problem::value(field.name, text));
            }
            None if name.ends_with(']') && !value.is_array() => Value::Array(vec![value]),
            _ => value,
        };
        self.insert(field, value)
    }

    /// A picture: behind the others of its field, or at the place that its name has.
    pub(super) fn insert_picture(&mut self, part: Part, file: Bytes) -> Result<(), Problem> {
        let Part { field, place } = part;
        let files = self.pictures.of(field.name);
        let most = if field.name == "mask" { 1 } else { MAX_IMAGES };
        if files.len() == most {
            let text = format!("{}: more than {most} came", field.name);
            return Err(Problem::invalid("too_many_images", text).param(field.name));
        }
        let places = self.places.entry(field.name).or_default();
        let place = place.unwrap_or(usize::MAX);
        let at = places.partition_point(|before| *before <= place);
        places.insert(at, place);
        files.insert(at, file);
        Ok(())
    }

    fn insert(&mut self, field: &'static Field, value: Value) -> Result<(), Problem> {
        if value.is_null() {
            return Ok(());
        }
        field.check(&value)?;
        if field.shape != Shape::Pictures {
            self.fields.insert(field.name, value);
            return Ok(());
        }
        let pictures = match value {
            Value::Array(pictures) => pictures,
            one => vec![one],
        };
        let texts = pictures.into_iter().filter_map(|picture| match picture {
            Value::String(text) => Some(Bytes::from(text)),
            _ => None,
        });
        texts.into_iter().try_for_each(|text| self.insert_picture(Part { field, place: None }, text))
    }

    pub(super) fn text(&self, name: &str) -> Option<&str> {
        self.fields.get(name)?.as_str()
    }

    pub(super) fn whole(&self, name: &str) -> Option<u64> {
        whole(self.fields.get(name)?)
    }

    pub(super) fn number(&self, name: &str) -> Option<f64> {
        self.fields.get(name)?.as_f64()
    }

    pub(super) fn flag(&self, name: &str) -> bool {
        self.flag_or(name, false)
    }

    pub(super) fn flag_or(&self, name: &str, absent: bool) -> bool {
        self.fields.get(name).and_then(Value::as_bool).unwrap_or(absent)
    }

    /// One, or those of a list.
    pub(super) fn all(&self, name: &str) -> &[Value] {
        match self.fields.get(name) {
            Some(Value::Array(all)) => all,
            Some(one) => std::slice::from_ref(one),
            None => &[],
        }
    }

    pub(super) fn numbers(&self, name: &str) -> Vec<f64> {
        self.all(name).iter().filter_map(Value::as_f64).collect()
    }

    pub(super) fn texts(&self, name: &str) -> Vec<String> {
        self.all(name).iter().filter_map(|value| value.as_str().map(str::to_string)).collect()
    }
}

/// The field of a form's part. That of a list may have `[]` or a place behind its name.
pub(super) fn find_part(name: &str) -> Result<Part, Problem> {
    let listed = || {
        let (base, place) = name.strip_suffix(']')?.split_once('[')?;
        let field = find(base, true).ok().filter(|field| field.shape.is_list())?;
        let place = if place.is_empty() { None } else { Some(place.parse().ok()?) };
        Some(Part { field, place })
    };
    match listed() {
        Some(part) => Ok(part),
        None => Ok(Part { field: find(name, true)?, place: None }),
    }
}

fn number_or_text(text: String) -> Value {
    serde_json::from_str(&text).unwrap_or(Value::String(text))
}

fn joined(before: Value, value: Value) -> Value {
    let list = |value| match value {
        Value::Array(all) => all,
        one => vec![one],
    };
    Value::Array([list(before), list(value)].concat())
}

/// JSON of no more values than are left.
#[derive(Clone, Copy)]
struct Counted<'a>(&'a Cell<usize>);

impl<'de> DeserializeSeed<'de> for Counted<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        let left = self.0.get().checked_sub(1);
        let left = left.ok_or_else(|| D::Error::custom(format!("more than {MAX_VALUES} values")))?;
        self.0.set(left);
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Counted<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::String(value.into()))
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut all: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(value) = all.next_element_seed(self)? {
            list.push(value);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut all: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(name) = all.next_key::<String>()? {
            let value = all.next_value_seed(self)?;
            // Which of two is meant cannot be known.
            if object.contains_key(&name) {
                return Err(A::Error::custom(format!("`{}` stands in it twice", shorten(&name))));
            }
            object.insert(name, value);
        }
        Ok(Value::Object(object))
    }
}
