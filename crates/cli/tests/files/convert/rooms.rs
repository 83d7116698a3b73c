//! Files that hold several models, settings that go along, and what cannot be asked.

use std::path::Path;

use serde_json::{Value, json};
use tch_flux::checkpoint::{Access, Checkpoint, Family, Layout};
use tch_flux::convert::Conversion;
use tch_flux::{Error, FileProblem};

use super::models::{model, read, write};
use super::{official, run, to};
use crate::support::Stored;

fn all_in_one(path: &Path) {
    let mut tensors: Vec<Stored> = Vec::new();
    for (prefix, name) in [
        ("model.diffusion_model.", "flux1-dev"),
        ("vae.", "ae"),
        ("text_encoders.clip_l.transformer.", "clip-l-text"),
        ("text_encoders.t5xxl.transformer.", "t5-xxl-encoder"),
    ] {
        tensors.extend(model(name).into_iter().map(|(n, d, s, b)| (format!("{prefix}{n}"), d, s, b)));
    }
    tensors.push(("text_encoders.clip_l.logit_scale".into(), "F32".into(), vec![], vec![0; 4]));
    write(path, &tensors);
}

#[test]
fn an_all_in_one_file_is_taken_apart_into_the_folders_that_are_looked_for() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("all.safetensors");
    all_in_one(&path);
    for (layout, places) in [
        (Layout::Official, ["flux1-dev.safetensors", "ae.safetensors"]),
        (
            Layout::Diffusers,
            ["transformer/diffusion_pytorch_model.safetensors", "vae/diffusion_pytorch_model.safetensors"],
        ),
    ] {
        let out = folder.path().join(format!("{layout:?}"));
        let done = run(&path, &out, &to(layout)).unwrap();
        let logit = "text_encoders.clip_l.logit_scale";
        assert_eq!(done.notes, [format!("left out, since no model has a place for it: {logit}")]);
        let encoders = ["text_encoder/model.safetensors", "text_encoder_2/model.safetensors"];
        let names = ["flux1-dev", "ae", "clip-l-text", "t5-xxl-encoder"];
        for (place, name) in places.iter().chain(&encoders).zip(names) {
            let back = out.join("back.safetensors");
            run(&out.join(place), &back, &Conversion { overwrite: true, ..to(Layout::Official) }).unwrap();
            let expected: Vec<_> = model(name).into_iter().map(|(n, _, _, bytes)| (n, bytes)).collect();
            let found = read(&back).tensors.into_iter().map(|(n, (_, _, bytes))| (n, bytes));
            let mut expected = expected;
            expected.sort();
            assert_eq!(found.collect::<Vec<_>>(), expected, "{place}");
        }
    }
    let same = folder.path().join("same.safetensors");
    for layout in [None, Some(Layout::Comfy)] {
        let asked = Conversion { layout, overwrite: true, ..Conversion::default() };
        run(&path, &same, &asked).unwrap();
        assert_eq!(read(&same), read(&path));
    }
    let error = run(&path, &same, &Conversion { overwrite: true, ..to(Layout::Official) }).unwrap_err();
    assert!(matches!(error, Error::Request(_)), "{error}");
}

fn config(path: &Path) -> Value {
    serde_json::from_str(&std::fs::read_to_string(path.join("config.json")).unwrap()).unwrap()
}

#[test]
fn a_folder_for_diffusers_has_settings_which_keep_what_the_input_said() {
    let (folder, path) = official("ae");
    let out = folder.path().join("one");
    run(&path, &out, &to(Layout::Diffusers)).unwrap();
    let mut first = config(&out);
    assert_eq!(first["block_out_channels"], json!([32, 64, 128, 128]));
    assert_eq!((&first["scaling_factor"], &first["latent_channels"]), (&json!(0.3611), &json!(4)));
    first["scaling_factor"] = json!(0.5);
    first["quantization_config"] = json!({});
    std::fs::write(out.join("config.json"), first.to_string()).unwrap();
    let again = folder.path().join("two");
    run(&out, &again, &Conversion::default()).unwrap();
    first.as_object_mut().unwrap().remove("quantization_config");
    assert_eq!(config(&again), first);
}

