//! The header of a GGUF file: read as strictly as that of a safetensors file.
//!
//! Little-endian: `GGUF`, the version, how many tensors, how many keys; every key with its value; every tensor with its
//! name, axes, type and offset; from the next multiple of the alignment on, the bytes of the tensors. Versions 2 and 3
//! differ in nothing else. Specified in ggml's `docs/gguf.md`; what its prose leaves open is as in `src/gguf.cpp`.

use std::collections::BTreeMap;
use std::fmt;

use safetensors::Dtype;

use super::safetensors::{Entry, Header, MAX_HEADER, check_name, checked_shape, shorten};
use crate::error::FileProblem;
use crate::quant::{BlockType, Encoding};

/// How a GGUF file begins.
pub(super) const MAGIC: &[u8; 4] = b"GGUF";
/// ggml knows no more axes.
const MAX_DIMS: u32 = 4;
/// Arrays in arrays: no writer has more than one in another.
const MAX_DEPTH: usize = 4;
const DEFAULT_ALIGNMENT: u64 = 32;
const MAX_ALIGNMENT: u64 = 1 << 20;
/// Of a longer array the metadata keep only how long it is.
const LONGEST_SHOWN: u64 = 8;
/// The fewest bytes of a key: the length of its name, its type, its value.
const LEAST_KEY: u64 = 8 + 4 + 1;
/// The fewest bytes of a tensor: the length of its name, how many axes, its type, its offset.
const LEAST_TENSOR: u64 = 8 + 4 + 4 + 8;

impl Header {
    /// Reads the header of a GGUF file that is `file_len` bytes long and begins with `bytes`. `None` where the header
    /// goes on behind them; all bytes of the file, or the first hundred million, always suffice.
    ///
    /// Shapes are in the order of PyTorch: the reverse of the file's, or what `comfy.gguf.orig_shape.NAME` says. Under
    /// the latter the rows of a tensor may end within a block. Metadata are kept as text, of long arrays only the
    /// length.
    ///
    /// # Errors
    /// What is wrong: the version, a key, a name, a type, a shape, or a place. Every byte after the header must belong
    /// to exactly one tensor, or fill up to the next multiple of the alignment.
    pub fn parse_gguf(bytes: &[u8], file_len: u64) -> Result<Option<Self>, FileProblem> {
        match parse(&mut Reader { bytes, at: 0, file_len }) {
            Ok(header) => Ok(Some(header)),
            Err(Stop::Unread) => Ok(None),
            Err(Stop::Bad(problem)) => Err(problem),
        }
    }
}

fn parse(reader: &mut Reader) -> Result<Header, Stop> {
    let (tensors, keys) = reader.counts()?;
    let metadata = Metadata::read(reader, keys)?;
    metadata.check_undivided()?;
    let alignment = metadata.alignment()?;
    let infos = (0..tensors).map(|i| Info::read(reader, i)).collect::<Result<Vec<_>, _>>()?;
    let data = reader.at.next_multiple_of(alignment);
    let mut entries = BTreeMap::new();
    for info in infos {
        let entry = info.place(&metadata, alignment, data, reader.file_len)?;
        if let Some(twin) = entries.insert(entry.name.clone(), entry) {
            return Err(tensor_problem(&twin.name, "it stands in the header twice".into()).into());
        }
    }
    check_coverage(&entries, alignment, data, reader.file_len)?;
    let metadata = metadata.0.into_iter().map(|(key, value)| (key, value.to_string())).collect();
    Ok(Header { entries, metadata })
}

/// Holes, overlaps and bytes after the last tensor; all but what fills up to the alignment.
fn check_coverage(
    entries: &BTreeMap<String, Entry>,
    alignment: u64,
    data: u64,
    file_len: u64,
) -> Result<(), FileProblem> {
    let mut places: Vec<&Entry> = entries.values().collect();
    places.sort_by_key(|e| (e.begin, e.end));
    let padded = |at: u64| at.checked_next_multiple_of(alignment).unwrap_or(u64::MAX);
    let mut at = data;
    for entry in places {
        if entry.begin < at {
            return Err(FileProblem::Overlap { name: entry.name.clone() });
        }
        let next = padded(at);
        if entry.begin > next {
            return Err(FileProblem::Hole { before: entry.name.clone(), bytes: entry.begin - next });
        }
        at = entry.end;
    }
    if file_len > padded(at) {
        return Err(FileProblem::TrailingBytes { bytes: file_len - at });
    }
    Ok(())
}

fn tensor_problem(name: &str, reason: String) -> FileProblem {
    FileProblem::Tensor { name: shorten(name), reason }
}

/// Why no header came out.
enum Stop {
    /// It goes on behind the bytes that are there.
    Unread,
    Bad(FileProblem),
}

impl From<FileProblem> for Stop {
    fn from(problem: FileProblem) -> Self {
        Self::Bad(problem)
    }
}

