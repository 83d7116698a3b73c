//! Thirty-two numbers one after the other, for every processor.

use std::array::from_fn;

use super::super::float;
use super::Lanes;

#[derive(Clone, Copy)]
pub(in super::super) struct Plain;

impl Lanes for Plain {
    type F = [f32; 32];
    type B = [u8; 32];
    type Table = [f32; 16];

    #[inline(always)]
    fn splat(self, number: f32) -> Self::F {
        [number; 32]
    }

    #[inline(always)]
    fn mul(self, a: Self::F, b: Self::F) -> Self::F {
        from_fn(|i| a[i] * b[i])
    }

    #[inline(always)]
    fn add(self, a: Self::F, b: Self::F) -> Self::F {
        from_fn(|i| a[i] + b[i])
    }

    #[inline(always)]
    fn sub(self, a: Self::F, b: Self::F) -> Self::F {
        from_fn(|i| a[i] - b[i])
    }

    #[inline(always)]
    fn bytes(self, bytes: &[u8; 32]) -> Self::B {
        *bytes
    }

    #[inline(always)]
    fn halves(self, bytes: &[u8; 16]) -> Self::B {
        from_fn(|i| if i < 16 { bytes[i] & 15 } else { bytes[i - 16] >> 4 })
    }

    #[inline(always)]
    fn pairs(self, bytes: &[u8; 16]) -> Self::B {
        from_fn(|i| bytes[i / 2] >> (4 - i % 2 * 4) & 15)
    }

    #[inline(always)]
    fn where_set(self, bits: u32, value: u8) -> Self::B {
        from_fn(|i| if bits >> i & 1 == 1 { value } else { 0 })
    }

    #[inline(always)]
    fn take(self, a: Self::B, mask: u8, from: usize, to: usize) -> Self::B {
        a.map(|a| (a >> from & mask) << to)
    }

    #[inline(always)]
    fn or(self, a: Self::B, b: Self::B) -> Self::B {
        from_fn(|i| a[i] | b[i])
    }

    #[inline(always)]
    fn minus(self, a: Self::B, b: u8) -> Self::B {
        a.map(|a| a.wrapping_sub(b))
    }

    #[inline(always)]
    fn pick(self, table: &[u8; 16], at: Self::B) -> Self::B {
        at.map(|at| table[usize::from(at & 15)])
    }

    #[inline(always)]
    fn to_float(self, a: Self::B) -> Self::F {
        a.map(|a| f32::from(a as i8))
    }

    #[inline(always)]
    fn table(self, numbers: &[f32; 16]) -> Self::Table {
        *numbers
    }

    #[inline(always)]
    fn to_table(self, bytes: &[u8; 16]) -> Self::Table {
        bytes.map(|b| f32::from(b as i8))
    }

    #[inline(always)]
    fn times(self, table: Self::Table, first: f32, others: f32) -> Self::Table {
        from_fn(|i| table[i] * if i < 8 { first } else { others })
    }

    #[inline(always)]
    fn lookup(self, table: Self::Table, at: Self::B) -> Self::F {
        at.map(|at| table[usize::from(at & 15)])
    }

    #[inline(always)]
    fn spread(self, table: Self::Table, first: usize, others: usize) -> Self::F {
        from_fn(|i| table[if i < 16 { first } else { others }])
    }

    #[inline(always)]
    fn halves_of(self, [a, b, c, d]: [u8; 4]) -> [f32; 2] {
        [[a, b], [c, d]].map(|half| float::without_payload(float::from_f16(u16::from_le_bytes(half))))
    }

    #[inline(always)]
    fn read_f32(self, bytes: &[u8; 128]) -> Self::F {
        numbers(bytes, |b| float::without_payload(f32::from_le_bytes(b)))
    }

    #[inline(always)]
    fn read_bf16(self, bytes: &[u8; 64]) -> Self::F {
        numbers(bytes, |b| float::from_bf16(u16::from_le_bytes(b)))
    }

    #[inline(always)]
    fn read_f16(self, bytes: &[u8; 64]) -> Self::F {
        numbers(bytes, |b| float::without_payload(float::from_f16(u16::from_le_bytes(b))))
    }

    #[inline(always)]
    fn read_e5m2(self, bytes: &[u8; 32]) -> Self::F {
        bytes.map(float::from_e5m2)
    }

    #[inline(always)]
    fn read_e4m3(self, bytes: &[u8; 32]) -> Self::F {
        bytes.map(float::from_e4m3)
    }

    #[inline(always)]
    fn write_f32(self, numbers: Self::F, bytes: &mut [u8; 128]) {
        put(numbers, bytes, f32::to_le_bytes);
    }

    #[inline(always)]
    fn write_bf16(self, numbers: Self::F, bytes: &mut [u8; 64]) {
        put(numbers, bytes, |v| float::to_bf16(v).to_le_bytes());
    }

    #[inline(always)]
    fn write_f16(self, numbers: Self::F, bytes: &mut [u8; 64]) {
        put(numbers, bytes, |v| float::to_f16(v).to_le_bytes());
    }
}

#[inline(always)]
fn numbers<const N: usize>(bytes: &[u8], number: impl Fn([u8; N]) -> f32) -> [f32; 32] {
    let bytes = bytes.as_chunks::<N>().0;
    from_fn(|i| number(bytes[i]))
}

#[inline(always)]
fn put<const N: usize>(numbers: [f32; 32], bytes: &mut [u8], to: impl Fn(f32) -> [u8; N]) {
    for (bytes, number) in bytes.as_chunks_mut::<N>().0.iter_mut().zip(numbers) {
        *bytes = to(number);
    }
}
