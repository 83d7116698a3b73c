//! LoRAs between the layouts: the same change, and back the same bytes.

use std::path::Path;

use tch::{Kind, Tensor};
use tch_flux::Error;
use tch_flux::checkpoint::lora::{Component, Lora};
use tch_flux::checkpoint::{Access, Checkpoint, Layout};
use tch_flux::convert::{Conversion, DiskKind};
use tch_flux::lora::merged;

use super::models::{filled, read, small, write};
use super::{run, to};
use crate::support::{Line, Stored, f32s};

const DIFFUSERS: [(&str, i64, i64); 6] = [
    ("transformer_blocks.0.attn.to_q", 64, 64),
    ("transformer_blocks.0.attn.to_k", 64, 64),
    ("transformer_blocks.0.attn.to_v", 64, 64),
    ("transformer_blocks.1.ff.net.0.proj", 256, 64),
    ("norm_out.linear", 128, 64),
    ("single_transformer_blocks.0.proj_out", 64, 320),
];
const OFFICIAL: [(&str, i64, i64); 6] = [
    ("double_blocks.0.img_attn.qkv", 192, 64),
    ("double_blocks.1.txt_attn.qkv", 192, 64),
    ("double_blocks.1.img_mlp.0", 256, 64),
    ("single_blocks.0.linear1", 448, 64),
    ("single_blocks.1.linear2", 64, 320),
    ("final_layer.adaLN_modulation.1", 128, 64),
];

/// A pair of matrices for each layer, with its alpha.
fn lora(prefix: &str, layers: &[(&str, i64, i64)], endings: [&str; 2], rank: i64) -> Vec<Stored> {
    let line = |name: String, shape: Vec<i64>| -> Line { (name, "BF16".into(), shape) };
    let mut tensors: Vec<Stored> = Vec::new();
    for (seed, (name, rows, columns)) in (1..).zip(layers) {
        let [down, up] = endings.map(|end| format!("{prefix}{name}.{end}"));
        tensors.extend(filled(&[line(down, vec![rank, *columns]), line(up, vec![*rows, rank])], seed));
        tensors.push(f32s(&format!("{prefix}{name}.alpha"), &[], &[rank as f32 / 2.0]));
    }
    tensors
}

fn peft(layers: &[(&str, i64, i64)]) -> Vec<Stored> {
    lora("transformer.", layers, ["lora_A.weight", "lora_B.weight"], 4)
}

/// Every weight of the small model with a LoRA merged into it.
fn changed(path: &Path) -> Vec<(String, Tensor)> {
    let lora = Lora::open(path, Access::Read).unwrap();
    let lines = small("flux1-dev");
    let shape = |model: Component, name: &str| {
        let found = lines.iter().find(|(line, ..)| model == Component::Transformer && line == name);
        found.map(|(.., shape)| shape.clone())
    };
    let placed = lora.place(&shape, 1.0, false).unwrap();
    let weight = |(module, terms): (String, Vec<_>)| {
        let size = shape(Component::Transformer, &format!("{module}.weight")).unwrap();
        (module, merged(&Tensor::zeros(size, (Kind::Float, tch::Device::Cpu)), &terms).unwrap())
    };
    placed.transformer.linears.into_iter().map(weight).collect()
}

/// Converts to each layout and back to the first, and compares the change on the way and the bytes at the end.
fn there_and_back(tensors: &[Stored], from: Layout) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lora.safetensors");
    write(&path, tensors);
    let expected = changed(&path);
    for layout in [Layout::Official, Layout::Diffusers, Layout::Comfy] {
        let there = folder.path().join(format!("{layout:?}.safetensors"));
        run(&path, &there, &to(layout)).unwrap();
        let found = changed(&there);
        assert_eq!(found.len(), expected.len());
        for ((name, one), (other, two)) in expected.iter().zip(&found) {
            assert_eq!(name, other);
            let greatest = f64::try_from((one - two).abs().max()).unwrap();
            assert!(greatest < 1e-5, "{layout:?}: {name}: {greatest}");
        }
        let back = folder.path().join(format!("{layout:?}-back.safetensors"));
        run(&there, &back, &to(from)).unwrap();
        assert_eq!(read(&back), read(&path), "through {layout:?}");
    }
}

