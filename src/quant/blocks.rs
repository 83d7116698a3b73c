//! The blocks of GGUF. Each function takes the bytes of one block and gives its numbers, with the operations of ggml's
//! reference (and so of the Python package `gguf`) in their order, in f32: the results are the same bits.
//!
//! Every loop has a fixed length and no branch, which lets the compiler do many numbers at once.

use super::BlockType;
use super::float::from_f16;

/// The 16 numbers of IQ4's four bits.
const IQ4: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// The numbers of as many whole blocks as are in both.
#[inline(always)]
pub(super) fn unpack(block: BlockType, src: &[u8], values: &mut [f32]) {
    match block {
        BlockType::Q4_0 => each(src, values, q4_0),
        BlockType::Q4_1 => each(src, values, q4_1),
        BlockType::Q5_0 => each(src, values, q5_0),
        BlockType::Q5_1 => each(src, values, q5_1),
        BlockType::Q8_0 => each(src, values, q8_0),
        BlockType::Q2_K => each(src, values, q2_k),
        BlockType::Q3_K => each(src, values, q3_k),
        BlockType::Q4_K => each(src, values, q4_k),
        BlockType::Q5_K => each(src, values, q5_k),
        BlockType::Q6_K => each(src, values, q6_k),
        BlockType::IQ4_NL => each(src, values, iq4_nl),
        BlockType::IQ4_XS => each(src, values, iq4_xs),
    }
}

#[inline(always)]
fn each<const B: usize, const N: usize>(
    src: &[u8],
    values: &mut [f32],
    unpack: impl Fn(&[u8; B], &mut [f32; N]),
) {
    for (block, values) in src.as_chunks::<B>().0.iter().zip(values.as_chunks_mut::<N>().0) {
        unpack(block, values);
    }
}

/// The f16 at `at`.
#[inline(always)]
fn half<const B: usize>(block: &[u8; B], at: usize) -> f32 {
    from_f16(u16::from_le_bytes([block[at], block[at + 1]]))
}

/// The `N` bytes from `at` on.
#[inline(always)]
fn part<const N: usize, const B: usize>(block: &[u8; B], at: usize) -> [u8; N] {
    std::array::from_fn(|i| block[at + i])
}

/// Sixteen bytes are 32 numbers of four bits: the lower halves, then the upper ones.
#[inline(always)]
fn nibbles(bytes: [u8; 16]) -> [u8; 32] {
    std::array::from_fn(|i| if i < 16 { bytes[i] & 15 } else { bytes[i - 16] >> 4 })
}

/// One more bit for each of 32 numbers of four bits.
#[inline(always)]
fn with_fifth(low: [u8; 32], high: u32) -> [u8; 32] {
    std::array::from_fn(|i| low[i] | ((high >> i & 1) as u8) << 4)
}

#[inline(always)]
fn q4_0(block: &[u8; 18], values: &mut [f32; 32]) {
    let (d, q) = (half(block, 0), nibbles(part(block, 2)));
    for i in 0..32 {
        values[i] = d * f32::from(q[i] as i8 - 8);
    }
}

#[inline(always)]
fn q4_1(block: &[u8; 20], values: &mut [f32; 32]) {
    let (d, m, q) = (half(block, 0), half(block, 2), nibbles(part(block, 4)));
    for i in 0..32 {
        values[i] = d * f32::from(q[i]) + m;
    }
}

#[inline(always)]
fn q5_0(block: &[u8; 22], values: &mut [f32; 32]) {
    let d = half(block, 0);
    let q = with_fifth(nibbles(part(block, 6)), u32::from_le_bytes(part(block, 2)));
    for i in 0..32 {
        values[i] = d * f32::from(q[i] as i8 - 16);
    }
}

#[inline(always)]
fn q5_1(block: &[u8; 24], values: &mut [f32; 32]) {
    let (d, m) = (half(block, 0), half(block, 2));
    let q = with_fifth(nibbles(part(block, 8)), u32::from_le_bytes(part(block, 4)));
    for i in 0..32 {
        values[i] = d * f32::from(q[i]) + m;
    }
}

#[inline(always)]
fn q8_0(block: &[u8; 34], values: &mut [f32; 32]) {
    let (d, q) = (half(block, 0), part::<32, 34>(block, 2));
    for i in 0..32 {
        values[i] = f32::from(q[i] as i8) * d;
    }
}

/// 16 scales and minima of four bits, 256 numbers of two bits, `d` and the minima's own scale.
#[inline(always)]
fn q2_k(block: &[u8; 84], values: &mut [f32; 256]) {
    let (d, min) = (half(block, 80), half(block, 82));
    for (group, values) in values.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (bytes, shift) = (part::<32, 84>(block, 16 + group / 4 * 32), group % 4 * 2);
        let scales: [u8; 2] = part(block, group * 2);
        let scale = scales.map(|s| d * f32::from(s & 15));
        let below = scales.map(|s| min * f32::from(s >> 4));
        for i in 0..32 {
            values[i] = scale[i / 16] * f32::from(bytes[i] >> shift & 3) - below[i / 16];
        }
    }
}

