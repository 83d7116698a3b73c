//! The recipes by operations of tensors, for bytes on another device than the CPU: the same bits as `decode.rs` and
//! `blocks.rs`, which say how the bytes are laid out.

use tch::{Kind, TchError, Tensor};

use super::code::RECIPROCAL_OF_127;
use super::{BlockType, Code, blocks};

type Result<T> = std::result::Result<T, TchError>;

/// `elements` numbers of `bytes`, u8 on one axis, as f32 where the bytes are.
pub(super) fn numbers(code: &Code, bytes: &Tensor, elements: usize) -> Result<Tensor> {
    let floats = |kind| float(&bytes.f_view_dtype(kind)?);
    let numbers = match code {
        Code::Plain(kind) => floats(*kind)?,
        Code::Scaled { kind, scale, row } => by_row(&floats(*kind)?, scale, *row)?,
        Code::Int8 { scale, row } => {
            by_row(&floats(Kind::Int8)?, scale, *row)?.f_mul_scalar(f64::from(RECIPROCAL_OF_127))?
        }
        Code::FourBit { table, absmax, block } => {
            let [low, high] = [bits(bytes, 0, 15)?, bits(bytes, 4, 15)?];
            let places = Tensor::f_stack(&[high, low], 1)?.f_view(-1)?.f_narrow(0, 0, elements as i64)?;
            by_row(&look_up(table, &places)?, absmax, *block)?
        }
        Code::Blocks(block) => blocks(*block, bytes)?,
    };
    numbers.f_view(-1)
}

/// Each number multiplied by what belongs to its row.
fn by_row(numbers: &Tensor, scale: &[f32], row: usize) -> Result<Tensor> {
    let scale = Tensor::f_from_slice(scale)?.f_to_device(numbers.device())?;
    let count = numbers.numel();
    let row = row.min(count).max(1) as i64;
    if count as i64 % row == 0 {
        return numbers.f_view([-1, row])?.f_mul(&scale.f_view([-1, 1])?);
    }
    numbers.f_mul(&scale.f_repeat_interleave_self_int(row, None, None)?.f_narrow(0, 0, count as i64)?)
}

fn look_up(table: &[f32], places: &Tensor) -> Result<Tensor> {
    let table = Tensor::f_from_slice(table)?.f_to_device(places.device())?;
    table.f_take(&places.f_to_kind(Kind::Int64)?)
}

fn float(numbers: &Tensor) -> Result<Tensor> {
    numbers.f_to_kind(Kind::Float)
}

/// The bits of `mask`, from bit `from` on.
fn bits(bytes: &Tensor, from: i64, mask: i64) -> Result<Tensor> {
    bytes.f_bitwise_right_shift_tensor_scalar(from)?.f_bitwise_and(mask)
}

/// Those from each of these bits on, on a new axis before the last.
fn each_of(bytes: &Tensor, from: impl IntoIterator<Item = i64>, mask: i64) -> Result<Tensor> {
    let each = from.into_iter().map(|from| bits(bytes, from, mask)).collect::<Result<Vec<_>>>()?;
    Tensor::f_stack(&each, -2)
}

/// The bits of `high` above those of `low`.
fn join(low: &Tensor, high: &Tensor, above: i64) -> Result<Tensor> {
    low.f_bitwise_or_tensor(&high.f_bitwise_left_shift_tensor_scalar(above)?)
}