/// The header's bytes from `at` on. Whatever a length or a count asks for is compared with what is left of the file
/// before it is believed.
struct Reader<'a> {
    bytes: &'a [u8],
    at: u64,
    file_len: u64,
}

impl<'a> Reader<'a> {
    /// How many tensors and how many keys.
    fn counts(&mut self) -> Result<(u64, u64), Stop> {
        let bad = |reason: String| Stop::Bad(FileProblem::Gguf { reason });
        self.take(4, format_args!("the mark"))?;
        let version = self.u32(format_args!("the version"))?;
        match version {
            2 | 3 => {}
            1 => return Err(bad("it is of version 1, and 2 and 3 are read: convert the model anew".into())),
            _ if (1..=3).contains(&version.swap_bytes()) => {
                let mend = "turn it round with `gguf-convert-endian FILE little`";
                return Err(bad(format!("it is big-endian, and little-endian files are read: {mend}")));
            }
            _ => return Err(bad(format!("it is of version {version}, and 2 and 3 are read"))),
        }
        let tensors = self.u64(format_args!("how many tensors"))?;
        let keys = self.u64(format_args!("how many metadata"))?;
        self.expect(keys.checked_mul(LEAST_KEY), format_args!("{keys} metadata"))?;
        self.expect(tensors.checked_mul(LEAST_TENSOR), format_args!("{tensors} tensors"))?;
        Ok((tensors, keys))
    }

    /// That so many bytes can still come; `None` is more than can be counted.
    fn expect(&self, len: Option<u64>, what: fmt::Arguments) -> Result<(), FileProblem> {
        let len = len.unwrap_or(u64::MAX);
        let left = self.file_len.saturating_sub(self.at);
        if len > left {
            return Err(FileProblem::HeaderCut { what: what.to_string(), len, left });
        }
        if len > MAX_HEADER.saturating_sub(self.at) {
            let reason = format!("{what} would make the header longer than {MAX_HEADER} bytes");
            return Err(FileProblem::Gguf { reason });
        }
        Ok(())
    }

    fn take(&mut self, len: u64, what: fmt::Arguments) -> Result<&'a [u8], Stop> {
        self.expect(Some(len), what)?;
        let end = self.at + len;
        let taken = self.bytes.get(self.at as usize..end as usize).ok_or(Stop::Unread)?;
        self.at = end;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self, what: fmt::Arguments) -> Result<[u8; N], Stop> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N as u64, what)?);
        Ok(array)
    }

    fn u32(&mut self, what: fmt::Arguments) -> Result<u32, Stop> {
        self.array(what).map(u32::from_le_bytes)
    }

    fn u64(&mut self, what: fmt::Arguments) -> Result<u64, Stop> {
        self.array(what).map(u64::from_le_bytes)
    }

    fn text(&mut self, what: fmt::Arguments) -> Result<&'a str, Stop> {
        let len = self.u64(what)?;
        std::str::from_utf8(self.take(len, what)?).map_err(|e| {
            let reason = format!("{what} is not UTF-8 after {} bytes", e.valid_up_to());
            Stop::Bad(FileProblem::Gguf { reason })
        })
    }
}

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
struct Metadata(BTreeMap<String, Value>);