/// The upper bit of 256 numbers of three, the lower two, 16 scales of six bits, `d`.
#[inline(always)]
fn q3_k(block: &[u8; 110], values: &mut [f32; 256]) {
    let d = half(block, 108);
    let (high, packed) = (part::<32, 110>(block, 0), part::<12, 110>(block, 96));
    let scale = |i: usize| {
        let (low, high) = (packed[i % 8] >> (i / 8 * 4) & 15, packed[8 + i % 4] >> (i / 4 * 2) & 3);
        d * f32::from((low | high << 4) as i8 - 32)
    };
    for (group, values) in values.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (bytes, shift) = (part::<32, 110>(block, 32 + group / 4 * 32), group % 4 * 2);
        let scales = [scale(group * 2), scale(group * 2 + 1)];
        for i in 0..32 {
            // The bit says that nothing is to be taken away.
            let q = (bytes[i] >> shift & 3 | (high[i] >> group & 1) << 2) as i8 - 4;
            values[i] = scales[i / 16] * f32::from(q);
        }
    }
}

/// Eight scales and eight minima of six bits in twelve bytes.
#[inline(always)]
fn scales_and_minima(packed: [u8; 12]) -> ([u8; 8], [u8; 8]) {
    let scale = |i: usize| match i {
        0..4 => packed[i] & 63,
        _ => packed[i + 4] & 15 | packed[i - 4] >> 2 & 48,
    };
    let minimum = |i: usize| match i {
        0..4 => packed[i + 4] & 63,
        _ => packed[i + 4] >> 4 | packed[i] >> 2 & 48,
    };
    (std::array::from_fn(scale), std::array::from_fn(minimum))
}

#[inline(always)]
fn q4_k(block: &[u8; 144], values: &mut [f32; 256]) {
    let (d, min) = (half(block, 0), half(block, 2));
    let (scales, minima) = scales_and_minima(part(block, 4));
    for (group, values) in values.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (bytes, shift) = (part::<32, 144>(block, 16 + group / 2 * 32), group % 2 * 4);
        let (scale, below) = (d * f32::from(scales[group]), min * f32::from(minima[group]));
        for i in 0..32 {
            values[i] = scale * f32::from(bytes[i] >> shift & 15) - below;
        }
    }
}

#[inline(always)]
fn q5_k(block: &[u8; 176], values: &mut [f32; 256]) {
    let (d, min) = (half(block, 0), half(block, 2));
    let (scales, minima) = scales_and_minima(part(block, 4));
    let high = part::<32, 176>(block, 16);
    for (group, values) in values.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (bytes, shift) = (part::<32, 176>(block, 48 + group / 2 * 32), group % 2 * 4);
        let (scale, below) = (d * f32::from(scales[group]), min * f32::from(minima[group]));
        for i in 0..32 {
            let q = bytes[i] >> shift & 15 | (high[i] >> group & 1) << 4;
            values[i] = scale * f32::from(q) - below;
        }
    }
}

/// The lower four bits of 256 numbers of six, the upper two, 16 scales of eight bits, `d`.
#[inline(always)]
fn q6_k(block: &[u8; 210], values: &mut [f32; 256]) {
    let d = half(block, 208);
    for (group, values) in values.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (side, quarter) = (group / 4, group % 4);
        let low = part::<32, 210>(block, side * 64 + quarter % 2 * 32);
        let high = part::<32, 210>(block, 128 + side * 32);
        let scales = part::<2, 210>(block, 192 + group * 2).map(|s| d * f32::from(s as i8));
        for i in 0..32 {
            let q = low[i] >> (quarter / 2 * 4) & 15 | (high[i] >> (quarter * 2) & 3) << 4;
            values[i] = scales[i / 16] * f32::from(q as i8 - 32);
        }
    }
}

#[inline(always)]
fn iq4_nl(block: &[u8; 18], values: &mut [f32; 32]) {
    let (d, q) = (half(block, 0), nibbles(part(block, 2)));
    for i in 0..32 {
        values[i] = d * f32::from(IQ4[usize::from(q[i])]);
    }
}

/// `d`, two bits each of eight scales, four bits each, 256 numbers of four bits.
#[inline(always)]
fn iq4_xs(block: &[u8; 136], values: &mut [f32; 256]) {
    let (d, high) = (half(block, 0), u16::from_le_bytes([block[2], block[3]]));
    for (group, values) in values.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let low = block[4 + group / 2] >> (group % 2 * 4) & 15;
        let scale = d * f32::from((low | ((high >> (group * 2) & 3) as u8) << 4) as i8 - 32);
        let q = nibbles(part(block, 8 + group * 16));
        for i in 0..32 {
            values[i] = scale * f32::from(IQ4[usize::from(q[i])]);
        }
    }
}
