//! GGUF: the transformers, T5 and the autoencoder, as llama.cpp's package `gguf` writes them.

use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};
use tch_flux::checkpoint::{Access, Checkpoint, FLUX1_DIFFUSERS, Family, LoadOptions};
use tch_flux::family::ModelFamily;
use tch_flux::models::Model;
use tch_flux::models::flux1::Flux1Params;
use tch_flux::models::text::{T5Config, T5Encoder};

use super::{
    fixture, flux1, is_as_its_package_reads_it, kept_is_as_cast, load_as, mismatch, open, rows, store_for,
    values, velocity,
};
use crate::support::{temp, variables};

/// What finetunes leave out that did not train it.
const OUTSIDE: [&str; 14] = [
    "img_in.weight",
    "img_in.bias",
    "time_in.in_layer.weight",
    "time_in.in_layer.bias",
    "time_in.out_layer.weight",
    "time_in.out_layer.bias",
    "vector_in.in_layer.weight",
    "vector_in.in_layer.bias",
    "vector_in.out_layer.weight",
    "vector_in.out_layer.bias",
    "guidance_in.in_layer.weight",
    "guidance_in.in_layer.bias",
    "guidance_in.out_layer.weight",
    "guidance_in.out_layer.bias",
];

#[test]
fn dev_schnell_and_fill_load_as_the_package_reads_them() {
    for (file, variant) in [("dev.gguf", "dev"), ("schnell.gguf", "schnell"), ("fill.gguf", "Fill")] {
        let checkpoint = is_as_its_package_reads_it(file).official();
        let params = Flux1Params::from_shapes(|name| checkpoint.shape(name)).unwrap();
        assert_eq!(params.variant(), variant);
        assert_eq!((params.hidden_size, params.depth, params.depth_single_blocks), (32, 1, 1));
        assert!(checkpoint.is_quantised());
        assert_eq!(checkpoint.main_kind(), Some(Kind::BFloat16));
        let (model, vs) = flux1(&params);
        let loaded = checkpoint.load(&vs, LoadOptions::default()).unwrap();
        assert_eq!((loaded.tensors, loaded.kind), (vs.len(), Kind::BFloat16));
        for (name, variable) in variables(&vs) {
            assert!(variable.equal(&checkpoint.tensor_as(&name, Kind::BFloat16).unwrap()), "{file}: {name}");
        }
        let out = velocity(&model, Kind::BFloat16).unwrap();
        assert!(bool::try_from(out.isfinite().all()).unwrap());
    }
}

#[test]
fn the_types_of_a_mixed_file_are_said() {
    let types = open(fixture("dev.gguf")).types();
    for name in ["Q4_K", "Q6_K", "Q2_K", "Q3_K", "Q8_0", "Q4_0", "Q5_1", "IQ4_NL", "F16", "BF16", "F32"] {
        assert!(types.contains_key(name), "{name} is not in {types:?}");
    }
}

#[test]
fn flux2_loads_as_the_package_reads_it() {
    let checkpoint = is_as_its_package_reads_it("flux2.gguf");
    assert!(matches!(checkpoint.family(), Family::Transformer { family: ModelFamily::Flux2, .. }));
    let checkpoint = checkpoint.official();
    let vs = store_for(&checkpoint);
    load_as(&checkpoint, &vs, Kind::Float);
    for (name, variable) in variables(&vs) {
        assert!(variable.equal(&checkpoint.tensor_as(&name, Kind::Float).unwrap()), "{name}");
    }
}

#[test]
fn blocks_split_and_joined_again_are_the_same_numbers() {
    let official = || open(fixture("dev.gguf"));
    let split = official().renamed_back(&FLUX1_DIFFUSERS);
    let [q, k, v] = ["q", "k", "v"].map(|c| format!("transformer_blocks.0.attn.to_{c}.weight"));
    assert_eq!(split.shape(&k).unwrap(), [32, 32]);
    assert_eq!(rows(&split, &[&q, &k, &v]), rows(&official(), &["double_blocks.0.img_attn.qkv.weight"]));
    let again = official().renamed_back(&FLUX1_DIFFUSERS).renamed(&FLUX1_DIFFUSERS);
    for name in official().names() {
        assert_eq!(rows(&again, &[name]), rows(&official(), &[name]), "{name}");
    }
    // The halves of the last layer change places, and so cut a tensor of blocks.
    let last = rows(&split, &["norm_out.linear.weight"]);
    let whole = rows(&official(), &["final_layer.adaLN_modulation.1.weight"]);
    assert_eq!([&last[last.len() / 2..], &last[..last.len() / 2]].concat(), whole);
}

