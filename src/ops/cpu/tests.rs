//! The kernels against f64, in every build that this CPU runs and with every kind of words; and what a block costs in
//! calls and in memory, so that it stays that.

use std::ffi::CString;

use tch::nn::{Module, VarStore};

use super::*;
use crate::layers::{DoubleStreamBlock, SingleStreamBlock};
use crate::models::Model;
use crate::models::autoencoder::{AttnBlock, ResnetBlock};
use crate::models::flux1::{Flux1, Flux1Input, Flux1Options, Flux1Params};
use crate::numerics::{Numerics, with_numerics, with_reference_f64, workspace};
use crate::quant::Int8;

const OPTIONS: (Kind, Device) = (Kind::Float, Device::Cpu);

fn random(size: &[i64], seed: u64) -> Tensor {
    shim::randn(size, seed).unwrap()
}

fn builds() -> Vec<Build> {
    let names = ["plain", "avx2", "avx512", "avx512_bf16", "amx"];
    names.iter().filter_map(|name| Build::find(Some(&CString::new(*name).unwrap()))).collect()
}

fn distance(ours: &Tensor, reference: &Tensor) -> f64 {
    let reference = reference.to_kind(Kind::Double);
    f64::try_from((ours.to_kind(Kind::Double) - &reference).norm() / reference.norm()).unwrap()
}

/// `x · weightᵀ + bias` by one build in one kind of words.
fn multiply(build: Build, x: &Tensor, weight: &Tensor, bias: &Tensor, words: i32, kind: Kind) -> Tensor {
    let out = Tensor::zeros([x.size()[0], weight.size()[0]], (kind, Device::Cpu));
    let int8 = (words >= 3).then(|| Int8::of(weight).unwrap());
    let stored = int8.as_ref().map_or(weight, |int8| &int8.weight);
    let product = ffi::Product {
        m: x.size()[0],
        n: weight.size()[0],
        k: x.size()[1],
        a: Rows::of(x).raw(),
        w: Rows::of(stored).raw(),
        w_scale: int8.as_ref().map_or(std::ptr::null(), |int8| int8.scale.data_ptr().cast_const().cast()),
        w_sum: int8.as_ref().map_or(std::ptr::null(), |int8| int8.sum.data_ptr().cast_const().cast()),
        bias: Rows::of(bias).raw(),
        c: Rows::of(&out).raw(),
        end: raw_end(&Epilogue::default(), x.size()[0]).1,
        window: std::ptr::null(),
        words,
    };
    run_product(build, &product);
    out
}

#[test]
fn products_match_f64_in_every_build_and_kind_of_words() {
    let _no_grad = tch::no_grad_guard();
    assert!(!builds().is_empty());
    // Rows and columns that fill no panel, one that fills several, few rows, and rows of whole words that are read where
    // they lie.
    for (m, n, k) in [(1, 33, 70), (3, 5, 1000), (7, 200, 515), (61, 97, 64), (70, 96, 512), (150, 260, 1031)]
    {
        let (x, weight, bias) = (random(&[m, k], 1), random(&[n, k], 2), random(&[n], 3));
        let reference = x.to_kind(Kind::Double).matmul(&weight.to_kind(Kind::Double).tr()) + &bias;
        for build in builds() {
            for (words, bound) in [(0, 1e-6), (1, 1e-6), (2, 6e-3), (3, 2e-2), (4, 2e-2)] {
                if words >= 2 && m <= 4 {
                    continue; // Few rows are never packed.
                }
                let ours = multiply(build, &x, &weight, &bias, words, Kind::Float);
                let error = distance(&ours, &reference);
                assert!(error < bound, "{} {m} {n} {k}, words {words}: {error:e}", build.name());
            }
            // int8 words of both kinds stand for the same numbers.
            if m > 4 {
                let [a, b] = [3, 4].map(|words| multiply(build, &x, &weight, &bias, words, Kind::Float));
                assert_eq!(a, b, "{}", build.name());
            }
        }
        let half = |x: &Tensor| x.to_kind(Kind::BFloat16);
        let (x, weight, bias) = (half(&x), half(&weight), half(&bias));
        let reference =
            x.to_kind(Kind::Double).matmul(&weight.to_kind(Kind::Double).tr()) + bias.to_kind(Kind::Double);
        for build in builds() {
            for (words, bound) in [(0, 2.5e-3), (1, 2.5e-3), (2, 2.5e-3), (3, 2e-2), (4, 2e-2)] {
                if words > 2 && m <= 4 {
                    continue;
                }
                let error = distance(&multiply(build, &x, &weight, &bias, words, Kind::BFloat16), &reference);
                assert!(error < bound, "{} {m} {n} {k} bf16, words {words}: {error:e}", build.name());
            }
        }
    }
}

