//! Every module of the official files has its place, under each of its names.

use std::collections::BTreeMap;

use tch_flux::checkpoint::lora::{Component, Holder, Slot, parse_names};

use crate::support::layout;

/// The modules of a file, with whether each is a linear layer.
fn modules(name: &str) -> BTreeMap<String, bool> {
    let lines = layout(name).into_iter();
    let modules = lines.filter_map(|(name, _, shape)| {
        let module = name.strip_suffix(".weight").or_else(|| name.strip_suffix(".scale"))?;
        Some((module.to_string(), shape.len() == 2))
    });
    modules.collect()
}

#[test]
fn every_module_of_the_official_files_is_known_with_dots_and_with_underscores() {
    for (file, model, dots, underscores) in [
        ("flux1-dev", Component::Transformer, "diffusion_model.", "lora_unet_"),
        ("flux1-dev.diffusers", Component::Transformer, "transformer.", "lora_transformer_"),
        ("flux2-dev", Component::Transformer, "base_model.model.", "lora_unet_"),
        ("flux2-dev.diffusers", Component::Transformer, "base_model.model.transformer.", "lycoris_"),
        ("clip-l-text", Component::Clip, "text_encoders.clip_l.transformer.", "lora_te1_"),
        ("t5-xxl-encoder", Component::T5, "text_encoders.t5xxl.transformer.", "lora_te3_"),
    ] {
        let modules = modules(file);
        assert!(modules.len() > 70, "{file}");
        for (module, is_matrix) in modules {
            for name in [format!("{dots}{module}"), format!("{underscores}{}", module.replace('.', "_"))] {
                let parsed = parse_names([format!("{name}.diff").as_str()]);
                let Some(group) = parsed.groups.get(&name) else {
                    // The second name of an embedding that official files hold once.
                    assert_eq!(module, "encoder.embed_tokens", "{name}");
                    continue;
                };
                assert_eq!(group.target.model, model, "{name}");
                // Embeddings are matrices, but of no linear layer.
                let is_linear = group.target.holder == Holder::Linear;
                assert!(is_linear == is_matrix || group.target.holder == Holder::Other, "{name}");
                if !file.ends_with("diffusers") {
                    assert_eq!((&group.target.module, group.target.slot), (&module, Slot::Whole), "{name}");
                }
            }
        }
    }
}

#[test]
fn diffusers_modules_are_all_rows_of_all_official_ones() {
    for (theirs, official) in [("flux1-dev.diffusers", "flux1-dev"), ("flux2-dev.diffusers", "flux2-dev")] {
        let names: Vec<String> = modules(theirs).into_keys().map(|m| format!("{m}.diff")).collect();
        let mut found: BTreeMap<String, Vec<Slot>> = BTreeMap::new();
        for group in parse_names(names.iter().map(String::as_str)).groups.into_values() {
            found.entry(group.target.module).or_default().push(group.target.slot);
        }
        for module in modules(official).into_keys() {
            let mut slots = found.remove(&module).unwrap_or_else(|| panic!("{module}"));
            slots.sort();
            let is = |expected: &[Slot]| slots == expected;
            let joined = match module.rsplit('.').next() {
                Some("qkv") => is(&[Slot::Q, Slot::K, Slot::V]),
                Some("linear1") if official == "flux1-dev" => is(&[Slot::Q, Slot::K, Slot::V, Slot::Rest]),
                _ if module == "final_layer.adaLN_modulation.1" => is(&[Slot::Swapped]),
                _ => is(&[Slot::Whole]),
            };
            assert!(joined, "{module}: {slots:?}");
        }
        assert!(found.is_empty(), "{found:?}");
    }
}

#[test]
fn the_second_clip_of_another_model_is_not_taken_for_t5() {
    let names = parse_names(["lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_down.weight"]);
    assert_eq!((names.groups.len(), names.unknown.len()), (0, 1));
}

#[test]
fn names_of_any_kind_are_sorted_without_failing() {
    let long = "lora_unet_".repeat(100_000);
    let dots = ".".repeat(100_000);
    let numbers = format!("double_blocks.{}.img_attn.qkv.lora_A.weight", "9".repeat(10_000));
    let names = [
        "",
        ".",
        "..",
        "lora_A.weight",
        ".lora_A.weight",
        "lora_unet_",
        "lora_unet_.alpha",
        "x.lora_A.",
        "é.diff",
        "transformer.transformer.x_embedder.diff",
        "double_blocks.-1.img_attn.qkv.diff",
        &long,
        &dots,
        &numbers,
        "double_blocks.18446744073709551615.img_attn.qkv.diff",
        "img_in.lora_A.a.b.c",
        "img_in.lora_A.weight",
        "img_in.lora_down.weight",
        "img_in.weight",
    ];
    let sorted = parse_names(names);
    let known: usize = sorted.groups.values().map(|group| group.parts.len()).sum();
    assert_eq!((known, sorted.unknown.len()), (1, names.len() - 1), "{:?}", sorted.groups);
}