/// `N` blocks: their numbers, [N, …].
fn blocks(block: BlockType, bytes: &Tensor) -> Result<Tensor> {
    let bytes = bytes.f_view([-1, block.bytes() as i64])?;
    let part = |at: i64, len: i64| bytes.f_narrow(1, at, len);
    // One f16 of each block; and numbers as they stand in groups of 16 or 32: [N, groups, …].
    let half = |at| float(&part(at, 2)?.f_contiguous()?.f_view_dtype(Kind::Half)?);
    let signed = |at, len| float(&part(at, len)?.f_contiguous()?.f_view_dtype(Kind::Int8)?);
    let grouped = |numbers: &Tensor, len: i64| numbers.f_contiguous()?.f_view([bytes.size()[0], -1, len]);
    let scaled = |numbers: &Tensor, scale: &Tensor| numbers.f_mul(&scale.f_unsqueeze(-1)?);
    let nibbles = |at, len, each| grouped(&each_of(&grouped(&part(at, len)?, each)?, [0, 4], 15)?, 32);
    // Four bytes hold a bit for each of 32 numbers.
    let fifth = |at| grouped(&each_of(&part(at, 4)?.f_unsqueeze(-1)?, 0..8, 1)?, 32);

    match block {
        BlockType::Q4_0 => scaled(&float(&nibbles(2, 16, 16)?)?.f_sub_scalar(8)?, &half(0)?),
        BlockType::Q4_1 => {
            scaled(&float(&nibbles(4, 16, 16)?)?, &half(0)?)?.f_add(&half(2)?.f_unsqueeze(-1)?)
        }
        BlockType::Q5_0 => {
            let q = join(&nibbles(6, 16, 16)?, &fifth(2)?, 4)?;
            scaled(&float(&q)?.f_sub_scalar(16)?, &half(0)?)
        }
        BlockType::Q5_1 => {
            let q = join(&nibbles(8, 16, 16)?, &fifth(4)?, 4)?;
            scaled(&float(&q)?, &half(0)?)?.f_add(&half(2)?.f_unsqueeze(-1)?)
        }
        BlockType::Q8_0 => scaled(&grouped(&signed(2, 32)?, 32)?, &half(0)?),
        BlockType::Q2_K => {
            let q = grouped(&each_of(&grouped(&part(16, 64)?, 32)?, [0, 2, 4, 6], 3)?, 16)?;
            let scales = half(80)?.f_mul(&float(&bits(&part(0, 16)?, 0, 15)?)?)?;
            let minima = half(82)?.f_mul(&float(&bits(&part(0, 16)?, 4, 15)?)?)?;
            scaled(&float(&q)?, &scales)?.f_sub(&minima.f_unsqueeze(-1)?)
        }
        BlockType::Q3_K => {
            let low = grouped(&each_of(&grouped(&part(32, 64)?, 32)?, [0, 2, 4, 6], 3)?, 16)?;
            let high = grouped(&each_of(&part(0, 32)?, 0..8, 1)?, 16)?;
            let q = float(&join(&low, &high, 2)?)?.f_sub_scalar(4)?;
            let low = each_of(&part(96, 8)?, [0, 4], 15)?.f_view([-1, 16])?;
            let high = each_of(&part(104, 4)?, [0, 2, 4, 6], 3)?.f_view([-1, 16])?;
            let scales = float(&join(&low, &high, 4)?)?.f_sub_scalar(32)?;
            scaled(&q, &half(108)?.f_mul(&scales)?)
        }
        BlockType::Q4_K | BlockType::Q5_K => {
            let [a, b, c] = [part(4, 4)?, part(8, 4)?, part(12, 4)?];
            let six = |first: &Tensor, four: i64| {
                let last = join(&bits(&c, four, 15)?, &bits(first, 6, 3)?, 4)?;
                float(&Tensor::f_cat(&[bits(first, 0, 63)?, last], 1)?)
            };
            let scales = half(0)?.f_mul(&six(&a, 0)?)?;
            let minima = half(2)?.f_mul(&six(&b, 4)?)?;
            let q = match block {
                BlockType::Q4_K => nibbles(16, 128, 32)?,
                _ => join(&nibbles(48, 128, 32)?, &each_of(&part(16, 32)?, 0..8, 1)?, 4)?,
            };
            scaled(&float(&q)?, &scales)?.f_sub(&minima.f_unsqueeze(-1)?)
        }
        BlockType::Q6_K => {
            let low = grouped(&nibbles(0, 128, 64)?, 16)?;
            let high = grouped(&each_of(&grouped(&part(128, 64)?, 32)?, [0, 2, 4, 6], 3)?, 16)?;
            let q = float(&join(&low, &high, 4)?)?.f_sub_scalar(32)?;
            scaled(&q, &half(208)?.f_mul(&signed(192, 16)?)?)
        }
        BlockType::IQ4_NL => scaled(&iq4(&nibbles(2, 16, 16)?)?, &half(0)?),
        BlockType::IQ4_XS => {
            let low = each_of(&part(4, 4)?.f_unsqueeze(-1)?, [0, 4], 15)?.f_view([-1, 8])?;
            let high = each_of(&part(2, 2)?.f_unsqueeze(-1)?, [0, 2, 4, 6], 3)?.f_view([-1, 8])?;
            let scales = float(&join(&low, &high, 4)?)?.f_sub_scalar(32)?;
            scaled(&iq4(&nibbles(8, 128, 16)?)?, &half(0)?.f_mul(&scales)?)
        }
    }
}

fn iq4(places: &Tensor) -> Result<Tensor> {
    look_up(&blocks::IQ4.map(|byte| f32::from(byte as i8)), places)
}
