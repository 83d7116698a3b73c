//! The kind on the disk, the kind in memory and the kind of the arithmetic: what `generate` says of them, and that the
//! picture does not depend on whether quantised weights are kept.

use std::path::{Path, PathBuf};

use serde_json::Value;
use tch::{Kind, Tensor};
use tch_flux::checkpoint::{Access, Checkpoint};

use super::fp8::in_fp8;
use super::{report, run, sum};
use crate::support::gguf;
use crate::support::{Stored, stored, temp, write_file};

fn tiny(part: &str) -> PathBuf {
    crate::support::root().join("fixtures/tiny").join(part)
}

fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// The tensors of a part of the small model, in a kind.
fn tensors(part: &str, kind: Kind, prefix: &str) -> Vec<Stored> {
    let checkpoint = Checkpoint::open(tiny(part), Access::Map).unwrap();
    let one = |name: &str| stored(&format!("{prefix}{name}"), &checkpoint.tensor(name).unwrap(), kind);
    checkpoint.names().map(one).collect()
}

/// The small transformer with its matrices in fp8.
fn fp8_file(path: &Path, scales: Option<bool>) {
    write_file(path, &in_fp8(tensors("flux1-schnell.safetensors", Kind::Float, ""), "F8_E4M3", "", scales));
}

/// Blocks of 32 numbers with a scale each.
fn q8_0(matrix: &Tensor) -> Vec<u8> {
    let blocks = matrix.to_kind(Kind::Float).reshape([-1, 32]);
    let scales = (blocks.abs().amax([1], true) / 127.0).to_kind(Kind::Half);
    let numbers =
        (blocks / (scales.to_kind(Kind::Float) + 1e-20)).round().clamp(-127.0, 127.0).to_kind(Kind::Int8);
    let bytes = [scales.view_dtype(Kind::Uint8), numbers.view_dtype(Kind::Uint8)];
    Vec::try_from(Tensor::cat(&bytes, 1).flatten(0, -1)).unwrap()
}

/// A GGUF of the small transformer, without the tensors under some prefixes.
fn gguf_file(path: &Path, without: &[&str]) {
    let checkpoint = Checkpoint::open(tiny("flux1-schnell.safetensors"), Access::Map).unwrap();
    let (mut infos, mut data) = (Vec::new(), Vec::<u8>::new());
    for name in checkpoint.names().filter(|name| without.iter().all(|prefix| !name.starts_with(prefix))) {
        let tensor = checkpoint.tensor(name).unwrap();
        let (number, bytes) = match tensor.dim() {
            2 => (8, q8_0(&tensor)),
            _ => (gguf::F32, stored(name, &tensor, Kind::Float).3),
        };
        let dims: Vec<u64> = tensor.size().iter().rev().map(|&d| d as u64).collect();
        infos.push(gguf::tensor(name, &dims, number, data.len() as u64));
        data.extend(bytes);
        data.resize(data.len().next_multiple_of(32), 0);
    }
    let architecture = gguf::key("general.architecture", gguf::STRING, gguf::text("flux"));
    let mut bytes = gguf::header(&[architecture], &infos);
    bytes.resize(bytes.len().next_multiple_of(32), 0);
    bytes.extend(data);
    std::fs::write(path, bytes).unwrap();
}

fn plan(arguments: &[&str]) -> Vec<Value> {
    let fixed = ["generate", "a red circle on a blue background", "--dry-run", "--json"];
    report(&[&fixed, arguments].concat())["weights"].as_array().unwrap().clone()
}

fn types(weights: &Value) -> Vec<&str> {
    weights.as_object().unwrap().keys().map(String::as_str).collect()
}

