//! The kernels for pictures against libtorch, in every instruction set that this CPU runs; the autoencoder against itself
//! in f64.

use tch::nn::{Module, VarStore};
use tch::{Device, Kind, Tensor};

use super::*;
use crate::models::Model;
use crate::models::autoencoder::{AttnBlock, AutoEncoder, AutoEncoderParams, ResnetBlock};
use crate::numerics::{self, Numerics, with_numerics};

/// The relative L2 difference.
fn distance(a: &Tensor, b: &Tensor) -> f64 {
    let (a, b) = (a.to_kind(Kind::Double), b.to_kind(Kind::Double));
    f64::try_from((a - &b).norm() / b.norm()).unwrap()
}

fn random(size: &[i64], kind: Kind, seed: u64) -> Tensor {
    shim::randn(size, seed).unwrap().to_kind(kind)
}

/// A layer with random parameters of a kind.
fn filled<T>(kind: Kind, build: impl FnOnce(&VarStore) -> T) -> (VarStore, T) {
    let mut vs = VarStore::new(Device::Cpu);
    let layer = build(&vs);
    crate::nn::init(&vs, 7).unwrap();
    for (i, mut parameter) in vs.trainable_variables().into_iter().enumerate() {
        // Norms begin as the identity, which would test little.
        if parameter.dim() == 1 {
            let _no_grad = tch::no_grad_guard();
            let _ = parameter.f_add_(&(random(&parameter.size(), Kind::Float, i as u64) * 0.1)).unwrap();
        }
    }
    vs.freeze();
    vs.set_kind(kind);
    (vs, layer)
}

fn builds() -> Vec<Build> {
    [c"plain", c"avx2", c"avx512", c"avx512_bf16", c"amx"]
        .into_iter()
        .filter_map(|name| Build::find(Some(name)))
        .collect()
}

fn exact_input(x: &Tensor, before: Prologue) -> Tensor {
    match before {
        Prologue::Nothing => x.shallow_clone(),
        Prologue::Doubled => x.upsample_nearest2d_vec(None::<&[i64]>, [2.0, 2.0]),
        Prologue::PaddedAfter => x.constant_pad_nd([0, 1, 0, 1]),
    }
}

#[test]
fn convolutions_match_libtorch_in_every_instruction_set() {
    // Channels in and out, taps, stride, padding, what comes before; sides are odd, two pictures at a time.
    let cases = [
        (16, 40, 3, 1, 1, Prologue::Nothing),
        (3, 32, 3, 1, 1, Prologue::Nothing),
        (34, 3, 3, 1, 1, Prologue::Nothing),
        (512, 96, 3, 1, 1, Prologue::Nothing),
        (32, 48, 1, 1, 0, Prologue::Nothing),
        (32, 32, 3, 2, 0, Prologue::PaddedAfter),
        (32, 32, 3, 1, 1, Prologue::Doubled),
    ];
    for (i, (from, to, taps, stride, padding, before)) in cases.into_iter().enumerate() {
        for (kind, most) in [(Kind::Float, 2e-6), (Kind::BFloat16, 5e-3)] {
            let (mut vs, conv) = filled(kind, |vs| Conv2d::new(vs.root(), from, to, taps, stride, padding));
            let x = random(&[2, from, 9, 13], kind, i as u64);
            let wide = exact_input(&x.to_kind(Kind::Double), before);
            vs.set_kind(Kind::Double);
            let expected = conv.forward(&wide);
            vs.set_kind(kind);
            let residual = random(&expected.size(), kind, 99);
            let expected = expected + &residual;
            let [input, residual] = [&x, &residual].map(|x| x.permute([0, 2, 3, 1]).contiguous());
            for build in builds() {
                let out = Tensor::full(residual.size(), f64::NAN, (kind, Device::Cpu));
                let shift = i32::from(before == Prologue::Doubled);
                conv2d_into(build, &conv, &input, shift, Some(&residual), &out);
                let error = distance(&picture(&out), &expected);
                assert!(error < most, "case {i}, {kind:?}, {}: {error}", build.name());
            }
        }
    }
}

#[test]
fn group_norms_match_libtorch_in_every_instruction_set() {
    for (channels, sides) in [(32, [3, 5]), (64, [17, 31]), (96, [1, 2]), (512, [16, 16])] {
        for (kind, most) in [(Kind::Float, 1e-6), (Kind::BFloat16, 4e-3)] {
            let (mut vs, norm) = filled(kind, |vs| GroupNorm::new(vs.root(), channels));
            // Far from zero, where sums of squares would lose the variance.
            let x = (random(&[2, channels, sides[0], sides[1]], Kind::Float, 3) + 30.0).to_kind(kind);
            vs.set_kind(Kind::Double);
            let expected = norm.forward(&x.to_kind(Kind::Double));
            vs.set_kind(kind);
            for (silu, expected) in [(false, expected.copy()), (true, expected.silu())] {
                let input = x.permute([0, 2, 3, 1]).contiguous();
                for build in builds() {
                    let error = distance(&picture(&group_norm_of(build, &norm, &input, silu)), &expected);
                    // The mean is 30 times the deviation, so its rounding shows.
                    let most = if kind == Kind::Float { 30.0 * most } else { most };
                    assert!(error < most, "{channels}, {kind:?}, {}: {error}", build.name());
                }
            }
        }
    }
}