#[test]
fn a_transformer_that_is_kept_gives_the_bits_of_one_that_is_cast() {
    for file in ["dev.gguf", "schnell.gguf", "fill.gguf"] {
        for access in crate::support::BOTH {
            let checkpoint = Checkpoint::open(fixture(file), access).unwrap();
            kept_is_as_cast(&checkpoint, Kind::BFloat16);
            kept_is_as_cast(&checkpoint, Kind::Float);
        }
    }
    // Joined from three runs of blocks each.
    kept_is_as_cast(
        &open(fixture("dev.gguf")).renamed_back(&FLUX1_DIFFUSERS).renamed(&FLUX1_DIFFUSERS),
        Kind::BFloat16,
    );
}

#[test]
fn t5_in_the_names_of_llama_loads_as_the_package_reads_it() {
    let checkpoint = is_as_its_package_reads_it("t5.gguf");
    assert_eq!(checkpoint.family().to_string(), "this is a T5 encoder, in llama.cpp's names");
    let raw = open(fixture("t5.gguf"));
    let checkpoint = checkpoint.official();
    let config = T5Config::from_shapes(|name| checkpoint.shape(name)).unwrap();
    assert_eq!((config.num_layers, config.d_model, config.d_ff, config.num_heads), (2, 64, 96, 2));
    let tokens = Tensor::from_slice(&[3i64, 1, 39, 0, 7]).unsqueeze(0);
    for kind in [Kind::Float, Kind::BFloat16] {
        let vs = VarStore::new(Device::Cpu);
        let cast = T5Encoder::new(vs.root(), &config).unwrap();
        load_as(&checkpoint, &vs, kind);
        let wi_0 = &variables(&vs)["encoder.block.1.layer.1.DenseReluDense.wi_0.weight"];
        assert!(wi_0.equal(&raw.tensor_as("enc.blk.1.ffn_gate.weight", kind).unwrap()));
        let vs = VarStore::new(Device::Cpu);
        let kept = T5Encoder::new(vs.root(), &config).unwrap();
        let options =
            LoadOptions { kind: Some(kind), keep_quantized: Some(kept.linears()), ..Default::default() };
        let loaded = checkpoint.load(&vs, options).unwrap();
        // Of seven matrices a layer, those in F16 and BF16 are not quantised. The embedding is no linear layer.
        let whole =
            |name: &str| matches!(checkpoint.stored_as(name).unwrap().as_str(), "F16" | "BF16" | "F32");
        let quantised = variables(&vs).keys().filter(|n| !whole(n) && *n != "shared.weight").count();
        assert_eq!(loaded.quantized, quantised);
        assert!(cast.forward(&tokens).unwrap().equal(&kept.forward(&tokens).unwrap()), "{kind:?}");
        assert_eq!(super::sum(&checkpoint.types_in_memory(kind, true)), loaded.bytes);
    }
}

#[test]
fn the_autoencoder_has_its_kernels_in_their_own_shape() {
    let checkpoint = is_as_its_package_reads_it("ae.gguf");
    assert!(matches!(checkpoint.family(), Family::AutoEncoder { family: ModelFamily::Flux1, .. }));
    let checkpoint = checkpoint.official();
    for (name, shape) in [
        ("encoder.down.0.block.0.conv1.weight", vec![8, 4, 3, 3]),
        ("decoder.mid.block_1.conv1.weight", vec![8, 16, 3, 3]),
        ("decoder.mid.attn_1.q.weight", vec![8, 8, 1, 1]),
    ] {
        assert_eq!(checkpoint.shape(name), Some(shape), "{name}");
    }
    let vs = store_for(&checkpoint);
    assert_eq!(load_as(&checkpoint, &vs, Kind::Float).tensors, 4);
    let kernel = &variables(&vs)["decoder.mid.block_1.conv1.weight"];
    assert_eq!(kernel.size(), [8, 16, 3, 3]);
    assert_eq!(values(kernel), rows(&open(fixture("ae.gguf")), &["decoder.mid.block_1.conv1.weight"]));
}

