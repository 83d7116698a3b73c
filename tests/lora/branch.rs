//! Terms that run beside a layer give what the merged weight gives, and leave nothing behind.

use tch::nn::{Module, VarStore};
use tch::{Device, Kind, Tensor};
use tch_flux::layers::LinearLora;
use tch_flux::lora::{Change, Factor, LoraBranch, Term, Update, delta, merged, merged_bias};

use crate::{assert_close, wave};

fn update(change: Change, scale: f64, magnitude: Option<Tensor>) -> Update {
    Update { change, scale, magnitude }
}

fn low_rank(out: i64, bias: bool) -> Change {
    let bias = bias.then(|| wave(&[out], 12.0));
    Change::LowRank { down: wave(&[2, 8], 10.0), up: wave(&[out, 2], 11.0), bias }
}

fn hadamard(out: i64) -> Change {
    Change::Hadamard {
        w1: [wave(&[out, 2], 20.0), wave(&[2, 8], 21.0)],
        w2: [wave(&[out, 3], 22.0), wave(&[3, 8], 23.0)],
    }
}

fn kronecker(out: i64) -> Change {
    let w2 = Factor::Product([wave(&[out / 2, 1], 31.0), wave(&[1, 2], 32.0)]);
    Change::Kronecker { w1: Factor::Whole(wave(&[2, 4], 30.0)), w2 }
}

/// Every form, on all rows and on some, with DoRA by rows and by columns.
fn terms() -> Vec<Term> {
    let term = |update, rows, strength| Term { update, rows, strength };
    let lengths = |shape: &[i64]| Some(wave(shape, 40.0).abs() + 1);
    vec![
        term(update(low_rank(12, false), 0.5, None), None, 0.8),
        term(update(low_rank(4, true), 2.0, None), Some(4..8), -0.5),
        term(update(hadamard(12), 0.25, None), None, 1.0),
        term(update(hadamard(4), 1.0, None), Some(0..4), 1.0),
        term(update(kronecker(12), 1.0, None), None, 0.7),
        term(update(kronecker(8), 0.5, None), Some(4..12), 1.0),
        term(update(Change::Full(wave(&[12, 8], 50.0)), 1.0, None), None, 0.3),
        term(update(Change::Bias(wave(&[12], 51.0)), 1.0, None), None, 0.4),
        term(update(Change::Bias(wave(&[4], 52.0)), 1.0, None), Some(8..12), 2.0),
        term(update(low_rank(12, false), 1.0, lengths(&[12, 1])), None, 0.6),
        term(update(low_rank(4, false), 1.0, lengths(&[4])), Some(8..12), 1.0),
        term(update(kronecker(12), 1.0, lengths(&[1, 8])), None, 0.9),
        term(update(hadamard(4), 1.0, lengths(&[1, 8])), Some(0..4), 0.5),
    ]
}

fn run(terms: &[Term], weight: &Tensor, bias: Option<&Tensor>, x: &Tensor) -> Tensor {
    let product = |x: &Tensor| x.linear::<&Tensor>(weight, None);
    let dense = || Ok(weight.shallow_clone());
    let beside = LoraBranch::new(terms, &dense, Device::Cpu, weight.kind()).unwrap();
    assert_eq!(beside.is_empty(), terms.is_empty());
    beside.forward(x, x.linear(weight, bias), &product)
}

#[test]
fn every_form_beside_a_layer_is_what_it_is_merged() {
    let (weight, x) = (wave(&[12, 8], 1.0), wave(&[2, 5, 8], 2.0));
    let bias = wave(&[12], 3.0);
    let mut all = Vec::new();
    for term in terms() {
        let terms = [term];
        let merged_weight = merged(&weight, &terms).unwrap();
        for bias in [None, Some(&bias)] {
            let merged_bias = merged_bias(bias, 12, &terms).unwrap();
            let expected = x.linear(&merged_weight, merged_bias.as_ref());
            let found = run(&terms, &weight, bias, &x);
            let scale = f64::try_from(expected.abs().max()).unwrap().max(1.0);
            assert_close(&(found / scale), &(expected / scale));
        }
        all.extend(terms);
    }
    let merged_bias = merged_bias(Some(&bias), 12, &all).unwrap();
    let expected = x.linear(&merged(&weight, &all).unwrap(), merged_bias.as_ref());
    let scale = f64::try_from(expected.abs().max()).unwrap();
    assert_close(&(run(&all, &weight, Some(&bias), &x) / scale), &(expected / scale));
}

