//! Numbers to floats of eight bits.

use std::sync::atomic::{AtomicU32, Ordering};

use tch::{Device, Kind, Tensor};

use super::lanes::Processor;
use super::{Code, cores, float, memory};
use crate::shim;

/// The greatest number of e4m3fn.
const GREATEST: f32 = 448.0;
/// What is no greater rounds to a number.
const ROUNDS_TO_GREATEST: f32 = 464.0;
/// Numbers that are worked on together, in the first cache.
const RUN: usize = 1024;
/// Numbers that a thread takes at a time.
const TASK: usize = 1 << 19;

/// A tensor of f32, bf16 or f16 on the CPU as e4m3fn, each number rounded to the nearest even; NaN stays NaN. The bits
/// are those of torch's cast.
///
/// # Errors
/// Why it cannot be: a number, or infinity, lies beyond 448.
pub(crate) fn to_e4m3(numbers: &Tensor) -> Result<Tensor, String> {
    let greatest = greatest(numbers)?;
    if greatest > ROUNDS_TO_GREATEST {
        return Err(format!("{greatest} lies beyond {GREATEST}, where e4m3 ends: it needs a scale"));
    }
    encode(numbers, 1.0)
}

/// A tensor as e4m3fn, and the scale to multiply its numbers by: the greatest becomes 448. Every number is divided by
/// the scale in f32, and rounded to the nearest even; NaN stays NaN.
///
/// # Errors
/// Why it cannot be: it holds infinity.
pub(crate) fn to_scaled_e4m3(numbers: &Tensor) -> Result<(Tensor, f32), String> {
    let greatest = greatest(numbers)?;
    if greatest.is_infinite() {
        return Err("it holds infinity".into());
    }
    // No number is divided by zero, nor by what a processor may take for it.
    let scale = if greatest == 0.0 { 1.0 } else { (greatest / GREATEST).max(f32::MIN_POSITIVE) };
    Ok((encode(numbers, scale)?, scale))
}

/// The greatest absolute number; NaN is none.
fn greatest(numbers: &Tensor) -> Result<f32, String> {
    let (code, bytes) = float_of(numbers)?;
    let all = AtomicU32::new(0);
    let done = cores::on_all(bytes.chunks(code.bytes(TASK)), bytes.len(), |src, _| {
        for src in src.chunks(code.bytes(RUN)) {
            let (mut values, mut found) = ([0.0; RUN], 0);
            let values = singles(&code, src, &mut values);
            Processor::best().run(
                #[inline(always)]
                || found = greatest_of(values),
            );
            all.fetch_max(found, Ordering::Relaxed);
        }
        Ok(())
    });
    done.map_err(|e| e.to_string())?;
    Ok(f32::from_bits(all.into_inner()))
}

/// As bits: absolute numbers have the same order as integers.
#[inline(always)]
fn greatest_of(values: &[f32]) -> u32 {
    let bits = values.iter().map(|value| value.to_bits() & 0x7fff_ffff);
    bits.map(|bits| if bits > f32::INFINITY.to_bits() { 0 } else { bits }).fold(0, u32::max)
}

fn encode(numbers: &Tensor, scale: f32) -> Result<Tensor, String> {
    let (code, bytes) = float_of(numbers)?;
    let encoded = memory::empty(&numbers.size(), Kind::Float8e4m3fn).map_err(|e| e.to_string())?;
    let done = shim::with_bytes(&encoded, |out| {
        let tasks = bytes.chunks(code.bytes(TASK)).zip(out.chunks_mut(TASK));
        cores::on_all(tasks, bytes.len(), |(src, out), _| {
            for (src, out) in src.chunks(code.bytes(RUN)).zip(out.chunks_mut(RUN)) {
                let mut values = [0.0; RUN];
                let values = singles(&code, src, &mut values);
                Processor::best().run(
                    #[inline(always)]
                    || narrow(values, scale, out),
                );
            }
            Ok(())
        })
    });
    done.map_err(|e| e.to_string())?;
    Ok(encoded)
}

#[inline(always)]
fn narrow(values: &[f32], scale: f32, out: &mut [u8]) {
    for (out, value) in out.iter_mut().zip(values) {
        *out = float::to_e4m3((value / scale).clamp(-GREATEST, GREATEST));
    }
}

/// How to read the numbers, and their bytes.
fn float_of(numbers: &Tensor) -> Result<(Code, &[u8]), String> {
    let (kind, device) = (numbers.kind(), numbers.device());
    let is_float = matches!(kind, Kind::Float | Kind::BFloat16 | Kind::Half);
    if is_float && device == Device::Cpu && numbers.is_contiguous() {
        return Ok((Code::Plain(kind), shim::bytes(numbers)));
    }
    Err(format!("{kind:?} on {device:?} cannot become e4m3"))
}

/// The numbers as f32.
fn singles<'a>(code: &Code, src: &[u8], values: &'a mut [f32; RUN]) -> &'a [f32] {
    let mut bytes = [0; RUN * 4];
    let count = src.len() / code.unit().1;
    code.decode(src, 0, Kind::Float, &mut bytes[..count * 4]);
    let singles = bytes.as_chunks().0.iter().map(|&b| f32::from_le_bytes(b));
    values.iter_mut().zip(singles).for_each(|(value, single)| *value = single);
    &values[..count]
}
