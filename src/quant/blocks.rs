//! The blocks of GGUF. Each function takes the bytes of one block and gives its numbers, thirty-two at a time, with the
//! operations of ggml's reference (and so of the Python package `gguf`) in their order, in f32: the results are the same
//! bits.

use super::BlockType;
use super::lanes::{Lanes, Output};

/// The 16 numbers of IQ4's four bits, from -127 to 113.
pub(super) const IQ4: [u8; 16] = [129, 152, 173, 191, 207, 221, 234, 246, 1, 13, 25, 38, 53, 69, 89, 113];

/// Fills `out` with the numbers of as many whole blocks as are in both.
#[inline(always)]
pub(super) fn decode<L: Lanes, T: Output>(l: L, block: BlockType, src: &[u8], out: &mut [u8]) {
    macro_rules! each {
        ($decode:ident, $groups:literal) => {
            for (block, out) in src.as_chunks().0.iter().zip(out.chunks_exact_mut($groups * T::BYTES)) {
                $decode(
                    l,
                    block,
                    #[inline(always)]
                    |i, numbers| T::put(l, numbers, &mut out[i * T::BYTES..]),
                );
            }
        };
    }
    match block {
        BlockType::Q4_0 => each!(q4_0, 1),
        BlockType::Q4_1 => each!(q4_1, 1),
        BlockType::Q5_0 => each!(q5_0, 1),
        BlockType::Q5_1 => each!(q5_1, 1),
        BlockType::Q8_0 => each!(q8_0, 1),
        BlockType::Q2_K => each!(q2_k, 8),
        BlockType::Q3_K => each!(q3_k, 8),
        BlockType::Q4_K => each!(q4_k, 8),
        BlockType::Q5_K => each!(q5_k, 8),
        BlockType::Q6_K => each!(q6_k, 8),
        BlockType::IQ4_NL => each!(iq4_nl, 1),
        BlockType::IQ4_XS => each!(iq4_xs, 8),
    }
}

/// The `N` bytes from `at` on, which are in the block.
#[inline(always)]
fn part<const N: usize>(block: &[u8], at: usize) -> &[u8; N] {
    block.get(at..).and_then(|rest| rest.first_chunk()).unwrap_or(&[0; N])
}

/// The f16 at `at`.
#[inline(always)]
fn half<L: Lanes>(l: L, block: &[u8], at: usize) -> f32 {
    let [low, high] = *part(block, at);
    l.halves_of([low, high, 0, 0])[0]
}

/// The two f16 from `at` on.
#[inline(always)]
fn halves<L: Lanes>(l: L, block: &[u8], at: usize) -> [f32; 2] {
    l.halves_of(*part(block, at))
}

#[inline(always)]
fn q4_0<L: Lanes>(l: L, block: &[u8; 18], mut put: impl FnMut(usize, L::F)) {
    let d = half(l, block, 0);
    let q = l.minus(l.halves(part(block, 2)), 8);
    put(0, l.mul(l.splat(d), l.to_float(q)));
}

#[inline(always)]
fn q4_1<L: Lanes>(l: L, block: &[u8; 20], mut put: impl FnMut(usize, L::F)) {
    let [d, m] = halves(l, block, 0);
    let q = l.halves(part(block, 4));
    put(0, l.add(l.mul(l.splat(d), l.to_float(q)), l.splat(m)));
}

#[inline(always)]
fn q5_0<L: Lanes>(l: L, block: &[u8; 22], mut put: impl FnMut(usize, L::F)) {
    let d = half(l, block, 0);
    let fifth = l.where_set(u32::from_le_bytes(*part(block, 2)), 16);
    let q = l.minus(l.or(l.halves(part(block, 6)), fifth), 16);
    put(0, l.mul(l.splat(d), l.to_float(q)));
}

#[inline(always)]
fn q5_1<L: Lanes>(l: L, block: &[u8; 24], mut put: impl FnMut(usize, L::F)) {
    let [d, m] = halves(l, block, 0);
    let fifth = l.where_set(u32::from_le_bytes(*part(block, 4)), 16);
    let q = l.or(l.halves(part(block, 8)), fifth);
    put(0, l.add(l.mul(l.splat(d), l.to_float(q)), l.splat(m)));
}

#[inline(always)]
fn q8_0<L: Lanes>(l: L, block: &[u8; 34], mut put: impl FnMut(usize, L::F)) {
    let d = half(l, block, 0);
    put(0, l.mul(l.to_float(l.bytes(part(block, 2))), l.splat(d)));
}

/// 16 scales and minima of four bits, 256 numbers of two bits, `d` and the minima's own scale.
#[inline(always)]
fn q2_k<L: Lanes>(l: L, block: &[u8; 84], mut put: impl FnMut(usize, L::F)) {
    let [d, min] = halves(l, block, 80);
    let packed: &[u8; 16] = part(block, 0);
    let scales = l.times(l.to_table(&packed.map(|s| s & 15)), d, d);
    let below = l.times(l.to_table(&packed.map(|s| s >> 4)), min, min);
    for i in 0..8 {
        let q = l.take(l.bytes(part(block, 16 + i / 4 * 32)), 3, i % 4 * 2, 0);
        let scale = l.spread(scales, 2 * i, 2 * i + 1);
        put(i, l.sub(l.mul(scale, l.to_float(q)), l.spread(below, 2 * i, 2 * i + 1)));
    }
}

