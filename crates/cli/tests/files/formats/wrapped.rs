//! Names behind what training code and other programs put around them: read where they are otherwise right.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use tch::Kind;
use tch_flux::checkpoint::lora::{Component, Lora};
use tch_flux::checkpoint::{Access, Checkpoint};
use tch_flux::generation::{LoraFile, PartOverrides, Parts, Pipeline, Request, Settings};
use tch_flux::image::Image;

use super::{open, report, run};
use crate::support::{Line, Stored, f32s, layout, stored, temp, write_file, write_sparse};

const BEFORE: [&str; 15] = [
    "module.",
    "_orig_mod.",
    "transformer.",
    "dit.",
    "state_dict.",
    "model.",
    "module._orig_mod.",
    "_orig_mod.module.",
    "state_dict.module.",
    "model.diffusion_model.",
    "module.model.diffusion_model.",
    "diffusion_model.",
    "pipe.dit.",
    "_forward_module.module.",
    "someones_own.wrapper.",
];

fn renamed(lines: &[Line], rename: &dyn Fn(&str) -> String) -> Vec<Line> {
    lines.iter().map(|(name, dtype, shape)| (rename(name), dtype.clone(), shape.clone())).collect()
}

/// The names and shapes under which a model would be loaded.
fn official(path: &Path) -> Vec<(String, Vec<i64>)> {
    let checkpoint = open(path).official();
    checkpoint.names().map(|name| (name.to_string(), checkpoint.shape(name).unwrap())).collect()
}

#[test]
fn every_model_is_read_behind_every_wrapper() {
    let models = [
        "flux1-dev",
        "flux1-dev.diffusers",
        "ae",
        "ae.diffusers",
        "clip-l-text",
        "t5-xxl-encoder",
        "siglip-so400m",
        "flux1-redux-dev",
        "taef1.diffusers",
        "depth-anything-large",
    ];
    for model in models {
        let (folder, bare) = temp("bare.safetensors");
        write_sparse(&bare, &layout(model));
        let (right, family) = (official(&bare), open(&bare).family());
        for prefix in BEFORE {
            let path = folder.path().join("wrapped.safetensors");
            write_sparse(&path, &renamed(&layout(model), &|name| format!("{prefix}{name}")));
            assert_eq!(open(&path).family().name(), family.name(), "{prefix} {model}");
            assert_eq!(official(&path), right, "{prefix} {model}");
        }
    }
}

/// torch.compile of each block, FSDP, activation checkpoints.
#[test]
fn wrappers_among_the_names_are_read() {
    let among: [&dyn Fn(&str) -> String; 2] =
        [&|name| name.replacen("blocks.0.", "blocks.0._orig_mod.", 1), &|name| {
            format!(
                "_fsdp_wrapped_module.{}",
                name.replacen(".0.", ".0._fsdp_wrapped_module._checkpoint_wrapped_module.", 1)
            )
        }];
    for model in ["flux1-dev", "flux1-dev.diffusers", "t5-xxl-encoder"] {
        let (folder, bare) = temp("bare.safetensors");
        write_sparse(&bare, &layout(model));
        for (i, rename) in among.iter().enumerate() {
            let path = folder.path().join("wrapped.safetensors");
            write_sparse(&path, &renamed(&layout(model), rename));
            assert_eq!(official(&path), official(&bare), "{i} {model}");
        }
    }
}

#[test]
fn a_wrapped_all_in_one_file_is_taken_apart() {
    let parts = [
        ("flux1-schnell", "model.diffusion_model.", "FLUX.1 transformer"),
        ("ae", "vae.", "FLUX.1 autoencoder"),
        ("clip-l-text", "text_encoders.clip_l.transformer.", "CLIP text model"),
        ("t5-xxl-encoder", "text_encoders.t5xxl.transformer.", "T5 encoder"),
    ];
    for wrapper in ["module.", "state_dict.", "module._orig_mod."] {
        let (_folder, path) = temp("all.safetensors");
        let lines = parts
            .iter()
            .map(|(model, prefix, _)| renamed(&layout(model), &|n| format!("{wrapper}{prefix}{n}")));
        write_sparse(&path, &lines.collect::<Vec<_>>().concat());
        let found = open(&path).contained();
        let names: Vec<_> = found.iter().map(|model| model.family.name()).collect();
        assert_eq!(names, parts.map(|(_, _, family)| family), "{wrapper}");
        for ((model, ..), one) in parts.iter().zip(&found) {
            assert_eq!(open(&path).part(&one.prefix, &one.family).names().count(), layout(model).len());
        }
    }
}