#[test]
fn attention_matches_f64_in_every_build_and_kind_of_words() {
    let _no_grad = tch::no_grad_guard();
    // In the last case not all heads are packed at once, and the groups are uneven.
    for (length, heads, width) in [(1, 1, 16), (37, 2, 64), (301, 3, 128), (200, 1, 50), (700, 13, 512)] {
        let qkv = random(&[length, 3 * heads * width], 4);
        let wide = qkv.to_kind(Kind::Double).view([length, 3, heads, width]).permute([1, 2, 0, 3]);
        let reference = Tensor::scaled_dot_product_attention(
            &wide.get(0),
            &wide.get(1),
            &wide.get(2),
            None::<&Tensor>,
            0.0,
            false,
            None,
            false,
        );
        let reference = reference.transpose(0, 1).reshape([length, heads * width]);
        for build in builds() {
            for (words, bound) in [(1, 1e-6), (2, 8e-3)] {
                let stream = ffi::Stream {
                    qkv: Rows::of(&qkv).raw(),
                    q_scale: std::ptr::null(),
                    k_scale: std::ptr::null(),
                    start: 0,
                    length,
                };
                let attend = |from: i64| {
                    let out = Tensor::zeros([length - from, heads * width], OPTIONS);
                    let attention = ffi::Attention {
                        heads,
                        width,
                        length,
                        from,
                        eps: 1e-6,
                        scale: (width as f32).sqrt().recip(),
                        streams: &stream,
                        stream_count: 1,
                        pe: std::ptr::null(),
                        words,
                        out: Rows::of(&out).raw(),
                    };
                    // SAFETY: every pointer lies in a tensor that is held here, of the sizes that it says.
                    unsafe {
                        let scratch = Scratch::of(ffi::tch_flux_attention_scratch(build.0, &attention));
                        ffi::tch_flux_attention(build.0, &attention, scratch.0);
                    }
                    out
                };
                let out = attend(0);
                let from = length * 2 / 3;
                assert_eq!(attend(from), out.narrow(0, from, length - from), "{} from {from}", build.name());
                let error = distance(&out, &reference);
                assert!(error < bound, "{} {length} {heads} {width}, words {words}: {error:e}", build.name());
            }
        }
    }
}

#[test]
fn nan_and_infinity_are_not_lost() {
    let _no_grad = tch::no_grad_guard();
    for build in builds() {
        for bad in [f64::NAN, f64::INFINITY] {
            let (x, weight, bias) = (random(&[20, 40], 1), random(&[30, 40], 2), random(&[30], 3));
            let _ = x.get(11).get(5).fill_(bad);
            for (words, kind) in [(1, Kind::Float), (2, Kind::Float), (1, Kind::BFloat16)] {
                let out = multiply(build, &x, &weight, &bias, words, kind);
                assert!(!bool::try_from(out.get(11).isfinite().any()).unwrap(), "{} {words}", build.name());
                assert!(bool::try_from(out.get(12).isfinite().all()).unwrap(), "{} {words}", build.name());
            }
        }
    }
}

/// A block's inputs: image, text, vector and rotations.
fn inputs(hidden: i64, heads: i64, kind: Kind) -> [Tensor; 4] {
    let ids = Tensor::arange(96, OPTIONS).unsqueeze(-1).expand([96, 1], false).unsqueeze(0);
    let pe = crate::math::rope(&ids.select(-1, 0), hidden / heads, 10_000).unwrap().unsqueeze(1);
    let [img, txt, vec] =
        [[1, 64, hidden].as_slice(), &[1, 32, hidden], &[1, hidden]].map(|size| random(size, 7));
    [img.to_kind(kind), txt.to_kind(kind), vec.to_kind(kind), pe]
}

