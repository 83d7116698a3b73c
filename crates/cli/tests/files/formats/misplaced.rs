//! What users have in place of weights, and weights under other names: read, or refused with what would work.

use std::path::{Path, PathBuf};

use tch_flux::Hint;
use tch_flux::checkpoint::lora::Lora;
use tch_flux::checkpoint::{Access, Checkpoint, Family, Index};
use tch_flux::family::ModelFamily;
use tch_flux::models::text::Tokenizer;

use super::run;
use crate::support::{Line, layout, temp, write_sparse};

fn tiny(part: &str) -> PathBuf {
    crate::support::root().join("fixtures/tiny").join(part)
}

fn refused(path: &Path) -> String {
    Checkpoint::open(path, Access::Read).unwrap_err().to_string()
}

fn line(name: &str, shape: &[i64]) -> Line {
    (name.to_string(), "F32".to_string(), shape.to_vec())
}

#[test]
fn other_ends_of_names_are_weights_in_a_folder_too() {
    for name in ["flux1-dev.SAFETENSORS", "Flux.Safetensors", "flux1-dev.sft", "FLUX.SFT"] {
        let (folder, path) = temp(name);
        std::fs::copy(tiny("flux1-schnell.safetensors"), &path).unwrap();
        let family = Checkpoint::open(folder.path(), Access::Read).unwrap().family();
        assert!(matches!(family, Family::Transformer { family: ModelFamily::Flux1, .. }), "{name}");
    }
}

#[test]
fn what_a_folder_has_in_place_of_weights_is_said() {
    for (name, what) in [
        ("diffusion_pytorch_model.safetensors.incomplete", "not finished"),
        ("flux1-dev.safetensors.part", "not finished"),
        ("flux1-dev.safetensors.crdownload", "not finished"),
        ("pytorch_model.bin", "pickle"),
        ("flux1-dev.ckpt", "pickle"),
    ] {
        let (folder, path) = temp(name);
        std::fs::write(&path, b"some bytes").unwrap();
        let said = refused(folder.path());
        assert!(said.contains(name) && said.contains(what), "{said}");
    }
}

#[test]
fn an_empty_file_and_a_link_to_nothing_are_said() {
    let (_folder, path) = temp("w.safetensors");
    std::fs::write(&path, b"").unwrap();
    assert!(refused(&path).contains("w.safetensors: this file is empty"), "{}", refused(&path));
    #[cfg(unix)]
    {
        let link = path.with_file_name("link.safetensors");
        std::os::unix::fs::symlink("../../blobs/0123", &link).unwrap();
        let said = refused(&link);
        assert!(said.contains("link.safetensors: this is a link to ../../blobs/0123"), "{said}");
    }
}

#[test]
fn an_index_may_begin_with_a_byte_order_mark() {
    let index = Index::parse("\u{feff}{\"weight_map\": {\"a\": \"b.safetensors\"}}").unwrap();
    assert_eq!(index.weight_map["a"], "b.safetensors");
}

#[test]
fn pointers_of_git_lfs_are_named_in_place_of_tokenizers_and_settings() {
    let pointer =
        format!("version https://git-lfs.github.com/spec/v1\noid sha256:{}\nsize 9\n", "a".repeat(64));
    for name in ["tokenizer.json", "spiece.model"] {
        let (folder, path) = temp(name);
        std::fs::write(&path, &pointer).unwrap();
        let said = Tokenizer::t5(folder.path()).unwrap_err().to_string();
        assert!(said.contains(name) && said.contains("git lfs pull"), "{said}");
    }
    let (folder, path) = temp("config.json");
    std::fs::write(&path, &pointer).unwrap();
    std::fs::copy(
        tiny("transformer/diffusion_pytorch_model.safetensors"),
        folder.path().join("diffusion_pytorch_model.safetensors"),
    )
    .unwrap();
    let said = drawn(&["--transformer", folder.path().to_str().unwrap()]);
    assert!(said.contains("config.json") && said.contains("git lfs pull"), "{said}");
}

/// What is said of a drawing that is refused.
fn drawn(flags: &[&str]) -> String {
    let output = run(&[&["generate", "x", "--dry-run", "-o", "never.png"], flags].concat());
    assert!(!output.status.success());
    String::from_utf8(output.stderr).unwrap()
}

#[test]
fn folders_that_hold_models_as_other_programs_keep_them_say_what_to_name() {
    let (folder, _) = temp("x");
    let snapshot = folder.path().join("models--a--b/snapshots/0123");
    for part in ["text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"] {
        std::fs::create_dir_all(snapshot.join(part)).unwrap();
    }
    for file in ["flux1-schnell.safetensors", "ae.safetensors"] {
        std::fs::copy(tiny(file), snapshot.join(file)).unwrap();
    }
    let said = drawn(&["--model", folder.path().join("models--a--b").to_str().unwrap()]);
    assert!(said.contains("snapshots/0123"), "{said}");
    let comfy = folder.path().join("models");
    for part in ["unet", "clip", "vae"] {
        std::fs::create_dir_all(comfy.join(part)).unwrap();
    }
    let said = drawn(&["--model", comfy.to_str().unwrap()]);
    for flag in ["ComfyUI", "--transformer", "unet", "--clip", "--t5", "--autoencoder"] {
        assert!(said.contains(flag), "{said}");
    }
}

