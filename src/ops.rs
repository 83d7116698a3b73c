//! The hot operations: what each means, and how it is done fast.
//!
//! The models are written once over these. Each has an exact form, the official operations in the official order, bit for
//! bit, and a fast one that may fuse and reorder; against an f64 reference the fast one's error is at most 1.1 times
//! that of the exact one. Which of them runs is chosen in one place: a model's `set_numerics`, or
//! [`with_numerics`](crate::numerics::with_numerics) for a layer that is used alone.
//!
//! The fast form runs on the CPU in f32 and bf16 ([`cpu`]), and on other devices in f32, bf16 and f16: on CUDA with
//! kernels of our own ([`cuda`]), elsewhere, and where these cannot be had, with libtorch's operations. Everything else,
//! and whatever needs gradients, runs the exact one.

pub mod cpu;
pub mod cuda;
#[cfg(test)]
mod tests;
mod torch;

use std::convert::Infallible;
use std::ops::Range;

use tch::nn::Module;
use tch::{Kind, Tensor};

use crate::math;
use crate::nn::{Conv2d, GroupNorm, LayerNorm, Linear};
use crate::numerics::{at_least_f32, fitting, is_fast};

/// What follows a linear layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Activation {
    #[default]
    None,
    /// GELU with tanh, as torch has it.
    GeluTanh,
    /// The same function as `transformers` writes it out.
    GeluNew,
    /// GELU as it is defined.
    GeluErf,
    /// `x · sigmoid(1.702 x)`.
    QuickGelu,
    /// `x · sigmoid(x)`.
    Silu,
}

impl Activation {
    fn apply(self, x: Tensor) -> Tensor {
        match self {
            Self::None => x,
            Self::GeluTanh => x.gelu("tanh"),
            Self::GeluNew => {
                let inner = (&x + x.pow_tensor_scalar(3.0) * 0.044715) * (2.0 / std::f64::consts::PI).sqrt();
                x * 0.5 * (inner.tanh() + 1.0)
            }
            Self::GeluErf => x.gelu("none"),
            Self::QuickGelu => &x * (&x * 1.702).sigmoid(),
            Self::Silu => x.silu(),
        }
    }
}

/// What is done with a linear layer's output `y`, in this order: `residual + gate * (activation(y) * factor)`.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Epilogue<'a> {
    pub(crate) activation: Activation,
    /// Of the output's shape.
    pub(crate) factor: Option<&'a Tensor>,
    /// `[B, 1, out]`.
    pub(crate) gate: Option<&'a Tensor>,
    /// Of the output's shape.
    pub(crate) residual: Option<&'a Tensor>,
}

impl Epilogue<'_> {
    fn apply(&self, y: Tensor) -> Tensor {
        let y = self.activation.apply(y);
        let y = match self.factor {
            Some(factor) => y * factor,
            None => y,
        };
        let y = match self.gate {
            Some(gate) => gate * y,
            None => y,
        };
        match self.residual {
            Some(residual) => residual + y,
            None => y,
        }
    }

    fn tensors(&self) -> impl Iterator<Item = &Tensor> {
        [self.factor, self.gate, self.residual].into_iter().flatten()
    }
}

/// A linear layer `[…, in]` to `[…, out]`, and what follows it.
pub(crate) fn linear(layer: &Linear, x: &Tensor, end: Epilogue) -> Tensor {
    match cpu::linear(layer, x, &end).or_else(|| torch::linear(layer, x, &end)) {
        Some(out) => out,
        None => end.apply(layer.forward(x)),
    }
}

/// A linear layer with tanh-GELU behind it.
pub(crate) fn linear_gelu(layer: &Linear, x: &Tensor) -> Tensor {
    linear(layer, x, Epilogue { activation: Activation::GeluTanh, ..Epilogue::default() })
}

/// `x + gate * layer(y)`.
pub(crate) fn linear_gated_residual(layer: &Linear, y: &Tensor, gate: &Tensor, x: &Tensor) -> Tensor {
    linear(layer, y, Epilogue { gate: Some(gate), residual: Some(x), ..Epilogue::default() })
}

/// `(1 + scale) * norm(x) + shift`: `x` `[B, L, D]`, `scale` and `shift` `[B, 1, D]`, `norm` without parameters.
pub(crate) fn modulate(norm: &LayerNorm, x: &Tensor, scale: &Tensor, shift: &Tensor) -> Tensor {
    match cpu::modulate(norm, x, scale, shift).or_else(|| torch::modulate(norm, x, scale, shift)) {
        Some(out) => out,
        None => (scale + 1) * norm.forward(x) + shift,
    }
}

