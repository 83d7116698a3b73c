//! The header of a GGUF file: read as strictly as that of a safetensors file.
//!
//! Little-endian: `GGUF`, the version, how many tensors, how many keys; every key with its value; every tensor with its
//! name, axes, type and offset; from the next multiple of the alignment on, the bytes of the tensors. Versions 2 and 3
//! differ in nothing else. Specified in ggml's `docs/gguf.md` (01f0d4d); what its prose leaves open is as in `src/gguf.cpp`
//! (1312dff), but for the order of the tensors' bytes, which may be any.

mod metadata;
mod reader;

use std::collections::BTreeMap;

use safetensors::Dtype;

use self::metadata::Metadata;
use self::reader::{Part, Reader, Stop};
use super::safetensors::{Entry, Header, check_name, checked_shape, shorten};
use crate::error::FileProblem;
use crate::quant::{BlockType, Encoding};

/// How a GGUF file begins.
pub(super) const MAGIC: &[u8; 4] = b"GGUF";
/// ggml knows no more axes.
const MAX_DIMS: u32 = 4;

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
    Ok(Header { entries, metadata: metadata.into_text() })
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
            return Err(FileProblem::Overlap { name: shorten(&entry.name) });
        }
        let next = padded(at);
        if entry.begin > next {
            return Err(FileProblem::Hole { before: shorten(&entry.name), bytes: entry.begin - next });
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

/// A tensor as the header has it, but for the order of its axes.
struct Info {
    name: String,
    shape: Vec<u64>,
    encoding: Encoding,
    offset: u64,
}

impl Info {
    fn read(reader: &mut Reader, i: u64) -> Result<Self, Stop> {
        let name = reader.text(Part::Name(i))?;
        check_name(name)?;
        let part = Part::Tensor(name);
        let dims = reader.u32(part)?;
        if dims > MAX_DIMS {
            return Err(tensor_problem(name, format!("{dims} axes, more than {MAX_DIMS}")).into());
        }
        let mut shape = (0..dims).map(|_| reader.u64(part)).collect::<Result<Vec<_>, _>>()?;
        shape.reverse();
        let encoding = encoding(reader.u32(part)?).map_err(|reason| tensor_problem(name, reason))?;
        let offset = reader.u64(part)?;
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
        let (elements, size) = match encoding {
            Encoding::Plain(dtype) => (1, dtype.bitsize() as u64 / 8),
            Encoding::Blocks(block) => (block.elements() as u64, block.bytes() as u64),
        };
        if !row.is_multiple_of(elements) {
            let reason = format!("rows of {row} are not whole blocks of {encoding}, {elements} each");
            return Err(problem(reason));
        }
        let Some(bytes) = (count / elements).checked_mul(size) else {
            return Err(problem(format!("the shape {shape:?} overflows")));
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
        let end = offset.checked_add(bytes);
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
