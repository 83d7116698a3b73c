//! The fast form against an evaluation in f64: its error is at most 1.1 times that of the exact form. On the CPU it is made
//! of libtorch's operations alone; on CUDA, where there is a device, it is what runs there.

use std::io::Write;

use tch::nn::{Module, VarStore};
use tch::{Cuda, Device, Kind, Tensor, no_grad};

use super::{Activation, ResidualMlp, cuda, linear_gated_residual, linear_gelu, modulate};
use crate::layers::{DoubleStreamBlock, EmbedNd, SingleStreamBlock};
use crate::nn::{LayerNorm, Linear, init};
use crate::numerics::{Numerics, torch_only, with_numerics, with_reference_f64};
use crate::quant::Fp8;
use crate::shim::randn;

const IMAGE: i64 = 40;
const TEXT: i64 = 24;

/// A model in `kind` and the same numbers in f64.
struct Twins<M> {
    kind: Kind,
    device: Device,
    model: M,
    wide: M,
    _stores: [VarStore; 2],
}

impl<M> Twins<M> {
    fn new(kind: Kind, device: Device, build: impl Fn(&VarStore) -> M) -> Self {
        let make = || {
            let vs = VarStore::new(Device::Cpu);
            let model = build(&vs);
            init(&vs, 3).unwrap();
            (vs, model)
        };
        let ((mut vs, model), (mut vs64, wide)) = (make(), make());
        vs.freeze();
        vs64.freeze();
        vs.set_kind(kind);
        vs.set_device(device);
        vs64.set_kind(kind);
        vs64.set_kind(Kind::Double);
        Self { kind, device, model, wide, _stores: [vs, vs64] }
    }

    /// Runs the model with what `run` makes of inputs that `input` gives it, by size.
    fn compare(&self, what: &str, run: impl Fn(&M, &dyn Fn(u64, &[i64]) -> Tensor) -> Tensor) {
        let narrow = |seed, size: &[i64]| randn(size, seed).unwrap().to_kind(self.kind);
        no_grad(|| {
            let reference = with_reference_f64(|| {
                run(&self.wide, &|seed, size| narrow(seed, size).to_kind(Kind::Double))
            });
            let error = |out: Tensor| {
                let out = out.to_device(Device::Cpu).to_kind(Kind::Double);
                f64::try_from((out - &reference).norm() / reference.norm()).unwrap()
            };
            let input = |seed, size: &[i64]| narrow(seed, size).to_device(self.device);
            let exact = error(run(&self.model, &input));
            let fast = error(match self.device {
                Device::Cpu => torch_only(|| run(&self.model, &input)),
                _ => with_numerics(Numerics::Fast, || run(&self.model, &input)),
            });
            let what =
                format!("{what} {:?} {:?}: exact {exact:.3e}, fast {fast:.3e}", self.kind, self.device);
            println!("{what}");
            assert!(fast <= 1.1 * exact, "{what}");
        });
    }
}

/// Positions for a head of so many numbers, where `x` is, in the kind of the reference or else f32.
fn positions(d: i64, length: i64, x: &Tensor) -> Tensor {
    let ids = Tensor::arange(3 * length, (Kind::Float, Device::Cpu)).reshape([1, length, 3]);
    let pe = EmbedNd::new(d, 10_000, &[d / 8, d / 16 * 7, d / 16 * 7]).unwrap().forward(&ids);
    let pe = pe.to_device(x.device());
    if x.kind() == Kind::Double { pe.to_kind(Kind::Double) } else { pe }
}

fn blocks(kind: Kind, device: Device, hidden: i64, heads: i64) {
    let d = hidden / heads;
    Twins::new(kind, device, |vs| DoubleStreamBlock::new(vs.root(), hidden, heads, 4.0, true).unwrap())
        .compare(&format!("double block of {hidden}"), |block, input| {
            let (img, txt, vec) =
                (input(1, &[1, IMAGE, hidden]), input(2, &[1, TEXT, hidden]), input(3, &[1, hidden]));
            let (img, txt) = block.forward(&img, &txt, &vec, &positions(d, TEXT + IMAGE, &img));
            Tensor::cat(&[img, txt], 1)
        });
    Twins::new(kind, device, |vs| SingleStreamBlock::new(vs.root(), hidden, heads, 4.0).unwrap()).compare(
        &format!("single block of {hidden}"),
        |block, input| {
            let (x, vec) = (input(1, &[1, IMAGE, hidden]), input(3, &[1, hidden]));
            block.forward(&x, &vec, &positions(d, IMAGE, &x))
        },
    );
}

