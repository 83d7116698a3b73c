//! The operations on the CPU: kernels of our own in C++ (`cpu/*.inl`), built for plain x86-64 or ARM, for AVX2, AVX-512,
//! AVX-512 with bf16 and VNNI, and AMX. The fastest that the CPU runs is taken when the program runs.
//!
//! Weights stay as they are, in the variable store and in the mapped file: a piece of a matrix is put into the order
//! that the registers want when it is multiplied, in a core's cache. For a thousand rows and more this is one to two
//! hundredths of the product's time, and it needs no second copy.

mod ffi;
pub(super) mod image;
#[cfg(test)]
mod tests;

use std::ffi::CStr;
use std::sync::OnceLock;

use serde::Serialize;
use tch::{Device, Kind, Tensor};

use super::{Activation, Epilogue, ParallelBlock, Qkv};
use crate::nn::{LayerNorm, Linear, Weight};
use crate::numerics::{WorkspaceBlock, is_fast, torch_everywhere, workspace};
use crate::shim;
use ffi::Kernels;

/// A build of the kernels that this CPU runs.
#[derive(Clone, Copy)]
pub(crate) struct Build(&'static Kernels);

impl Build {
    /// The fastest, or the one of a name, if the CPU runs it.
    pub(crate) fn find(name: Option<&CStr>) -> Option<Self> {
        let name = name.map_or(std::ptr::null(), CStr::as_ptr);
        // SAFETY: the text ends with a zero; what comes back is null or a constant of the program.
        unsafe { ffi::tch_flux_kernels(name).as_ref() }.map(Build)
    }

    fn best() -> Self {
        static BEST: OnceLock<&'static Kernels> = OnceLock::new();
        Build(BEST.get_or_init(|| {
            Self::find(None).map(|build| build.0).unwrap_or_else(|| unreachable!("plain runs everywhere"))
        }))
    }

    fn name(self) -> &'static str {
        // SAFETY: a constant text of the program.
        unsafe { CStr::from_ptr(self.0.name) }.to_str().unwrap_or_default()
    }
}

/// What the fast form computes with on this CPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Arithmetic {
    /// The instruction set: `plain`, `avx2`, `avx512`, `avx512_bf16` or `amx`.
    pub instructions: &'static str,
    /// Whether bf16 numbers are multiplied as such; otherwise they become f32 on their way into the registers.
    pub bf16_products: bool,
    /// Whether int8 numbers are multiplied four at a time (VNNI).
    pub int8_products: bool,
}

/// See [`Arithmetic`].
pub fn arithmetic() -> Arithmetic {
    let best = Build::best();
    Arithmetic {
        instructions: best.name(),
        bf16_products: best.0.has_bf16_products != 0,
        int8_products: best.0.has_int8_products != 0,
    }
}

/// Whether these tensors are the kernels' business: on the CPU, all of one of the two kinds, without gradients.
fn is_supported<'a>(tensors: impl IntoIterator<Item = &'a Tensor> + Clone) -> bool {
    let mut kinds = tensors.clone().into_iter().map(|tensor| (tensor.device(), tensor.kind()));
    let first = kinds.next();
    matches!(first, Some((Device::Cpu, Kind::Float | Kind::BFloat16)))
        && kinds.all(|kind| Some(kind) == first)
        && is_fast(tensors)
        && !shim::autocast_is_enabled(Device::Cpu)
        && !torch_everywhere()
}

/// A tensor as rows of its last axis, each a fixed number of elements after the one before; copied where it is not.
pub(super) struct Rows {
    pub(super) tensor: Tensor,
    pub(super) count: i64,
    pub(super) width: i64,
    pub(super) stride: i64,
}

impl Rows {
    pub(super) fn of(tensor: &Tensor) -> Self {
        let (size, strides) = (tensor.size(), tensor.stride());
        let last = size.len().saturating_sub(1);
        let width = size.get(last).copied().unwrap_or(1);
        // From the inside out: each axis must go on where the one within it ends.
        let mut row: Option<(i64, i64)> = None;
        let mut dense = strides.get(last).is_none_or(|&stride| stride == 1 || width == 1);
        for (&n, &stride) in size[..last].iter().zip(&strides).rev() {
            match row {
                _ if n == 1 => {}
                None => row = Some((stride, stride * n)),
                Some((inner, end)) => {
                    dense &= stride == end;
                    row = Some((inner, stride * n));
                }
            }
        }
        let count = size[..last].iter().product();
        if dense {
            let stride = row.map_or(width, |(stride, _)| stride);
            return Self { tensor: tensor.shallow_clone(), count, width, stride };
        }
        Self { tensor: tensor.contiguous(), count, width, stride: width }
    }

