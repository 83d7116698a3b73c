//! LoRAs merged into the weights that are written: what `lora::merged` makes of the whole weight.

use std::path::Path;

use tch::{Kind, Tensor};
use tch_flux::Error;
use tch_flux::checkpoint::lora::{Component, Lora, Terms};
use tch_flux::checkpoint::{Access, Checkpoint, Layout};
use tch_flux::convert::{Conversion, DiskKind};
use tch_flux::lora::{merged, merged_bias};

use super::models::{filled, read, write};
use super::{official, run};
use crate::support::{Stored, f32s};

/// LoRA of a part of a layer, DoRA, LoKr, whole differences of a weight, a bias and a norm.
fn changes(path: &Path) {
    let line = |name: &str, shape: &[i64]| (name.to_string(), "F32".to_string(), shape.to_vec());
    let tensors: Vec<Stored> = filled(
        &[
            line("transformer.transformer_blocks.0.attn.to_k.lora_A.weight", &[4, 64]),
            line("transformer.transformer_blocks.0.attn.to_k.lora_B.weight", &[64, 4]),
            line("diffusion_model.single_blocks.0.linear1.lora_A.weight", &[4, 64]),
            line("diffusion_model.single_blocks.0.linear1.lora_B.weight", &[448, 4]),
            line("diffusion_model.single_blocks.0.linear1.dora_scale", &[448, 1]),
            line("diffusion_model.single_blocks.1.linear1.lokr_w1", &[7, 4]),
            line("diffusion_model.single_blocks.1.linear1.lokr_w2", &[64, 16]),
            line("diffusion_model.double_blocks.1.txt_mlp.2.diff", &[64, 256]),
            line("diffusion_model.double_blocks.1.txt_mlp.2.diff_b", &[64]),
            line("diffusion_model.double_blocks.1.img_attn.norm.key_norm.diff", &[32]),
        ],
        5,
    );
    crate::support::write_file(path, &tensors);
}

fn open(path: &Path) -> Checkpoint {
    Checkpoint::open(path, Access::Read).unwrap()
}

fn terms(lora: &Path, base: &Checkpoint, strength: f64) -> Terms {
    let shape = |model: Component, name: &str| base.shape(name).filter(|_| model == Component::Transformer);
    Lora::open(lora, Access::Read).unwrap().place(&shape, strength, false).unwrap().transformer
}

#[test]
fn every_weight_is_what_merging_it_whole_gives() {
    let (folder, path) = official("flux1-dev");
    let lora = folder.path().join("lora.safetensors");
    changes(&lora);
    let base = open(&path);
    for layout in [None, Some(Layout::Diffusers), Some(Layout::Comfy)] {
        let out = folder.path().join(format!("{layout:?}.safetensors"));
        let merges = vec![(lora.clone(), 0.5), (lora.clone(), 0.25)];
        run(&path, &out, &Conversion { layout, merges, ..Conversion::default() }).unwrap();
        let (found, mut changed) = (open(&out).official(), 0);
        let both = || [0.5, 0.25].map(|strength| terms(&lora, &base, strength));
        for name in base.names() {
            let weight = base.tensor(name).unwrap();
            let module = name.rsplit_once('.').unwrap().0;
            let (mut of_module, mut of_name) = (Vec::new(), Vec::new());
            for mut terms in both() {
                of_module.extend(terms.linears.remove(module).unwrap_or_default());
                of_name.extend(terms.parameters.remove(name).unwrap_or_default());
            }
            let expected = match name.ends_with(".bias") {
                true => merged_bias(Some(&weight), weight.size()[0], &of_module).unwrap().unwrap(),
                false if of_name.is_empty() => merged(&weight, &of_module).unwrap(),
                false => merged(&weight, &of_name).unwrap(),
            };
            changed += usize::from(!expected.equal(&weight));
            assert!(found.tensor(name).unwrap().equal(&expected), "{name}");
        }
        assert_eq!(changed, 6);
    }
}

#[test]
fn quantised_weights_are_merged_before_they_are_rounded_again() {
    let (folder, path) = official("flux1-dev");
    let lora = folder.path().join("lora.safetensors");
    changes(&lora);
    let out = folder.path().join("out.safetensors");
    let merges = vec![(lora.clone(), 1.0)];
    let kind = Some(DiskKind::Fp8Scaled);
    run(&path, &out, &Conversion { kind, merges, ..Conversion::default() }).unwrap();
    let (base, found) = (open(&path), open(&out));
    let name = "single_blocks.1.linear1.weight";
    let mut linears = terms(&lora, &base, 1.0).linears;
    let weight = base.tensor_as(name, Kind::Float).unwrap();
    let expected = merged(&weight, &linears.remove("single_blocks.1.linear1").unwrap()).unwrap();
    let scale = f64::from(f64::try_from(expected.abs().max()).unwrap() as f32) / 448.0;
    let scale = f64::from(scale as f32);
    let rounded = (&expected / scale).to_kind(Kind::Float8e4m3fn).to_kind(Kind::Float) * scale;
    assert!(found.tensor_as(name, Kind::Float).unwrap().equal(&rounded));
}

#[test]
fn a_control_lora_widens_img_in() {
    let (folder, path) = official("flux1-dev");
    let lora = folder.path().join("lora.safetensors");
    let line = |name: &str, shape: &[i64]| (name.to_string(), "F32".to_string(), shape.to_vec());
    let pair = [line("img_in.lora_A.weight", &[2, 32]), line("img_in.lora_B.weight", &[64, 2])];
    crate::support::write_file(&lora, &filled(&pair, 3));
    let out = folder.path().join("out.safetensors");
    run(&path, &out, &Conversion { merges: vec![(lora, 1.0)], ..Conversion::default() }).unwrap();
    assert_eq!(read(&out).tensors["img_in.weight"].1, [64, 32]);
    assert_eq!(read(&path).tensors["img_in.weight"].1, [64, 16]);
}

#[test]
fn what_has_no_place_is_an_error_or_is_said() {
    let (folder, path) = official("flux1-dev");
    let lora = folder.path().join("lora.safetensors");
    let ones = Tensor::ones([64, 1], (Kind::Float, tch::Device::Cpu));
    let values = Vec::<f32>::try_from(ones.view([-1])).unwrap();
    write(
        &lora,
        &[
            f32s("double_blocks.9.img_attn.proj.lora_A.weight", &[1, 64], &values),
            f32s("double_blocks.9.img_attn.proj.lora_B.weight", &[64, 1], &values),
        ],
    );
    let out = folder.path().join("out.safetensors");
    let asked = Conversion { merges: vec![(lora, 1.0)], ..Conversion::default() };
    assert!(matches!(run(&path, &out, &asked), Err(Error::Lora(_))));
    assert!(!out.exists());
    let done = run(&path, &out, &Conversion { allow_partial_lora: true, ..asked }).unwrap();
    assert!(done.notes[0].contains("double_blocks.9"), "{:?}", done.notes);
    assert_eq!(read(&out).tensors, read(&path).tensors);
}