/// Blocks of a realistic width with weights as PyTorch draws them: fast has at most 1.1 times the error of exact.
#[test]
fn blocks_are_as_accurate_as_exact_ones() {
    let _no_grad = tch::no_grad_guard();
    let (hidden, heads) = (1536, 12);
    for kind in [Kind::Float, Kind::BFloat16] {
        let mut vs = VarStore::new(Device::Cpu);
        let double = DoubleStreamBlock::new(vs.root() / "double", hidden, heads, 4.0, true).unwrap();
        let single = SingleStreamBlock::new(vs.root() / "single", hidden, heads, 4.0).unwrap();
        crate::nn::init(&vs, 5).unwrap();
        vs.set_kind(kind);
        let run = || {
            let [img, txt, vec, pe] =
                inputs(hidden, heads, kind).map(|x| x.to_kind(if x.dim() == 6 { Kind::Float } else { kind }));
            let (img, txt) = double.forward(&img, &txt, &vec, &pe);
            let x = single.forward(&Tensor::cat(&[&txt, &img], 1), &vec, &pe);
            [img, txt, x]
        };
        let exact = run();
        let fast = with_numerics(Numerics::Fast, run);
        vs.double();
        let [img, txt, vec, pe] = inputs(hidden, heads, kind).map(|x| x.to_kind(Kind::Double));
        let reference = with_reference_f64(|| {
            let (img, txt) = double.forward(&img, &txt, &vec, &pe);
            let x = single.forward(&Tensor::cat(&[&txt, &img], 1), &vec, &pe);
            [img, txt, x]
        });
        for ((exact, fast), reference) in exact.iter().zip(&fast).zip(&reference) {
            let (exact, fast) = (distance(exact, reference), distance(fast, reference));
            assert!(fast <= 1.1 * exact, "{kind:?}: fast {fast:e}, exact {exact:e}");
        }
    }
}

/// The kernels read as far as they are told: what does not fit must be refused before.
#[test]
fn sizes_that_do_not_fit_are_refused() {
    let _no_grad = tch::no_grad_guard();
    let vs = VarStore::new(Device::Cpu);
    let block = SingleStreamBlock::new(vs.root(), 64, 2, 4.0).unwrap();
    crate::nn::init(&vs, 5).unwrap();
    let [img, txt, vec, pe] = inputs(64, 2, Kind::Float);
    let x = Tensor::cat(&[&txt, &img], 1);
    let run = |x: &Tensor, vec: &Tensor, pe: &Tensor| {
        let run = || with_numerics(Numerics::Fast, || block.forward(x, vec, pe));
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_ok()
    };
    assert!(run(&x, &vec, &pe));
    assert!(!run(&x.narrow(-1, 0, 48), &vec, &pe));
    assert!(!run(&x, &vec.narrow(-1, 0, 48), &pe));
    assert!(!run(&x, &vec, &pe.narrow(2, 0, 90)));
}

#[test]
fn gradients_flow_in_fast_numerics() {
    let vs = VarStore::new(Device::Cpu);
    let block = SingleStreamBlock::new(vs.root(), 64, 2, 4.0).unwrap();
    crate::nn::init(&vs, 5).unwrap();
    let [img, txt, vec, pe] = inputs(64, 2, Kind::Float);
    let x = Tensor::cat(&[&txt, &img], 1);
    let run = || block.forward(&x, &vec, &pe);
    let (exact, fast) = (run(), with_numerics(Numerics::Fast, run));
    assert_eq!(exact, fast, "where gradients are recorded the exact operations run");
    fast.sum(Kind::Float).backward();
    for (name, variable) in vs.variables() {
        assert!(f64::try_from(variable.grad().abs().sum(Kind::Float)).unwrap() > 0.0, "{name}");
    }
}

#[test]
fn int8_blocks_are_near_and_smaller() {
    let _no_grad = tch::no_grad_guard();
    let params =
        Flux1Params { hidden_size: 256, num_heads: 2, depth: 1, depth_single_blocks: 1, ..Flux1Params::DEV };
    let vs = VarStore::new(Device::Cpu);
    let model = Flux1::new(vs.root(), &params).unwrap();
    crate::nn::init(&vs, 1).unwrap();
    model.set_numerics(Numerics::Fast);
    let run = || step(&model, &params, 16, 8);
    let before = run();
    model.quantize_int8().unwrap();
    let after = run();
    let error = distance(&after, &before);
    assert!(error > 0.0 && error < 0.05, "{error}");
    // The exact form computes with what the int8 stand for.
    model.set_numerics(Numerics::Exact);
    assert!(distance(&run(), &after) < 0.05);
    let kept = vs.variables();
    assert!(crate::nn::is_placeholder(&kept["single_blocks.0.linear1.weight"]));
    assert!(!crate::nn::is_placeholder(&kept["single_blocks.0.modulation.lin.weight"]));
    model.quantize_int8().unwrap();
    model.set_numerics(Numerics::Fast);
    assert_eq!(run(), after, "quantising twice changes nothing");
}