#[test]
fn terms_are_added_to_the_base_in_any_order() {
    let weight = wave(&[12, 8], 1.0);
    let mut reversed = terms();
    reversed.reverse();
    assert_close(&(merged(&weight, &reversed).unwrap() / 8), &(merged(&weight, &terms()).unwrap() / 8));
}

#[test]
fn dora_leaves_a_row_of_zeros() {
    let weight = wave(&[2, 8], 1.0);
    let _ = weight.get(0).zero_();
    let change = Change::Full(weight.zeros_like());
    let magnitude = Some(Tensor::from_slice(&[1f32, 2.0]));
    let terms = [Term { update: update(change, 1.0, magnitude), rows: None, strength: 1.0 }];
    let merged = merged(&weight, &terms).unwrap();
    assert!(merged.get(0) == weight.get(0));
    let x = wave(&[3, 8], 2.0);
    assert_close(&run(&terms, &weight, None, &x), &x.linear::<&Tensor>(&merged, None));
}

#[test]
fn neither_way_touches_the_base() {
    let weight = wave(&[12, 8], 1.0).to_kind(Kind::BFloat16);
    let before = weight.copy();
    let x = wave(&[2, 5, 8], 2.0).to_kind(Kind::BFloat16);
    let terms = terms();
    let _ = (run(&terms, &weight, None, &x), merged(&weight, &terms).unwrap());
    assert!(weight == before, "the weight has its bits");
    let bias = wave(&[12], 3.0);
    let before = bias.copy();
    let _ = merged_bias(Some(&bias), 12, &terms).unwrap();
    assert!(bias == before, "the bias has its bits");
}

#[test]
fn without_terms_nothing_changes() {
    let (weight, x) =
        (wave(&[12, 8], 1.0).to_kind(Kind::BFloat16), wave(&[3, 8], 2.0).to_kind(Kind::BFloat16));
    assert!(merged(&weight, &[]).unwrap() == weight);
    assert!(run(&[], &weight, None, &x) == x.linear::<&Tensor>(&weight, None));
    assert!(merged_bias(None, 12, &[]).unwrap().is_none());
}

#[test]
fn merged_rounds_once_to_the_kind_of_the_weight() {
    let weight = wave(&[12, 8], 1.0).to_kind(Kind::BFloat16);
    let terms = [Term { update: update(low_rank(12, false), 0.5, None), rows: None, strength: 0.7 }];
    let found = merged(&weight, &terms).unwrap();
    assert_eq!(found.kind(), Kind::BFloat16);
    let sum = weight.to_kind(Kind::Float) + delta(&terms[0].update).unwrap() * 0.7;
    assert!(found == sum.to_kind(Kind::BFloat16));
    let double = weight.to_kind(Kind::Double);
    assert_eq!(merged(&double, &terms).unwrap().kind(), Kind::Double);
}

/// On strided inputs libtorch has two ways to multiply, with different last bits; the official layers go one of them.
#[test]
fn low_rank_terms_have_the_bits_of_the_official_layer() {
    for kind in [Kind::Float, Kind::BFloat16] {
        let vs = VarStore::new(Device::Cpu);
        let official = LinearLora::new(vs.root(), 64, 96, true, 16, false, 0.85);
        tch_flux::nn::init(&vs, 3).unwrap();
        vs.variables().values().for_each(|v| v.shallow_clone().set_data(&v.to_kind(kind)));
        let of = |name: &str| vs.variables()[name].detach();
        let change = Change::LowRank { down: of("lora_A.weight"), up: of("lora_B.weight"), bias: None };
        let terms = [Term { update: update(change, 0.5, None), rows: None, strength: 1.7 }];
        let x = wave(&[3, 64, 40], 5.0).to_kind(kind).transpose(1, 2);
        let expected = official.forward(&x);
        let base = VarStore::new(Device::Cpu);
        let linear = tch_flux::nn::Linear::new(base.root(), 64, 96, true);
        for (name, mut variable) in base.variables() {
            variable.set_data(&of(&name));
        }
        let dense = || Ok(of("weight"));
        let beside = LoraBranch::new(&terms, &dense, Device::Cpu, kind).unwrap();
        let found = beside.forward(&x, linear.forward(&x), &|x| x.linear::<&Tensor>(&of("weight"), None));
        assert!(found == expected, "{kind:?}");
    }
}
