//! nf4, fp4 and int8 of bitsandbytes, as diffusers, transformers and ComfyUI ship them.

use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};
use tch_flux::checkpoint::{Checkpoint, Family, LoadOptions};
use tch_flux::family::ModelFamily;
use tch_flux::models::Model;
use tch_flux::models::flux1::Flux1Params;
use tch_flux::models::text::{T5Config, T5Encoder};

use super::{fixture, flux1, is_as_its_package_reads_it, load_as, open, refused, rows, velocity};
use crate::support::{Stored, f32s, variables};

const DIFFUSERS: [&str; 3] = [
    "flux1.nf4.diffusers.safetensors",
    "flux1.nf4-double.diffusers.safetensors",
    "flux1.int8.diffusers.safetensors",
];

/// A dev in the official names, most of it in nf4.
pub fn dev_in_nf4() -> Checkpoint {
    open(fixture(DIFFUSERS[1])).official()
}

#[test]
fn what_diffusers_saves_loads_as_bitsandbytes_reads_it() {
    for (file, stored) in DIFFUSERS.into_iter().zip(["nf4", "nf4", "int8"]) {
        let raw = is_as_its_package_reads_it(file);
        let checkpoint = open(fixture(file)).official();
        let params = Flux1Params::from_shapes(|name| checkpoint.shape(name)).unwrap();
        assert_eq!((params.hidden_size, params.variant()), (32, "dev"));
        assert!(checkpoint.types().contains_key(stored), "{:?}", checkpoint.types());
        // q, k and v have their tables each, and so have the halves that change places.
        let single = ["attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"];
        let single = single.map(|name| format!("single_transformer_blocks.0.{name}.weight"));
        let single = single.each_ref().map(String::as_str);
        assert_eq!(rows(&checkpoint, &["single_blocks.0.linear1.weight"]), rows(&raw, &single));
        let last = rows(&raw, &["norm_out.linear.weight"]);
        let swapped = [&last[last.len() / 2..], &last[..last.len() / 2]].concat();
        assert_eq!(rows(&checkpoint, &["final_layer.adaLN_modulation.1.weight"]), swapped);
        for kind in [Kind::Float, Kind::BFloat16] {
            let (model, vs) = flux1(&params);
            let loaded = load_as(&checkpoint, &vs, kind);
            assert_eq!((loaded.tensors, loaded.quantized), (vs.len(), 0));
            for (name, variable) in variables(&vs) {
                assert!(variable.equal(&checkpoint.tensor_as(&name, kind).unwrap()), "{file}: {name}");
            }
            assert!(bool::try_from(velocity(&model, kind).unwrap().isfinite().all()).unwrap());
        }
    }
}

#[test]
fn what_cannot_be_kept_becomes_numbers_where_it_is_asked_to_be_kept() {
    let checkpoint = dev_in_nf4();
    let params = Flux1Params::from_shapes(|name| checkpoint.shape(name)).unwrap();
    let (cast, vs) = flux1(&params);
    load_as(&checkpoint, &vs, Kind::BFloat16);
    let (asked, vs) = flux1(&params);
    let options = LoadOptions {
        kind: Some(Kind::BFloat16),
        keep_quantized: Some(asked.linears()),
        ..Default::default()
    };
    let loaded = checkpoint.load(&vs, options).unwrap();
    assert_eq!(loaded.quantized, 0);
    assert_eq!(super::sum(&checkpoint.types_in_memory(Kind::BFloat16, true)), loaded.bytes);
    assert!(velocity(&cast, Kind::BFloat16).unwrap().equal(&velocity(&asked, Kind::BFloat16).unwrap()));
}

#[test]
fn what_transformers_saves_loads_as_bitsandbytes_reads_it() {
    for file in ["t5.fp4.safetensors", "t5.int8.safetensors"] {
        let checkpoint = is_as_its_package_reads_it(file).official();
        let config = T5Config::from_shapes(|name| checkpoint.shape(name)).unwrap();
        assert_eq!((config.d_model, config.num_layers, config.num_heads), (64, 1, 2));
        let vs = VarStore::new(Device::Cpu);
        let model = T5Encoder::new(vs.root(), &config).unwrap();
        load_as(&checkpoint, &vs, Kind::Float);
        let out = model.forward(&Tensor::from_slice(&[3i64, 1, 39]).unsqueeze(0)).unwrap();
        assert!(bool::try_from(out.isfinite().all()).unwrap());
    }
}

