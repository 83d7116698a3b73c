//! What a GGUF file says of itself: values of thirteen types under their keys.

use std::collections::BTreeMap;
use std::fmt;

use super::reader::{Part, Reader, Stop};
use crate::checkpoint::safetensors::shorten;
use crate::error::FileProblem;

/// The format's own limit on the name of a key, in bytes.
const MAX_KEY: usize = 65_535;
/// Arrays in arrays: no writer has more than one in another.
const MAX_DEPTH: usize = 4;
/// Of a longer array the metadata keep only how long it is.
const LONGEST_SHOWN: u64 = 8;
const DEFAULT_ALIGNMENT: u64 = 32;
const MAX_ALIGNMENT: u64 = 1 << 20;

/// Types of metadata, each under the number that stands for it.
#[derive(Debug, Clone, Copy, PartialEq)]
enum ValueType {
    U8,
    I8,
    U16,
    I16,
    U32,
    I32,
    F32,
    Bool,
    String,
    Array,
    U64,
    I64,
    F64,
}

impl ValueType {
    const ALL: [Self; 13] = [
        Self::U8,
        Self::I8,
        Self::U16,
        Self::I16,
        Self::U32,
        Self::I32,
        Self::F32,
        Self::Bool,
        Self::String,
        Self::Array,
        Self::U64,
        Self::I64,
        Self::F64,
    ];

    /// The fewest bytes that a value takes; all but strings and arrays take just so many.
    fn least(self) -> u64 {
        match self {
            Self::U8 | Self::I8 | Self::Bool => 1,
            Self::U16 | Self::I16 => 2,
            Self::U32 | Self::I32 | Self::F32 => 4,
            Self::U64 | Self::I64 | Self::F64 | Self::String => 8,
            Self::Array => 4 + 8,
        }
    }
}

enum Value {
    Integer(i128),
    /// A float, a truth value, or the length of a long array.
    Word(String),
    Text(String),
    Array(Vec<Value>),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Integer(n) => write!(f, "{n}"),
            Self::Word(text) | Self::Text(text) => f.write_str(text),
            Self::Array(values) => {
                f.write_str("[")?;
                for (i, value) in values.iter().enumerate() {
                    f.write_str(if i == 0 { "" } else { ", " })?;
                    match value {
                        Self::Text(text) => write!(f, "\"{}\"", shorten(text))?,
                        other => other.fmt(f)?,
                    }
                }
                f.write_str("]")
            }
        }
    }
}

/// The values by their keys.
pub(super) struct Metadata(BTreeMap<String, Value>);

impl Metadata {
    pub(super) fn read(reader: &mut Reader, count: u64) -> Result<Self, Stop> {
        let mut values = BTreeMap::new();
        for i in 0..count {
            let key = reader.text(Part::Key(i))?;
            if key.len() > MAX_KEY {
                return Err(metadata_problem(key, format!("its key is {} bytes long", key.len())).into());
            }
            if key.is_empty() || key.chars().any(char::is_control) {
                let reason = "a key must not be empty, nor hold control characters".into();
                return Err(metadata_problem(key, reason).into());
            }
            let value_type = read_type(reader, key)?;
            let value = read_value(reader, key, value_type, 0)?;
            if values.insert(key.to_string(), value).is_some() {
                return Err(metadata_problem(key, "it stands in the header twice".into()).into());
            }
        }
        Ok(Self(values))
    }

    /// All of them as text.
    pub(super) fn into_text(self) -> BTreeMap<String, String> {
        self.0.into_iter().map(|(key, value)| (key, value.to_string())).collect()
    }

    pub(super) fn alignment(&self) -> Result<u64, FileProblem> {
        let Some(value) = self.0.get("general.alignment") else { return Ok(DEFAULT_ALIGNMENT) };
        let number = if let Value::Integer(number) = value { u64::try_from(*number).ok() } else { None };
        number.filter(|n| n.is_power_of_two() && *n <= MAX_ALIGNMENT).ok_or_else(|| {
            let value = shorten(&value.to_string());
            let reason = format!("{value} is no power of two up to {MAX_ALIGNMENT}");
            metadata_problem("general.alignment", reason)
        })
    }

