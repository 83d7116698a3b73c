//! Every kind of numbers that can be written.

use std::path::Path;

use tch::{Kind, Tensor};
use tch_flux::checkpoint::{Access, Checkpoint, Layout};
use tch_flux::convert::{Conversion, DiskKind};
use tch_flux::{Error, FileProblem};

use super::models::{read, write, write_with};
use super::{official, run, to};
use crate::support::{Stored, f32s};

fn kind(kind: DiskKind) -> Conversion {
    Conversion { kind: Some(kind), overwrite: true, ..Conversion::default() }
}

fn open(path: &Path) -> Checkpoint {
    Checkpoint::open(path, Access::Read).unwrap()
}

#[test]
fn every_float_becomes_what_was_asked_for_and_whole_numbers_stay() {
    for name in ["flux1-dev", "flux2-ae"] {
        let (folder, path) = official(name);
        let out = folder.path().join("out.safetensors");
        for (disk, kind_, word) in [
            (DiskKind::Bf16, Kind::BFloat16, "BF16"),
            (DiskKind::F16, Kind::Half, "F16"),
            (DiskKind::F32, Kind::Float, "F32"),
        ] {
            run(&path, &out, &kind(disk)).unwrap();
            let (before, after) = (open(&path), open(&out));
            for tensor in before.names() {
                let was = before.tensor(tensor).unwrap();
                let now = after.tensor(tensor).unwrap();
                if was.kind() == Kind::Int64 {
                    assert_eq!(after.stored_as(tensor).unwrap(), "I64");
                } else {
                    assert_eq!(after.stored_as(tensor).unwrap(), word);
                    assert!(now.equal(&was.to_kind(kind_)), "{tensor}");
                }
            }
        }
    }
}

#[test]
fn what_f16_does_not_hold_is_an_error_that_names_the_tensor() {
    let (_folder, path) = crate::support::temp("w.safetensors");
    write(&path, &[f32s("a", &[2], &[1.0, 2.0]), f32s("b", &[2], &[1.0, 65520.0])]);
    let out = path.with_file_name("out.safetensors");
    match run(&path, &out, &kind(DiskKind::F16)).unwrap_err() {
        Error::File { path: at, problem: FileProblem::Tensor { name, reason } } => {
            assert_eq!((at, name.as_str()), (path, "b"));
            assert!(reason.contains("65504"), "{reason}");
        }
        other => panic!("{other}"),
    }
    assert!(!out.exists());
    let left = std::fs::read_dir(out.parent().unwrap()).unwrap().count();
    assert_eq!(left, 1, "nothing half-written stays");
}

#[test]
fn fp8_takes_the_weights_of_linear_layers_alone() {
    for (name, layout) in
        [("flux1-dev", None), ("flux1-dev", Some(Layout::Diffusers)), ("t5-xxl-encoder", None)]
    {
        let (folder, path) = official(name);
        let out = folder.path().join("out.safetensors");
        let unchanged = folder.path().join("same.safetensors");
        run(&path, &unchanged, &Conversion { layout, ..Conversion::default() }).unwrap();
        for disk in [DiskKind::Fp8, DiskKind::Fp8Scaled] {
            run(&path, &out, &Conversion { layout, ..kind(disk) }).unwrap();
            let (before, after) = (open(&unchanged), open(&out));
            let names = |c: &Checkpoint| c.names().map(str::to_string).collect::<Vec<_>>();
            assert_eq!(names(&after), names(&before), "scales belong to their weights");
            for tensor in before.names() {
                let looked_up = ["shared.weight", "relative_attention_bias.weight"];
                let linear = before.shape(tensor).unwrap().len() == 2
                    && !looked_up.iter().any(|end| tensor.ends_with(end));
                let stored = match (linear, disk) {
                    (false, _) => "BF16",
                    (true, DiskKind::Fp8) => "F8_E4M3",
                    (true, _) => "F8_E4M3 scaled",
                };
                assert_eq!(after.stored_as(tensor).unwrap(), stored, "{tensor}");
                let was = before.tensor_as(tensor, Kind::Float).unwrap();
                let now = after.tensor_as(tensor, Kind::Float).unwrap();
                // Three bits of mantissa; below the normal numbers, steps of 2^-9 of the scale.
                let greatest = f64::try_from(was.abs().max()).unwrap();
                let step = if disk == DiskKind::Fp8 { 1.0 } else { greatest / 448.0 } / 512.0;
                let allowed = was.abs() / 16.0 + step / 2.0 * 1.001;
                assert!(bool::try_from((&was - &now).abs().le_tensor(&allowed).all()).unwrap(), "{tensor}");
                if linear && disk == DiskKind::Fp8 {
                    assert!(now.equal(&was.to_kind(Kind::Float8e4m3fn).to_kind(Kind::Float)));
                }
            }
        }
    }
}