fn tiny(part: &str) -> PathBuf {
    crate::support::root().join("fixtures/tiny").join(part)
}

/// A part of the small model under other names, in the file's own kind.
fn wrapped(part: &str, to: &Path, prefix: &str) {
    let checkpoint = Checkpoint::open(tiny(part), Access::Map).unwrap();
    let one = |name: &str| {
        let tensor = checkpoint.tensor(name).unwrap();
        stored(&format!("{prefix}{name}"), &tensor, tensor.kind())
    };
    write_file(to, &checkpoint.names().map(one).collect::<Vec<_>>());
}

fn draw(parts: PartOverrides, loras: &[LoraFile]) -> Image {
    let mut pipeline =
        Pipeline::open(Parts::find_rest(parts, tiny("")).unwrap(), Settings::default()).unwrap();
    assert!(pipeline.set_loras(loras).unwrap().is_empty());
    let request = Request::new("a red circle on a blue background", 64, 64).seed(7).steps(2);
    pipeline.generate(&request, &mut |_| ControlFlow::Continue(())).unwrap().remove(0).image
}

#[test]
fn wrapped_parts_draw_the_picture_of_bare_ones() {
    let folder = tempfile::tempdir().unwrap();
    let part = |from: &str, prefix: &str| {
        let to = folder.path().join(from);
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        let config = tiny(from).with_file_name("config.json");
        if config.is_file() {
            std::fs::copy(config, to.with_file_name("config.json")).unwrap();
        }
        wrapped(from, &to, prefix);
        Some(to)
    };
    let parts = PartOverrides {
        transformer: part("transformer/diffusion_pytorch_model.safetensors", "module._orig_mod."),
        autoencoder: part("ae.safetensors", "state_dict."),
        clip: part("text_encoder/model.safetensors", "module."),
        t5: part("text_encoder_2/model.safetensors", "transformer."),
        ..PartOverrides::default()
    };
    assert!(draw(parts, &[]) == draw(PartOverrides::default(), &[]));
}

/// Two matrices for one layer, under names of some maker.
fn lora(down: &str, up: &str) -> Vec<Stored> {
    let values = |n: usize| (0..n).map(|i| ((i * 7919) % 31) as f32 / 31.0 - 0.5).collect::<Vec<_>>();
    vec![f32s(down, &[2, 128], &values(256)), f32s(up, &[128, 2], &values(256))]
}

#[test]
fn a_wrapped_lora_stays_a_lora_of_the_same_layers() {
    let folder = tempfile::tempdir().unwrap();
    let file = |tensors: &[Stored]| {
        let path = folder.path().join("lora.safetensors");
        write_file(&path, tensors);
        let lora = Lora::open(&path, Access::Read).unwrap();
        assert_eq!((open(&path).family().name(), &lora.unknown), ("LoRA", &vec![]));
        lora.targets.into_keys().collect::<Vec<_>>()
    };
    let layer = "double_blocks.0.img_attn.proj";
    let makers = [
        ("transformer.transformer_blocks.0.attn.to_out.0", "lora_A.weight", "lora_B.weight"),
        ("lora_unet_double_blocks_0_img_attn_proj", "lora_down.weight", "lora_up.weight"),
        ("lora_unet__orig_mod_double_blocks_0_img_attn_proj", "lora_down.weight", "lora_up.weight"),
        ("base_model.model.double_blocks.0.img_attn.proj", "lora_A.default.weight", "lora_B.default.weight"),
        ("double_blocks.0._orig_mod.img_attn.proj", "lora_A.weight", "lora_B.weight"),
    ];
    for prefix in ["", "module.", "_orig_mod.", "module._orig_mod.", "state_dict.", "dit.", "pipe.dit."] {
        for (module, down, up) in &makers {
            // What stands before says whose model it is: one of them is enough.
            if prefix.ends_with("dit.") && !module.starts_with("double") {
                continue;
            }
            let module = format!("{prefix}{module}");
            let found = file(&lora(&format!("{module}.{down}"), &format!("{module}.{up}")));
            assert_eq!(found, [(Component::Transformer, layer.to_string())], "{module}");
        }
    }
}