#[test]
fn the_fused_names_of_comfy_load_as_bitsandbytes_reads_them() {
    for file in ["comfy.nf4.safetensors", "comfy.nf4-double.safetensors"] {
        let raw = is_as_its_package_reads_it(file);
        assert!(matches!(
            raw.family(),
            Family::Transformer { family: ModelFamily::Flux1, guidance: false, .. }
        ));
        let checkpoint = open(fixture(file)).official();
        let params = Flux1Params::from_shapes(|name| checkpoint.shape(name)).unwrap();
        let (model, vs) = flux1(&params);
        load_as(&checkpoint, &vs, Kind::Float);
        let name = "double_blocks.0.txt_attn.qkv.weight";
        let prefixed = format!("model.diffusion_model.{name}");
        assert_eq!(rows(&checkpoint, &[name]), rows(&raw, &[&prefixed]));
        assert!(bool::try_from(velocity(&model, Kind::Float).unwrap().isfinite().all()).unwrap());
    }
}

fn bytes(name: &str, dtype: &str, shape: &[i64], bytes: Vec<u8>) -> Stored {
    (name.into(), dtype.into(), shape.to_vec(), bytes)
}

/// A matrix of 8 bits with what it needs.
fn int8() -> Vec<Stored> {
    vec![
        f32s("a.SCB", &[2], &[1.0, 2.0]),
        bytes("a.weight", "I8", &[2, 3], vec![127, 129, 0, 1, 2, 3]),
        bytes("a.weight_format", "U8", &[], vec![0]),
    ]
}

#[test]
fn eight_bits_are_shares_of_the_greatest_of_their_row() {
    let checkpoint = super::of(&int8());
    assert_eq!(checkpoint.names().collect::<Vec<_>>(), ["a.weight"]);
    let reciprocal = (1.0f64 / 127.0) as f32;
    let number = |byte: i8, scale: f32| f32::from(byte) * scale * reciprocal;
    let right = [(127, 1.0), (-127, 1.0), (0, 1.0), (1, 2.0), (2, 2.0), (3, 2.0)].map(|(b, s)| number(b, s));
    assert_eq!(rows(&checkpoint, &["a.weight"]), right);
}

#[test]
fn eight_bits_that_do_not_hold_together_are_refused_by_name() {
    let mut file = int8();
    file.remove(0);
    let vs = super::store([("a.weight", vec![2, 3])]);
    let found = super::mismatch(super::of(&file).load(&vs, LoadOptions::default()));
    assert!(found.of_another_kind[0].0 == "a.weight" && found.to_string().contains("SCB"), "{found}");
    let mut file = int8();
    file.remove(1);
    assert_eq!(refused(&file).0, "a.SCB");
    let mut file = int8();
    file[0] = f32s("a.SCB", &[3], &[1.0; 3]);
    assert_eq!(refused(&file).0, "a.SCB");
    // The order of a GPU's own, as versions before 0.45 saved it.
    let mut file = int8();
    file[2].3 = vec![2];
    let (name, reason) = refused(&file);
    assert!(name == "a.weight_format" && reason.contains("row by row"), "{name} {reason}");
}

#[test]
fn four_bits_that_do_not_hold_together_are_refused_by_name() {
    let note = |shape: &str| {
        let text = format!(r#"{{"quant_type":"nf4","blocksize":64,"dtype":"bfloat16","shape":{shape}}}"#);
        let name = "a.weight.quant_state.bitsandbytes__nf4";
        bytes(name, "U8", &[text.len() as i64], text.into_bytes())
    };
    let whole = |shape: &str| {
        vec![
            bytes("a.weight", "U8", &[32, 1], vec![0x17; 32]),
            f32s("a.weight.absmax", &[1], &[2.0]),
            f32s("a.weight.quant_map", &[16], &(0..16).map(|i| i as f32).collect::<Vec<_>>()),
            note(shape),
        ]
    };
    let checkpoint = super::of(&whole("[4, 16]"));
    // The upper half of a byte is the first number.
    assert_eq!(rows(&checkpoint, &["a.weight"]), [2.0, 14.0].repeat(32));
    assert_eq!(checkpoint.stored_as("a.weight").as_deref(), Some("nf4"));

    for shape in ["[4, 17]", "[-4, 16]", "[4294967296, 4294967296]", "\"all\""] {
        let (name, _) = refused(&whole(shape));
        assert_eq!(name, "a.weight.quant_state.bitsandbytes__nf4", "{shape}");
    }
    let mut file = whole("[4, 16]");
    file.remove(0);
    assert_eq!(refused(&file).0, "a.weight.quant_state.bitsandbytes__nf4");
    let mut file = whole("[4, 16]");
    file.pop();
    assert_eq!(refused(&file).0, "a.weight.absmax");
    for lost in [1, 2] {
        let mut file = whole("[4, 16]");
        file.remove(lost);
        let text = super::of(&file).tensor("a.weight").unwrap_err().to_string();
        assert!(text.contains("a.weight") && text.contains("is missing"), "{text}");
    }
}