#[test]
fn stock_blocks_are_as_accurate_as_exact_ones_f32() {
    blocks(Kind::Float, Device::Cpu, 256, 2);
    blocks(Kind::Float, Device::Cpu, 1536, 12);
}

#[test]
fn stock_blocks_are_as_accurate_as_exact_ones_bf16() {
    blocks(Kind::BFloat16, Device::Cpu, 256, 2);
    blocks(Kind::BFloat16, Device::Cpu, 1536, 12);
}

/// The operations on three samples, each with vectors of its own.
fn batches(device: Device, kinds: &[Kind]) {
    for &kind in kinds {
        let width = 256;
        let layer = |vs: &VarStore| Linear::new(vs.root(), width, width, true);
        let norm = LayerNorm::plain(width, 1e-6);
        let twins = Twins::new(kind, device, layer);
        twins.compare("modulate", |_, input| {
            let (x, scale, shift) =
                (input(1, &[3, 20, width]), input(2, &[3, 1, width]), input(3, &[3, 1, width]));
            modulate(&norm, &x, &scale, &shift)
        });
        twins.compare("linear_gelu", |layer, input| linear_gelu(layer, &input(1, &[3, 20, width])));
        twins.compare("linear_gated_residual", |layer, input| {
            let (y, gate, x) =
                (input(1, &[3, 20, width]), input(2, &[3, 1, width]), input(3, &[3, 20, width]));
            linear_gated_residual(layer, &y, &gate, &x)
        });
        twins.compare("residual_mlp", |layer, input| {
            let (attn, x) = (input(1, &[3, 20, width]), input(3, &[3, 20, width]));
            let [gate, scale, shift, mlp_gate] = [2, 4, 5, 6].map(|seed| input(seed, &[3, 1, width]));
            let (proj, up, down) = (layer, layer, layer);
            let (norm, gate, mlp_gate) = (&norm, &gate, &mlp_gate);
            let block = ResidualMlp { proj, gate, norm, modulation: [&scale, &shift], up, down, mlp_gate };
            block.fused(&attn, &x).unwrap_or_else(|| {
                let x = linear_gated_residual(proj, &attn, gate, &x);
                let hidden = linear_gelu(up, &modulate(norm, &x, &scale, &shift));
                linear_gated_residual(down, &hidden, mlp_gate, &x)
            })
        });
    }
}

#[test]
fn stock_operations_take_batches_and_each_sample_its_own_vectors() {
    batches(Device::Cpu, &[Kind::Float, Kind::BFloat16]);
}

/// The device, or a word about why the test says nothing here.
fn cuda_device(test: &str) -> Option<Device> {
    if Cuda::device_count() > 0 {
        let found = cuda::arithmetic(0);
        assert_eq!(found.problem, None, "{found:?}");
        return Some(Device::Cuda(0));
    }
    // Not through `println!`, which a test that passes swallows.
    let _ = std::io::stderr().write_all(format!("{test}: skipped: no CUDA device\n").as_bytes());
    None
}

#[test]
fn cuda_blocks_are_as_accurate_as_exact_ones() {
    let Some(device) = cuda_device("cuda_blocks_are_as_accurate_as_exact_ones") else { return };
    for kind in [Kind::Float, Kind::BFloat16, Kind::Half] {
        // Heads of 32, 64, 96, 128 and 256 numbers.
        for (hidden, heads) in [(64, 2), (192, 3), (192, 2), (256, 2), (1536, 12), (512, 2)] {
            blocks(kind, device, hidden, heads);
        }
    }
}

#[test]
fn cuda_operations_take_batches_and_each_sample_its_own_vectors() {
    let Some(device) = cuda_device("cuda_operations_take_batches_and_each_sample_its_own_vectors") else {
        return;
    };
    batches(device, &[Kind::Float, Kind::BFloat16, Kind::Half]);
}

#[test]
fn cuda_makes_the_same_fp8_of_a_row_as_libtorch() {
    let Some(device) = cuda_device("cuda_makes_the_same_fp8_of_a_row_as_libtorch") else { return };
    for kind in [Kind::Float, Kind::BFloat16, Kind::Half] {
        // Rows that the registers hold and rows that they do not, one of them zero.
        for width in [64, 3072, 30_720] {
            let rows = Tensor::arange(20, (Kind::Float, Device::Cpu)).unsqueeze(1);
            let x = (randn(&[20, width], 5).unwrap() * rows).to_kind(kind);
            let theirs = Fp8::quantize(&x);
            let ours = on_cuda(|| cuda::quantize_rows(Some(&x.to_device(device)), None));
            // A product with the reciprocal rounds elsewhere now and then: to the neighbour.
            assert_near(&ours, &theirs, 2e-3, &format!("{kind:?} {width}"));
        }
    }
}