#[test]
fn a_wrapped_lora_draws_what_it_draws_bare() {
    let folder = tempfile::tempdir().unwrap();
    let drawn = |module: &str| {
        let path = folder.path().join("lora.safetensors");
        write_file(&path, &lora(&format!("{module}.lora_A.weight"), &format!("{module}.lora_B.weight")));
        draw(PartOverrides::default(), &[LoraFile { path, strength: 1.0 }])
    };
    let right = drawn("double_blocks.0.img_attn.proj");
    assert_ne!(right, draw(PartOverrides::default(), &[]));
    assert_eq!(drawn("module.double_blocks.0._orig_mod.img_attn.proj"), right);
}

#[test]
fn inspect_says_what_stands_before_the_names_and_lists_those_of_the_file() {
    let (_folder, path) = temp("model.safetensors");
    let name = "module._orig_mod.double_blocks.0.img_attn.qkv.weight";
    write_sparse(&path, &renamed(&layout("flux1-dev"), &|name| format!("module._orig_mod.{name}")));
    let told = report(&["inspect", path.to_str().unwrap(), "--json", "--tensors"]);
    assert_eq!((&told["family"], &told["variant"]), (&"FLUX.1 transformer".into(), &"dev".into()));
    assert_eq!((&told["prefix"], &told["layout"]), (&"module.".into(), &"the official names".into()));
    let listed = told["list"].as_array().unwrap();
    assert!(listed.iter().any(|line| line["name"] == name) && listed.len() == 780);
}

#[test]
fn convert_takes_the_wrappers_off_where_names_are_asked_for() {
    let (folder, path) = temp("model.safetensors");
    wrapped("flux1-schnell.safetensors", &path, "module._orig_mod.");
    let out = folder.path().join("out.safetensors");
    let words = ["convert", path.to_str().unwrap(), out.to_str().unwrap(), "--layout", "official"];
    let output = run(&words);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let (one, other) = (open(&out), open(tiny("flux1-schnell.safetensors")));
    assert!(one.names().eq(other.names()));
    for name in one.names() {
        assert!(
            one.tensor_as(name, Kind::Float).unwrap().equal(&other.tensor_as(name, Kind::Float).unwrap()),
            "{name}"
        );
    }
}

/// For whom a LoRA was made, some of its keys, and the shapes of the first and the second matrix.
const MADE_FOR: &[(&str, &str, [i64; 2])] = &[
    ("Stable Diffusion XL", "lora_unet_input_blocks_4_1_transformer_blocks_1_attn1_to_k", [640, 640]),
    (
        "Stable Diffusion XL",
        "lora_unet_down_blocks_1_attentions_0_transformer_blocks_1_attn1_to_k",
        [640, 640],
    ),
    ("Stable Diffusion XL", "unet.down_blocks.1.attentions.0.transformer_blocks.1.attn1.to_k", [640, 640]),
    (
        "Stable Diffusion XL",
        "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn2_to_k",
        [2048, 640],
    ),
    (
        "Stable Diffusion 1.5",
        "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k",
        [768, 320],
    ),
    ("Stable Diffusion 3", "lora_unet_joint_blocks_0_x_block_attn_qkv", [1536, 4608]),
    ("Stable Diffusion 3", "transformer.transformer_blocks.0.attn.add_k_proj", [2432, 2432]),
    ("FLUX.2", "transformer.single_transformer_blocks.0.attn.to_qkv_mlp_proj", [3072, 27648]),
    ("FLUX.2", "diffusion_model.single_blocks.0.linear1", [3072, 27648]),
    ("FLUX.2", "diffusion_model.double_blocks.0.img_mlp.0", [6144, 36864]),
    ("FLUX.3", "diffusion_model.content_mode_blocks.image.0.q_proj", [3072, 3072]),
    ("Chroma", "lora_unet_distilled_guidance_layer_layers_0_in_layer", [5120, 5120]),
    ("Qwen-Image", "transformer.transformer_blocks.0.img_mlp.net.0.proj", [3072, 12288]),
    // FLUX.1 has such a layer in blocks 0 to 18.
    ("Qwen-Image", "transformer.transformer_blocks.59.attn.to_q", [3072, 3072]),
    ("Qwen-Image", "lora_unet_transformer_blocks_19_attn_to_q", [3072, 3072]),
    ("HunyuanVideo", "diffusion_model.double_blocks.0.img_attn_qkv", [3072, 9216]),
    ("HunyuanVideo", "lora_unet_double_blocks_0_img_mlp_fc1", [3072, 12288]),
    ("Wan", "transformer.blocks.0.attn1.to_q", [5120, 5120]),
    ("Wan", "lora_unet_blocks_0_attn1_to_q", [5120, 5120]),
    ("LTX", "transformer.transformer_blocks.0.attn2.to_k", [2048, 2048]),
    ("Kandinsky 5", "transformer.visual_transformer_blocks.0.self_attention.to_query", [1792, 1792]),
    ("Z-Image", "diffusion_model.layers.0.attention.to_q", [3840, 3840]),
    ("Wan", "diffusion_model.blocks.0.cross_attn.q", [5120, 5120]),
    ("HiDream", "diffusion_model.double_stream_blocks.0.block.attn1.to_q", [2560, 2560]),
    ("AuraFlow", "transformer.joint_transformer_blocks.0.attn.to_q", [3072, 3072]),
    ("LTX", "transformer.transformer_blocks.0.attn1.to_q", [2048, 2048]),
    ("language model", "base_model.model.model.layers.0.self_attn.q_proj", [4096, 4096]),
];

