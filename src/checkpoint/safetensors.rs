//! The header of a safetensors file: read strictly, so that nothing about a file is guessed.

use std::collections::{BTreeMap, HashSet};
use std::fmt;
use std::ops::Range;

use safetensors::Dtype;
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};

use crate::error::FileProblem;
use crate::quant::Encoding;

/// The format's own limit on the header, in bytes.
pub(crate) const MAX_HEADER: u64 = 100_000_000;
/// More axes than any model has.
const MAX_DIMS: usize = 8;
/// Longer than any name of a model.
const MAX_NAME: usize = 4096;

/// One tensor of a file.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// Its name in the file.
    pub name: String,
    /// How its numbers are written.
    pub encoding: Encoding,
    /// Its shape.
    pub shape: Vec<i64>,
    /// Where its bytes begin in the file.
    pub begin: u64,
    /// Where they end.
    pub end: u64,
}

impl Entry {
    /// How many numbers it holds.
    pub fn numel(&self) -> u64 {
        self.shape.iter().map(|&d| d as u64).product()
    }

    /// The bytes of the file in which some of its numbers lie, of the `of` that it decodes to.
    pub(super) fn bytes_of(&self, elements: &Range<usize>, of: usize) -> Range<usize> {
        let all = u128::from(self.end - self.begin);
        let place = |element: usize| self.begin + (all * element as u128 / of.max(1) as u128) as u64;
        place(elements.start) as usize..place(elements.end) as usize
    }
}

/// A header: the tensors by name, and the free text that the writer left.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Header {
    /// The tensors.
    pub entries: BTreeMap<String, Entry>,
    /// `__metadata__`, or what a GGUF file says of itself.
    pub metadata: BTreeMap<String, String>,
}

impl Header {
    /// Reads the length in the first 8 bytes and checks it against the file's.
    ///
    /// # Errors
    /// What is wrong with the framing.
    pub fn length(first: [u8; 8], file_len: u64) -> Result<u64, FileProblem> {
        let len = u64::from_le_bytes(first);
        if len > MAX_HEADER {
            return Err(FileProblem::HeaderTooLong { len });
        }
        if len < 2 || 8 + len > file_len {
            return Err(FileProblem::HeaderPastEnd { len, file_len });
        }
        Ok(len)
    }

    /// Reads the JSON text of a header whose file is `file_len` bytes long.
    ///
    /// # Errors
    /// What is wrong: the JSON, a name, a type, a shape, or a place. Every byte after the header must belong to exactly
    /// one tensor.
    pub fn parse(json: &[u8], file_len: u64) -> Result<Self, FileProblem> {
        let text =
            std::str::from_utf8(json).map_err(|e| FileProblem::HeaderNotUtf8 { at: e.valid_up_to() })?;
        if !text.starts_with('{') {
            return Err(FileProblem::HeaderNotJson { reason: "it does not begin with {".into() });
        }
        let raw: RawHeader =
            serde_json::from_str(text).map_err(|e| FileProblem::HeaderNotJson { reason: printable(&e) })?;
        let data = 8 + json.len() as u64;
        let mut entries = BTreeMap::new();
        for (name, tensor) in raw.tensors {
            let entry = tensor.place(&name, data, file_len)?;
            entries.insert(name, entry);
        }
        check_coverage(&entries, data, file_len)?;
        Ok(Self { entries, metadata: raw.metadata })
    }
}

/// Holes, overlaps and bytes after the last tensor.
fn check_coverage(entries: &BTreeMap<String, Entry>, data: u64, file_len: u64) -> Result<(), FileProblem> {
    let mut places: Vec<&Entry> = entries.values().collect();
    places.sort_by_key(|e| (e.begin, e.end));
    let mut at = data;
    for entry in places {
        if entry.begin < at {
            return Err(FileProblem::Overlap { name: shorten(&entry.name) });
        }
        if entry.begin > at {
            return Err(FileProblem::Hole { before: shorten(&entry.name), bytes: entry.begin - at });
        }
        at = entry.end;
    }
    if at < file_len {
        return Err(FileProblem::TrailingBytes { bytes: file_len - at });
    }
    Ok(())
}

/// A tensor as the JSON has it.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTensor {
    dtype: String,
    shape: Vec<u64>,
    data_offsets: (u64, u64),
}

