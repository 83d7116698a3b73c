//! The raw fields of a request, from JSON or from the parts of a form, each checked against its kind.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fmt;

use axum::body::Bytes;
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::api_error::{ApiError, shorten};
use crate::fields::field_name;
use crate::request::synonyms::find_field;
use crate::uploads::Uploads;
use tch_flux::generation::params::{Kind, MAX_IMAGES, Parameter, Values};

/// The most values of a body, with those in lists and objects: each takes far more memory than its text.
const MAX_VALUES: usize = 4096;

/// The fields of a request, each of its kind, and its pictures. A field that is null is absent.
#[derive(Debug, Default)]
pub(crate) struct RawRequest {
    pub(crate) values: Values,
    pub(crate) uploads: Uploads,
    /// The index in the name of each picture, by field; `usize::MAX` where the name has none.
    indices: BTreeMap<&'static str, Vec<usize>>,
}

/// What the name of a form's part says.
#[derive(Clone, Copy)]
pub(crate) struct PartName {
    pub(crate) field: &'static Parameter,
    /// The `1` of `image[1]`.
    index: Option<usize>,
}

impl RawRequest {
    /// Reads the JSON body of a generation.
    pub(crate) fn from_json(body: &[u8]) -> Result<Self, ApiError> {
        let invalid = |reason: &dyn fmt::Display| {
            ApiError::invalid("invalid_json", format!("the body is not JSON: {reason}"))
        };
        let malformed = |error: serde_json::Error| invalid(&error);
        match body {
            [] => return Err(invalid(&"it is empty")),
            [0xef, 0xbb, 0xbf, ..] => {
                return Err(invalid(&"it begins with a byte order mark, of which JSON has none"));
            }
            [0xff, 0xfe, ..] | [0xfe, 0xff, ..] | [_, 0, ..] | [0, _, ..] => {
                return Err(invalid(&"it is UTF-16 or UTF-32, and JSON is sent in UTF-8"));
            }
            _ => {}
        }
        if std::str::from_utf8(body).is_err() {
            return Err(invalid(&"it is no UTF-8"));
        }
        let left = Cell::new(MAX_VALUES);
        let mut reader = serde_json::Deserializer::from_slice(body);
        let body = LimitedJson(&left).deserialize(&mut reader).map_err(malformed)?;
        reader.end().map_err(malformed)?;
        let Value::Object(body) = body else {
            return Err(ApiError::invalid("invalid_json", "the body must be a JSON object"));
        };
        let mut request = Self::default();
        for (name, value) in body {
            request.insert(find_field(&name, false)?, value)?;
        }
        Ok(request)
    }

    /// Adds a part of a form that is text. The items of a list may come one by one, as `name`, `name[]` or
    /// `name[0]`, `name[1]` and so on.
    pub(crate) fn insert_text(&mut self, name: &str, part: PartName, text: String) -> Result<(), ApiError> {
        let PartName { field, index } = part;
        let base = field_name(field.key);
        let count = self.values.list(field.key).len();
        if let Some(index) = index.filter(|index| *index != count) {
            let text = format!("{base}[{index}] comes where {base}[{count}] is expected");
            return Err(ApiError::value(base, text));
        }
        let value = field.kind.parse(text);
        let value = match self.values.remove(field.key) {
            Some(earlier) if field.kind.is_list() => concat(earlier, value),
            Some(_) if field.kind != Kind::Any => {
                let text = format!("{base} comes twice: which is meant cannot be known");
                return Err(ApiError::value(base, text));
            }
            None if name.ends_with(']') && !value.is_array() => Value::Array(vec![value]),
            _ => value,
        };
        self.insert(field, value)
    }

    /// Adds a picture: behind the others of its field, or where the index in its name puts it.
    pub(crate) fn insert_picture(&mut self, part: PartName, file: Bytes) -> Result<(), ApiError> {
        let PartName { field, index } = part;
        let files = self.uploads.files_mut(field.key);
        let max = if field.key == "mask" { 1 } else { MAX_IMAGES };
        if files.len() == max {
            let text = format!("{}: more than {max} came", field_name(field.key));
            return Err(ApiError::invalid("too_many_images", text).param(field_name(field.key)));
        }
        let indices = self.indices.entry(field.key).or_default();
        let index = index.unwrap_or(usize::MAX);
        let position = indices.partition_point(|earlier| *earlier <= index);
        indices.insert(position, index);
        files.insert(position, file);
        Ok(())
    }

    fn insert(&mut self, field: &'static Parameter, value: Value) -> Result<(), ApiError> {
        if value.is_null() {
            return Ok(());
        }
        field.check(field.served(), &value)?;
        if field.kind != Kind::Pictures {
            self.values.insert(field, value)?;
            return Ok(());
        }
        let pictures = match value {
            Value::Array(pictures) => pictures,
            picture => vec![picture],
        };
        let texts = pictures.into_iter().filter_map(|picture| match picture {
            Value::String(text) => Some(Bytes::from(text)),
            _ => None,
        });
        texts.into_iter().try_for_each(|text| self.insert_picture(PartName { field, index: None }, text))
    }
}

/// Reads the name of a form's part. Those of a list may have `[]` or an index behind the name.
pub(crate) fn parse_part_name(name: &str) -> Result<PartName, ApiError> {
    let list_item = || {
        let (base, index) = name.strip_suffix(']')?.split_once('[')?;
        let field = find_field(base, true).ok().filter(|field| field.kind.is_list())?;
        let index = if index.is_empty() { None } else { Some(index.parse().ok()?) };
        Some(PartName { field, index })
    };
    match list_item() {
        Some(part) => Ok(part),
        None => Ok(PartName { field: find_field(name, true)?, index: None }),
    }
}

/// Returns one list of the items of two values.
fn concat(first: Value, second: Value) -> Value {
    let items = |value| match value {
        Value::Array(items) => items,
        item => vec![item],
    };
    Value::Array([items(first), items(second)].concat())
}

/// Reads JSON of at most as many values as the cell says, which counts down.
#[derive(Clone, Copy)]
struct LimitedJson<'a>(&'a Cell<usize>);

impl<'de> DeserializeSeed<'de> for LimitedJson<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        let left = self.0.get().checked_sub(1);
        let left = left.ok_or_else(|| D::Error::custom(format!("more than {MAX_VALUES} values")))?;
        self.0.set(left);
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for LimitedJson<'_> {
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

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(value) = access.next_element_seed(self)? {
            list.push(value);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(name) = access.next_key::<String>()? {
            let value = access.next_value_seed(self)?;
            // Nothing says which of the two is meant.
            if object.contains_key(&name) {
                return Err(A::Error::custom(format!("`{}` stands in it twice", shorten(&name))));
            }
            object.insert(name, value);
        }
        Ok(Value::Object(object))
    }
}