impl Metadata {
    fn read(reader: &mut Reader, count: u64) -> Result<Self, Stop> {
        let mut values = BTreeMap::new();
        for i in 0..count {
            let key = reader.text(format_args!("the key of metadata {i}"))?;
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

    /// That this is a whole file: the shards of a split one share no index from which all could be found.
    fn check_undivided(&self) -> Result<(), FileProblem> {
        match self.0.get("split.count") {
            Some(Value::Integer(count)) if *count > 1 => {
                let reason = format!(
                    "this is one of {count} parts of a model; join them with `llama-gguf-split --merge FIRST OUT`"
                );
                Err(metadata_problem("split.count", reason))
            }
            _ => Ok(()),
        }
    }

    fn alignment(&self) -> Result<u64, FileProblem> {
        let Some(value) = self.0.get("general.alignment") else { return Ok(DEFAULT_ALIGNMENT) };
        let number = if let Value::Integer(number) = value { u64::try_from(*number).ok() } else { None };
        number.filter(|n| n.is_power_of_two() && *n <= MAX_ALIGNMENT).ok_or_else(|| {
            let value = shorten(&value.to_string());
            let reason = format!("{value} is no alignment: a power of two, at most {MAX_ALIGNMENT}");
            metadata_problem("general.alignment", reason)
        })
    }

    /// The shape that a tensor had before it was written with fewer axes, or in rows of whole blocks.
    fn original_shape(&self, name: &str) -> Result<Option<Vec<u64>>, FileProblem> {
        let key = format!("comfy.gguf.orig_shape.{name}");
        let Some(value) = self.0.get(&key) else { return Ok(None) };
        let size = |value: &Value| match value {
            Value::Integer(n) => u64::try_from(*n).ok(),
            _ => None,
        };
        let shape = if let Value::Array(sizes) = value { sizes.iter().map(size).collect() } else { None };
        shape.map(Some).ok_or_else(|| {
            metadata_problem(&key, format!("{} is no shape: up to 8 sizes", shorten(&value.to_string())))
        })
    }
}

fn metadata_problem(key: &str, reason: String) -> FileProblem {
    FileProblem::Metadata { key: shorten(key), reason }
}

fn read_type(reader: &mut Reader, key: &str) -> Result<ValueType, Stop> {
    let number = reader.u32(format_args!("the type of metadata \"{}\"", shorten(key)))?;
    let known = ValueType::ALL.get(number as usize).copied();
    known.ok_or_else(|| metadata_problem(key, format!("unknown type {number}")).into())
}

/// A value within `depth` arrays.
fn read_value(reader: &mut Reader, key: &str, value_type: ValueType, depth: usize) -> Result<Value, Stop> {
    let shown = shorten(key);
    let what = format_args!("the value of metadata \"{shown}\"");
    Ok(match value_type {
        ValueType::U8 => Value::Integer(u8::from_le_bytes(reader.array(what)?).into()),
        ValueType::I8 => Value::Integer(i8::from_le_bytes(reader.array(what)?).into()),
        ValueType::U16 => Value::Integer(u16::from_le_bytes(reader.array(what)?).into()),
        ValueType::I16 => Value::Integer(i16::from_le_bytes(reader.array(what)?).into()),
        ValueType::U32 => Value::Integer(u32::from_le_bytes(reader.array(what)?).into()),
        ValueType::I32 => Value::Integer(i32::from_le_bytes(reader.array(what)?).into()),
        ValueType::U64 => Value::Integer(u64::from_le_bytes(reader.array(what)?).into()),
        ValueType::I64 => Value::Integer(i64::from_le_bytes(reader.array(what)?).into()),
        ValueType::F32 => Value::Word(format!("{:?}", f32::from_le_bytes(reader.array(what)?))),
        ValueType::F64 => Value::Word(format!("{:?}", f64::from_le_bytes(reader.array(what)?))),
        ValueType::Bool => match reader.array(what)? {
            [0] => Value::Word("false".into()),
            [1] => Value::Word("true".into()),
            [other] => {
                let reason = format!("{other} is no truth value: 0 or 1");
                return Err(metadata_problem(key, reason).into());
            }
        },
        ValueType::String => Value::Text(reader.text(what)?.to_string()),
        ValueType::Array => read_array(reader, key, depth)?,
    })
}

fn read_array(reader: &mut Reader, key: &str, depth: usize) -> Result<Value, Stop> {
    if depth == MAX_DEPTH {
        let reason = format!("arrays in arrays, more than {MAX_DEPTH} deep");
        return Err(metadata_problem(key, reason).into());
    }
    let shown = shorten(key);
    let what = format_args!("the array of metadata \"{shown}\"");
    let value_type = read_type(reader, key)?;
    let count = reader.u64(what)?;
    let least = count.checked_mul(value_type.least());
    reader.expect(least, what)?;
    if count <= LONGEST_SHOWN {
        let values = (0..count).map(|_| read_value(reader, key, value_type, depth + 1));
        return Ok(Value::Array(values.collect::<Result<_, _>>()?));
    }
    match value_type {
        ValueType::String => {
            for _ in 0..count {
                let len = reader.u64(what)?;
                reader.take(len, what)?;
            }
        }
        ValueType::Array => {
            for _ in 0..count {
                read_array(reader, key, depth + 1)?;
            }
        }
        _ => drop(reader.take(least.unwrap_or(u64::MAX), what)?),
    }
    Ok(Value::Word(match value_type {
        ValueType::String => format!("[{count} strings]"),
        ValueType::Array => format!("[{count} arrays]"),
        other => format!("[{count} {}]", format!("{other:?}").to_lowercase()),
    }))
}

/// A tensor as the header has it, but for the order of its axes.
struct Info {
    name: String,
    shape: Vec<u64>,
    encoding: Encoding,
    offset: u64,
}

impl Info {
    fn read(reader: &mut Reader, i: u64) -> Result<Self, Stop> {
        let name = reader.text(format_args!("the name of tensor {i}"))?;
        check_name(name)?;
        let shown = shorten(name);
        let what = format_args!("tensor \"{shown}\"");
        let dims = reader.u32(what)?;
        if dims > MAX_DIMS {
            return Err(tensor_problem(name, format!("{dims} axes, more than {MAX_DIMS}")).into());
        }
        let mut shape = (0..dims).map(|_| reader.u64(what)).collect::<Result<Vec<_>, _>>()?;
        shape.reverse();
        let encoding = encoding(reader.u32(what)?).map_err(|reason| tensor_problem(name, reason))?;
        let offset = reader.u64(what)?;
        Ok(Self { name: name.to_string(), shape, encoding, offset })
    }

    fn place(
        self,
        metadata: &Metadata,
        alignment: u64,
        data: u64,
        file_len: u64,
    ) -> Result<Entry, FileProblem> {
        let Self { name, shape, encoding, offset } = self;
        let problem = |reason| tensor_problem(&name, reason);
        let row = shape.last().copied().unwrap_or(1);
        let (mut shape, count) = checked_shape(&shape).map_err(problem)?;
        let bytes = match encoding {
            Encoding::Plain(dtype) => count.checked_mul(dtype.bitsize() as u64 / 8),
            Encoding::Blocks(block) => {
                let elements = block.elements() as u64;
                if !row.is_multiple_of(elements) {
                    let reason = format!("rows of {row} are not whole blocks of {encoding}, {elements} each");
                    return Err(problem(reason));
                }
                (count / elements).checked_mul(block.bytes() as u64)
            }
        };
        if let Some(original) = metadata.original_shape(&name)? {
            let (original, originally) = checked_shape(&original).map_err(problem)?;
            if originally != count {
                let reason =
                    format!("its shape was {original:?} by comfy.gguf.orig_shape, but is {shape:?} now");
                return Err(problem(reason));
            }
            shape = original;
        }
        if !offset.is_multiple_of(alignment) {
            let reason =
                format!("its bytes begin at {offset}, which is no multiple of the alignment {alignment}");
            return Err(problem(reason));
        }
        let end = bytes.and_then(|bytes| offset.checked_add(bytes));
        match (data.checked_add(offset), end.and_then(|end| data.checked_add(end))) {
            (Some(begin), Some(end)) if end <= file_len => Ok(Entry { name, encoding, shape, begin, end }),
            _ => Err(FileProblem::TensorPastEnd {
                name: shorten(&name),
                end: end.unwrap_or(u64::MAX),
                len: file_len.saturating_sub(data),
            }),
        }
    }
}

/// The type under ggml's number (`enum ggml_type`).
fn encoding(number: u32) -> Result<Encoding, String> {
    let unsupported = match number {
        0 => return Ok(Encoding::Plain(Dtype::F32)),
        1 => return Ok(Encoding::Plain(Dtype::F16)),
        2 => return Ok(Encoding::Blocks(BlockType::Q4_0)),
        3 => return Ok(Encoding::Blocks(BlockType::Q4_1)),
        6 => return Ok(Encoding::Blocks(BlockType::Q5_0)),
        7 => return Ok(Encoding::Blocks(BlockType::Q5_1)),
        8 => return Ok(Encoding::Blocks(BlockType::Q8_0)),
        10 => return Ok(Encoding::Blocks(BlockType::Q2_K)),
        11 => return Ok(Encoding::Blocks(BlockType::Q3_K)),
        12 => return Ok(Encoding::Blocks(BlockType::Q4_K)),
        13 => return Ok(Encoding::Blocks(BlockType::Q5_K)),
        14 => return Ok(Encoding::Blocks(BlockType::Q6_K)),
        20 => return Ok(Encoding::Blocks(BlockType::IQ4_NL)),
        23 => return Ok(Encoding::Blocks(BlockType::IQ4_XS)),
        24 => return Ok(Encoding::Plain(Dtype::I8)),
        25 => return Ok(Encoding::Plain(Dtype::I16)),
        26 => return Ok(Encoding::Plain(Dtype::I32)),
        27 => return Ok(Encoding::Plain(Dtype::I64)),
        28 => return Ok(Encoding::Plain(Dtype::F64)),
        30 => return Ok(Encoding::Plain(Dtype::BF16)),
        4 => "Q4_2",
        5 => "Q4_3",
        9 => "Q8_1",
        15 => "Q8_K",
        16 => "IQ2_XXS",
        17 => "IQ2_XS",
        18 => "IQ3_XXS",
        19 => "IQ1_S",
        21 => "IQ3_S",
        22 => "IQ2_S",
        29 => "IQ1_M",
        31 => "Q4_0_4_4",
        32 => "Q4_0_4_8",
        33 => "Q4_0_8_8",
        34 => "TQ1_0",
        35 => "TQ2_0",
        36 => "IQ4_NL_4_4",
        37 => "IQ4_NL_4_8",
        38 => "IQ4_NL_8_8",
        39 => "MXFP4",
        40 => "NVFP4",
        41 => "Q1_0",
        _ => return Err(format!("unknown type {number}")),
    };
    Err(format!("type {unsupported} is not supported; take a file of Q2_K to Q8_0, IQ4_NL or IQ4_XS"))
}
