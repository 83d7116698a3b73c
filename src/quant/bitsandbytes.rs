//! What bitsandbytes keeps beside a weight of four bits.
//!
//! Source: bitsandbytes 0.50, `functional.py`, `QuantState.from_dict` and `dequantize_4bit`.

use serde::Deserialize;
use serde_json::Value;

use super::Code;

/// The tensors beside `weight`, by the ends of their names, as bytes.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct QuantState<'a> {
    /// `absmax`: f32, or u8 where it is itself quantised.
    pub(crate) absmax: &'a [u8],
    /// `quant_map`: f32.
    pub(crate) quant_map: &'a [u8],
    /// `nested_absmax`: f32, where `absmax` is quantised.
    pub(crate) nested_absmax: Option<&'a [u8]>,
    /// `nested_quant_map`: f32, likewise.
    pub(crate) nested_quant_map: Option<&'a [u8]>,
}

/// The JSON of `quant_state.bitsandbytes__nf4` or `…__fp4`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    quant_type: String,
    blocksize: usize,
    /// What the weight was before. It is computed in f32 whatever this says.
    #[serde(rename = "dtype")]
    _dtype: String,
    shape: Vec<i64>,
    nested_blocksize: Option<usize>,
    nested_dtype: Option<String>,
    nested_offset: Option<f64>,
}

/// The recipe for a weight, and the shape that it has once it is decoded.
///
/// # Errors
/// What does not fit: `quant_state` itself, or the companions' lengths.
pub(crate) fn four_bit(companions: QuantState, quant_state: &Value) -> Result<(Code, Vec<i64>), String> {
    let state = State::deserialize(quant_state).map_err(|e| {
        // It may quote a key at any length and with any characters.
        let text: String = e.to_string().chars().take(120).flat_map(char::escape_debug).collect();
        format!("quant_state: {text}")
    })?;
    if !matches!(state.blocksize, 32 | 64 | 128 | 256 | 512 | 1024 | 2048 | 4096) {
        return Err(format!("blocks of {} numbers", state.blocksize));
    }
    let elements = state.shape.iter().try_fold(1usize, |n, &d| n.checked_mul(usize::try_from(d).ok()?));
    let elements = elements.filter(|&n| i64::try_from(n).is_ok() && state.shape.len() <= 8);
    let elements = elements.ok_or_else(|| format!("the shape {:?} makes no sense", short(&state.shape)))?;
    let table: [f32; 16] = floats("quant_map", companions.quant_map, 16)?
        .try_into()
        .map_err(|_| "quant_map has no 16 numbers".to_string())?;
    if !matches!(state.quant_type.as_str(), "nf4" | "fp4") {
        return Err("quant_type is neither nf4 nor fp4".into());
    }
    let blocks = elements.div_ceil(state.blocksize);
    let absmax = match (companions.nested_absmax, companions.nested_quant_map) {
        (None, None) => floats("absmax", companions.absmax, blocks)?,
        (Some(absmax), Some(map)) => nested(&state, companions.absmax, blocks, absmax, map)?,
        _ => return Err("one of nested_absmax and nested_quant_map is missing".into()),
    };
    Ok((Code::FourBit { table, absmax, block: state.blocksize }, state.shape))
}

/// The greatest numbers, which are indices of eight bits into a map, of blocks with their own greatest numbers, and all
/// of it moved by an offset.
fn nested(
    state: &State,
    indices: &[u8],
    blocks: usize,
    absmax: &[u8],
    map: &[u8],
) -> Result<Vec<f32>, String> {
    let (Some(each), Some(offset)) = (state.nested_blocksize.filter(|&n| n > 0), state.nested_offset) else {
        return Err("nested_blocksize or nested_offset is missing".into());
    };
    if state.nested_dtype.as_deref() != Some("float32") {
        return Err("nested_dtype is not float32".into());
    }
    if indices.len() != blocks {
        return Err(format!("absmax has {} numbers for {blocks} blocks", indices.len()));
    }
    let map = floats("nested_quant_map", map, 256)?;
    let absmax = floats("nested_absmax", absmax, blocks.div_ceil(each))?;
    let offset = offset as f32;
    let number = |(i, &index): (usize, &u8)| map[usize::from(index)] * absmax[i / each] + offset;
    Ok(indices.iter().enumerate().map(number).collect())
}

/// `count` numbers of f32.
fn floats(name: &str, bytes: &[u8], count: usize) -> Result<Vec<f32>, String> {
    let (numbers, rest) = bytes.as_chunks::<4>();
    if numbers.len() != count || !rest.is_empty() {
        return Err(format!("{name} has {} bytes, not {count} numbers of f32", bytes.len()));
    }
    Ok(numbers.iter().map(|&b| f32::from_le_bytes(b)).collect())
}

/// No more of a shape than a message needs.
fn short(shape: &[i64]) -> &[i64] {
    &shape[..shape.len().min(9)]
}