/// Errors of the exact and of the fast form against f64.
fn against_wide(kind: Kind, vs: &mut VarStore, x: &Tensor, run: &dyn Fn(&Tensor) -> Tensor) -> [f64; 2] {
    let _no_grad = tch::no_grad_guard();
    let exact = with_numerics(Numerics::Exact, || run(x));
    let fast = with_numerics(Numerics::Fast, || run(x));
    assert_eq!((fast.kind(), fast.size()), (exact.kind(), exact.size()));
    assert!(fast.is_contiguous());
    assert!(distance(&fast, &exact) > 0.0, "the fast form did not run");
    vs.set_kind(Kind::Double);
    let wide = numerics::with_reference_f64(|| run(&x.to_kind(Kind::Double)));
    vs.set_kind(kind);
    [distance(&exact, &wide), distance(&fast, &wide)]
}

/// The same as root mean squares over several pictures: the error of one is chance as much as anything.
fn over_pictures(kind: Kind, vs: &mut VarStore, channels: i64, run: &dyn Fn(&Tensor) -> Tensor) -> [f64; 2] {
    let squares = (1..=8).fold([0.0, 0.0], |sums, seed| {
        let x = random(&[2, channels, 13, 22], kind, seed);
        let [exact, fast] = against_wide(kind, vs, &x, run);
        [sums[0] + exact * exact, sums[1] + fast * fast]
    });
    squares.map(f64::sqrt)
}

#[test]
fn the_fast_blocks_are_no_less_accurate_than_the_exact_ones() {
    for kind in [Kind::Float, Kind::BFloat16] {
        let (mut vs, block) = filled(kind, |vs| ResnetBlock::new(vs.root(), 64, 96));
        let [exact, fast] = over_pictures(kind, &mut vs, 64, &|x| block.forward(x));
        assert!(fast <= 1.1 * exact, "ResnetBlock, {kind:?}: {fast} against {exact}");
        let (mut vs, block) = filled(kind, |vs| AttnBlock::new(vs.root(), 128));
        let [exact, fast] = over_pictures(kind, &mut vs, 128, &|x| block.forward(x));
        assert!(fast <= 1.1 * exact, "AttnBlock, {kind:?}: {fast} against {exact}");
    }
}

#[test]
fn the_fast_autoencoder_is_no_less_accurate_than_the_exact_one() {
    let small = AutoEncoderParams { ch: 32, ..AutoEncoderParams::flux1() };
    let cases = [
        (AutoEncoderParams::flux1(), Kind::Float, 8),
        (small.clone(), Kind::Float, 12),
        (small, Kind::BFloat16, 6),
    ];
    for (params, kind, side) in cases {
        let (mut vs, model) = filled(kind, |vs| AutoEncoder::new(vs.root(), &params).unwrap());
        let z = random(&[1, 16, side, side + 1], kind, 5);
        let [exact, fast] = against_wide(kind, &mut vs, &z, &|z| model.decode(z).unwrap());
        assert!(fast <= 1.1 * exact, "decode, {kind:?}: {fast} against {exact}");
        let x = random(&[1, 3, 8 * side, 8 * side + 8], kind, 6);
        let [exact, fast] = against_wide(kind, &mut vs, &x, &|x| model.encode(x).unwrap());
        assert!(fast <= 1.1 * exact, "encode, {kind:?}: {fast} against {exact}");
    }
}

#[test]
fn under_autocast_the_fast_form_runs_and_gives_the_kind_of_the_exact_one() {
    let params = AutoEncoderParams { ch: 32, ..AutoEncoderParams::flux1() };
    let (mut vs, model) = filled(Kind::Float, |vs| AutoEncoder::new(vs.root(), &params).unwrap());
    let z = random(&[1, 16, 6, 5], Kind::Float, 5);
    let [exact, fast] = against_wide(Kind::Float, &mut vs, &z, &|z| {
        let _autocast = (z.kind() != Kind::Double).then(|| shim::Autocast::bf16(Device::Cpu).unwrap());
        model.decode(z).unwrap()
    });
    assert!(fast <= 1.1 * exact, "{fast} against {exact}");
}

#[test]
fn where_gradients_are_needed_the_exact_layers_run() {
    let params = AutoEncoderParams { ch: 32, ..AutoEncoderParams::flux1() };
    let (mut vs, model) = filled(Kind::Float, |vs| AutoEncoder::new(vs.root(), &params).unwrap());
    model.set_numerics(Numerics::Fast);
    let z = random(&[1, 16, 4, 4], Kind::Float, 5);
    let loss = |z: &Tensor| model.decode(z).unwrap().square().sum(Kind::Float);
    let wanted = z.copy().set_requires_grad(true);
    loss(&wanted).backward();
    model.set_numerics(Numerics::Exact);
    let exact = z.copy().set_requires_grad(true);
    loss(&exact).backward();
    assert_eq!(wanted.grad(), exact.grad());

    // Parameters of which some are trained, in a kind that the fast form's pictures do not have everywhere.
    vs.set_kind(Kind::BFloat16);
    model.set_numerics(Numerics::Fast);
    let trained = vs.variables().remove("decoder.up.0.block.1.norm2.weight").unwrap();
    let trained = trained.set_requires_grad(true);
    loss(&z.to_kind(Kind::BFloat16)).backward();
    assert!(f64::try_from(trained.grad().to_kind(Kind::Float).norm()).unwrap() > 0.0);
}