#[test]
fn cuda_makes_the_same_fp8_of_what_it_computes_as_of_what_it_wrote() {
    let Some(device) = cuda_device("cuda_makes_the_same_fp8_of_what_it_computes_as_of_what_it_wrote") else {
        return;
    };
    for kind in [Kind::Float, Kind::BFloat16, Kind::Half] {
        for width in [64, 3072] {
            let input = |seed, size: &[i64]| randn(size, seed).unwrap().to_kind(kind).to_device(device);
            let (x, y) = (input(1, &[2, 20, width]), input(2, &[2, 20, width]));
            let [gate, scale, shift] = [3, 4, 5].map(|seed| input(seed, &[2, 1, width]));
            let (gated, modulation) = ([&gate, &y], [&scale, &shift]);
            let what = format!("{kind:?} {width}");
            let quantized = |x: &Tensor| on_cuda(|| cuda::quantize_rows(Some(x), None));

            let plain = on_cuda(|| cuda::modulate(&x, modulation, 1e-6));
            let fused = on_cuda(|| cuda::modulate_fp8(&x, modulation, 1e-6));
            assert_near(&fused, &quantized(&plain), 0.0, &what);

            let (sum, plain) = on_cuda(|| cuda::gated_modulate(&x, gated, modulation, 1e-6));
            let (same, fused) = on_cuda(|| cuda::gated_modulate_fp8(&x, gated, modulation, 1e-6));
            assert!(sum == same, "{what}");
            assert_near(&fused, &quantized(&plain), 0.0, &what);

            // The MLP's part as a view into something wider.
            let wide = input(6, &[2, 20, 5 * width]).narrow(-1, width, 4 * width);
            let plain = Tensor::cat(&[&x, &Activation::GeluTanh.apply(wide.shallow_clone())], -1);
            let fused = on_cuda(|| cuda::quantize_rows(Some(&x), Some(&wide)));
            assert_near(&fused, &quantized(&plain), 2e-3, &what);
        }
    }
}

fn on_cuda<R>(f: impl FnOnce() -> Option<R>) -> R {
    no_grad(|| with_numerics(Numerics::Fast, f)).expect("a kernel for it")
}

/// The same scales but for their last bits, and at most this share of the numbers rounded to the neighbour.
fn assert_near(ours: &Fp8, theirs: &Fp8, share: f64, what: &str) {
    let [ours_scale, theirs_scale] = [ours, theirs].map(|fp8| fp8.scale.to_device(Device::Cpu));
    let off = f64::try_from(((ours_scale - &theirs_scale) / &theirs_scale).abs().max()).unwrap();
    let [ours, theirs] = [ours, theirs].map(|fp8| fp8.weight.to_device(Device::Cpu).to_kind(Kind::Float));
    let other = f64::try_from(ours.ne_tensor(&theirs).to_kind(Kind::Double).mean(None)).unwrap();
    println!("{what}: scales off by {off:.1e}, other numbers {other:.1e}");
    assert!(off <= 3.0 * share && other <= share, "{what}: {off:e}, {other:e}");
    let most = theirs.abs() / 8 + 2f64.powi(-9);
    assert!(bool::try_from((ours - &theirs).abs().le_tensor(&most).all()).unwrap(), "{what}");
}

#[test]
fn where_gradients_are_needed_stock_is_exact() {
    let vs = VarStore::new(Device::Cpu);
    let block = SingleStreamBlock::new(vs.root(), 256, 2, 4.0).unwrap();
    init(&vs, 3).unwrap();
    let (x, vec) = (randn(&[1, IMAGE, 256], 1).unwrap(), randn(&[1, 256], 2).unwrap());
    let pe = positions(128, IMAGE, &x);
    let exact = block.forward(&x, &vec, &pe);
    let fast = torch_only(|| block.forward(&x, &vec, &pe));
    assert!(fast.requires_grad());
    assert!(bool::try_from(exact.eq_tensor(&fast).all()).unwrap(), "not the exact bits");
}