/// A linear layer of [`modulate`]'s result; `modulation` is scale and shift.
pub(crate) fn modulate_linear(
    norm: &LayerNorm,
    x: &Tensor,
    [scale, shift]: [&Tensor; 2],
    layer: &Linear,
) -> Tensor {
    match torch::modulate_linear(norm, x, [scale, shift], layer) {
        Some(out) => out,
        None => linear(layer, &modulate(norm, x, scale, shift), Epilogue::default()),
    }
}

/// The layers and modulations of a double block's second half, for one stream.
#[derive(Clone, Copy)]
pub(crate) struct ResidualMlp<'a> {
    pub(crate) proj: &'a Linear,
    pub(crate) gate: &'a Tensor,
    pub(crate) norm: &'a LayerNorm,
    /// Scale and shift.
    pub(crate) modulation: [&'a Tensor; 2],
    pub(crate) up: &'a Linear,
    pub(crate) down: &'a Linear,
    pub(crate) mlp_gate: &'a Tensor,
}

impl ResidualMlp<'_> {
    /// The fused form of `x + gate * proj(attn)` and the modulated MLP on it; `None` where the layers must be run one by one.
    pub(crate) fn fused(&self, attn: &Tensor, x: &Tensor) -> Option<Tensor> {
        torch::residual_mlp(self, attn, x)
    }
}

/// T5's norm: `weight * x / rms(x)`, the mean of the squares in f32.
pub(crate) fn rms_norm(weight: &Tensor, eps: f64, x: &Tensor) -> Tensor {
    if let Some(out) = cpu::rms_norm(weight, eps, x) {
        return out;
    }
    let variance = x.to_kind(at_least_f32(x.kind())).square().mean_dim(-1, true, None);
    let mut normed = x * (variance + eps).rsqrt();
    if matches!(weight.kind(), Kind::Half | Kind::BFloat16) {
        normed = normed.to_kind(weight.kind());
    }
    weight * normed
}

/// T5's attention: `[B, H, L, d]` each and a bias `[1, H, L, L]` on the scores, which are not scaled.
pub(crate) fn biased_attention(q: &Tensor, k: &Tensor, v: &Tensor, bias: &Tensor) -> Tensor {
    if cpu::widens([q, k, v]) {
        // libtorch's attention over bf16 multiplies such numbers one by one where the CPU has no instruction for them.
        let [q32, k32, v32, bias] = [q, k, v, bias].map(|x| x.to_kind(Kind::Float));
        return math::scaled_dot_product_attention(&q32, &k32, &v32, Some(&bias), false, Some(1.0))
            .to_kind(q.kind());
    }
    math::scaled_dot_product_attention(q, k, v, Some(bias), false, Some(1.0))
}

/// Queries, keys and values of one stream, `[B, L, 3·H·d]`, and the scales of the RMS norms of its queries and keys, `[d]`.
pub(crate) struct Qkv<'a> {
    pub(crate) qkv: &'a Tensor,
    pub(crate) scales: [&'a Tensor; 2],
}

/// The fused form of attention over the streams one after the other, each with norms of its own, rotated by `pe`
/// `[B, 1, ΣL, d/2, 2, 2]`: `[B, ΣL, H·d]`. It may overwrite what the `qkv` of a single stream holds. `None` where the
/// operations must be run one by one.
pub(crate) fn joint_attention(streams: &[Qkv], num_heads: i64, pe: &Tensor) -> Option<Tensor> {
    cpu::joint_attention(streams, num_heads, pe, 0, None)
        .or_else(|| torch::joint_attention(streams, num_heads, pe))
}

/// The layers of a single block.
pub(crate) struct ParallelBlock<'a> {
    /// To q, k, v and the MLP's hidden values.
    pub(crate) linear1: &'a Linear,
    /// From the attention's output and the activated hidden values.
    pub(crate) linear2: &'a Linear,
    pub(crate) pre_norm: &'a LayerNorm,
    /// Of the RMS norms of queries and keys, `[d]`.
    pub(crate) scales: [&'a Tensor; 2],
    pub(crate) num_heads: i64,
    /// `D`.
    pub(crate) hidden_size: i64,
}