impl RawTensor {
    fn place(&self, name: &str, data: u64, file_len: u64) -> Result<Entry, FileProblem> {
        check_name(name)?;
        let tensor = |reason: String| FileProblem::Tensor { name: shorten(name), reason };
        let dtype: Dtype = serde_json::from_value(serde_json::Value::String(self.dtype.clone()))
            .map_err(|_| tensor(format!("unknown type {:?}", shorten(&self.dtype))))?;
        let (shape, count) = checked_shape(&self.shape).map_err(tensor)?;
        let Some(bits) = count.checked_mul(dtype.bitsize() as u64) else {
            return Err(tensor(format!("the shape {shape:?} overflows")));
        };
        let (begin, end) = self.data_offsets;
        if end < begin {
            return Err(tensor(format!("its bytes end at {end}, before they begin at {begin}")));
        }
        if !bits.is_multiple_of(8) || bits / 8 != end - begin {
            let reason =
                format!("{} of shape {:?} cannot take {} bytes", self.dtype, self.shape, end - begin);
            return Err(tensor(reason));
        }
        match (data.checked_add(begin), data.checked_add(end)) {
            (Some(begin), Some(end)) if end <= file_len => {
                Ok(Entry { name: name.to_string(), encoding: Encoding::Plain(dtype), shape, begin, end })
            }
            _ => Err(FileProblem::TensorPastEnd { name: shorten(name), end, len: file_len - data }),
        }
    }
}

/// That a tensor's name is neither longer than any model's nor of characters that could lead a reader astray.
pub(super) fn check_name(name: &str) -> Result<(), FileProblem> {
    let bad = |reason| Err(FileProblem::Tensor { name: shorten(name), reason });
    if name.len() > MAX_NAME {
        return bad(format!("its name is {} bytes long", name.len()));
    }
    if name.is_empty() || name.chars().any(|c| c.is_control() || c == '/' || c == '\\') {
        return bad("a name must not be empty, nor hold slashes or control characters".into());
    }
    Ok(())
}

/// The shape as libtorch takes it and how many numbers it has room for, which libtorch counts in an i64; or what is
/// wrong with it.
pub(super) fn checked_shape(shape: &[u64]) -> Result<(Vec<i64>, u64), String> {
    if shape.len() > MAX_DIMS {
        return Err(format!("{} axes, more than {MAX_DIMS}", shape.len()));
    }
    let sizes = shape.iter().map(|&d| i64::try_from(d)).collect::<Result<Vec<_>, _>>();
    // As if no size were zero: then no product of some of them overflows either, in whatever order.
    let most = shape.iter().try_fold(1u64, |n, &d| n.checked_mul(d.max(1)));
    match (most, sizes) {
        (Some(most), Ok(sizes)) if most <= i64::MAX as u64 => Ok((sizes, shape.iter().product())),
        _ => Err(format!("the shape {shape:?} overflows")),
    }
}

/// For messages: a name of a megabyte is not repeated.
pub(super) fn shorten(text: &str) -> String {
    match text.char_indices().nth(80) {
        Some((cut, _)) => format!("{}…", &text[..cut]).escape_debug().to_string(),
        None => text.escape_debug().to_string(),
    }
}

/// What is wrong with a JSON text, and where. The parser quotes the text at any length and with any characters.
pub(super) fn printable(error: &serde_json::Error) -> String {
    let text = error.to_string();
    let place = format!(" at line {} column {}", error.line(), error.column());
    let what = text.strip_suffix(&place).unwrap_or(&text);
    let cut = what.char_indices().nth(200).map_or(what, |(cut, _)| &what[..cut]);
    let clean: String = cut.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect();
    format!("{clean}{}{place}", if cut.len() < what.len() { "…" } else { "" })
}

/// A map of JSON in which no name stands twice; a plain one keeps the last of them without a word.
pub(super) fn unique<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<BTreeMap<String, String>, D::Error> {
    struct UniqueVisitor;

    impl<'de> Visitor<'de> for UniqueVisitor {
        type Value = BTreeMap<String, String>;

        fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
            f.write_str("a map from names to files")
        }

        fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
            let mut unique = BTreeMap::new();
            while let Some((name, value)) = map.next_entry::<String, String>()? {
                let text = format!("{:?} stands in it twice", shorten(&name));
                if unique.insert(name, value).is_some() {
                    return Err(A::Error::custom(text));
                }
            }
            Ok(unique)
        }
    }

    deserializer.deserialize_map(UniqueVisitor)
}

struct RawHeader {
    tensors: Vec<(String, RawTensor)>,
    metadata: BTreeMap<String, String>,
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(RawHeaderVisitor)
    }
}

/// Keeps what a map would lose: a name that stands twice.
struct RawHeaderVisitor;

impl<'de> Visitor<'de> for RawHeaderVisitor {
    type Value = RawHeader;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a map from names to tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
        let (mut tensors, mut metadata, mut seen) = (Vec::new(), BTreeMap::new(), HashSet::new());
        while let Some(name) = map.next_key::<String>()? {
            if !seen.insert(name.clone()) {
                return Err(A::Error::custom(format!("{:?} stands in it twice", shorten(&name))));
            }
            if name == "__metadata__" {
                metadata = map.next_value()?;
            } else {
                tensors.push((name, map.next_value()?));
            }
        }
        Ok(RawHeader { tensors, metadata })
    }
}
