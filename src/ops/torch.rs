//! The operations from libtorch's own, fewer and larger than the official ones: for every device but the CPU, which has
//! kernels for all of them. On CUDA the steps that are bound by memory run our kernels ([`cuda`]) where these can be had.

use std::cell::OnceCell;

use tch::nn::Module;
use tch::{Device, Kind, Tensor};

use super::{Activation, Epilogue, ParallelBlock, Qkv, ResidualMlp, cuda};
use crate::nn::{LayerNorm, Linear, Weight};
use crate::numerics::{is_fast, torch_everywhere};
use crate::quant::Fp8;
use crate::{math, shim};

/// Whether these tensors are ours: not on the CPU, all of one device and kind, without gradients.
fn is_supported<'a>(tensors: impl IntoIterator<Item = &'a Tensor> + Clone) -> bool {
    let mut kinds = tensors.clone().into_iter().map(|tensor| (tensor.device(), tensor.kind()));
    let Some(first @ (device, Kind::Float | Kind::BFloat16 | Kind::Half)) = kinds.next() else {
        return false;
    };
    (device != Device::Cpu || torch_everywhere())
        && kinds.all(|kind| kind == first)
        && is_fast(tensors)
        && !shim::autocast_is_enabled(device)
}

/// A linear layer and what follows it, if it is ours.
pub(super) fn linear(layer: &Linear, x: &Tensor, end: &Epilogue) -> Option<Tensor> {
    let bias = layer.bias.iter();
    if !is_supported([x, &layer.weight].into_iter().chain(bias).chain(end.tensors()).collect::<Vec<_>>()) {
        return None;
    }
    Some(layer.with(|beside, weight, bias| match (beside, end.activation) {
        (Some(beside), _) => {
            let y = product(x, weight, bias);
            // LoRAs change the sums, so the end waits for them.
            finish(beside.forward(x, y, &|x| product(x, weight, None)), end)
        }
        (None, Activation::GeluTanh) => {
            finish(product_gelu(x, weight, bias), &Epilogue { activation: Activation::None, ..*end })
        }
        (None, _) => finish(product(x, weight, bias), end),
    }))
}

fn product(x: &Tensor, weight: &Weight, bias: Option<&Tensor>) -> Tensor {
    match weight {
        Weight::Dense(weight) => math::linear(x, weight, bias),
        Weight::Fp8(fp8) => product_fp8(x, fp8, bias),
        Weight::Int8(_) => unreachable!("int8 weights are on the CPU"),
    }
}

/// The product with tanh-GELU behind it: on CUDA in the product's epilogue, which for f32 is not accurate enough. On a CPU
/// that would be the other GELU.
fn product_gelu(x: &Tensor, weight: &Weight, bias: Option<&Tensor>) -> Tensor {
    match (weight, bias) {
        (Weight::Dense(weight), Some(bias)) if x.device().is_cuda() && x.kind() != Kind::Float => {
            let out =
                shim::addmm_gelu(bias, &as_rows(x), &weight.tr()).unwrap_or_else(|error| panic!("{error}"));
            out.view(&with_width(x, weight.size()[0])[..])
        }
        _ => product(x, weight, bias).gelu("tanh"),
    }
}

/// Each row of `x` becomes fp8 with a scale of its own, and so does each row of the weight: the sums are put back by both.
fn product_fp8(x: &Tensor, weight: &Fp8, bias: Option<&Tensor>) -> Tensor {
    let rows = as_rows(x);
    let rows = cuda::quantize_rows(Some(&rows), None).unwrap_or_else(|| Fp8::quantize(&rows));
    product_rows(&rows, weight, bias, x)
}