#[test]
fn a_lora_of_another_family_is_named_by_it() {
    let mut pipeline = Pipeline::open(Parts::find(tiny("")).unwrap(), Settings::default()).unwrap();
    for (what, module, [columns, rows]) in MADE_FOR {
        let (_folder, path) = temp("lora.safetensors");
        let line = |end: &str, shape: [i64; 2]| {
            (format!("{module}.{end}.weight"), "BF16".to_string(), shape.to_vec())
        };
        write_sparse(&path, &[line("lora_down", [4, *columns]), line("lora_up", [*rows, 4])]);
        let refused =
            pipeline.set_loras(&[LoraFile { path: path.clone(), strength: 1.0 }]).unwrap_err().to_string();
        assert!(refused.contains(what) && refused.contains("made for FLUX.1"), "{what}: {refused}");
        let made_for = Lora::open(&path, Access::Read).unwrap().made_for();
        assert!(made_for.is_some_and(|family| family.contains(what)), "{what}: {made_for:?}");
        if *what == "Wan" {
            let told = report(&["inspect", path.to_str().unwrap(), "--json"]);
            assert_eq!(told["lora"]["made_for"], "Wan");
            assert!(told["note"].as_str().unwrap().contains("made for FLUX.1"));
        }
    }
    // Its changes of CLIP-L fit: that is Stable Diffusion's, too.
    let (_folder, path) = temp("lora.safetensors");
    let line = |module: &str, end: &str, shape: [i64; 2]| {
        (format!("{module}.{end}.weight"), "BF16".to_string(), shape.to_vec())
    };
    let (clip, unet) = ("lora_te1_text_model_encoder_layers_0_self_attn_q_proj", MADE_FOR[0].1);
    write_sparse(
        &path,
        &[
            line(clip, "lora_down", [4, 64]),
            line(clip, "lora_up", [64, 4]),
            line(unet, "lora_down", [4, 640]),
            line(unet, "lora_up", [640, 4]),
        ],
    );
    let refused = pipeline.set_loras(&[LoraFile { path, strength: 1.0 }]).unwrap_err().to_string();
    assert!(refused.contains("made for Stable Diffusion XL"), "{refused}");
    for (module, [columns, rows]) in [
        ("lora_unet_double_blocks_0_img_attn_qkv", [3072, 9216]),
        ("lora_unet_single_blocks_0_linear1", [3072, 21504]),
        ("transformer.single_transformer_blocks.0.attn.to_q", [3072, 3072]),
        ("transformer.transformer_blocks.0.attn.add_k_proj", [3072, 3072]),
        ("transformer.transformer_blocks.18.attn.to_q", [3072, 3072]),
        ("transformer.single_transformer_blocks.37.attn.to_q", [3072, 3072]),
        ("lora_te1_text_model_encoder_layers_0_self_attn_q_proj", [768, 768]),
        ("text_encoder.text_model.encoder.layers.0.self_attn.q_proj", [768, 768]),
        ("lora_te3_encoder_block_0_layer_0_SelfAttention_q", [4096, 4096]),
    ] {
        let (_folder, path) = temp("lora.safetensors");
        let line = |end: &str, shape: [i64; 2]| {
            (format!("{module}.{end}.weight"), "BF16".to_string(), shape.to_vec())
        };
        write_sparse(&path, &[line("lora_down", [4, columns]), line("lora_up", [rows, 4])]);
        assert_eq!(Lora::open(&path, Access::Read).unwrap().made_for(), None, "{module}");
    }
}