    fn raw(&self) -> ffi::Rows {
        self.raw_from(0)
    }

    /// The rows from one on.
    fn raw_from(&self, row: i64) -> ffi::Rows {
        debug_assert!((0..=self.count).contains(&row));
        let kind = self.tensor.kind();
        let bytes = (row * self.stride) as usize * kind.elt_size_in_bytes();
        let data = self.tensor.data_ptr().cast::<u8>().wrapping_add(bytes).cast();
        ffi::Rows { data, stride: self.stride, kind: ffi::kind(kind) }
    }
}

/// A linear layer and what follows it, if it is ours.
pub(super) fn linear(layer: &Linear, x: &Tensor, end: &Epilogue) -> Option<Tensor> {
    let bias = layer.bias.iter();
    if !is_supported([x, &layer.weight].into_iter().chain(bias).chain(end.tensors()).collect::<Vec<_>>()) {
        return None;
    }
    let mut size = x.size();
    let width = std::mem::replace(size.last_mut()?, layer.weight.size()[0]);
    if width != layer.weight.size()[1] || !is_whole(layer) || !fits(end, &size) {
        return None;
    }
    let out = workspace().empty(&size, x.kind());
    linear_into(layer, x, end, 0..layer.weight.size()[0], &out);
    Some(out)
}

/// Whether the bias, which may be replaced from outside, has a number for each row of the weight.
fn is_whole(layer: &Linear) -> bool {
    layer.bias.as_ref().is_none_or(|bias| bias.size() == layer.weight.size()[..1])
}

/// Whether what follows has the sizes of a result of this size. The kernels read as far as they are told, so what does
/// not fit is left to the exact form, which libtorch refuses with both sizes.
fn fits(end: &Epilogue, size: &[i64]) -> bool {
    let same = |tensor: Option<&Tensor>| tensor.is_none_or(|tensor| tensor.size() == size);
    same(end.factor) && same(end.residual) && end.gate.is_none_or(|gate| is_row_of(gate, size))
}

/// Whether a tensor has rows as wide as those of a tensor of this size, and one for every so many of them.
fn is_row_of(row: &Tensor, size: &[i64]) -> bool {
    let rows = |size: &[i64]| size[..size.len().saturating_sub(1)].iter().product::<i64>();
    let (own, all) = (rows(&row.size()), rows(size));
    row.size().last() == size.last() && own > 0 && all % own == 0
}

/// Rows of a linear layer's weight, and what follows, into a tensor that may be strided.
fn linear_into(layer: &Linear, x: &Tensor, end: &Epilogue, rows: super::Rows, out: &Tensor) {
    layer.with(|beside, weight, bias| {
        let len = rows.end - rows.start;
        match beside {
            Some(beside) => {
                // LoRAs change the sums, so the end waits for them.
                let sums = workspace().empty(&out.size(), out.kind());
                product(x, weight, &rows, bias, &Epilogue::default(), &sums);
                let whole = rows == (0..weight.len());
                debug_assert!(whole, "a layer with LoRAs is computed as a whole");
                let plain = |x: &Tensor| {
                    let mut size = x.size();
                    size.pop();
                    size.push(len);
                    let out = workspace().empty(&size, x.kind());
                    product(x, weight, &rows, None, &Epilogue::default(), &out);
                    out
                };
                let sums = beside.forward(x, sums, &plain);
                finish(&sums, end, out);
            }
            None => product(x, weight, &rows, bias, end, out),
        }
    });
}