impl ParallelBlock<'_> {
    /// All that a fused form of it reads beside these; `None` where the first layer is more than its weight, and cannot be
    /// taken apart.
    fn tensors<'a>(&'a self, inputs: [&'a Tensor; 3]) -> Option<Vec<&'a Tensor>> {
        let Self { linear1, linear2, .. } = self;
        let biases = [&linear1.bias, &linear2.bias].into_iter().flatten();
        let all = inputs.into_iter().chain([&linear1.weight, &linear2.weight]).chain(biases);
        (!linear1.has_branch()).then(|| all.collect())
    }

    /// The fused form of the block on `x` `[B, L, D]`; `modulation` is shift, scale and gate. It computes the tokens from
    /// `from` on: after a model's last block, nobody reads those of the text. `None` where the layers must be run one by one.
    pub(crate) fn fused(
        &self,
        x: &Tensor,
        modulation: [&Tensor; 3],
        pe: &Tensor,
        from: i64,
    ) -> Option<Tensor> {
        let wanted = |out: Tensor| out.narrow(1, from, out.size()[1] - from);
        let [shift, scale, gate] = modulation;
        if let Some(out) = torch::parallel_block_fp8(self, x, modulation, pe) {
            return Some(wanted(out));
        }
        if !is_fast([x]) || self.tensors([x, gate, x]).is_none() {
            return None;
        }
        let x_mod = &modulate(self.pre_norm, x, scale, shift);
        cpu::parallel_block(self, x_mod, pe, gate, x, from)
            .or_else(|| torch::parallel_block(self, x_mod, pe, gate, x).map(wanted))
    }
}

/// Half of the last axis through SiLU times the other half: `[…, 2·F]` to `[…, F]`, FLUX.2's MLP.
pub fn swiglu(x: &Tensor) -> Tensor {
    let halves = x.chunk(2, -1);
    if let Some(out) = cpu::gated(&halves[0], &halves[1]) {
        return out;
    }
    halves[0].silu() * &halves[1]
}

/// What is done with a picture on its way into a convolution.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Prologue {
    Nothing,
    /// Every pixel becomes four.
    Doubled,
    /// Zeros come below and to the right.
    PaddedAfter,
}

/// Runs layers on a picture `[B, C, H, W]`, the first of which has this weight. Between them the fast form has pictures
/// in an order and a kind of its own; what comes back is as the exact form has it.
pub(crate) fn on_picture(x: &Tensor, weight: &Tensor, layers: impl Fn(&Tensor) -> Tensor) -> Tensor {
    let Ok(out) = try_on_picture::<Infallible>(x, weight, |x| Ok(layers(x)));
    out
}

/// The same of layers that can stop.
pub(crate) fn try_on_picture<E>(
    x: &Tensor,
    weight: &Tensor,
    layers: impl Fn(&Tensor) -> Result<Tensor, E>,
) -> Result<Tensor, E> {
    cpu::image::between(x, weight, &layers).unwrap_or_else(|| layers(x))
}

/// A picture between layers in the kind of this weight, which under autocast it need not have; the fast form's keep
/// theirs.
pub(crate) fn as_weights(x: &Tensor, weight: &Tensor) -> Tensor {
    if cpu::image::is_between(x, weight) { x.shallow_clone() } else { x.to_kind(weight.kind()) }
}

/// A convolution, and what comes before and after: `residual + conv(before(x))`.
pub(crate) fn conv2d(conv: &Conv2d, x: &Tensor, before: Prologue, residual: Option<&Tensor>) -> Tensor {
    if let Some(out) = cpu::image::conv2d(conv, x, before, residual) {
        return out;
    }
    let x = fitting(x, conv.weight());
    let x = match before {
        Prologue::Nothing => x,
        Prologue::Doubled => x.upsample_nearest2d_vec(None::<&[i64]>, [2.0, 2.0]),
        Prologue::PaddedAfter => x.constant_pad_nd([0, 1, 0, 1]),
    };
    match residual {
        Some(residual) => residual + conv.forward(&x),
        None => conv.forward(&x),
    }
}

/// Group norm.
pub(crate) fn group_norm(norm: &GroupNorm, x: &Tensor) -> Tensor {
    match cpu::image::group_norm(norm, x, false) {
        Some(out) => out,
        None => norm.forward(&fitting(x, norm.affine()[0])),
    }
}

/// Group norm with SiLU behind it.
pub(crate) fn group_norm_silu(norm: &GroupNorm, x: &Tensor) -> Tensor {
    if let Some(out) = cpu::image::group_norm(norm, x, true) {
        return out;
    }
    let x = norm.forward(&fitting(x, norm.affine()[0]));
    &x * x.sigmoid()
}

/// Attention of a picture's pixels to each other with one head; queries, keys and values by convolutions of one tap.
pub(crate) fn pixel_attention(qkv: [&Conv2d; 3], x: &Tensor) -> Tensor {
    if let Some(out) = cpu::image::pixel_attention(qkv, x) {
        return out;
    }
    let (b, c, h, w) = (x.size()[0], x.size()[1], x.size()[2], x.size()[3]);
    let [q, k, v] = qkv.map(|conv| {
        conv.forward(&fitting(x, conv.weight())).permute([0, 2, 3, 1]).reshape([b, 1, h * w, c]).contiguous()
    });
    let x = math::scaled_dot_product_attention(&q, &k, &v, None, false, None);
    x.reshape([b, h, w, c]).permute([0, 3, 1, 2])
}

/// Rows of a weight.
pub(crate) type Rows = Range<i64>;
