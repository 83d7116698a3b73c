//! Pictures between the layers of an autoencoder: channels-last, that is `[B, C, H, W]` with the channels of a pixel side
//! by side in memory. They are f32, or bf16 where the weights are (or autocast makes them) and the CPU multiplies bf16.

#[cfg(test)]
mod tests;

use tch::{Device, Kind, Tensor};

use super::{Build, Rows, Scratch, Sizes, attend, ffi, raw_end, run_product, workspace};
use crate::nn::{Conv2d, GroupNorm};
use crate::numerics::is_fast;
use crate::ops::{Epilogue, Prologue};
use crate::shim;

/// Whether these are the kernels' business: on the CPU, f32 or bf16, without gradients.
fn is_supported<'a>(tensors: impl IntoIterator<Item = &'a Tensor> + Clone) -> bool {
    let fits = |x: &Tensor| x.device() == Device::Cpu && matches!(x.kind(), Kind::Float | Kind::BFloat16);
    tensors.clone().into_iter().all(fits) && is_fast(tensors)
}

/// The kind of a picture beside weights of this one.
fn kind_beside(weight: &Tensor) -> Kind {
    let narrow = weight.kind() == Kind::BFloat16 || shim::autocast_is_enabled(Device::Cpu);
    if narrow && super::arithmetic().bf16_products { Kind::BFloat16 } else { Kind::Float }
}

/// `[B, C, H, W]` as `[B, H, W, C]` without gaps, in the kind of the pictures beside this weight.
fn pixels(x: &Tensor, weight: &Tensor) -> Tensor {
    x.permute([0, 2, 3, 1]).to_kind(kind_beside(weight)).contiguous()
}

fn picture(pixels: &Tensor) -> Tensor {
    pixels.permute([0, 3, 1, 2])
}

/// Runs `f` on a picture between layers, and gives back what the exact form would: without gaps in the order of
/// `[B, C, H, W]`, in the kind that it would have. `None` where the layers run in their exact form.
pub(in crate::ops) fn between<E>(
    x: &Tensor,
    weight: &Tensor,
    f: impl FnOnce(&Tensor) -> Result<Tensor, E>,
) -> Option<Result<Tensor, E>> {
    if !is_supported([x, weight]) {
        return None;
    }
    let inside = pixels(x, weight);
    if inside.data_ptr() == x.data_ptr() {
        // `x` is such a picture already, and so may the result be.
        return None;
    }
    let kind = if shim::autocast_is_enabled(Device::Cpu) { Kind::BFloat16 } else { x.kind() };
    Some(f(&picture(&inside)).map(|out| out.contiguous().to_kind(kind)))
}

/// Whether the layers around this picture run in their fast form.
pub(in crate::ops) fn is_between(x: &Tensor, weight: &Tensor) -> bool {
    is_supported([x, weight])
}

/// See [`crate::ops::conv2d`], if it is ours.
pub(in crate::ops) fn conv2d(
    conv: &Conv2d,
    x: &Tensor,
    before: Prologue,
    residual: Option<&Tensor>,
) -> Option<Tensor> {
    let (weight, bias) = (conv.weight(), conv.bias());
    if !is_supported([x, weight].into_iter().chain(bias).chain(residual).collect::<Vec<_>>()) {
        return None;
    }
    let [b, channels, h, w] = x.size()[..] else { return None };
    if !is_whole(conv, channels) {
        return None;
    }
    let (shift, after) = match before {
        Prologue::Nothing => (0, 0),
        Prologue::Doubled => (1, 0),
        Prologue::PaddedAfter => (0, 1),
    };
    let taps = weight.size()[2];
    let out = |side: i64| ((side << shift) + 2 * conv.padding() + after - taps) / conv.stride() + 1;
    let (out_h, out_w, n) = (out(h), out(w), weight.size()[0]);
    if out_h <= 0 || out_w <= 0 || residual.is_some_and(|residual| residual.size() != [b, n, out_h, out_w]) {
        return None;
    }
    let input = pixels(x, weight);
    let residual = residual.map(|residual| pixels(residual, weight));
    let out = workspace().empty(&[b, out_h, out_w, n], input.kind());
    conv2d_into(Build::best(), conv, &input, shift, residual.as_ref(), &out);
    Some(picture(&out))
}

/// Whether the kernel is square and reads so many channels, and the bias has a number for each channel that it writes. The
/// kernels read as far as they are told: what does not fit is left to libtorch, which refuses it with both sizes.
fn is_whole(conv: &Conv2d, channels: i64) -> bool {
    let [n, from, height, width] = conv.weight().size()[..] else { return false };
    from == channels && height == width && conv.bias().is_none_or(|bias| bias.size() == [n])
}