fn step(model: &Flux1, params: &Flux1Params, img_len: i64, txt_len: i64) -> Tensor {
    let one = Tensor::full([1], 0.5, OPTIONS);
    let input = Flux1Input {
        img: &random(&[1, img_len, params.in_channels], 1),
        img_ids: &Tensor::zeros([1, img_len, 3], OPTIONS),
        txt: &random(&[1, txt_len, params.context_in_dim], 2),
        txt_ids: &Tensor::zeros([1, txt_len, 3], OPTIONS),
        timesteps: &one,
        y: &random(&[1, params.vec_in_dim], 3),
        guidance: Some(&one),
    };
    model.forward(&input, Flux1Options::default()).unwrap()
}

/// A regression in speed that needs no clock: calls of libtorch's operators, and blocks of memory from the system.
#[test]
fn a_fast_block_makes_few_calls_and_no_fresh_memory() {
    let _no_grad = tch::no_grad_guard();
    let (hidden, heads) = (256, 2);
    let vs = VarStore::new(Device::Cpu);
    let double = DoubleStreamBlock::new(vs.root() / "double", hidden, heads, 4.0, true).unwrap();
    let single = SingleStreamBlock::new(vs.root() / "single", hidden, heads, 4.0).unwrap();
    crate::nn::init(&vs, 5).unwrap();
    let [img, txt, vec, pe] = inputs(hidden, heads, Kind::Float);
    let x = Tensor::cat(&[&txt, &img], 1);
    let (double_mod, single_mod) = (double.modulation(&vec), single.modulation(&vec));
    with_numerics(Numerics::Fast, || {
        let run_double = || drop(double.run(&img, &txt, &double_mod, &pe));
        let run_single = || drop(single.run(&x, &single_mod, &pe, 0));
        run_double();
        run_single();
        let fresh = workspace().fresh();
        let calls = [&run_double as &dyn Fn(), &run_single].map(shim::operator_calls);
        assert_eq!(workspace().fresh(), fresh, "a second step takes the memory of the first");
        // Views, and the few numbers of the norms' scales.
        let bounds = [DOUBLE_CALLS, SINGLE_CALLS];
        assert!(calls[0] <= bounds[0] && calls[1] <= bounds[1], "{calls:?} calls, at most {bounds:?}");
    });
    let exact = [
        shim::operator_calls(&|| drop(double.run(&img, &txt, &double_mod, &pe))),
        shim::operator_calls(&|| drop(single.run(&x, &single_mod, &pe, 0))),
    ];
    assert!(
        exact[0] > 3 * DOUBLE_CALLS / 2 && exact[1] > 3 * SINGLE_CALLS / 2,
        "the count counts: {exact:?}"
    );
}

/// Calls of libtorch's operators in a double block.
const DOUBLE_CALLS: u64 = 78;
/// The same in a single block.
const SINGLE_CALLS: u64 = 34;

/// What does not fit is libtorch's to refuse, in this form as in the exact one: the kernels would read past its end.
#[test]
fn parameters_and_inputs_of_other_sizes_are_refused() {
    let refused = |f: &dyn Fn() -> Tensor| {
        let run = || with_numerics(Numerics::Fast, f);
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_err()
    };
    let _no_grad = tch::no_grad_guard();
    let vs = VarStore::new(Device::Cpu);
    let mut layer = Linear::new(vs.root() / "linear", 64, 128, true);
    let block = ResnetBlock::new(vs.root() / "block", 64, 32);
    let attention = AttnBlock::new(vs.root() / "attention", 64);
    crate::nn::init(&vs, 1).unwrap();
    let x = random(&[4, 64], 1);
    assert!(!refused(&|| layer.forward(&x)));
    assert!(refused(&|| layer.forward(&random(&[4, 63], 1))));
    for bias in [0, 127, 129] {
        layer.bias = Some(random(&[bias], 2));
        assert!(refused(&|| layer.forward(&x)), "{bias}");
    }
    for channels in [64, 32, 96] {
        let x = random(&[1, channels, 8, 8], 3);
        assert_eq!(refused(&|| block.forward(&x)), channels != 64, "{channels}");
        assert_eq!(refused(&|| attention.forward(&x)), channels != 64, "{channels}");
    }
}