#[test]
fn settings_of_both_transformers_are_read_from_the_shapes() {
    for (name, class, joint) in
        [("flux1-dev", "FluxTransformer2DModel", 40), ("flux2-dev", "Flux2Transformer2DModel", 48)]
    {
        let (folder, path) = official(name);
        let out = folder.path().join("out");
        run(&path, &out, &to(Layout::Diffusers)).unwrap();
        let config = config(&out);
        assert_eq!(config["_class_name"], class);
        assert_eq!(config["joint_attention_dim"], joint);
        assert_eq!((&config["num_layers"], &config["num_attention_heads"]), (&json!(2), &json!(2)));
        assert_eq!(config["guidance_embeds"], true);
    }
}

#[test]
fn what_cannot_be_asked_is_refused_before_anything_is_written() {
    let (folder, path) = official("flux1-dev");
    let out = folder.path().join("out");
    let refused = |input: &Path, output: &Path, conversion: &Conversion| {
        let error = run(input, output, conversion).unwrap_err();
        assert!(matches!(error, Error::Request(_)), "{error}");
        error.to_string()
    };
    refused(&path, &folder.path().join("out.gguf"), &Conversion::default());
    refused(&path, &out, &to(Layout::Llama));
    refused(&path, &out, &Conversion { shard_size: Some(0), ..Conversion::default() });
    let overwrite = Conversion { overwrite: true, ..Conversion::default() };
    assert!(refused(&path, &path, &overwrite).contains("is read for the conversion"));
    run(&path, &out, &Conversion::default()).unwrap();
    assert!(refused(&out, &out, &overwrite).contains("is read for the conversion"));
    match run(&path, &out, &Conversion::default()).unwrap_err() {
        Error::File { path, problem: FileProblem::Exists } => assert_eq!(path, out.join("model.safetensors")),
        other => panic!("{other}"),
    }
    let unknown = folder.path().join("unknown.safetensors");
    crate::support::write_file(&unknown, &[crate::support::f32s("a", &[1], &[1.0])]);
    refused(&unknown, &folder.path().join("x.safetensors"), &to(Layout::Diffusers));
}

#[test]
fn a_gguf_file_becomes_bf16_and_keeps_its_plain_tensors_and_words() {
    let fixtures = crate::support::root().join("fixtures/gguf");
    let folder = tempfile::tempdir().unwrap();
    for name in ["blocks", "comfy", "metadata"] {
        let path = fixtures.join(format!("{name}.gguf"));
        let out = folder.path().join(format!("{name}.safetensors"));
        let done = run(&path, &out, &Conversion::default()).unwrap();
        let (before, after) = (open(&path), open(&out));
        for tensor in before.names() {
            let (was, now) = (before.stored_as(tensor).unwrap(), after.stored_as(tensor).unwrap());
            assert_eq!(after.shape(tensor), before.shape(tensor));
            let plain = ["F32", "F16", "BF16", "F64", "I8", "I16", "I32", "I64"].contains(&was.as_str());
            assert_eq!(now, if plain { was } else { "BF16".to_string() }, "{tensor}");
            if now == "BF16" {
                // Some of the fixture's blocks hold NaN, which no number equals.
                let numbers = |c: &Checkpoint| c.tensor_as(tensor, tch::Kind::BFloat16).unwrap();
                let bits = |c: &Checkpoint| numbers(c).view_dtype(tch::Kind::Int16);
                assert!(bits(&before).equal(&bits(&after)), "{tensor}");
            }
        }
        assert_eq!(done.notes.is_empty(), !before.is_quantised(), "{:?}", done.notes);
        let words = &after.headers()[0].metadata;
        assert_eq!(words["format"], "pt");
        assert!(!words.keys().any(|key| key.starts_with("comfy.gguf.") || key == "general.alignment"));
    }
}

fn open(path: &Path) -> Checkpoint {
    Checkpoint::open(path, Access::Read).unwrap()
}

#[test]
fn text_encoders_keep_what_flux_does_not_use() {
    let (folder, path) = official("clip-l-text");
    let mut tensors = model("clip-l-text");
    tensors.push(("text_projection.weight".into(), "F32".into(), vec![1, 1], vec![0, 0, 0x80, 0x3f]));
    write(&path, &tensors);
    let out = folder.path().join("out");
    run(&path, &out, &to(Layout::Diffusers)).unwrap();
    assert_eq!(read(&out), read(&path));
    assert_eq!(open(&out).family(), Family::Clip);
}