fn raw_end(end: &Epilogue, rows: i64) -> (Vec<Rows>, ffi::Epilogue) {
    let mut kept = Vec::new();
    let mut raw = |tensor: Option<&Tensor>| match tensor {
        Some(tensor) => {
            let rows = Rows::of(tensor);
            let raw = rows.raw();
            kept.push(rows);
            raw
        }
        None => ffi::Rows::NONE,
    };
    let (factor, residual, gate) = (raw(end.factor), raw(end.residual), raw(end.gate));
    let gates = end.gate.map_or(1, |gate| gate.size()[..gate.dim() - 1].iter().product::<i64>().max(1));
    let activation = match end.activation {
        Activation::None => 0,
        Activation::GeluTanh | Activation::GeluNew => 1,
        Activation::GeluErf => 2,
        Activation::QuickGelu => 3,
        Activation::Silu => 4,
    };
    (kept, ffi::Epilogue { activation, factor, residual, gate, gate_every: (rows / gates).max(1) })
}

/// `x` times some rows of a weight and, where there is one, those of the bias, and what follows, into `out`.
fn product(
    x: &Tensor,
    weight: &Weight,
    rows: &super::Rows,
    bias: Option<&Tensor>,
    end: &Epilogue,
    out: &Tensor,
) {
    let (x, c) = (Rows::of(x), Rows::of(out));
    assert_eq!(c.tensor.data_ptr(), out.data_ptr(), "the result's rows are not evenly apart");
    let (w, scale, sum) = match weight {
        Weight::Dense(weight) => (Rows::of(weight), None, None),
        Weight::Int8(int8) => {
            (Rows::of(&int8.weight), Some(Rows::of(&int8.scale)), Some(Rows::of(&int8.sum)))
        }
        Weight::Fp8(_) => unreachable!("fp8 weights are on CUDA"),
    };
    // Vectors are one row, of which a part is taken.
    let bias =
        bias.map(|bias| Rows { count: bias.size()[0], width: 1, stride: 1, tensor: bias.contiguous() });
    let (_kept, end) = raw_end(end, x.count);
    let part = |vector: &Option<Rows>| {
        vector.as_ref().map_or(std::ptr::null::<u8>(), |vector| {
            let bytes = rows.start as usize * vector.tensor.kind().elt_size_in_bytes();
            vector.tensor.data_ptr().cast_const().cast::<u8>().wrapping_add(bytes)
        })
    };
    let product = ffi::Product {
        m: x.count,
        n: rows.end - rows.start,
        k: x.width,
        a: x.raw(),
        w: w.raw_from(rows.start),
        w_scale: part(&scale).cast(),
        w_sum: part(&sum).cast(),
        bias: bias.as_ref().map_or(ffi::Rows::NONE, |bias| bias.raw_from(rows.start)),
        c: c.raw(),
        end,
        window: std::ptr::null(),
        words: 0,
    };
    run_product(Build::best(), &product);
}

fn run_product(build: Build, product: &ffi::Product) {
    // SAFETY: every pointer lies in a tensor that the caller holds, of the sizes that it says.
    unsafe {
        let bytes = ffi::tch_flux_product_scratch(build.0, product);
        let scratch = Scratch::of(bytes);
        ffi::tch_flux_product(build.0, product, scratch.0);
    }
}

/// Memory for the time of one call.
struct Scratch(
    *mut std::ffi::c_void,
    #[expect(dead_code, reason = "it owns the memory")] Option<WorkspaceBlock>,
);

impl Scratch {
    fn of(bytes: usize) -> Self {
        if bytes == 0 {
            return Self(std::ptr::null_mut(), None);
        }
        let block =
            workspace().block(bytes).unwrap_or_else(|error| panic!("{bytes} bytes of memory: {error}"));
        Self(shim::Memory::bytes(&block).0.cast(), Some(block))
    }
}

/// What follows a product whose sums are there.
fn finish(sums: &Tensor, end: &Epilogue, out: &Tensor) {
    let (sums, c) = (Rows::of(sums), Rows::of(out));
    assert_eq!(c.tensor.data_ptr(), out.data_ptr(), "the result's rows are not evenly apart");
    let (_kept, end) = raw_end(end, sums.count);
    let product = ffi::Product {
        m: sums.count,
        n: sums.width,
        k: 0,
        a: sums.raw(),
        w: ffi::Rows::NONE,
        w_scale: std::ptr::null(),
        w_sum: std::ptr::null(),
        bias: ffi::Rows::NONE,
        c: c.raw(),
        end,
        window: std::ptr::null(),
        words: 0,
    };
    // SAFETY: as in `run_product`.
    unsafe { ffi::tch_flux_finish(Build::best().0, &product) };
}