#[test]
fn scaled_fp8_is_marked_as_comfyui_does() {
    let (folder, path) = official("flux1-dev");
    let out = folder.path().join("out.safetensors");
    run(&path, &out, &Conversion { layout: Some(Layout::Comfy), ..kind(DiskKind::Fp8Scaled) }).unwrap();
    let tensors = read(&out).tensors;
    let (dtype, shape, _) = &tensors["model.diffusion_model.scaled_fp8"];
    assert_eq!((dtype.as_str(), &shape[..]), ("F8_E4M3", &[0][..]));
    let (dtype, shape, bytes) = &tensors["model.diffusion_model.single_blocks.1.linear1.scale_weight"];
    assert_eq!((dtype.as_str(), shape.len()), ("F32", 0));
    let weight = open(&path).tensor_as("single_blocks.1.linear1.weight", Kind::Float).unwrap();
    let greatest = f64::try_from(weight.abs().max()).unwrap();
    assert_eq!(f32::from_le_bytes(bytes[..].try_into().unwrap()), (greatest / 448.0) as f32);
}

#[test]
fn a_number_beyond_fp8_asks_for_a_scale() {
    let (_folder, path) = crate::support::temp("w.safetensors");
    write(&path, &[f32s("a.weight", &[1, 2], &[1.0, 449.0])]);
    let out = path.with_file_name("out.safetensors");
    let error = run(&path, &out, &kind(DiskKind::Fp8)).unwrap_err().to_string();
    assert!(error.contains("a.weight") && error.contains("fp8-scaled"), "{error}");
    run(&path, &out, &kind(DiskKind::Fp8Scaled)).unwrap();
    assert!(open(&out).tensor_as("a.weight", Kind::Float).unwrap().allclose(
        &Tensor::from_slice(&[1f32, 449.0]).view([1, 2]),
        0.07,
        0.0,
        false,
    ));
}

#[test]
fn quantised_tensors_become_bf16_and_a_raw_cast_stays() {
    let (folder, path) = official("flux1-dev");
    let scaled = folder.path().join("scaled.safetensors");
    run(&path, &scaled, &kind(DiskKind::Fp8Scaled)).unwrap();
    let out = folder.path().join("out.safetensors");
    let done = run(&scaled, &out, &kind_none()).unwrap();
    assert_eq!(done.notes.len(), 1, "{:?}", done.notes);
    assert!(read(&out).tensors.values().all(|(dtype, ..)| dtype == "BF16"));
    for name in open(&out).names() {
        let both = [&scaled, &out].map(|path| open(path).tensor_as(name, Kind::BFloat16).unwrap());
        assert!(both[0].equal(&both[1]), "{name}");
    }
    let raw = folder.path().join("raw.safetensors");
    run(&path, &raw, &kind(DiskKind::Fp8)).unwrap();
    let done = run(&raw, &out, &kind_none()).unwrap();
    assert_eq!((done.notes.len(), read(&out).tensors), (0, read(&raw).tensors));
    let there = folder.path().join("there.safetensors");
    run(&raw, &there, &to(Layout::Diffusers)).unwrap();
    run(&there, &out, &Conversion { overwrite: true, ..to(Layout::Official) }).unwrap();
    assert_eq!(read(&out).tensors, read(&raw).tensors, "fp8 there and back");
}

fn kind_none() -> Conversion {
    Conversion { overwrite: true, ..Conversion::default() }
}

#[test]
fn a_note_on_quantisation_that_is_no_longer_true_is_dropped() {
    let (_folder, path) = crate::support::temp("w.safetensors");
    let scale: Stored = f32s("a.weight_scale", &[], &[0.5]);
    let weight = ("a.weight".to_string(), "F8_E4M3".to_string(), vec![1, 2], vec![0x38, 0x40]);
    let note = r#"{"_quantization_metadata":"{\"layers\":{\"a\":{\"format\":\"float8_e4m3fn\"}}}","k":"v"}"#;
    write_with(&path, &[scale, weight], note);
    let out = path.with_file_name("out.safetensors");
    run(&path, &out, &kind_none()).unwrap();
    let contents = read(&out);
    let words: Vec<_> = contents.metadata[0].iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    assert_eq!(words, [("format", "pt"), ("k", "v")]);
    assert_eq!(contents.tensors["a.weight"].2, [0x00, 0x3f, 0x80, 0x3f]);
}
