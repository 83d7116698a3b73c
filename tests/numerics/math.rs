//! The pure functions and small layers against the formulas that they stand for, computed in f64.

use approx::assert_abs_diff_eq;
use tch::nn::{Module, VarStore};
use tch::{Device, Kind, Tensor};
use tch_flux::family::ModelFamily;
use tch_flux::layers::{DoubleStreamBlock, EmbedNd, LinearLora, timestep_embedding};
use tch_flux::math::{apply_rope, rope};
use tch_flux::models::autoencoder::{AutoEncoder, AutoEncoderParams};
use tch_flux::models::flux1::{Flux1, Flux1Input, Flux1Options, Flux1Params};
use tch_flux::sampling::{NoiseRule, get_schedule};
use tch_flux::{Error, nn};

fn values(x: &Tensor) -> Vec<f64> {
    Vec::try_from(x.to_kind(Kind::Double).flatten(0, -1)).unwrap()
}

fn randn(size: &[i64], kind: Kind) -> Tensor {
    ModelFamily::Flux1
        .latent()
        .get_noise(1, 512, 512, Kind::Float, 5, NoiseRule::Current)
        .unwrap()
        .flatten(0, -1)
        .narrow(0, 0, size.iter().product())
        .reshape(size)
        .to_kind(kind)
}

#[test]
fn rope_turns_by_the_position_over_a_power_of_theta() {
    let positions = [0f32, 1.0, 7.0, 63.0];
    let out = rope(&Tensor::from_slice(&positions).unsqueeze(0), 8, 10_000).unwrap();
    assert_eq!(out.size(), [1, 4, 4, 2, 2]);
    for (p, position) in positions.iter().enumerate() {
        for i in 0..4 {
            let angle = f64::from(*position) / 10_000f64.powf(2.0 * i as f64 / 8.0);
            let matrix = values(&out.get(0).get(p as i64).get(i));
            let expected = [angle.cos(), -angle.sin(), angle.sin(), angle.cos()];
            for (found, expected) in matrix.iter().zip(expected) {
                assert_abs_diff_eq!(*found, expected, epsilon = 5e-6);
            }
        }
    }
    assert!(matches!(rope(&out, 7, 10_000), Err(Error::Config(_))));
}

#[test]
fn rotated_vectors_keep_their_length_and_bf16_its_kind() {
    let ids = Tensor::arange(12, (Kind::Float, Device::Cpu)).reshape([1, 4, 3]);
    let pe = EmbedNd::new(32, 10_000, &[8, 12, 12]).unwrap().forward(&ids);
    assert_eq!(pe.size(), [1, 1, 4, 16, 2, 2]);
    let q = randn(&[1, 2, 4, 32], Kind::Float);
    let (rotated, k) = apply_rope(&q, &q.to_kind(Kind::BFloat16), &pe);
    let length = |x: &Tensor| values(&x.square().sum_dim_intlist(-1, false, None));
    for (a, b) in length(&q).iter().zip(length(&rotated)) {
        assert_abs_diff_eq!(*a, b, epsilon = 1e-4);
    }
    assert_eq!(k.kind(), Kind::BFloat16);
}

#[test]
fn timestep_embedding_holds_cosines_then_sines() {
    let t = Tensor::from_slice(&[0.25f32]);
    let found = values(&timestep_embedding(&t, 8, 10_000.0, 1000.0));
    for i in 0..4 {
        let angle = 250.0 * (-(10_000f64.ln()) * i as f64 / 4.0).exp();
        assert_abs_diff_eq!(found[i], angle.cos(), epsilon = 2e-5);
        assert_abs_diff_eq!(found[i + 4], angle.sin(), epsilon = 2e-5);
    }
}

#[test]
fn schedules_fall_from_one_to_zero_and_larger_pictures_stay_noisy_longer() {
    let plain = get_schedule(4, 256, 0.5, 1.15, false);
    assert_eq!(plain, [1.0, 0.75, 0.5, 0.25, 0.0]);
    let small = get_schedule(28, 256, 0.5, 1.15, true);
    let large = get_schedule(28, 4096, 0.5, 1.15, true);
    for schedule in [&small, &large] {
        assert_eq!((schedule[0], schedule[28]), (1.0, 0.0));
        assert!(schedule.windows(2).all(|w| w[0] > w[1]));
    }
    assert!(small[1..28].iter().zip(&large[1..28]).all(|(s, l)| s < l));
    let shifted = |mu: f64, t: f64| mu.exp() / (mu.exp() + 1.0 / t - 1.0);
    assert_abs_diff_eq!(large[14], shifted(1.15, 0.5), epsilon = 1e-6);
}