/// `silu(x) * factor`, if it is ours.
pub(super) fn gated(x: &Tensor, factor: &Tensor) -> Option<Tensor> {
    if !is_supported([x, factor]) || x.size() != factor.size() {
        return None;
    }
    let out = workspace().empty(&x.size(), x.kind());
    finish(x, &Epilogue { activation: Activation::Silu, factor: Some(factor), ..Epilogue::default() }, &out);
    Some(out)
}

/// Whether these tensors are bf16 that the CPU has no products for.
pub(super) fn widens(tensors: [&Tensor; 3]) -> bool {
    tensors[0].kind() == Kind::BFloat16 && !arithmetic().bf16_products && is_supported(tensors)
}

/// See [`super::modulate`], if it is ours.
pub(super) fn modulate(norm: &LayerNorm, x: &Tensor, scale: &Tensor, shift: &Tensor) -> Option<Tensor> {
    let size = x.size();
    if !is_supported([x, scale, shift]) || scale.size() != shift.size() || !is_row_of(scale, &size) {
        return None;
    }
    Some(normed(x, scale, Some(shift), norm.plain_eps()?))
}

/// See [`super::rms_norm`], if it is ours.
pub(super) fn rms_norm(weight: &Tensor, eps: f64, x: &Tensor) -> Option<Tensor> {
    (is_supported([x, weight]) && is_row_of(weight, &x.size())).then(|| normed(x, weight, None, eps))
}

fn normed(x: &Tensor, scale: &Tensor, shift: Option<&Tensor>, eps: f64) -> Tensor {
    let out = workspace().empty(&x.size(), x.kind());
    let (rows, scales, shifts) = (Rows::of(x), Rows::of(scale), shift.map(Rows::of));
    let modulate = ffi::Modulate {
        rows: rows.count,
        width: rows.width,
        every: (rows.count / scales.count.max(1)).max(1),
        eps: eps as f32,
        x: rows.raw(),
        scale: scales.raw(),
        shift: shifts.as_ref().map_or(ffi::Rows::NONE, Rows::raw),
        out: Rows::of(&out).raw(),
        rms: i32::from(shift.is_none()),
    };
    // SAFETY: every pointer lies in a tensor that lives until the end of the call, of the sizes that it says.
    unsafe { ffi::tch_flux_modulate(Build::best().0, &modulate) };
    out
}

/// See [`super::joint_attention`], if it is ours, of the tokens from `from` on; into `out` `[B, ΣL − from, H·d]`, which may
/// be strided, if there is one.
pub(super) fn joint_attention(
    streams: &[Qkv],
    num_heads: i64,
    pe: &Tensor,
    from: i64,
    out: Option<&Tensor>,
) -> Option<Tensor> {
    let scales = streams.iter().flat_map(|s| s.scales);
    if !is_supported(streams.iter().map(|s| s.qkv).chain(scales).collect::<Vec<_>>()) || !is_fast([pe]) {
        return None;
    }
    let first = streams.first()?.qkv;
    let (batch, hidden) = (first.size()[0], first.size()[2] / 3);
    let width = hidden / num_heads;
    let length: i64 = streams.iter().map(|s| s.qkv.size()[1]).sum();
    let fits = pe.size().get(2..) == Some(&[length, width / 2, 2, 2])
        && (pe.size()[0] == 1 || pe.size()[0] == batch)
        && pe.kind() == Kind::Float
        && streams.iter().all(|s| s.qkv.size() == [batch, s.qkv.size()[1], 3 * num_heads * width])
        && (0..length).contains(&from)
        && streams.iter().all(|s| s.scales.iter().all(|scale| scale.size() == [width]));
    if !fits || width % 2 != 0 || width > ffi::WIDEST {
        return None;
    }
    let out = match out {
        Some(out) => out.shallow_clone(),
        None => workspace().empty(&[batch, length - from, hidden], first.kind()),
    };
    let scales: Vec<[Tensor; 2]> = streams.iter().map(|s| s.scales.map(|scale| scale.contiguous())).collect();
    let pe = pe.contiguous();
    let parts: Vec<Rows> = streams.iter().map(|s| Rows::of(s.qkv)).collect();
    let rows = Rows::of(&out);
    assert_eq!(rows.tensor.data_ptr(), out.data_ptr(), "the result's rows are not evenly apart");
    for i in 0..batch {
        let mut start = 0;
        let raw = parts.iter().zip(&scales).map(|(part, [q, k])| {
            let length = part.count / batch;
            let stream = ffi::Stream {
                qkv: part.raw_from(i * length),
                q_scale: q.data_ptr(),
                k_scale: k.data_ptr(),
                start,
                length,
            };
            start += length;
            stream
        });
        let raw: Vec<ffi::Stream> = raw.collect();
        let numbers = if pe.size()[0] == 1 { 0 } else { i * length * width * 2 };
        let pe = pe.data_ptr().cast_const().cast::<f32>().wrapping_add(numbers as usize);
        let sizes = Sizes { heads: num_heads, width, length, from };
        attend(&raw, sizes, pe, rows.raw_from(i * (length - from)));
    }
    Some(out)
}

