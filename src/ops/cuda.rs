//! The operations on CUDA: kernels of our own in CUDA C++ (`cuda/*.cu`), compiled by NVRTC for the device when they are
//! first needed. Neither building nor running needs a toolkit: NVRTC comes with torch, and the driver with the device.
//!
//! They do what libtorch needs many passes over memory for. Products and attention stay libtorch's, which hands them to
//! cuBLAS, cuDNN and flash attention. Where NVRTC or the driver is missing, or the device is older than SM 8.0,
//! libtorch's operations do everything; [`arithmetic`] says so, and why.

mod compile;
mod kernels;
mod library;
#[cfg(test)]
mod tests;

use std::path::PathBuf;

use serde::Serialize;
use tch::{Device, Kind, Tensor};

use super::cpu::Rows;
use super::scope::is_fast;
use crate::error::{Error, Result};
use kernels::{Argument, Kernel, Kernels, THREADS, dotted, of_device};

/// Keeps compiled kernels in this folder, for kernels that are not loaded yet; without one each process compiles them
/// anew, which takes some seconds. The folder is made when it is needed. One that cannot be written is no error.
pub fn set_cache(folder: Option<PathBuf>) {
    kernels::set_cache(folder);
}

/// What the fast form computes with on a device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Arithmetic {
    /// Its compute capability, such as `9.0`, where the driver says it.
    pub capability: Option<String>,
    /// The version of NVRTC that was found.
    pub nvrtc: Option<String>,
    /// Whether products of fp8 are to be had.
    pub fp8_products: bool,
    /// Why there are no kernels of our own, so that libtorch's operations do everything; `None` where there are.
    pub problem: Option<String>,
}

/// See [`Arithmetic`]. The first call for a device compiles its kernels, or reads them from the cache.
pub fn arithmetic(device: usize) -> Arithmetic {
    let capability = kernels::capability(device).ok();
    let nvrtc = library::nvrtc().ok().map(library::Nvrtc::version);
    Arithmetic {
        capability: capability.map(dotted),
        nvrtc: nvrtc.map(|(major, minor)| format!("{major}.{minor}")),
        fp8_products: capability.is_some_and(|capability| capability >= FP8_PRODUCTS),
        problem: of_device(device).as_ref().as_ref().err().cloned(),
    }
}

/// The compute capability that multiplies fp8.
const FP8_PRODUCTS: i32 = 89;

/// [`Error::Request`] unless the device multiplies fp8.
pub(crate) fn check_fp8(device: Device) -> Result<()> {
    let Device::Cuda(index) = device else {
        return Err(Error::Request("fp8 weights are for CUDA; on the CPU quantise to int8".into()));
    };
    let capability = kernels::capability(index).map_err(Error::Config)?;
    if capability < FP8_PRODUCTS {
        let found = dotted(capability);
        return Err(Error::Request(format!("products of fp8 want SM 8.9, and the device is SM {found}")));
    }
    Ok(())
}

/// Runs `f` with the kernels, where there is this one for these tensors: all on one CUDA device and of one kind, no
/// gradient goes through them, and each begins at 16 bytes.
fn with<R>(kernel: Kernel, tensors: &[&Tensor], f: impl FnOnce(&Kernels, Kind) -> Option<R>) -> Option<R> {
    let (first, others) = tensors.split_first()?;
    let (Device::Cuda(device), kind) = (first.device(), first.kind()) else { return None };
    let like_first = |tensor: &&Tensor| (tensor.device(), tensor.kind()) == (first.device(), kind);
    if !others.iter().all(like_first) || !is_fast(tensors.iter().copied()) {
        return None;
    }
    let kernels = of_device(device);
    let kernels = kernels.as_ref().as_ref().ok().filter(|kernels| kernels.has(kernel, kind))?;
    f(kernels, kind)
}

/// The numbers that are read at once.
fn pack(kind: Kind) -> i64 {
    16 / kind.elt_size_in_bytes() as i64
}

/// Rows that can be read 16 bytes at a time; copied where they cannot, since then they may begin anywhere.
fn rows(tensor: &Tensor) -> Option<Rows> {
    let n = pack(tensor.kind());
    let aligned = |rows: &Rows| {
        (rows.tensor.data_ptr() as usize).is_multiple_of(16) && (rows.count <= 1 || rows.stride % n == 0)
    };
    let rows = Rows::of(tensor);
    if rows.width % n != 0 || rows.count == 0 || rows.width == 0 {
        return None;
    }
    Some(if aligned(&rows) { rows } else { Rows::of(&tensor.copy()) }).filter(aligned)
}

