//! The fast form from libtorch's operations alone, on the CPU, against an evaluation in f64: its error is at most 1.1
//! times that of the exact form.

use tch::nn::{Module, VarStore};
use tch::{Device, Kind, Tensor, no_grad};

use super::scope::stock;
use super::{linear_gated_residual, linear_gelu, modulate, wide};
use crate::layers::{DoubleStreamBlock, EmbedNd, SingleStreamBlock};
use crate::nn::{LayerNorm, Linear, init};
use crate::shim::randn;

const IMAGE: i64 = 40;
const TEXT: i64 = 24;

/// A model in `kind` and the same numbers in f64.
struct Twins<M> {
    kind: Kind,
    model: M,
    wide: M,
    _stores: [VarStore; 2],
}

impl<M> Twins<M> {
    fn new(kind: Kind, build: impl Fn(&VarStore) -> M) -> Self {
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
        vs64.set_kind(kind);
        vs64.set_kind(Kind::Double);
        Self { kind, model, wide, _stores: [vs, vs64] }
    }

    /// Runs the model with what `run` makes of inputs that `input` gives it, by size.
    fn compare(&self, what: &str, run: impl Fn(&M, &dyn Fn(u64, &[i64]) -> Tensor) -> Tensor) {
        let narrow = |seed, size: &[i64]| randn(size, seed).unwrap().to_kind(self.kind);
        no_grad(|| {
            let reference = wide(|| run(&self.wide, &|seed, size| narrow(seed, size).to_kind(Kind::Double)));
            let error = |out: Tensor| {
                let out = out.to_kind(Kind::Double);
                f64::try_from((out - &reference).norm() / reference.norm()).unwrap()
            };
            let exact = error(run(&self.model, &narrow));
            let fast = error(stock(|| run(&self.model, &narrow)));
            println!("{what} {:?}: exact {exact:.3e}, fast {fast:.3e}", self.kind);
            assert!(fast <= 1.1 * exact, "{what} {:?}: exact {exact:e}, fast {fast:e}", self.kind);
        });
    }
}

/// Positions for a head of so many numbers, in the kind of the reference or else f32.
fn positions(d: i64, length: i64, kind: Kind) -> Tensor {
    let ids = Tensor::arange(3 * length, (Kind::Float, Device::Cpu)).reshape([1, length, 3]);
    let pe = EmbedNd::new(d, 10_000, &[d / 8, d / 16 * 7, d / 16 * 7]).unwrap().forward(&ids);
    if kind == Kind::Double { pe.to_kind(kind) } else { pe }
}

fn blocks(kind: Kind, hidden: i64, heads: i64) {
    let d = hidden / heads;
    Twins::new(kind, |vs| DoubleStreamBlock::new(vs.root(), hidden, heads, 4.0, true).unwrap()).compare(
        &format!("double block of {hidden}"),
        |block, input| {
            let (img, txt, vec) =
                (input(1, &[1, IMAGE, hidden]), input(2, &[1, TEXT, hidden]), input(3, &[1, hidden]));
            let (img, txt) = block.forward(&img, &txt, &vec, &positions(d, TEXT + IMAGE, img.kind()));
            Tensor::cat(&[img, txt], 1)
        },
    );
    Twins::new(kind, |vs| SingleStreamBlock::new(vs.root(), hidden, heads, 4.0).unwrap()).compare(
        &format!("single block of {hidden}"),
        |block, input| {
            let (x, vec) = (input(1, &[1, IMAGE, hidden]), input(3, &[1, hidden]));
            block.forward(&x, &vec, &positions(d, IMAGE, x.kind()))
        },
    );
}

#[test]
fn stock_blocks_are_as_accurate_as_exact_ones_f32() {
    blocks(Kind::Float, 256, 2);
    blocks(Kind::Float, 1536, 12);
}

#[test]
fn stock_blocks_are_as_accurate_as_exact_ones_bf16() {
    blocks(Kind::BFloat16, 256, 2);
    blocks(Kind::BFloat16, 1536, 12);
}

#[test]
fn stock_operations_take_batches_and_each_sample_its_own_vectors() {
    for kind in [Kind::Float, Kind::BFloat16] {
        let width = 256;
        let layer = |vs: &VarStore| Linear::new(vs.root(), width, width, true);
        let norm = LayerNorm::plain(width, 1e-6);
        let twins = Twins::new(kind, layer);
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
    }
}

#[test]
fn where_gradients_are_needed_stock_is_exact() {
    let vs = VarStore::new(Device::Cpu);
    let block = SingleStreamBlock::new(vs.root(), 256, 2, 4.0).unwrap();
    init(&vs, 3).unwrap();
    let (x, vec) = (randn(&[1, IMAGE, 256], 1).unwrap(), randn(&[1, 256], 2).unwrap());
    let pe = positions(128, IMAGE, Kind::Float);
    let exact = block.forward(&x, &vec, &pe);
    let fast = stock(|| block.forward(&x, &vec, &pe));
    assert!(fast.requires_grad());
    assert!(bool::try_from(exact.eq_tensor(&fast).all()).unwrap(), "not the exact bits");
}