/// Sizes of an attention: the results of the tokens from `from` on are wanted.
struct Sizes {
    heads: i64,
    width: i64,
    length: i64,
    from: i64,
}

/// `pe` is null where nothing is rotated.
fn attend(streams: &[ffi::Stream], sizes: Sizes, pe: *const f32, out: ffi::Rows) {
    let Sizes { heads, width, length, from } = sizes;
    let attention = ffi::Attention {
        heads,
        width,
        length,
        from,
        eps: 1e-6,
        scale: (width as f32).sqrt().recip(),
        streams: streams.as_ptr(),
        stream_count: streams.len() as i64,
        pe,
        words: 0,
        out,
    };
    let build = Build::best();
    // SAFETY: every pointer lies in a tensor that the caller holds, of the sizes that it says.
    unsafe {
        let scratch = Scratch::of(ffi::tch_flux_attention_scratch(build.0, &attention));
        ffi::tch_flux_attention(build.0, &attention, scratch.0);
    }
}

/// See [`ParallelBlock::forward`], if it is ours: the attention and the activated MLP are written side by side into what
/// the second layer reads.
pub(super) fn parallel_block(
    block: &ParallelBlock,
    x_mod: &Tensor,
    pe: &Tensor,
    gate: &Tensor,
    x: &Tensor,
    from: i64,
) -> Option<Tensor> {
    let ParallelBlock { linear1, linear2, .. } = block;
    if !block.tensors([x_mod, gate, x]).is_some_and(is_supported) {
        return None;
    }
    let [b, l, hidden] = x_mod.size()[..] else { return None };
    let mlp = linear1.weight.size()[0] - 3 * hidden;
    if linear1.weight.size()[1] != hidden || linear2.weight.size() != [hidden, hidden + mlp] || mlp <= 0 {
        return None;
    }
    if !is_whole(linear1) || !is_whole(linear2) || !(0..l).contains(&from) {
        return None;
    }
    let workspace = workspace();
    let qkv = workspace.empty(&[b, l, 3 * hidden], x.kind());
    linear_into(linear1, x_mod, &Epilogue::default(), 0..3 * hidden, &qkv);
    let wanted = |x: &Tensor| match from {
        0 => x.shallow_clone(),
        _ => x.narrow(1, from, l - from).contiguous(),
    };
    let both = workspace.empty(&[b, l - from, hidden + mlp], x.kind());
    let gelu = Epilogue { activation: Activation::GeluTanh, ..Epilogue::default() };
    linear_into(linear1, &wanted(x_mod), &gelu, 3 * hidden..3 * hidden + mlp, &both.narrow(-1, hidden, mlp));
    let stream = Qkv { qkv: &qkv, scales: block.scales };
    let _ = joint_attention(&[stream], block.num_heads, pe, from, Some(&both.narrow(-1, 0, hidden)))?;
    drop(qkv);
    linear(linear2, &both, &Epilogue { gate: Some(gate), residual: Some(&wanted(x)), ..Epilogue::default() })
}