fn picture(path: &Path, arguments: &[&str]) -> Vec<u8> {
    let fixed = [
        "generate",
        "a red circle on a blue background",
        "--seed",
        "4",
        "--steps",
        "2",
        "-q",
        "--force",
        "-o",
        text(path),
    ];
    let output = run(&[&fixed, arguments].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    std::fs::read(path).unwrap()
}

/// How far apart two pictures are, in steps of 255.
fn distance(one: &Path, other: &Path) -> f64 {
    let [one, other] = [one, other].map(|path| tch_flux::image::Image::read_png(path).unwrap().0);
    let sum: u64 = one.rgb.iter().zip(&other.rgb).map(|(&a, &b)| u64::from(a.abs_diff(b))).sum();
    sum as f64 / one.rgb.len() as f64
}

#[test]
fn a_dry_run_says_the_three_kinds_of_every_part() {
    let (_folder, path) = temp("flux1-fp8.safetensors");
    fp8_file(&path, Some(false));
    let of = ["--transformer", text(&path)];
    let parts = plan(&of);
    let names: Vec<_> = parts.iter().map(|part| part["part"].as_str().unwrap()).collect();
    assert_eq!(names, ["transformer", "T5", "CLIP", "autoencoder"]);
    let transformer = &parts[0];
    assert_eq!(types(&transformer["on_disk"]), ["F32", "F8_E4M3 scaled"]);
    assert_eq!(types(&transformer["in_memory"]), ["BF16"]);
    assert_eq!(transformer["arithmetic"], "bf16");
    assert_eq!(transformer["file"], text(&path));
    for part in &parts[1..] {
        assert_eq!((types(&part["on_disk"]), types(&part["in_memory"])), (vec!["BF16"], vec!["BF16"]));
        assert_eq!(part["arithmetic"], "bf16");
    }
    let kept = &plan(&[&of[..], &["--keep-quantized"]].concat())[0];
    assert_eq!(types(&kept["in_memory"]), ["BF16", "F8_E4M3 scaled"]);
    assert_eq!(kept["in_memory"]["F8_E4M3 scaled"], transformer["on_disk"]["F8_E4M3 scaled"]);
    assert_eq!(kept["arithmetic"], "bf16");
    let f32 = plan(&[&of[..], &["--kind", "f32"]].concat());
    assert!(
        f32.iter().all(|part| part["arithmetic"] == "f32" && types(&part["in_memory"]) == ["F32"]),
        "{f32:?}"
    );
}

#[test]
fn t5_is_not_computed_in_f16_and_that_is_said() {
    let parts = plan(&["--kind", "f16"]);
    let kinds: Vec<_> = parts.iter().map(|part| part["arithmetic"].as_str().unwrap()).collect();
    assert_eq!(kinds, ["f16", "bf16", "bf16", "bf16"]);
    assert_eq!(types(&parts[0]["in_memory"]), ["F16"]);
    assert_eq!(types(&parts[1]["in_memory"]), ["BF16"]);
}

#[test]
fn an_autoencoder_in_f32_is_computed_under_bf16_autocast_and_that_is_said() {
    let (_folder, path) = temp("ae.safetensors");
    write_file(&path, &tensors("ae.safetensors", Kind::Float, ""));
    let autoencoder = &plan(&["--vae", text(&path)])[3];
    assert_eq!(
        (types(&autoencoder["in_memory"]), &autoencoder["arithmetic"]),
        (vec!["F32"], &Value::from("bf16"))
    );
    let autoencoder = &plan(&["--vae", text(&path), "--kind", "f32"])[3];
    assert_eq!(
        (types(&autoencoder["in_memory"]), &autoencoder["arithmetic"]),
        (vec!["F32"], &Value::from("f32"))
    );
}

#[test]
fn a_run_says_the_three_kinds_of_every_part() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("flux1.gguf");
    gguf_file(&path, &[]);
    let png = folder.path().join("x.png");
    let call = [
        "generate",
        "a red circle",
        "--steps",
        "1",
        "--transformer",
        text(&path),
        "-o",
        text(&png),
        "--force",
    ];
    let output = run(&[&call[..], &["--keep-quantized"]].concat());
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{said}");
    let line =
        |part: &str| said.lines().find(|line| line.starts_with(part)).unwrap_or_else(|| panic!("{said}"));
    let transformer = line("transformer: ");
    for says in ["Q8_0", "F32", "on the disk", "BF16", "in memory", "computed in bf16"] {
        assert!(transformer.contains(says), "{transformer}");
    }
    for part in ["T5: ", "CLIP: ", "autoencoder: "] {
        assert!(line(part).contains("computed in bf16"), "{said}");
    }
    // As JSON, too, when it draws.
    let drawn = report(&[&call[..], &["--json"]].concat());
    assert_eq!(types(&drawn["weights"][0]["on_disk"]), ["F32", "Q8_0"]);
    assert_eq!(types(&drawn["weights"][0]["in_memory"]), ["BF16"]);
}

