//! Rotary positions and attention: pure functions, in the official order of operations.
//!
//! Source: `black-forest-labs/flux` at 802fb47, `src/flux/math.py`.

use tch::Tensor;

use crate::error::{Error, Result};
use crate::numerics::at_least_f32;

/// Attention over rotated queries and keys: `q`, `k`, `v` `[B, H, L, d]` and `pe` `[B, 1, L, d/2, 2, 2]` give
/// `[B, L, H·d]` in the kind of `q`.
pub fn attention(q: &Tensor, k: &Tensor, v: &Tensor, pe: &Tensor) -> Tensor {
    let (q, k) = apply_rope(q, k, pe);
    let x = scaled_dot_product_attention(&q, &k, v, None, false, None);
    merge_heads(&x)
}

/// Rotation matrices for the positions `pos` `[B, L]`: `[B, L, dim/2, 2, 2]`, always f32.
///
/// The angles are computed in the kind of `pos`, which should be f32: bf16 positions are wrong by up to 0.14.
///
/// # Errors
/// [`Error::Config`] where `dim` is odd.
pub fn rope(pos: &Tensor, dim: i64, theta: i64) -> Result<Tensor> {
    if dim % 2 != 0 {
        return Err(Error::Config(format!("rope needs an even width, got {dim}")));
    }
    Ok(rope_even(pos, dim, theta))
}

/// [`rope`] for a `dim` that is known to be even.
pub(crate) fn rope_even(pos: &Tensor, dim: i64, theta: i64) -> Tensor {
    let scale = Tensor::arange_start_step(0, dim, 2, (pos.kind(), pos.device())) / dim;
    let omega = Tensor::pow_scalar(theta, &scale).reciprocal();
    let out = pos.unsqueeze(-1) * omega; // [B, L, dim/2]
    let (cos, sin) = (out.cos(), out.sin());
    let out = Tensor::stack(&[&cos, &-&sin, &sin, &cos], -1); // [B, L, dim/2, 4]
    let mut size = out.size();
    size.splice(size.len() - 1.., [2, 2]);
    out.reshape(size).to_kind(at_least_f32(pos.kind()))
}

/// Rotates `xq` and `xk` `[B, H, L, d]` by `freqs_cis` `[B, 1, L, d/2, 2, 2]`: pairs are neighbours (2i, 2i + 1), the
/// arithmetic is f32, the results have the kinds of the arguments.
pub fn apply_rope(xq: &Tensor, xk: &Tensor, freqs_cis: &Tensor) -> (Tensor, Tensor) {
    (rotate(xq, freqs_cis), rotate(xk, freqs_cis))
}

fn rotate(x: &Tensor, freqs_cis: &Tensor) -> Tensor {
    let mut pairs = x.size();
    pairs.splice(pairs.len() - 1.., [-1, 1, 2]);
    let x_ = x.to_kind(at_least_f32(x.kind())).reshape(pairs); // [B, H, L, d/2, 1, 2]
    let out = freqs_cis.select(-1, 0) * x_.select(-1, 0) + freqs_cis.select(-1, 1) * x_.select(-1, 1);
    out.reshape(x.size()).to_kind(x.kind())
}

/// libtorch's attention over `[B, H, L, d]`. The views may be strided, as long as the last axis is dense.
pub(crate) fn scaled_dot_product_attention(
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    mask: Option<&Tensor>,
    is_causal: bool,
    scale: Option<f64>,
) -> Tensor {
    Tensor::scaled_dot_product_attention(q, k, v, mask, 0.0, is_causal, scale, false)
}

/// `torch.nn.functional.linear` of `[…, in]` with `[out, in]` and `[out]`, with the bits of the official layers.
///
/// For a strided input of three axes libtorch multiplies batch by batch, unless the weight requires gradients: then it
/// folds batch and tokens into one product, with other last bits. The official parameters do require gradients, also
/// at inference, so that is the path here whatever the weight was told.
pub(crate) fn linear(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>) -> Tensor {
    if xs.dim() < 3 || xs.is_contiguous() {
        return xs.linear(weight, bias);
    }
    let mut size = xs.size();
    let rows = xs.reshape([-1, size[size.len() - 1]]).matmul(&weight.tr());
    if let Some(width) = size.last_mut() {
        *width = rows.size()[1];
    }
    let out = rows.view(&size[..]);
    match bias {
        Some(bias) => out + bias,
        None => out,
    }
}

/// Tensors one after the other along an axis; one alone is not copied.
pub(crate) fn cat(tensors: &[&Tensor], dim: i64) -> Result<Tensor> {
    match tensors {
        [one] => Ok(one.shallow_clone()),
        _ => Ok(Tensor::f_cat(tensors, dim)?),
    }
}

/// `[B, L, H·d]` to `[B, H, L, d]`.
pub(crate) fn split_heads(x: &Tensor, num_heads: i64) -> Tensor {
    let (b, l, width) = (x.size()[0], x.size()[1], x.size()[2]);
    x.view([b, l, num_heads, width / num_heads]).transpose(1, 2)
}

/// `[B, H, L, d]` to `[B, L, H·d]`.
pub(crate) fn merge_heads(x: &Tensor) -> Tensor {
    let (b, h, l, d) = (x.size()[0], x.size()[1], x.size()[2], x.size()[3]);
    x.transpose(1, 2).reshape([b, l, h * d])
}