#[test]
fn split_and_joined_layers_come_back_byte_for_byte() {
    there_and_back(&peft(&DIFFUSERS), Layout::Diffusers);
    there_and_back(&lora("", &OFFICIAL, ["lora_A.weight", "lora_B.weight"], 8), Layout::Official);
    there_and_back(
        &lora("diffusion_model.", &OFFICIAL, ["lora_A.weight", "lora_B.weight"], 8),
        Layout::Comfy,
    );
}

#[test]
fn parts_that_share_their_first_matrix_are_joined_to_one_pair_of_the_same_rank() {
    let mut tensors = peft(&DIFFUSERS[..3]);
    let first = tensors[0].3.clone();
    tensors.iter_mut().filter(|t| t.0.ends_with("lora_A.weight")).for_each(|t| t.3.clone_from(&first));
    there_and_back(&tensors, Layout::Diffusers);
    let (_folder, path) = crate::support::temp("lora.safetensors");
    write(&path, &tensors);
    let out = path.with_file_name("out.safetensors");
    run(&path, &out, &to(Layout::Official)).unwrap();
    assert_eq!(read(&out).tensors["double_blocks.0.img_attn.qkv.lora_A.weight"].1, [4, 64]);
}

#[test]
fn parts_that_are_not_all_there_are_zeros_when_joined_and_gone_when_split() {
    there_and_back(&peft(&[DIFFUSERS[0], DIFFUSERS[2]]), Layout::Diffusers);
    there_and_back(&peft(&[("single_transformer_blocks.1.attn.to_k", 64, 64)]), Layout::Diffusers);
    let parts = [
        ("single_transformer_blocks.1.attn.to_q", 64, 64),
        ("single_transformer_blocks.1.proj_mlp", 256, 64),
    ];
    there_and_back(&peft(&parts), Layout::Diffusers);
}

#[test]
fn kohyas_names_are_read() {
    let (_folder, path) = crate::support::temp("lora.safetensors");
    let names = OFFICIAL.map(|(name, rows, columns)| (name.replace('.', "_"), rows, columns));
    let names: Vec<_> = names.iter().map(|(name, r, c)| (name.as_str(), *r, *c)).collect();
    write(&path, &lora("lora_unet_", &names, ["lora_down.weight", "lora_up.weight"], 8));
    let expected = lora("", &OFFICIAL, ["lora_A.weight", "lora_B.weight"], 8);
    let out = path.with_file_name("out.safetensors");
    run(&path, &out, &to(Layout::Official)).unwrap();
    for (name, dtype, shape, bytes) in expected {
        assert_eq!(read(&out).tensors[&name], (dtype, shape, bytes), "{name}");
    }
}

#[test]
fn flux2_has_its_alphas_in_the_settings_that_diffusers_reads() {
    let layers = [
        ("double_blocks.0.img_attn.qkv", 192, 64),
        ("double_blocks.0.img_mlp.0", 384, 64),
        ("single_blocks.0.linear1", 576, 64),
    ];
    let (_folder, path) = crate::support::temp("lora.safetensors");
    write(&path, &lora("", &layers, ["lora_A.weight", "lora_B.weight"], 8));
    let there = path.with_file_name("there.safetensors");
    run(&path, &there, &to(Layout::Diffusers)).unwrap();
    let contents = read(&there);
    assert!(contents.tensors.keys().all(|name| name.contains(".lora_")), "{:?}", contents.tensors.keys());
    assert!(contents.tensors.contains_key("transformer.transformer_blocks.0.ff.linear_in.lora_A.weight"));
    let settings: serde_json::Value =
        serde_json::from_str(&contents.metadata[0]["lora_adapter_metadata"]).unwrap();
    assert_eq!(settings["transformer.lora_alpha"], 4.0);
    let back = path.with_file_name("back.safetensors");
    run(&there, &back, &to(Layout::Official)).unwrap();
    assert_eq!(read(&back), read(&path));
}

#[test]
fn a_lora_keeps_its_names_without_a_layout_and_is_no_fp8() {
    let (_folder, path) = crate::support::temp("lora.safetensors");
    write(&path, &peft(&DIFFUSERS));
    let out = path.with_file_name("out.safetensors");
    run(&path, &out, &Conversion::default()).unwrap();
    assert_eq!(read(&out), read(&path));
    let asked = |kind| Conversion { kind: Some(kind), overwrite: true, ..Conversion::default() };
    run(&path, &out, &asked(DiskKind::F32)).unwrap();
    assert!(read(&out).tensors.values().all(|(dtype, ..)| dtype == "F32"));
    assert!(matches!(run(&path, &out, &asked(DiskKind::Fp8)), Err(Error::Request(_))));
    let folder = path.with_file_name("folder");
    run(&path, &folder, &to(Layout::Diffusers)).unwrap();
    assert!(folder.join("pytorch_lora_weights.safetensors").is_file());
}