/// A vector for each sample, `[B, 1, D]`, as rows that the kernels take: as far apart as they say, and the same row
/// for all where there is one.
fn vectors(tensor: &Tensor, samples: i64) -> Option<(Rows, i64)> {
    let rows = rows(tensor)?;
    let stride = if rows.count == 1 { 0 } else { rows.stride };
    (rows.count == 1 || rows.count == samples).then_some((rows, stride))
}

/// Whether a row of so many numbers stays in the registers of a block.
fn is_held(width: i64, kind: Kind) -> bool {
    const HELD: i64 = 4;
    width <= HELD * THREADS * pack(kind)
}

/// `x` `[B, L, D]` of how many samples, and the rows of each.
fn samples(x: &Tensor) -> Option<(i64, i64)> {
    let [b, l, _] = x.size()[..] else { return None };
    (b > 0 && l > 0).then_some((b, l))
}

/// The blocks for so many jobs, each of which does `of_each`, where the kernels can count the jobs.
fn blocks(jobs: i64, of_each: i64) -> Option<i64> {
    let blocks = (jobs + of_each - 1) / of_each;
    i32::try_from(blocks * of_each).is_ok().then_some(blocks)
}

fn empty_like(x: &Tensor) -> Tensor {
    Tensor::empty(x.size(), (x.kind(), x.device()))
}

/// `(1 + scale) * norm(x) + shift` in one pass, if it is ours.
pub(super) fn modulate(x: &Tensor, scale: &Tensor, shift: &Tensor, eps: f64) -> Option<Tensor> {
    with(Kernel::Modulate, &[x, scale, shift], |kernels, kind| {
        let (b, every) = samples(x)?;
        let (x_rows, out) = (rows(x).filter(|x| is_held(x.width, kind))?, empty_like(x));
        let ((scale, scale_stride), (shift, shift_stride)) = (vectors(scale, b)?, vectors(shift, b)?);
        if [&scale, &shift].iter().any(|vector| vector.width != x_rows.width) {
            return None;
        }
        let arguments = [
            Argument::from(&x_rows.tensor),
            x_rows.stride.into(),
            (&scale.tensor).into(),
            scale_stride.into(),
            (&shift.tensor).into(),
            shift_stride.into(),
            (&out).into(),
            every.into(),
            x_rows.width.into(),
            (eps as f32).into(),
        ];
        // SAFETY: the arguments of `modulate`; every tensor lives until it is queued and was checked for its size.
        unsafe { kernels.launch(Kernel::Modulate, kind, x_rows.count, &arguments) };
        Some(out)
    })
}

/// `x + gate * y`, and that modulated, in one pass, if it is ours.
pub(super) fn gated_modulate(
    x: &Tensor,
    gate: &Tensor,
    y: &Tensor,
    [scale, shift]: [&Tensor; 2],
    eps: f64,
) -> Option<(Tensor, Tensor)> {
    with(Kernel::GatedModulate, &[x, gate, y, scale, shift], |kernels, kind| {
        let (b, every) = samples(x).filter(|_| x.size() == y.size())?;
        let (x_rows, y_rows) = (rows(x).filter(|x| is_held(x.width, kind))?, rows(y)?);
        let [(gate, gate_stride), (scale, scale_stride), (shift, shift_stride)] =
            [vectors(gate, b)?, vectors(scale, b)?, vectors(shift, b)?];
        if [&gate, &scale, &shift].iter().any(|vector| vector.width != x_rows.width) {
            return None;
        }
        let (sum, out) = (empty_like(x), empty_like(x));
        let arguments = [
            Argument::from(&x_rows.tensor),
            x_rows.stride.into(),
            (&y_rows.tensor).into(),
            y_rows.stride.into(),
            (&gate.tensor).into(),
            gate_stride.into(),
            (&sum).into(),
            (&scale.tensor).into(),
            scale_stride.into(),
            (&shift.tensor).into(),
            shift_stride.into(),
            (&out).into(),
            every.into(),
            x_rows.width.into(),
            (eps as f32).into(),
        ];
        // SAFETY: the arguments of `gated_modulate`; otherwise as in `modulate`.
        unsafe { kernels.launch(Kernel::GatedModulate, kind, x_rows.count, &arguments) };
        Some((sum, out))
    })
}

