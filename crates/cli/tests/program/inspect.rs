//! `inspect`: what it says of every kind of file, and how two files differ.

use std::path::Path;
use std::process::{Command, Output};

use crate::support::{Line, Stored, f32s, layout, stored, temp, write_file, write_sparse};
use serde_json::Value;
use tch::{Kind, Tensor};

fn inspect(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_tch-flux")).arg("inspect").args(arguments).output().unwrap()
}

fn text(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn json(arguments: &[&str]) -> Value {
    serde_json::from_str(&text(&inspect(&[arguments, &["--json"]].concat()))).unwrap()
}

fn name(path: &Path) -> &str {
    path.to_str().unwrap()
}

fn of_type(lines: &[Line], dtype: &str) -> Vec<Line> {
    lines.iter().map(|(name, _, shape)| (name.clone(), dtype.to_string(), shape.clone())).collect()
}

#[test]
fn types_and_their_shares_are_said() {
    let (_folder, path) = temp("w.safetensors");
    let (fp8, plain): (Vec<_>, Vec<_>) = layout("flux1-dev")
        .into_iter()
        .partition(|(name, _, shape)| name.ends_with("weight") && shape.len() == 2);
    write_sparse(&path, &[of_type(&fp8, "F8_E4M3"), plain].concat());
    let report = json(&[name(&path)]);
    let kinds = &report["kinds"];
    assert_eq!(
        kinds["F8_E4M3"].as_u64().unwrap() + kinds["BF16"].as_u64().unwrap(),
        report["bytes"].as_u64().unwrap()
    );
    assert_eq!(report["variant"], "dev");
    assert!(text(&inspect(&[name(&path)])).contains("F8_E4M3: 11.90 GB ("));
}

#[test]
fn a_lora_is_known_by_maker_rank_alpha_and_targets() {
    let (_folder, path) = temp("lora.safetensors");
    let layer = "lora_unet_double_blocks_0_img_attn_proj";
    write_file(
        &path,
        &[
            f32s(&format!("{layer}.lora_down.weight"), &[2, 4], &[0.5; 8]),
            f32s(&format!("{layer}.lora_up.weight"), &[4, 2], &[0.5; 8]),
            f32s(&format!("{layer}.alpha"), &[], &[1.0]),
        ],
    );
    let report = json(&[name(&path)]);
    assert_eq!(report["family"], "LoRA");
    let lora = &report["lora"];
    assert!(lora["maker"].as_str().unwrap().contains("kohya"), "{lora}");
    assert_eq!((&lora["ranks"]["2"], &lora["alphas"]["1"]), (&1.into(), &1.into()), "{lora}");
    assert_eq!(lora["targets"][0], "double_blocks.0.img_attn.proj");
    assert_eq!(lora["modules"]["transformer"], 1);
}

#[test]
fn redux_and_what_reads_its_pictures_are_known() {
    let (folder, path) = temp("flux1-redux-dev.safetensors");
    write_sparse(&path, &layout("flux1-redux-dev"));
    let report = json(&[name(&path)]);
    assert_eq!(report["family"], "FLUX.1 Redux embedder");
    assert_eq!(report["sizes"]["txt_in_features"], 4096);
    let encoder = folder.path().join("image_encoder");
    std::fs::create_dir(&encoder).unwrap();
    write_sparse(&encoder.join("model.safetensors"), &layout("siglip-so400m"));
    let report = json(&[name(&encoder)]);
    assert_eq!(report["family"], "SigLIP vision model");
    assert_eq!(
        (&report["sizes"]["num_hidden_layers"], &report["sizes"]["image_size"]),
        (&27.into(), &384.into())
    );
    let reports = json(&[name(folder.path())]);
    let families: Vec<_> =
        reports.as_array().unwrap().iter().map(|r| r["family"].as_str().unwrap()).collect();
    let found: Vec<_> = families.into_iter().filter(|family| *family != "missing").collect();
    assert_eq!(found, ["FLUX.1 Redux embedder", "SigLIP vision model"]);
}

#[test]
fn what_a_pipeline_lacks_is_said_of_files_and_of_folders() {
    let tiny = crate::support::root().join("fixtures/tiny");
    let report = json(&[name(&tiny.join("flux1-schnell.safetensors"))]);
    let missing: Vec<_> = report["missing"].as_array().unwrap().iter().map(|m| m.as_str().unwrap()).collect();
    let others = ["autoencoder", "CLIP text model", "T5 encoder", "CLIP tokenizer", "T5 tokenizer"];
    assert_eq!(missing, others);

    let (folder, path) = temp("flux1-schnell.safetensors");
    std::fs::copy(tiny.join("flux1-schnell.safetensors"), &path).unwrap();
    std::fs::copy(tiny.join("ae.safetensors"), folder.path().join("ae.safetensors")).unwrap();
    let reports = json(&[name(folder.path())]);
    let families: Vec<_> =
        reports.as_array().unwrap().iter().map(|r| r["family"].as_str().unwrap()).collect();
    assert_eq!(families[..2], ["FLUX.1 transformer", "FLUX.1 autoencoder"]);
    assert!(families[2..].iter().all(|family| *family == "missing") && families.len() == 6);
    assert!(text(&inspect(&[name(folder.path())])).contains("text_encoder_2"));

    // A finetune that lacks what was not trained.
    let (_folder, path) = temp("finetune.safetensors");
    let lines: Vec<_> = layout("flux1-dev").into_iter().filter(|(n, ..)| !n.starts_with("img_in.")).collect();
    write_sparse(&path, &lines);
    assert!(text(&inspect(&[name(&path)])).contains("img_in.weight is missing"));
}

#[test]
fn every_model_of_an_all_in_one_file_is_reported() {
    let (_folder, path) = temp("all.safetensors");
    let behind = |list: &str, prefix: &str| {
        layout(list).into_iter().map(|(n, d, s)| (format!("{prefix}{n}"), d, s)).collect::<Vec<_>>()
    };
    let all = [
        behind("flux1-schnell", "model.diffusion_model."),
        behind("ae", "vae."),
        behind("clip-l-text", "text_encoders.clip_l.transformer."),
        behind("t5-xxl-encoder", "text_encoders.t5xxl.transformer."),
    ];
    write_sparse(&path, &all.concat());
    let reports = json(&[name(&path)]);
    let families: Vec<_> =
        reports.as_array().unwrap().iter().map(|r| r["family"].as_str().unwrap()).collect();
    assert_eq!(families, ["FLUX.1 transformer", "FLUX.1 autoencoder", "CLIP text model", "T5 encoder"]);
    assert_eq!(reports[0]["prefix"], "model.diffusion_model.");
    assert_eq!(reports[0]["missing"], serde_json::json!(["CLIP tokenizer", "T5 tokenizer"]));
}

#[test]
fn tensors_are_listed_with_kind_and_shape() {
    let (_folder, path) = temp("w.safetensors");
    write_file(&path, &[f32s("b", &[2], &[1.0, 2.0]), f32s("a", &[1, 2], &[1.0, 2.0])]);
    let report = json(&[name(&path), "--tensors"]);
    assert_eq!(report["list"][0], serde_json::json!({ "name": "a", "kind": "F32", "shape": [1, 2] }));
    assert!(text(&inspect(&[name(&path), "--tensors"])).contains("b F32 [2]"));
}

#[test]
fn metadata_cannot_write_to_the_terminal() {
    let (_folder, path) = temp("w.safetensors");
    let header =
        r#"{"__metadata__":{"note":"\u001b[2Jgone"},"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}}"#;
    std::fs::write(&path, crate::support::framed(header, &[0; 4])).unwrap();
    assert!(!text(&inspect(&[name(&path)])).contains('\u{1b}'));
}

/// Writes both, and compares them.
fn compare(first: &[Stored], second: &[Stored], flags: &[&str]) -> (Option<i32>, Value) {
    let ((_one, a), (_two, b)) = (temp("a.safetensors"), temp("b.safetensors"));
    write_file(&a, first);
    write_file(&b, second);
    let output = inspect(&[&["--compare", name(&a), name(&b), "--json"], flags].concat());
    (output.status.code(), serde_json::from_slice(&output.stdout).unwrap())
}

#[test]
fn comparing_says_names_shapes_kinds_and_the_largest_difference() {
    let same = f32s("same", &[2], &[1.0, f32::NAN]);
    let half = stored("kind", &Tensor::from_slice(&[1f32, 2.0]), Kind::BFloat16);
    let first = [
        same.clone(),
        f32s("kind", &[2], &[1.0, 2.0]),
        f32s("one", &[1], &[1.0]),
        f32s("far", &[3], &[1.0, 2.0, 3.0]),
    ];
    let second = [
        same.clone(),
        half,
        f32s("one", &[1, 1], &[1.0]),
        f32s("far", &[3], &[1.0, 2.5, 2.9]),
        f32s("more", &[1], &[0.0]),
    ];
    let (code, found) = compare(&first, &second, &["--values"]);
    assert_eq!(code, Some(1));
    assert_eq!(found["only_in_second"], serde_json::json!(["more"]));
    assert_eq!(found["shapes"][0]["name"], "one");
    assert_eq!(found["kinds"], serde_json::json!([{ "name": "kind", "first": "F32", "second": "BF16" }]));
    assert_eq!(found["values"], serde_json::json!([{ "name": "far", "largest": 0.5, "of": 3.0 }]));

    let (code, found) = compare(&first, &first, &["--values"]);
    assert_eq!((code, &found["values"]), (Some(0), &serde_json::json!([])));
    // The numbers are compared where that is asked for.
    let (code, found) = compare(&[f32s("a", &[1], &[1.0])], &[f32s("a", &[1], &[2.0])], &[]);
    assert_eq!((code, &found["values"]), (Some(0), &Value::Null));
}

#[test]
fn two_layouts_of_one_model_are_compared_under_the_official_names() {
    let ((_one, a), (_two, b)) = (temp("a.safetensors"), temp("b.safetensors"));
    write_sparse(&a, &layout("flux1-dev"));
    write_sparse(&b, &layout("flux1-dev.diffusers"));
    let said = text(&inspect(&["--compare", name(&a), name(&b)]));
    assert!(said.contains("two layouts of one model") && said.contains("780 tensors"), "{said}");
}