/// The product of rows that are fp8 already, of the kind of `like` and of its size but for the last axis.
fn product_rows(rows: &Fp8, weight: &Fp8, bias: Option<&Tensor>, like: &Tensor) -> Tensor {
    let (w, w_scale) = (weight.weight.tr(), weight.scale.tr());
    // libtorch scales by rows into bf16 alone.
    let (bias, none) = (bias.map(|bias| bias.to_kind(Kind::BFloat16)), None::<Tensor>);
    let out = rows.weight.internal_scaled_mm(&w, &rows.scale, &w_scale, bias, none, Kind::BFloat16, true);
    out.to_kind(like.kind()).view(&with_width(like, weight.weight.size()[0])[..])
}

/// `[…, in]` as a matrix.
fn as_rows(x: &Tensor) -> Tensor {
    x.reshape([-1, x.size()[x.dim() - 1]])
}

/// The size of `x` with another last axis.
fn with_width(x: &Tensor, width: i64) -> Vec<i64> {
    let mut size = x.size();
    size.pop();
    size.push(width);
    size
}

fn finish(y: Tensor, end: &Epilogue) -> Tensor {
    match *end {
        Epilogue { activation, factor, gate: Some(gate), residual: Some(residual) } => {
            let y = Epilogue { activation, factor, ..Epilogue::default() }.apply(y);
            gated_residual(residual, gate, &y)
        }
        end => end.apply(y),
    }
}

/// `x + gate * y`.
fn gated_residual(x: &Tensor, gate: &Tensor, y: &Tensor) -> Tensor {
    cuda::gated_residual(x, gate, y).unwrap_or_else(|| x.addcmul(gate, y))
}

/// See [`super::modulate`], if it is ours. For one sample, scale and shift are the norm's own.
pub(super) fn modulate(norm: &LayerNorm, x: &Tensor, scale: &Tensor, shift: &Tensor) -> Option<Tensor> {
    let eps = norm.plain_eps().filter(|_| is_supported([x, scale, shift]))?;
    if let Some(out) = cuda::modulate(x, [scale, shift], eps) {
        return Some(out);
    }
    let (scale, width) = (scale + 1, *x.size().last()?);
    if scale.numel() as i64 == width && shift.numel() as i64 == width {
        let [scale, shift] = [&scale, shift].map(|x| x.reshape([width]));
        return Some(x.layer_norm([width], Some(scale), Some(shift), eps, true));
    }
    Some(shift.addcmul(&norm.forward(x), &scale))
}

/// See [`super::modulate_linear`], where that is one product of fp8 whose rows come from the norm.
pub(super) fn modulate_linear(
    norm: &LayerNorm,
    x: &Tensor,
    [scale, shift]: [&Tensor; 2],
    layer: &Linear,
) -> Option<Tensor> {
    let eps = norm.plain_eps().filter(|_| is_supported([x, scale, shift]))?;
    let weight = layer.fp8()?;
    let rows = cuda::modulate_fp8(x, [scale, shift], eps)?;
    Some(product_rows(&rows, &weight, layer.bias.as_ref(), x))
}

/// See [`ResidualMlp::forward`], if it is ours.
pub(super) fn residual_mlp(block: &ResidualMlp, attn: &Tensor, x: &Tensor) -> Option<Tensor> {
    let ResidualMlp { proj, gate, norm, modulation, up, down, mlp_gate } = *block;
    let [scale, shift] = modulation;
    let eps = norm.plain_eps().filter(|_| is_supported([x, gate, scale, shift, mlp_gate]))?;
    let y = linear(proj, attn, &Epilogue::default())?;
    if let (Some(up8), Some(down8)) = (up.fp8(), down.fp8())
        && let Some((x, rows)) = cuda::gated_modulate_fp8(x, [gate, &y], modulation, eps)
    {
        let hidden = product_rows(&rows, &up8, up.bias.as_ref(), &x);
        if let Some(rows) = cuda::quantize_rows(None, Some(&hidden)) {
            let y = product_rows(&rows, &down8, down.bias.as_ref(), &x);
            return Some(gated_residual(&x, mlp_gate, &y));
        }
    }
    let (x, x_mod) = match cuda::gated_modulate(x, [gate, &y], modulation, eps) {
        Some(both) => both,
        None => {
            let x = gated_residual(x, gate, &y);
            let x_mod = modulate(norm, &x, scale, shift)?;
            (x, x_mod)
        }
    };
    drop(y);
    let hidden = linear(up, &x_mod, &Epilogue { activation: Activation::GeluTanh, ..Epilogue::default() })?;
    linear(down, &hidden, &Epilogue { gate: Some(mlp_gate), residual: Some(&x), ..Epilogue::default() })
}