/// The official autoencoder's names with another number of levels; a latent's place is then no 8 by 8 pixels.
#[test]
fn an_autoencoder_of_another_depth_is_refused() {
    let (_folder, path) = temp("vae.safetensors");
    let mut lines = layout("ae");
    lines.retain(|(name, ..)| !name.contains(".down.3.") && !name.contains(".up.3."));
    write_sparse(&path, &lines);
    let said = drawn(&["--vae", path.to_str().unwrap()]);
    assert!(
        said.contains("vae.safetensors: this autoencoder has 3 levels") && said.contains("4 by 4"),
        "{said}"
    );
}

#[test]
fn a_text_encoder_that_lacks_a_tensor_is_named_with_its_file() {
    let (_folder, path) = temp("t5.safetensors");
    let mut lines = layout("t5-xxl-encoder");
    lines.retain(|(name, ..)| !name.contains("shared") && !name.contains("embed_tokens"));
    write_sparse(&path, &lines);
    let said = drawn(&["--t5", path.to_str().unwrap()]);
    assert!(said.contains("t5.safetensors: ") && said.contains("shared.weight is missing"), "{said}");
}

#[test]
fn embeddings_and_adapters_of_other_forms_are_named() {
    for (what, lines) in [
        ("textual inversion", vec![line("clip_l", &[2, 768])]),
        ("textual inversion", vec![line("clip_g", &[2, 1280]), line("clip_l", &[2, 768])]),
        ("textual inversion", vec![line("emb_params", &[2, 768])]),
        ("textual inversion", vec![line("string_to_param.*", &[2, 768])]),
        ("OFT", vec![line("lora_unet_a.oft_blocks", &[4, 8, 8]), line("lora_unet_a.alpha", &[])]),
        ("OFT", vec![line("base_model.model.a.oft_R.weight", &[4, 8])]),
        (
            "GLoRA",
            ["a1", "a2", "b1", "b2"].map(|n| line(&format!("lora_unet_a.{n}.weight"), &[4, 4])).to_vec(),
        ),
        ("VeRA", vec![line("a.vera_lambda_b", &[4]), line("a.vera_lambda_d", &[4])]),
        ("IA³", vec![line("lora_unet_a.weight", &[4]), line("lora_unet_a.on_input", &[1])]),
        ("no tensors", vec![]),
        // What is another part has a hint, from which the program says which flag takes it.
        ("autoencoder", layout("ae")),
        ("transformer", layout("flux1-dev")),
        ("T5 encoder", layout("t5-xxl-encoder")),
    ] {
        let (_folder, path) = temp("lora.safetensors");
        write_sparse(&path, &lines);
        let error = Lora::open(&path, Access::Read).unwrap_err();
        let said = error.to_string();
        assert!(said.contains("lora.safetensors"), "{what}: {said}");
        if ["autoencoder", "transformer", "T5 encoder"].contains(&what) {
            assert_eq!(error.hints(), [Hint::Part(what)]);
            continue;
        }
        assert!(said.contains(what), "{what}: {said}");
        let told = String::from_utf8(run(&["inspect", path.to_str().unwrap()]).stdout).unwrap();
        assert!(told.contains(what), "{what}: {told}");
    }
}

#[test]
fn an_error_about_a_lora_names_some_of_its_keys() {
    let (_folder, path) = temp("lora.safetensors");
    let lines: Vec<_> =
        (0..1000).map(|i| line(&format!("of_nothing_{i}.lora_down.weight"), &[4, 8])).collect();
    write_sparse(&path, &lines);
    let said = drawn(&["--lora", path.to_str().unwrap()]);
    assert!(said.contains("(1000): of_nothing_0") && said.contains("and 976 more"), "{said}");
    assert!(said.len() < 4000, "{}", said.len());
}

#[test]
fn what_stands_before_the_names_of_a_model_may_stand_before_those_of_its_lora() {
    for prefix in ["model.", "net.", "flux.", "lora_unet.", "lora_transformer.", "model.diffusion_model.", ""]
    {
        let (_folder, path) = temp("lora.safetensors");
        let layer = format!("{prefix}double_blocks.0.img_attn.proj");
        write_sparse(
            &path,
            &[
                line(&format!("{layer}.lora_A.weight"), &[4, 128]),
                line(&format!("{layer}.lora_B.weight"), &[128, 4]),
            ],
        );
        let lora = Lora::open(&path, Access::Read).unwrap();
        assert!(lora.unknown.is_empty() && lora.targets.len() == 1, "{prefix}: {:?}", lora.unknown);
    }
}
