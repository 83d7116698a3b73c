//! Bytes to numbers, by a recipe.

use tch::Kind;

use super::code::{Code, RECIPROCAL_OF_127};
use super::lanes::{Bf16, F16, F32, Lanes, Output, Processor};
use super::{blocks, float};

impl Code {
    /// Fills `out` with the numbers of `src` as `to`: f64, f32, bf16 or f16. The first of them is number `first` of the
    /// tensor, where a unit begins.
    pub(crate) fn decode(&self, src: &[u8], first: usize, to: Kind, out: &mut [u8]) {
        self.decode_on(Processor::best(), src, first, to, out);
    }

    pub(super) fn decode_on(&self, way: Processor, src: &[u8], first: usize, to: Kind, out: &mut [u8]) {
        match (self, to) {
            (Self::Plain(from), to) if *from == to => {
                let len = src.len().min(out.len());
                out[..len].copy_from_slice(&src[..len]);
            }
            (Self::Plain(Kind::Double), to) => {
                float::put(src.as_chunks().0.iter().map(|&b| f64::from_le_bytes(b) as f32), to, out);
            }
            (_, Kind::Double) => self.decode_to_f64(way, src, first, out),
            _ => match way {
                #[cfg(target_arch = "x86_64")]
                Processor::Avx512(l) => l.run(
                    #[inline(always)]
                    || self.decode_with(l, src, first, to, out),
                ),
                #[cfg(target_arch = "x86_64")]
                Processor::Avx2(l) => l.run(
                    #[inline(always)]
                    || self.decode_with(l, src, first, to, out),
                ),
                Processor::Plain(l) => self.decode_with(l, src, first, to, out),
            },
        }
    }

    /// By way of f32.
    fn decode_to_f64(&self, way: Processor, src: &[u8], first: usize, out: &mut [u8]) {
        const RUN: usize = 1024;
        let mut singles = [0; RUN * 4];
        for (i, (src, out)) in src.chunks(self.bytes(RUN)).zip(out.chunks_mut(RUN * 8)).enumerate() {
            let singles = &mut singles[..out.len() / 2];
            self.decode_on(way, src, first + i * RUN, Kind::Float, singles);
            float::put(singles.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b)), Kind::Double, out);
        }
    }

    #[inline(always)]
    fn decode_with<L: Lanes>(&self, l: L, src: &[u8], first: usize, to: Kind, out: &mut [u8]) {
        match to {
            Kind::BFloat16 => self.decode_to::<L, Bf16>(l, src, first, out),
            Kind::Half => self.decode_to::<L, F16>(l, src, first, out),
            _ => self.decode_to::<L, F32>(l, src, first, out),
        }
    }

    #[inline(always)]
    fn decode_to<L: Lanes, T: Output>(&self, l: L, src: &[u8], first: usize, out: &mut [u8]) {
        // Thirty-two numbers from so many bytes. Macros, since what is not inlined is not compiled for the processor.
        macro_rules! each {
            ($size:literal, $src:expr, $out:expr, |$bytes:ident| $numbers:expr) => {
                each::<$size, L, T>(
                    l,
                    $src,
                    $out,
                    #[inline(always)]
                    |$bytes| $numbers,
                )
            };
        }
        macro_rules! by_row {
            ($size:literal, $row:expr, $scale:expr, |$by:ident, $src:ident, $out:ident| $decode:expr) => {
                by_row::<$size, T>(
                    first,
                    $row,
                    $scale,
                    src,
                    out,
                    #[inline(always)]
                    |$by, $src, $out| $decode,
                )
            };
        }
        match self {
            Self::Plain(Kind::Float) => each!(128, src, out, |b| l.read_f32(b)),
            Self::Plain(Kind::BFloat16) => each!(64, src, out, |b| l.read_bf16(b)),
            Self::Plain(Kind::Half) => each!(64, src, out, |b| l.read_f16(b)),
            Self::Plain(Kind::Float8e5m2) => each!(32, src, out, |b| l.read_e5m2(b)),
            Self::Plain(_) => each!(32, src, out, |b| l.read_e4m3(b)),
            Self::Scaled { kind: Kind::Float8e5m2, scale, row } => {
                by_row!(32, *row, scale, |by, src, out| {
                    let by = l.splat(by);
                    each!(32, src, out, |b| l.mul(l.read_e5m2(b), by))
                })
            }
            Self::Scaled { scale, row, .. } => by_row!(32, *row, scale, |by, src, out| {
                let by = l.splat(by);
                each!(32, src, out, |b| l.mul(l.read_e4m3(b), by))
            }),
            Self::Int8 { scale, row } => by_row!(32, *row, scale, |by, src, out| {
                let (by, reciprocal) = (l.splat(by), l.splat(RECIPROCAL_OF_127));
                each!(32, src, out, |b| l.mul(l.mul(l.to_float(l.bytes(b)), by), reciprocal))
            }),
            Self::FourBit { table, absmax, block } => {
                let table = l.table(&table.map(float::without_payload));
                by_row!(16, *block, absmax, |by, src, out| {
                    // A product of the table is the table of the products.
                    let table = l.times(table, by, by);
                    each!(16, src, out, |b| l.lookup(table, l.pairs(b)))
                })
            }
            Self::Blocks(block) => blocks::decode::<L, T>(l, *block, src, out),
        }
    }
}

/// Thirty-two numbers from each `S` bytes; at the end as many as there are.
#[inline(always)]
fn each<const S: usize, L: Lanes, T: Output>(
    l: L,
    src: &[u8],
    out: &mut [u8],
    numbers: impl Fn(&[u8; S]) -> L::F,
) {
    let (whole, rest) = src.as_chunks::<S>();
    let mut out = out.chunks_exact_mut(T::BYTES);
    for (src, out) in whole.iter().zip(&mut out) {
        T::put(l, numbers(src), out);
    }
    let out = out.into_remainder();
    if !out.is_empty() {
        // Either the last bytes are not thirty-two numbers, or all of these are not wanted.
        let mut last = whole.last().copied().unwrap_or([0; S]);
        if !rest.is_empty() {
            last[..rest.len()].copy_from_slice(rest);
        }
        let mut filled = [0; 128];
        T::put(l, numbers(&last), &mut filled);
        out.copy_from_slice(&filled[..out.len()]);
    }
}

/// Gives what lies in one row, with its scale, to `decode`, where `S` bytes are thirty-two numbers. `first` says where in
/// the tensor the bytes begin. A scale that is not there is NaN.
#[inline(always)]
fn by_row<const S: usize, T: Output>(
    first: usize,
    row: usize,
    scale: &[f32],
    src: &[u8],
    out: &mut [u8],
    mut decode: impl FnMut(f32, &[u8], &mut [u8]),
) {
    let (row, mut at, mut src, mut out) = (row.max(1), first, src, out);
    while !out.is_empty() && !src.is_empty() {
        let count = (row - at % row).min(out.len() / (T::BYTES / 32)).max(1);
        let (head, tail) = src.split_at(src.len().min((count * S).div_ceil(32)));
        let (these, rest) = out.split_at_mut(out.len().min(count * T::BYTES / 32));
        decode(scale.get(at / row).copied().map_or(f32::NAN, float::without_payload), head, these);
        (at, src, out) = (at + count, tail, rest);
    }
}