/// See [`super::joint_attention`], if it is ours: every stream's q, k and v are written to their place in joint tensors
/// `[B, S, H, d]`, whose heads attention takes as strided views. `pe` must be rotations.
pub(super) fn joint_attention(streams: &[Qkv], num_heads: i64, pe: &Tensor) -> Option<Tensor> {
    let scales = streams.iter().flat_map(|s| s.scales);
    if !is_supported(streams.iter().map(|s| s.qkv).chain(scales).collect::<Vec<_>>()) || !is_fast([pe]) {
        return None;
    }
    let first = streams.first()?.qkv;
    let (batch, width) = (first.size()[0], first.size()[2] / 3 / num_heads);
    let length: i64 = streams.iter().map(|s| s.qkv.size()[1]).sum();
    let fits = pe.size().get(2..) == Some(&[length, width / 2, 2, 2]) && pe.kind() == Kind::Float;
    if !fits || width % 2 != 0 {
        return None;
    }
    let joint = match streams {
        [Qkv { qkv, scales }] => in_place(qkv, *scales, pe, num_heads),
        _ => None,
    };
    let joint = joint.unwrap_or_else(|| {
        let joint = [(); 3].map(|()| {
            Tensor::empty([batch, length, num_heads, width], (first.kind(), first.device())) // [B, S, H, d]
        });
        let turns = OnceCell::new();
        let mut start = 0;
        for &Qkv { qkv, scales } in streams {
            let [q, k, v] = &joint;
            if !cuda::pack_heads(qkv, scales, pe, [q, k], Some(v), start) {
                pack_heads(qkv, scales, turns.get_or_init(|| as_complex(pe)), &joint, start);
            }
            start += qkv.size()[1];
        }
        joint
    });
    let [q, k, v] = joint.map(|x| x.transpose(1, 2)); // [B, H, S, d]
    Some(math::merge_heads(&math::scaled_dot_product_attention(&q, &k, &v, None, false, None)))
}

/// One stream's q, k and v `[B, L, H, d]` as views into `qkv`, where queries and keys were normalised and rotated.
fn in_place(qkv: &Tensor, scales: [&Tensor; 2], pe: &Tensor, num_heads: i64) -> Option<[Tensor; 3]> {
    let [b, l, hidden] = qkv.size()[..] else { return None };
    let width = hidden / 3;
    let [q, k, v] =
        [0, 1, 2].map(|i| qkv.narrow(-1, i * width, width).view([b, l, num_heads, width / num_heads]));
    cuda::pack_heads(qkv, scales, pe, [&q, &k], None, 0).then_some([q, k, v])
}

/// Rotations `[B, 1, S, d/2, 2, 2]` as complex numbers `[B, S, 1, d/2]`: a first column is the cosine and the sine.
fn as_complex(pe: &Tensor) -> Tensor {
    pe.select(-1, 0).contiguous().view_as_complex().transpose(1, 2)
}

