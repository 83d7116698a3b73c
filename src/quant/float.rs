//! Floats of 8, 16 and 32 bits into each other, to the nearest even as torch does it. No function has a branch that
//! would keep the compiler from doing many at once, or takes part of a subnormal f32, which a processor may be told to
//! take for zero.

use tch::Kind;

/// The bits of an f32's exponent of zero: 1 is `BIAS << MANTISSA`.
const BIAS: u32 = 127;
const MANTISSA: u32 = 23;

#[inline(always)]
pub(super) fn from_f16(half: u16) -> f32 {
    const SMALLEST_NORMAL: f32 = 1.0 / 16384.0;
    const TOP: u32 = 0x1f << MANTISSA;
    let (bits, sign) = (u32::from(half & 0x7fff) << 13, u32::from(half & 0x8000) << 16);
    let rebased = bits + ((BIAS - 15) << MANTISSA);
    let subnormal = (f32::from_bits(rebased + (1 << MANTISSA)) - SMALLEST_NORMAL).to_bits();
    let value = if bits < 1 << MANTISSA { subnormal } else { rebased };
    let value = if bits >= TOP { rebased + ((BIAS + 1 - 16) << MANTISSA) } else { value };
    f32::from_bits(value | sign)
}

#[inline(always)]
pub(super) fn from_bf16(half: u16) -> f32 {
    f32::from_bits(u32::from(half) << 16)
}

/// e4m3fn has no infinity, and one NaN on each side of zero.
#[inline(always)]
pub(super) fn from_e4m3(byte: u8) -> f32 {
    const SMALLEST_NORMAL: f32 = 1.0 / 64.0;
    const NAN: u32 = 0x7f << 20;
    let (bits, sign) = (u32::from(byte & 0x7f) << 20, u32::from(byte & 0x80) << 24);
    let rebased = bits + ((BIAS - 7) << MANTISSA);
    let subnormal = (f32::from_bits(rebased + (1 << MANTISSA)) - SMALLEST_NORMAL).to_bits();
    let value = if bits < 1 << MANTISSA { subnormal } else { rebased };
    let value = if bits == NAN { f32::NAN.to_bits() } else { value };
    f32::from_bits(value | sign)
}

/// The upper byte of an f16.
#[inline(always)]
pub(super) fn from_e5m2(byte: u8) -> f32 {
    from_f16(u16::from(byte) << 8)
}

#[inline(always)]
pub(super) fn to_f16(value: f32) -> u16 {
    const SUBNORMAL: f32 = 0.5;
    const OVERFLOW: u32 = (BIAS + 16) << MANTISSA;
    const SMALLEST_NORMAL: u32 = (BIAS - 14) << MANTISSA;
    let (bits, sign) = (value.to_bits() & 0x7fff_ffff, value.to_bits() & 0x8000_0000);
    // Beside 0.5, the last bit of an f32 is worth as much as that of a subnormal f16: the sum rounds.
    let subnormal = (f32::from_bits(bits) + SUBNORMAL).to_bits().wrapping_sub(SUBNORMAL.to_bits());
    let odd = (bits >> 13) & 1;
    let normal = bits.wrapping_sub((BIAS - 15) << MANTISSA).wrapping_add(0xfff + odd) >> 13;
    let finite = if bits < SMALLEST_NORMAL { subnormal } else { normal };
    let beyond = if bits > f32::INFINITY.to_bits() { 0x7e00 } else { 0x7c00 };
    let half = if bits >= OVERFLOW { beyond } else { finite };
    (half | (sign >> 16)) as u16
}

#[inline(always)]
pub(super) fn to_bf16(value: f32) -> u16 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    // Adding would carry a NaN into the sign.
    let nan = (bits >> 16) | 0x40;
    (if bits & 0x7fff_ffff > f32::INFINITY.to_bits() { nan } else { rounded }) as u16
}

/// NaN with all lower bits 0 for any NaN.
#[inline(always)]
pub(super) fn without_payload(value: f32) -> f32 {
    if value.is_nan() { f32::NAN } else { value }
}

/// Writes numbers as `to`, one after the other; nothing where that is no float of 16 bits or more.
pub(super) fn put(numbers: impl Iterator<Item = f32>, to: Kind, out: &mut [u8]) {
    fn put<const N: usize>(numbers: impl Iterator<Item = f32>, out: &mut [u8], to: impl Fn(f32) -> [u8; N]) {
        out.as_chunks_mut::<N>().0.iter_mut().zip(numbers).for_each(|(out, number)| *out = to(number));
    }
    match to {
        Kind::Double => put(numbers, out, |v| f64::from(v).to_le_bytes()),
        Kind::Float => put(numbers, out, f32::to_le_bytes),
        Kind::BFloat16 => put(numbers, out, |v| to_bf16(v).to_le_bytes()),
        Kind::Half => put(numbers, out, |v| to_f16(v).to_le_bytes()),
        _ => {}
    }
}