/// `x + gate * y` in one pass and with one rounding, if it is ours.
pub(super) fn gated_residual(x: &Tensor, gate: &Tensor, y: &Tensor) -> Option<Tensor> {
    with(Kernel::GatedResidual, &[x, gate, y], |kernels, kind| {
        let (b, every) = samples(x).filter(|_| x.size() == y.size())?;
        let (x_rows, y_rows, out) = (rows(x)?, rows(y)?, empty_like(x));
        let (gate, gate_stride) = vectors(gate, b).filter(|(gate, _)| gate.width == x_rows.width)?;
        let arguments = [
            Argument::from(&x_rows.tensor),
            x_rows.stride.into(),
            (&y_rows.tensor).into(),
            y_rows.stride.into(),
            (&gate.tensor).into(),
            gate_stride.into(),
            (&out).into(),
            x_rows.count.into(),
            every.into(),
            x_rows.width.into(),
        ];
        let blocks = blocks(x_rows.count * x_rows.width / pack(kind), THREADS)?;
        // SAFETY: the arguments of `gated_residual`; otherwise as in `modulate`.
        unsafe { kernels.launch(Kernel::GatedResidual, kind, blocks, &arguments) };
        Some(out)
    })
}

/// One stream's queries and keys, normalised and rotated, and its values, into the joint q, k and v `[B, S, H, d]` from
/// token `start` on, in one pass; `false` if it is not ours. `qkv` `[B, L, 3·H·d]`, `pe` `[B, 1, S, d/2, 2, 2]`.
pub(super) fn pack_heads(
    qkv: &Tensor,
    [q_scale, k_scale]: [&Tensor; 2],
    pe: &Tensor,
    [q, k, v]: [&Tensor; 3],
    start: i64,
) -> bool {
    /// What the kernel holds of a head.
    const WIDEST: i64 = 256;
    let packed = with(Kernel::PackHeads, &[qkv, q_scale, k_scale, q, k, v], |kernels, kind| {
        let (&[b, total, heads, width], &[_, length, hidden]) = (&q.size()[..], &qkv.size()[..]) else {
            return None;
        };
        let n = pack(kind);
        let pe_fits = pe.size()[1..] == [1, total, width / 2, 2, 2] && [1, b].contains(&pe.size()[0]);
        let fits =
            width % n == 0 && width <= WIDEST && hidden == 3 * heads * width && start + length <= total;
        let on_device = (pe.kind(), pe.device()) == (Kind::Float, qkv.device()) && is_fast([pe]);
        if !fits || !pe_fits || !on_device || b * length == 0 {
            return None;
        }
        let aligned = |x: &Tensor| (x.data_ptr() as usize).is_multiple_of(16);
        let strides = qkv.stride();
        let dense = strides[2] == 1 && strides[1] % n == 0 && (b == 1 || strides[0] % n == 0) && aligned(qkv);
        let qkv = if dense { qkv.shallow_clone() } else { qkv.copy().contiguous() };
        let (pe, q_scale, k_scale) = (pe.contiguous(), q_scale.contiguous(), k_scale.contiguous());
        let sized = q_scale.numel() as i64 == width && k_scale.numel() as i64 == width;
        let outs_dense = [q, k, v].iter().all(|x| x.is_contiguous() && x.size() == q.size());
        if !sized || !outs_dense || ![&qkv, &q_scale, &k_scale, &pe, q, k, v].into_iter().all(aligned) {
            return None;
        }
        // As many lanes as packs, a power of two within a warp.
        let group = ((width / n) as u64).next_power_of_two().min(32) as i64;
        let pe_stride = if pe.size()[0] == 1 { 0 } else { 2 * total * width };
        let arguments = [
            Argument::from(&qkv),
            qkv.stride()[0].into(),
            qkv.stride()[1].into(),
            (&q_scale).into(),
            (&k_scale).into(),
            (&pe).into(),
            pe_stride.into(),
            q.into(),
            k.into(),
            v.into(),
            b.into(),
            length.into(),
            start.into(),
            total.into(),
            heads.into(),
            width.into(),
            group.into(),
        ];
        let blocks = blocks(b * length * 3 * heads, THREADS / group)?;
        // SAFETY: the arguments of `pack_heads`; otherwise as in `modulate`.
        unsafe { kernels.launch(Kernel::PackHeads, kind, blocks, &arguments) };
        Some(())
    });
    packed.is_some()
}

/// Rows `[M, K]` as e4m3fn with a scale for each, `[M, 1]`, in one pass, if it is ours.
pub(super) fn quantize_rows(x: &Tensor) -> Option<(Tensor, Tensor)> {
    with(Kernel::QuantizeRows, &[x], |kernels, kind| {
        let rows = rows(x)?;
        let out = Tensor::empty([rows.count, rows.width], (Kind::Float8e4m3fn, x.device()));
        let scales = Tensor::empty([rows.count, 1], (Kind::Float, x.device()));
        let arguments = [
            Argument::from(&rows.tensor),
            rows.stride.into(),
            (&out).into(),
            (&scales).into(),
            rows.width.into(),
        ];
        // SAFETY: the arguments of `quantize_rows`; otherwise as in `modulate`.
        unsafe { kernels.launch(Kernel::QuantizeRows, kind, rows.count, &arguments) };
        Some((out, scales))
    })
}
