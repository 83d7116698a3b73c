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
use crate::error::{Error, Result};
use crate::numerics::is_fast;
use crate::quant::Fp8;
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

/// Bytes that the next tensors may take on a CUDA device, what libtorch keeps for them included; `None` where that cannot be
/// told.
pub fn free_bytes(device: usize) -> Option<u64> {
    crate::shim::free_bytes(device)
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

/// Packs of a row that one thread holds.
const HELD: i64 = 4;

/// Whether a row of so many numbers stays in the registers of a block.
fn is_held(width: i64, kind: Kind) -> bool {
    width <= HELD * THREADS * pack(kind)
}

/// The threads for a row of so many numbers: whole warps whose threads hold [`HELD`] packs, where so few are enough. Few
/// threads with much to read are faster than many with little.
fn threads(width: i64, kind: Kind) -> i64 {
    const WARP: i64 = 32;
    let of_a_warp = WARP * HELD * pack(kind);
    ((width + of_a_warp - 1) / of_a_warp * WARP).min(THREADS)
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

/// What [`run_modulate`] gives.
struct Modulated {
    /// Of a gated kernel.
    sum: Option<Tensor>,
    out: Tensor,
    /// Of a kernel whose result is fp8.
    scales: Option<Tensor>,
}

/// `(1 + scale) * norm(x) + shift` by this kernel, where `x` is `x + gate * y` with `gated` `[gate, y]`.
fn run_modulate(
    kernel: Kernel,
    x: &Tensor,
    gated: Option<[&Tensor; 2]>,
    [scale, shift]: [&Tensor; 2],
    eps: f64,
) -> Option<Modulated> {
    let tensors: Vec<&Tensor> = [x, scale, shift].into_iter().chain(gated.into_iter().flatten()).collect();
    with(kernel, &tensors, |kernels, kind| {
        let (b, every) = samples(x)?;
        let x_rows = rows(x).filter(|x| is_held(x.width, kind))?;
        let vector = |tensor: &Tensor| vectors(tensor, b).filter(|(vector, _)| vector.width == x_rows.width);
        let ((scale, scale_stride), (shift, shift_stride)) = (vector(scale)?, vector(shift)?);
        let gated = match gated {
            Some([gate, y]) if x.size() == y.size() => Some((vector(gate)?, rows(y)?, empty_like(x))),
            Some(_) => return None,
            None => None,
        };
        let (out, scales) = match kernel.is_fp8() {
            true => {
                let (out, scales) = empty_fp8(x_rows.count, x_rows.width, x.device());
                (out, Some(scales))
            }
            false => (empty_like(x), None),
        };
        let mut arguments = vec![Argument::from(&x_rows.tensor), x_rows.stride.into()];
        if let Some(((gate, gate_stride), y_rows, sum)) = &gated {
            arguments.extend([
                Argument::from(&y_rows.tensor),
                y_rows.stride.into(),
                (&gate.tensor).into(),
                (*gate_stride).into(),
                sum.into(),
            ]);
        }
        arguments.extend([
            Argument::from(&scale.tensor),
            scale_stride.into(),
            (&shift.tensor).into(),
            shift_stride.into(),
            (&out).into(),
            scales.as_ref().map_or(Argument::NULL, Argument::from),
            every.into(),
            x_rows.width.into(),
            (eps as f32).into(),
        ]);
        let grid = [x_rows.count, threads(x_rows.width, kind)];
        // SAFETY: the arguments of the kernels that modulate, gated or not; every tensor lives until it is queued and was
        // checked for its size.
        unsafe { kernels.launch(kernel, kind, grid, &arguments) };
        Some(Modulated { sum: gated.map(|(.., sum)| sum), out, scales })
    })
}

/// `(1 + scale) * norm(x) + shift` in one pass, if it is ours.
pub(super) fn modulate(x: &Tensor, modulation: [&Tensor; 2], eps: f64) -> Option<Tensor> {
    Some(run_modulate(Kernel::Modulate, x, None, modulation, eps)?.out)
}

/// The rows of [`modulate`] as fp8.
pub(super) fn modulate_fp8(x: &Tensor, modulation: [&Tensor; 2], eps: f64) -> Option<Fp8> {
    let Modulated { out, scales, .. } = run_modulate(Kernel::ModulateFp8, x, None, modulation, eps)?;
    Some(Fp8 { weight: out, scale: scales? })
}

/// `x + gate * y`, and that modulated, in one pass, if it is ours.
pub(super) fn gated_modulate(
    x: &Tensor,
    gated: [&Tensor; 2],
    modulation: [&Tensor; 2],
    eps: f64,
) -> Option<(Tensor, Tensor)> {
    let Modulated { sum, out, .. } = run_modulate(Kernel::GatedModulate, x, Some(gated), modulation, eps)?;
    Some((sum?, out))
}

/// The same, the second as fp8.
pub(super) fn gated_modulate_fp8(
    x: &Tensor,
    gated: [&Tensor; 2],
    modulation: [&Tensor; 2],
    eps: f64,
) -> Option<(Tensor, Fp8)> {
    let Modulated { sum, out, scales } =
        run_modulate(Kernel::GatedModulateFp8, x, Some(gated), modulation, eps)?;
    Some((sum?, Fp8 { weight: out, scale: scales? }))
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
        // SAFETY: the arguments of `gated_residual`; otherwise as in `run_modulate`.
        unsafe { kernels.launch(Kernel::GatedResidual, kind, [blocks, THREADS], &arguments) };
        Some(out)
    })
}