/// See [`cuda::pack_heads`].
fn pack_heads(qkv: &Tensor, scales: [&Tensor; 2], turns: &Tensor, joint: &[Tensor; 3], start: i64) {
    let (b, l, heads, width) = (qkv.size()[0], qkv.size()[1], joint[0].size()[2], joint[0].size()[3]);
    let parts = qkv.reshape([b, l, 3, heads, width]);
    let turns = turns.narrow(1, start, l); // [B, L, 1, d/2]
    let place = |i: usize| joint[i].narrow(1, start, l);
    for (i, scale) in scales.into_iter().enumerate() {
        let x = parts.select(2, i as i64).to_kind(Kind::Float);
        let x = x.rms_norm([width], Some(scale.to_kind(Kind::Float)), 1e-6); // [B, L, H, d]
        let x = x.reshape([b, l, heads, width / 2, 2]).view_as_complex() * &turns;
        place(i).copy_(&x.view_as_real().flatten(3, 4));
    }
    place(2).copy_(&parts.select(2, 2));
}

/// See [`ParallelBlock::fused`], where both layers are products of fp8: the rows of the first come from the norm, and
/// attention, GELU and MLP become the rows of the second in one pass.
pub(super) fn parallel_block_fp8(
    block: &ParallelBlock,
    x: &Tensor,
    [shift, scale, gate]: [&Tensor; 3],
    pe: &Tensor,
) -> Option<Tensor> {
    let ParallelBlock { linear1, linear2, .. } = block;
    let weight = linear2.fp8()?;
    let both = modulate_linear(block.pre_norm, x, [scale, shift], linear1)?;
    let cut = 3 * block.hidden_size;
    let [qkv, mlp] = [(0, cut), (cut, both.size()[2] - cut)].map(|(from, len)| both.narrow(-1, from, len));
    let attn = joint_attention(&[Qkv { qkv: &qkv, scales: block.scales }], block.num_heads, pe)?;
    let rows = cuda::quantize_rows(Some(&attn), Some(&mlp))?;
    let y = product_rows(&rows, &weight, linear2.bias.as_ref(), x);
    Some(gated_residual(x, gate, &y))
}

/// See [`ParallelBlock::fused`], if it is ours: the MLP's part of the first layer has GELU behind it, and the second
/// layer is two products that add up, so that nothing is put side by side.
pub(super) fn parallel_block(
    block: &ParallelBlock,
    x_mod: &Tensor,
    pe: &Tensor,
    gate: &Tensor,
    x: &Tensor,
) -> Option<Tensor> {
    let ParallelBlock { linear1, linear2, .. } = block;
    if !block.tensors([x_mod, gate, x]).is_some_and(is_supported) {
        return None;
    }
    let hidden = block.hidden_size;
    let (qkv, mlp) = linear1.with(|_, weight, bias| {
        let cut = 3 * hidden;
        let rows = [0..cut, cut..weight.len()];
        let bias = |rows: &super::Rows| bias.map(|bias| bias.narrow(0, rows.start, rows.end - rows.start));
        let [qkv, mlp] = rows.map(|rows| weight.rows(&rows).map(|weight| (weight, bias(&rows))));
        let ((qkv, qkv_bias), (mlp, mlp_bias)) = (qkv?, mlp?);
        Some((product(x_mod, &qkv, qkv_bias.as_ref()), product_gelu(x_mod, &mlp, mlp_bias.as_ref())))
    })?;
    let stream = Qkv { qkv: &qkv, scales: block.scales };
    let attn = joint_attention(&[stream], block.num_heads, pe)?;
    drop(qkv);
    let summed = linear2.with(|beside, weight, bias| match (beside, weight, bias) {
        (None, Weight::Dense(weight), Some(bias)) => {
            let part = |from: i64, x: &Tensor| weight.narrow(1, from, x.size()[2]).tr();
            let mut sum = bias.addmm(&as_rows(&attn), &part(0, &attn));
            let _ = sum.addmm_(&as_rows(&mlp), &part(hidden, &mlp));
            Some(sum.view_as(x))
        }
        _ => None,
    });
    match summed {
        Some(y) => Some(gated_residual(x, gate, &y)),
        None => {
            let end = Epilogue { gate: Some(gate), residual: Some(x), ..Epilogue::default() };
            linear(linear2, &Tensor::cat(&[attn, mlp], 2), &end)
        }
    }
}