    /// The shape that a tensor had before it was written with fewer axes, or in rows of whole blocks.
    pub(super) fn original_shape(&self, name: &str) -> Result<Option<Vec<u64>>, FileProblem> {
        let key = format!("comfy.gguf.orig_shape.{name}");
        let Some(value) = self.0.get(&key) else { return Ok(None) };
        let size = |value: &Value| match value {
            Value::Integer(n) => u64::try_from(*n).ok(),
            _ => None,
        };
        let shape = if let Value::Array(sizes) = value { sizes.iter().map(size).collect() } else { None };
        shape.map(Some).ok_or_else(|| {
            metadata_problem(&key, format!("{} is no shape of at most 8 sizes", shorten(&value.to_string())))
        })
    }
}

fn metadata_problem(key: &str, reason: String) -> FileProblem {
    FileProblem::Metadata { key: shorten(key), reason }
}

fn read_type(reader: &mut Reader, key: &str) -> Result<ValueType, Stop> {
    let number = reader.u32(Part::Value(key))?;
    let known = ValueType::ALL.get(number as usize).copied();
    known.ok_or_else(|| metadata_problem(key, format!("unknown type {number}")).into())
}

/// A value within `depth` arrays.
fn read_value(reader: &mut Reader, key: &str, value_type: ValueType, depth: usize) -> Result<Value, Stop> {
    let part = Part::Value(key);
    Ok(match value_type {
        ValueType::U8 => Value::Integer(u8::from_le_bytes(reader.array(part)?).into()),
        ValueType::I8 => Value::Integer(i8::from_le_bytes(reader.array(part)?).into()),
        ValueType::U16 => Value::Integer(u16::from_le_bytes(reader.array(part)?).into()),
        ValueType::I16 => Value::Integer(i16::from_le_bytes(reader.array(part)?).into()),
        ValueType::U32 => Value::Integer(u32::from_le_bytes(reader.array(part)?).into()),
        ValueType::I32 => Value::Integer(i32::from_le_bytes(reader.array(part)?).into()),
        ValueType::U64 => Value::Integer(u64::from_le_bytes(reader.array(part)?).into()),
        ValueType::I64 => Value::Integer(i64::from_le_bytes(reader.array(part)?).into()),
        ValueType::F32 => Value::Word(format!("{:?}", f32::from_le_bytes(reader.array(part)?))),
        ValueType::F64 => Value::Word(format!("{:?}", f64::from_le_bytes(reader.array(part)?))),
        ValueType::Bool => match reader.array(part)? {
            [0] => Value::Word("false".into()),
            [1] => Value::Word("true".into()),
            [other] => {
                let reason = format!("{other} is no truth value: 0 or 1");
                return Err(metadata_problem(key, reason).into());
            }
        },
        ValueType::String => Value::Text(reader.text(part)?.to_string()),
        ValueType::Array => read_array(reader, key, depth)?,
    })
}

fn read_array(reader: &mut Reader, key: &str, depth: usize) -> Result<Value, Stop> {
    if depth == MAX_DEPTH {
        let reason = format!("arrays in arrays, more than {MAX_DEPTH} deep");
        return Err(metadata_problem(key, reason).into());
    }
    let part = Part::Value(key);
    let value_type = read_type(reader, key)?;
    let count = reader.u64(part)?;
    let least = count.checked_mul(value_type.least());
    reader.expect(least, part)?;
    if count <= LONGEST_SHOWN {
        let values = (0..count).map(|_| read_value(reader, key, value_type, depth + 1));
        return Ok(Value::Array(values.collect::<Result<_, _>>()?));
    }
    match value_type {
        ValueType::String => {
            for _ in 0..count {
                let len = reader.u64(part)?;
                reader.take(len, part)?;
            }
        }
        ValueType::Array => {
            for _ in 0..count {
                read_array(reader, key, depth + 1)?;
            }
        }
        _ => drop(reader.take(least.unwrap_or(u64::MAX), part)?),
    }
    Ok(Value::Word(match value_type {
        ValueType::String => format!("[{count} strings]"),
        ValueType::Array => format!("[{count} arrays]"),
        other => format!("[{count} {}]", format!("{other:?}").to_lowercase()),
    }))
}