#[test]
fn pictures_of_kept_and_of_cast_weights_are_the_same_bytes() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    fp8_file(&at("raw.safetensors"), None);
    fp8_file(&at("by-row.safetensors"), Some(true));
    gguf_file(&at("tiny.gguf"), &[]);
    picture(&at("bf16.png"), &[]);
    for (file, kind) in [("raw.safetensors", "bf16"), ("by-row.safetensors", "f32"), ("tiny.gguf", "bf16")] {
        let path = at(file);
        let call = ["--transformer", text(&path), "--kind", kind];
        let cast = picture(&at("cast.png"), &call);
        let kept = picture(&at("kept.png"), &[&call[..], &["--keep-quantized"]].concat());
        assert!(cast == kept, "{file} in {kind}");
        // It is the picture of the whole model but for what was rounded off.
        assert!(distance(&at("cast.png"), &at("bf16.png")) < 12.0, "{file}");
    }
}

#[test]
fn a_finetune_draws_with_its_base_and_says_what_it_took() {
    let folder = tempfile::tempdir().unwrap();
    let (finetune, whole) = (folder.path().join("finetune.gguf"), folder.path().join("whole.gguf"));
    let lacking = ["img_in.", "time_in.", "vector_in."];
    gguf_file(&finetune, &lacking);
    gguf_file(&whole, &[]);
    let base = tiny("transformer");
    let [base, finetune, whole] = [&base, &finetune, &whole].map(|path| text(path));
    let transformer = &plan(&["--transformer", finetune, "--base", base])[0];
    let taken = transformer["from_base"].as_array().unwrap();
    assert_eq!(taken.len(), 10);
    assert!(taken.iter().all(|name| lacking.iter().any(|prefix| name.as_str().unwrap().starts_with(prefix))));

    // From a base in the same blocks, it is the whole model again, kept or not.
    let at = |name: &str| folder.path().join(name);
    let model = "whole.png";
    let expected = picture(&at(model), &["--transformer", whole]);
    for keep in [&[][..], &["--keep-quantized"]] {
        let call = [&["--transformer", finetune, "--base", whole], keep].concat();
        picture(&at("finetune.png"), &call);
        assert_eq!(distance(&at("finetune.png"), &at(model)), 0.0);
    }
    assert!(!expected.is_empty());

    let output = run(&["generate", "a red circle", "--transformer", finetune, "-o", text(&at("none.png"))]);
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("img_in.weight") && said.contains("--base"), "{said}");
}

#[test]
fn an_all_in_one_file_draws_the_picture_of_the_folder() {
    let folder = tempfile::tempdir().unwrap();
    let whole = folder.path().join("all.safetensors");
    let parts = [
        ("flux1-schnell.safetensors", "model.diffusion_model."),
        ("ae.safetensors", "vae."),
        ("text_encoder", "text_encoders.clip_l.transformer."),
        ("text_encoder_2", "text_encoders.t5xxl.transformer."),
    ];
    let mut all: Vec<Stored> =
        parts.iter().flat_map(|(part, prefix)| tensors(part, Kind::BFloat16, prefix)).collect();
    all.push(crate::support::f32s("text_encoders.t5xxl.logit_scale", &[], &[4.6]));
    write_file(&whole, &all);
    for tokenizer in ["tokenizer", "tokenizer_2"] {
        std::fs::create_dir(folder.path().join(tokenizer)).unwrap();
        for file in std::fs::read_dir(tiny(tokenizer)).unwrap() {
            let file = file.unwrap();
            std::fs::copy(file.path(), folder.path().join(tokenizer).join(file.file_name())).unwrap();
        }
    }
    let at = |name: &str| folder.path().join(name);
    let size = ["--width", "64", "--height", "64"];
    picture(&at("folder.png"), &size);
    // The small CLIP is no CLIP-L, so its settings must be read.
    let clip = tiny("text_encoder");
    picture(&at("all.png"), &[&size[..], &["--model", text(&whole), "--clip", text(&clip)]].concat());
    assert_eq!(distance(&at("all.png"), &at("folder.png")), 0.0);
}

#[test]
fn inspect_says_the_types_of_quantised_files() {
    for (file, family, known) in [
        ("dev.gguf", "FLUX.1 transformer", "Q4_K"),
        ("flux1.nf4.diffusers.safetensors", "FLUX.1 transformer", "nf4"),
        ("t5.int8.safetensors", "T5 encoder", "int8"),
        ("flux2.gguf", "FLUX.2 transformer", "Q8_0"),
    ] {
        let found = report(&["inspect", "--json", text(&super::fixture(file))]);
        assert_eq!(found["family"], family);
        assert!(found["kinds"][known].as_u64().unwrap() > 0, "{found}");
        let kinds = found["kinds"].as_object().unwrap();
        let kinds = kinds.iter().map(|(name, bytes)| (name.clone(), bytes.as_u64().unwrap())).collect();
        assert_eq!(sum(&kinds), found["bytes"].as_u64().unwrap());
    }
}