#[test]
fn keys_of_no_known_meaning_are_an_error_or_are_said() {
    let (_folder, path) = crate::support::temp("lora.safetensors");
    let mut tensors = peft(&DIFFUSERS);
    tensors.push(f32s("transformer.nothing.lora_A.weight", &[1, 1], &[0.0]));
    write(&path, &tensors);
    let out = path.with_file_name("out.safetensors");
    assert!(matches!(run(&path, &out, &to(Layout::Official)), Err(Error::Lora(_))));
    let done = run(&path, &out, &Conversion { allow_partial_lora: true, ..to(Layout::Official) }).unwrap();
    assert!(done.notes[0].contains("transformer.nothing"), "{:?}", done.notes);
    assert!(Checkpoint::open(&out, Access::Read).is_ok());
}

/// Converted to each layout, the change is the same.
fn same_change(tensors: &[Stored]) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lora.safetensors");
    write(&path, tensors);
    let expected = changed(&path);
    for layout in [Layout::Official, Layout::Diffusers, Layout::Comfy] {
        let there = folder.path().join(format!("{layout:?}.safetensors"));
        run(&path, &there, &to(layout)).unwrap();
        let found = changed(&there);
        assert_eq!(found.len(), expected.len());
        for ((name, one), (other, two)) in expected.iter().zip(&found) {
            assert_eq!(name, other);
            let greatest = f64::try_from((one - two).abs().max()).unwrap();
            assert!(greatest < 1e-5, "{layout:?}: {name}: {greatest}");
        }
    }
}

#[test]
fn what_an_alpha_of_0_switches_off_stays_off_when_it_is_joined_or_split() {
    for off in [&[0][..], &[1], &[0, 1], &[0, 1, 2], &[3, 4]] {
        let mut tensors = peft(&DIFFUSERS);
        for (i, tensor) in tensors.iter_mut().filter(|t| t.0.ends_with(".alpha")).enumerate() {
            if off.contains(&i) {
                tensor.3 = 0f32.to_le_bytes().to_vec();
            }
        }
        same_change(&tensors);
    }
    let mut tensors = lora("", &OFFICIAL, ["lora_A.weight", "lora_B.weight"], 8);
    tensors.iter_mut().filter(|t| t.0 == "double_blocks.0.img_attn.qkv.alpha").for_each(|t| t.3.fill(0));
    same_change(&tensors);
}

#[test]
fn a_lora_in_fp8_keeps_its_numbers_in_every_layout() {
    let folder = tempfile::tempdir().unwrap();
    for (kind, dtype) in [(Kind::Float8e4m3fn, "F8_E4M3"), (Kind::Float8e5m2, "F8_E5M2")] {
        let mut tensors = peft(&DIFFUSERS);
        for (seed, tensor) in tensors.iter_mut().enumerate() {
            let count = tensor.2.iter().product::<i64>();
            let numbers = (Tensor::arange(count, (Kind::Float, tch::Device::Cpu)) + seed as i64).sin();
            let fp8 = numbers.to_kind(kind).view_dtype(Kind::Uint8);
            let fp8 = if tensor.0.ends_with("alpha") { Tensor::from_slice(&[0x40u8]) } else { fp8 };
            (tensor.1, tensor.3) = (dtype.into(), Vec::try_from(fp8).unwrap());
        }
        same_change(&tensors);
        let path = folder.path().join("lora.safetensors");
        write(&path, &tensors);
        let out = folder.path().join(format!("{dtype}.safetensors"));
        let converted = run(&path, &out, &to(Layout::Official)).unwrap();
        assert!(converted.notes.iter().any(|note| note.contains("fp8 are BF16")), "{:?}", converted.notes);
        // Without another layout its bytes stay.
        let copy = folder.path().join(format!("{dtype}-copy.safetensors"));
        run(&path, &copy, &Conversion::default()).unwrap();
        assert_eq!(read(&copy), read(&path));
    }
}