/// The upper bit of 256 numbers of three, the lower two, 16 scales of six bits, `d`.
#[inline(always)]
fn q3_k<L: Lanes>(l: L, block: &[u8; 110], mut put: impl FnMut(usize, L::F)) {
    // The lower halves of eight bytes and their upper ones, with two bits from each of four bytes over and over.
    let (low, high) = (u64::from_le_bytes(*part(block, 96)), u32::from_le_bytes(*part(block, 104)));
    let four = |at: u32| u64::from(high >> at & 0x0303_0303) << 4;
    let lower = low & 0x0f0f_0f0f_0f0f_0f0f | four(0) | four(2) << 32;
    let upper = low >> 4 & 0x0f0f_0f0f_0f0f_0f0f | four(4) | four(6) << 32;
    let six = (u128::from(lower) | u128::from(upper) << 64).to_le_bytes();
    let d = half(l, block, 108);
    let scales = l.times(l.to_table(&six.map(|s| s.wrapping_sub(32))), d, d);
    for i in 0..8 {
        let low = l.take(l.bytes(part(block, 32 + i / 4 * 32)), 3, i % 4 * 2, 0);
        // The bit says that nothing is to be taken away.
        let high = l.take(l.bytes(part(block, 0)), 1, i, 2);
        let q = l.minus(l.or(low, high), 4);
        put(i, l.mul(l.spread(scales, 2 * i, 2 * i + 1), l.to_float(q)));
    }
}

/// Eight scales and eight minima of six bits in twelve bytes, multiplied by the two numbers before them.
#[inline(always)]
fn scales_and_minima<L: Lanes>(l: L, block: &[u8]) -> L::Table {
    // Four bytes each: the first scales, the first minima, and the lower halves of the others, whose upper two bits are
    // above those of the first.
    let [a, b, c] = [4, 8, 12].map(
        #[inline(always)]
        |at| u32::from_le_bytes(*part(block, at)),
    );
    let [first, low, high] = [0x3f3f_3f3f, 0x0f0f_0f0f, 0x3030_3030];
    let four = [a & first, c & low | a >> 2 & high, b & first, c >> 4 & low | b >> 2 & high];
    let six = four.into_iter().rev().fold(0u128, |all, four| all << 32 | u128::from(four)).to_le_bytes();
    let [d, min] = halves(l, block, 0);
    l.times(l.to_table(&six), d, min)
}

#[inline(always)]
fn q4_k<L: Lanes>(l: L, block: &[u8; 144], mut put: impl FnMut(usize, L::F)) {
    let scales = scales_and_minima(l, block);
    for i in 0..8 {
        let q = l.take(l.bytes(part(block, 16 + i / 2 * 32)), 15, i % 2 * 4, 0);
        let scaled = l.mul(l.spread(scales, i, i), l.to_float(q));
        put(i, l.sub(scaled, l.spread(scales, 8 + i, 8 + i)));
    }
}

/// As Q4_K, with the fifth bits of all before the lower four.
#[inline(always)]
fn q5_k<L: Lanes>(l: L, block: &[u8; 176], mut put: impl FnMut(usize, L::F)) {
    let scales = scales_and_minima(l, block);
    for i in 0..8 {
        let low = l.take(l.bytes(part(block, 48 + i / 2 * 32)), 15, i % 2 * 4, 0);
        let q = l.or(low, l.take(l.bytes(part(block, 16)), 1, i, 4));
        let scaled = l.mul(l.spread(scales, i, i), l.to_float(q));
        put(i, l.sub(scaled, l.spread(scales, 8 + i, 8 + i)));
    }
}

/// The lower four bits of 256 numbers of six, the upper two, 16 scales of eight bits, `d`.
#[inline(always)]
fn q6_k<L: Lanes>(l: L, block: &[u8; 210], mut put: impl FnMut(usize, L::F)) {
    let d = half(l, block, 208);
    let scales = l.times(l.to_table(part(block, 192)), d, d);
    for i in 0..8 {
        let (side, quarter) = (i / 4, i % 4);
        let low = l.take(l.bytes(part(block, side * 64 + quarter % 2 * 32)), 15, quarter / 2 * 4, 0);
        let high = l.take(l.bytes(part(block, 128 + side * 32)), 3, quarter * 2, 4);
        let q = l.minus(l.or(low, high), 32);
        put(i, l.mul(l.spread(scales, 2 * i, 2 * i + 1), l.to_float(q)));
    }
}

#[inline(always)]
fn iq4_nl<L: Lanes>(l: L, block: &[u8; 18], mut put: impl FnMut(usize, L::F)) {
    let d = half(l, block, 0);
    let q = l.pick(&IQ4, l.halves(part(block, 2)));
    put(0, l.mul(l.splat(d), l.to_float(q)));
}

/// `d`, two bits each of eight scales, four bits each, 256 numbers of four bits.
#[inline(always)]
fn iq4_xs<L: Lanes>(l: L, block: &[u8; 136], mut put: impl FnMut(usize, L::F)) {
    let (d, high) = (half(l, block, 0), u16::from_le_bytes(*part(block, 2)));
    for i in 0..8 {
        let low = block[4 + i / 2] >> (i % 2 * 4) & 15;
        let scale = d * f32::from((low | ((high >> (i * 2) & 3) as u8) << 4) as i8 - 32);
        let q = l.pick(&IQ4, l.halves(part(block, 8 + i * 16)));
        put(i, l.mul(l.splat(scale), l.to_float(q)));
    }
}