#[test]
fn unpacking_undoes_packing() {
    let spec = ModelFamily::Flux1.latent();
    let latent = randn(&[2, 16, spec.size(48), spec.size(80)], Kind::Float);
    let packed = spec.pack(&latent).unwrap();
    assert_eq!(packed.size(), [2, 15, 64]);
    assert_eq!(spec.unpack(&packed, 48, 80).unwrap(), latent);
    assert!(matches!(spec.unpack(&packed, 64, 80), Err(Error::Shape { .. })));
    assert!(matches!(spec.pack(&latent.narrow(2, 0, 5)), Err(Error::Shape { .. })));
}

#[test]
fn a_low_rank_update_is_added_with_its_strength() {
    let vs = VarStore::new(Device::Cpu);
    let mut layer = LinearLora::new(vs.root(), 12, 8, true, 128, true, 0.85);
    nn::init(&vs, 3).unwrap();
    let v = |name: &str| vs.variables()[name].shallow_clone();
    assert_eq!(v("lora_A.weight").size(), [8, 12], "the rank is at most the smaller width");
    let x = randn(&[5, 12], Kind::Float);
    let base = x.linear(&v("weight"), Some(&v("bias")));
    let update =
        x.linear::<&Tensor>(&v("lora_A.weight"), None).linear(&v("lora_B.weight"), Some(&v("lora_B.bias")));
    assert_eq!(layer.forward(&x), &base + &update * 0.85);
    layer.set_scale(0.0);
    assert_eq!(layer.forward(&x), base);
}

#[test]
fn a_block_gives_nearly_the_same_in_every_kind() {
    let run = |kind: Kind| {
        let mut vs = VarStore::new(Device::Cpu);
        let block = DoubleStreamBlock::new(vs.root(), 64, 2, 4.0, true).unwrap();
        nn::init(&vs, 1).unwrap();
        vs.set_kind(kind);
        let ids = Tensor::zeros([1, 9, 3], (Kind::Float, Device::Cpu));
        let pe = EmbedNd::new(32, 10_000, &[8, 12, 12]).unwrap().forward(&ids);
        let (img, txt) = (randn(&[1, 6, 64], kind), randn(&[1, 3, 64], kind));
        let _no_grad = tch::no_grad_guard();
        let (img, txt) = block.forward(&img, &txt, &randn(&[1, 64], kind), &pe);
        assert_eq!((img.kind(), txt.kind()), (kind, kind));
        Tensor::cat(&[img, txt], 1).to_kind(Kind::Double)
    };
    let reference = run(Kind::Double);
    for (kind, tolerance) in [(Kind::Float, 1e-5), (Kind::Half, 5e-3), (Kind::BFloat16, 3e-2)] {
        let far = f64::try_from((run(kind) - &reference).norm() / reference.norm()).unwrap();
        assert!(far < tolerance, "{kind:?}: {far}");
    }
}

#[test]
fn inputs_of_another_kind_than_the_weights_are_refused_and_not_a_panic() {
    let vs = VarStore::new(Device::Cpu);
    let params =
        AutoEncoderParams { ch: 32, ch_mult: vec![1], num_res_blocks: 1, ..AutoEncoderParams::flux1() };
    let model = AutoEncoder::new(vs.root(), &params).unwrap();
    nn::init(&vs, 1).unwrap();
    let wrong = model.decode(&randn(&[1, 16, 4, 4], Kind::BFloat16));
    assert!(matches!(wrong, Err(Error::Kind { what: "z", .. })), "{wrong:?}");

    let vs = VarStore::new(Device::Cpu);
    let params = Flux1Params {
        hidden_size: 32,
        num_heads: 1,
        axes_dim: [8, 12, 12],
        depth: 1,
        depth_single_blocks: 1,
        context_in_dim: 8,
        vec_in_dim: 8,
        ..Flux1Params::SCHNELL
    };
    let model = Flux1::new(vs.root(), &params).unwrap();
    nn::init(&vs, 1).unwrap();
    let ids = |len| Tensor::zeros([1, len, 3], (Kind::Float, Device::Cpu));
    let run = |img: Kind, times: Kind| {
        let input = Flux1Input {
            img: &randn(&[1, 4, 64], img),
            img_ids: &ids(4),
            txt: &randn(&[1, 3, 8], Kind::Float),
            txt_ids: &ids(3),
            timesteps: &Tensor::ones([1], (times, Device::Cpu)),
            y: &randn(&[1, 8], Kind::Float),
            guidance: None,
        };
        model.forward(&input, Flux1Options::default())
    };
    assert_eq!(run(Kind::Float, Kind::Float).unwrap().size(), [1, 4, 64]);
    assert!(run(Kind::Float, Kind::Int64).is_ok(), "whole times are embedded in f32");
    for (img, times, named) in [
        (Kind::BFloat16, Kind::Float, "img"),
        (Kind::Int64, Kind::Float, "img"),
        (Kind::Float, Kind::Half, "timesteps"),
    ] {
        assert!(
            matches!(run(img, times), Err(Error::Kind { what, .. }) if what == named),
            "{img:?} {times:?}"
        );
    }
}