/// A convolution of `[B, H, W, in]` into `[B, H', W', out]`, which may be strided.
fn conv2d_into(build: Build, conv: &Conv2d, x: &Tensor, shift: i32, residual: Option<&Tensor>, out: &Tensor) {
    let weight = conv.weight().contiguous();
    let [n, channels, taps, _] = weight.size()[..] else { unreachable!("a kernel has four axes") };
    // Two bf16 make a word.
    let x = if channels % 2 == 0 { x.shallow_clone() } else { x.to_kind(Kind::Float) };
    let size = [x.size(), out.size()];
    let window = ffi::Window {
        batch: size[0][0],
        height: size[0][1],
        width: size[0][2],
        out_height: size[1][1],
        out_width: size[1][2],
        channels,
        taps,
        stride: conv.stride(),
        pad_top: conv.padding(),
        pad_left: conv.padding(),
        shift,
    };
    let (x, c, bias) = (Rows::of(&x), Rows::of(out), conv.bias().map(Rows::of));
    assert_eq!(c.tensor.data_ptr(), out.data_ptr(), "the result's rows are not evenly apart");
    let (_kept, end) = raw_end(&Epilogue { residual, ..Epilogue::default() }, c.count);
    let product = ffi::Product {
        m: c.count,
        n,
        k: channels * taps * taps,
        a: x.raw(),
        w: Rows::of(&weight.view([n, channels * taps * taps])).raw(),
        w_scale: std::ptr::null(),
        w_sum: std::ptr::null(),
        bias: bias.as_ref().map_or(ffi::Rows::NONE, Rows::raw),
        c: c.raw(),
        end,
        window: &window,
        words: 0,
    };
    run_product(build, &product);
}

/// See [`crate::ops::group_norm`], if it is ours.
pub(in crate::ops) fn group_norm(norm: &GroupNorm, x: &Tensor, silu: bool) -> Option<Tensor> {
    let [weight, bias] = norm.affine();
    let [_, channels, _, _] = x.size()[..] else { return None };
    let fits = [weight, bias].iter().all(|vector| vector.size() == [channels]);
    if !is_supported([x, weight, bias]) || !fits || channels % GroupNorm::GROUPS != 0 {
        return None;
    }
    Some(picture(&group_norm_of(Build::best(), norm, &pixels(x, weight), silu)))
}

/// Group norm of `[B, H, W, C]`.
fn group_norm_of(build: Build, norm: &GroupNorm, x: &Tensor, silu: bool) -> Tensor {
    let [weight, bias] = norm.affine();
    let size = x.size();
    let out = workspace().empty(&size, x.kind());
    let (weight, bias) = (Rows::of(weight), Rows::of(bias));
    let group_norm = ffi::GroupNorm {
        batch: size[0],
        pixels: size[1] * size[2],
        channels: size[3],
        groups: GroupNorm::GROUPS,
        eps: GroupNorm::EPS as f32,
        x: Rows::of(x).raw(),
        weight: weight.raw(),
        bias: bias.raw(),
        out: Rows::of(&out).raw(),
        silu: i32::from(silu),
    };
    // SAFETY: every pointer lies in a tensor that lives until the end of the call, of the sizes that it says.
    unsafe {
        let scratch = Scratch::of(ffi::tch_flux_group_norm_scratch(build.0, &group_norm));
        ffi::tch_flux_group_norm(build.0, &group_norm, scratch.0);
    }
    out
}

/// See [`crate::ops::pixel_attention`], if it is ours.
pub(in crate::ops) fn pixel_attention(qkv: [&Conv2d; 3], x: &Tensor) -> Option<Tensor> {
    let parameters = qkv.iter().flat_map(|conv| [conv.weight()].into_iter().chain(conv.bias()));
    let width = qkv[0].weight().size()[0];
    if !is_supported([x].into_iter().chain(parameters).collect::<Vec<_>>()) || width > ffi::WIDEST {
        return None;
    }
    let [b, channels, h, w] = x.size()[..] else { return None };
    let kernels = qkv.iter().map(|conv| conv.weight().size());
    if !qkv.iter().all(|conv| is_whole(conv, channels))
        || !kernels.eq([[width, channels, 1, 1]; 3].map(Vec::from))
    {
        return None;
    }
    let x = pixels(x, qkv[0].weight());
    let joint = workspace().empty(&[b, h, w, 3 * width], x.kind());
    for (conv, i) in qkv.into_iter().zip(0..) {
        conv2d_into(Build::best(), conv, &x, 0, None, &joint.narrow(-1, i * width, width));
    }
    let out = workspace().empty(&[b, h, w, width], x.kind());
    let (from, to) = (Rows::of(&joint), Rows::of(&out));
    for i in 0..b {
        let stream = ffi::Stream {
            qkv: from.raw_from(i * h * w),
            q_scale: std::ptr::null(),
            k_scale: std::ptr::null(),
            start: 0,
            length: h * w,
        };
        let sizes = Sizes { heads: 1, width, length: h * w, from: 0 };
        attend(&[stream], sizes, std::ptr::null(), to.raw_from(i * h * w));
    }
    Some(picture(&out))
}