#[test]
fn a_finetune_takes_what_it_lacks_from_a_base_and_says_so() {
    let finetune = open(fixture("dev.gguf")).without(&OUTSIDE);
    // Of the base, nothing but what is missing is taken; it is in other types, and behind a prefix.
    let base = super::bitsandbytes::dev_in_nf4();
    let base_numbers = rows(&base, &["time_in.in_layer.weight"]);
    let (whole, taken) = finetune.filled_from(base);
    assert_eq!(taken.len(), OUTSIDE.len());
    assert!(taken.iter().all(|name| OUTSIDE.contains(&name.as_str())), "{taken:?}");
    assert_eq!(rows(&whole, &["time_in.in_layer.weight"]), base_numbers);
    assert_eq!(whole.stored_as("time_in.in_layer.weight").as_deref(), Some("nf4"));
    let own = "double_blocks.0.img_attn.qkv.weight";
    assert_eq!(rows(&whole, &[own]), rows(&open(fixture("dev.gguf")), &[own]));
    assert_eq!(whole.files().len(), 2);

    let (whole, taken) = open(fixture("dev.gguf")).without(&OUTSIDE).filled_from(open(fixture("dev.gguf")));
    assert_eq!(taken.len(), OUTSIDE.len());
    kept_is_as_cast(&whole, Kind::BFloat16);
}

#[test]
fn a_base_gives_nothing_that_is_there_and_nothing_of_the_blocks() {
    let (_, taken) = open(fixture("dev.gguf")).filled_from(open(fixture("dev.gguf")));
    assert!(taken.is_empty(), "{taken:?}");
    let lost = "double_blocks.0.img_mlp.0.weight";
    let (damaged, taken) = open(fixture("dev.gguf")).without(&[lost]).filled_from(open(fixture("dev.gguf")));
    assert!(taken.is_empty(), "{taken:?}");
    let params = Flux1Params::from_shapes(|name| open(fixture("dev.gguf")).shape(name)).unwrap();
    let (_, vs) = flux1(&params);
    let found = mismatch(damaged.load(&vs, LoadOptions::default()));
    assert_eq!(found.missing, [lost]);
    assert!(!found.to_string().contains("needs a base"), "{found}");
}

#[test]
fn a_finetune_without_a_base_is_refused_with_what_is_missing_and_what_to_name() {
    let params = Flux1Params::from_shapes(|name| open(fixture("dev.gguf")).shape(name)).unwrap();
    let finetune = open(fixture("dev.gguf")).without(&OUTSIDE);
    let (_, vs) = flux1(&params);
    let found = mismatch(finetune.load(&vs, LoadOptions::default()));
    assert_eq!(found.missing.len(), OUTSIDE.len());
    assert!(found.to_string().contains("needs a base"), "{found}");
    let sizes = Flux1Params::from_shapes(|name| finetune.shape(name)).unwrap_err().to_string();
    assert!(sizes.contains("img_in.weight") && sizes.contains("needs a base"), "{sizes}");
}

#[test]
fn a_tensor_of_an_unknown_name_is_reported() {
    let (_folder, path) = temp("w.gguf");
    std::fs::copy(fixture("schnell.gguf"), &path).unwrap();
    let checkpoint = Checkpoint::open(&path, Access::Map).unwrap().official();
    let params = Flux1Params::from_shapes(|name| checkpoint.shape(name)).unwrap();
    let (_, vs) = flux1(&Flux1Params { depth_single_blocks: 0, ..params });
    let found = mismatch(checkpoint.load(&vs, LoadOptions::default()));
    assert!(found.missing.is_empty());
    assert!(found.unexpected.iter().all(|name| name.starts_with("single_blocks.0.")), "{found}");
    assert_eq!(found.unexpected.len(), 8);
}