/// One stream's queries and keys, normalised and rotated, and its values, into the joint q, k and v `[B, S, H, d]` from
/// token `start` on, in one pass; `false` if it is not ours. `qkv` `[B, L, 3·H·d]`, `pe` `[B, 1, S, d/2, 2, 2]`. Without
/// `v` the values stay where they are, and q and k may be views into `qkv`, of its own queries and keys.
pub(super) fn pack_heads(
    qkv: &Tensor,
    [q_scale, k_scale]: [&Tensor; 2],
    pe: &Tensor,
    [q, k]: [&Tensor; 2],
    v: Option<&Tensor>,
    start: i64,
) -> bool {
    /// What the kernel holds of a head.
    const WIDEST: i64 = 256;
    let outs: Vec<&Tensor> = [q, k].into_iter().chain(v).collect();
    let tensors: Vec<&Tensor> = [qkv, q_scale, k_scale].into_iter().chain(outs.iter().copied()).collect();
    let packed = with(Kernel::PackHeads, &tensors, |kernels, kind| {
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
        let whole = |stride: &[i64]| stride[1] % n == 0 && (b == 1 || stride[0] % n == 0);
        let strides = qkv.stride();
        let dense = strides[2] == 1 && whole(&strides) && aligned(qkv);
        if !dense && v.is_none() {
            return None;
        }
        let qkv = if dense { qkv.shallow_clone() } else { qkv.copy().contiguous() };
        let (pe, q_scale, k_scale) = (pe.contiguous(), q_scale.contiguous(), k_scale.contiguous());
        let sized = q_scale.numel() as i64 == width && k_scale.numel() as i64 == width;
        let to = q.stride();
        let outs_fit = outs.iter().all(|x| x.size() == q.size() && x.stride() == to && aligned(x));
        let heads_dense = to[3] == 1 && (heads == 1 || to[2] == width) && whole(&to);
        if !sized || !outs_fit || !heads_dense || ![&qkv, &q_scale, &k_scale, &pe].into_iter().all(aligned) {
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
            v.map_or(Argument::NULL, Argument::from),
            to[0].into(),
            to[1].into(),
            b.into(),
            length.into(),
            start.into(),
            heads.into(),
            width.into(),
            group.into(),
        ];
        let blocks = blocks(b * length * heads, THREADS / group)?;
        // SAFETY: the arguments of `pack_heads`; otherwise as in `run_modulate`.
        unsafe { kernels.launch(Kernel::PackHeads, kind, [blocks, THREADS], &arguments) };
        Some(())
    });
    packed.is_some()
}

/// Room for rows of fp8 and for their scales.
fn empty_fp8(count: i64, width: i64, device: Device) -> (Tensor, Tensor) {
    let rows = Tensor::empty([count, width], (Kind::Float8e4m3fn, device));
    (rows, Tensor::empty([count, 1], (Kind::Float, device)))
}

/// The rows of `[x, gelu(y)]` as e4m3fn with a scale for each, in one pass, if it is ours. GELU is with tanh.
pub(super) fn quantize_rows(x: Option<&Tensor>, y: Option<&Tensor>) -> Option<Fp8> {
    let tensors: Vec<&Tensor> = [x, y].into_iter().flatten().collect();
    with(Kernel::QuantizeRows, &tensors, |kernels, kind| {
        let part = |part: Option<&Tensor>| match part {
            Some(tensor) => Some(Some(rows(tensor)?)),
            None => Some(None),
        };
        let (x_rows, y_rows) = (part(x)?, part(y)?);
        let parts = [&x_rows, &y_rows];
        let count = parts.iter().find_map(|part| Some(part.as_ref()?.count))?;
        if parts.into_iter().flatten().any(|part| part.count != count) {
            return None;
        }
        let width = parts.into_iter().flatten().map(|part| part.width).sum();
        let (out, scales) = empty_fp8(count, width, tensors.first()?.device());
        let arguments = |part: &Option<Rows>| match part {
            Some(rows) => [Argument::from(&rows.tensor), rows.stride.into(), rows.width.into()],
            None => [Argument::NULL; 3],
        };
        let arguments =
            [&arguments(&x_rows)[..], &arguments(&y_rows), &[(&out).into(), (&scales).into()]].concat();
        // SAFETY: the arguments of `quantize_rows`; otherwise as in `run_modulate`.
        unsafe { kernels.launch(Kernel::QuantizeRows, kind, [count, threads(width, kind)], &arguments) };
        Some(Fp8 { weight: out, scale: scales })
    })
}
