use super::*;
use crate::checkpoint::source::Stored;

fn rename(renames: &Renames, names: &[(&str, &[i64])]) -> BTreeMap<String, (Vec<String>, Vec<i64>)> {
    let flat = |s: Source| (s.parts.into_iter().map(|p| p.entry).collect(), s.shape);
    renames.apply(sources(names)).into_iter().map(|(n, s)| (n, flat(s))).collect()
}

fn sources(names: &[(&str, &[i64])]) -> BTreeMap<String, Source> {
    let source = |n: &str, shape: &[i64]| Source::whole(0, n, Stored::Plain, shape.to_vec());
    names.iter().map(|(n, shape)| (n.to_string(), source(n, shape))).collect()
}

#[test]
fn same_keeps_numbers_and_both_tensors() {
    let out = rename(
        &FLUX1_DIFFUSERS,
        &[("transformer_blocks.12.ff.net.2.weight", &[4, 8]), ("transformer_blocks.12.ff.net.2.bias", &[4])],
    );
    assert_eq!(out["double_blocks.12.img_mlp.2.weight"].1, [4, 8]);
    assert_eq!(out["double_blocks.12.img_mlp.2.bias"].1, [4]);
    assert_eq!(out.len(), 2);
}

#[test]
fn concat_joins_rows_in_order() {
    let name = |s: &str| format!("single_transformer_blocks.3.{s}.weight");
    let names = ["attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"].map(name);
    let shapes: [&[i64]; 4] = [&[4, 4], &[4, 4], &[4, 4], &[16, 4]];
    let out = rename(&FLUX1_DIFFUSERS, &names.iter().map(String::as_str).zip(shapes).collect::<Vec<_>>());
    assert_eq!(out["single_blocks.3.linear1.weight"], (names.to_vec(), vec![28, 4]));
}

#[test]
fn concat_with_a_part_missing_leaves_the_names_for_the_report() {
    let out = rename(&FLUX1_DIFFUSERS, &[("transformer_blocks.0.attn.to_q.weight", &[4, 4])]);
    assert!(out.contains_key("transformer_blocks.0.attn.to_q.weight"));
}

#[test]
fn swap_halves_exchanges_scale_and_shift() {
    let out = FLUX1_DIFFUSERS.apply(sources(&[("norm_out.linear.bias", &[4])]));
    let source = &out["final_layer.adaLN_modulation.1.bias"];
    assert_eq!(source.parts.iter().map(|p| p.elements.clone()).collect::<Vec<_>>(), [2..4, 0..2]);
}

#[test]
fn reversed_counts_the_levels_from_the_other_end() {
    let out = rename(
        &AUTOENCODER_DIFFUSERS,
        &[
            ("decoder.up_blocks.0.resnets.2.conv1.weight", &[8, 8, 3, 3]),
            ("decoder.up_blocks.3.resnets.0.conv_shortcut.weight", &[8, 8, 1, 1]),
        ],
    );
    assert!(out.contains_key("decoder.up.3.block.2.conv1.weight"));
    assert!(out.contains_key("decoder.up.0.block.0.nin_shortcut.weight"));
}

#[test]
fn pointwise_becomes_a_convolution() {
    let out = rename(
        &AUTOENCODER_DIFFUSERS,
        &[
            ("decoder.mid_block.attentions.0.to_out.0.weight", &[8, 8]),
            ("decoder.mid_block.attentions.0.to_out.0.bias", &[8]),
            ("decoder.mid_block.resnets.1.norm2.bias", &[8]),
        ],
    );
    assert_eq!(out["decoder.mid.attn_1.proj_out.weight"].1, [8, 8, 1, 1]);
    assert_eq!(out["decoder.mid.attn_1.proj_out.bias"].1, [8]);
    assert!(out.contains_key("decoder.mid.block_2.norm2.bias"));
}

#[test]
fn split_shares_the_rows_in_order_and_join_brings_them_together() {
    let name = "transformer.resblocks.3.attn.in_proj_weight";
    let out = CLIP_OPENAI.apply(sources(&[(name, &[12, 4])]));
    for (i, part) in ["q", "k", "v"].into_iter().enumerate() {
        let source = &out[&format!("text_model.encoder.layers.3.self_attn.{part}_proj.weight")];
        assert_eq!(source.shape, [4, 4]);
        assert_eq!(source.parts[0].elements, i * 16..(i + 1) * 16);
    }
    assert_eq!(CLIP_OPENAI.undo(out), sources(&[(name, &[12, 4])]));
    // What does not share equally, or is not all there, stays for the report.
    assert_eq!(CLIP_OPENAI.apply(sources(&[(name, &[11, 4])])), sources(&[(name, &[11, 4])]));
    let one = "text_model.encoder.layers.3.self_attn.q_proj.weight";
    assert_eq!(CLIP_OPENAI.undo(sources(&[(one, &[4, 4])])), sources(&[(one, &[4, 4])]));
}

#[test]
fn transposed_exchanges_rows_and_columns() {
    let out = CLIP_VISION_OPENAI.apply(sources(&[("visual.proj", &[8, 4])]));
    let source = &out["visual_projection.weight"];
    assert_eq!(
        (&source.shape[..], source.transposed, source.filled_shape()),
        (&[4, 8][..], true, vec![8, 4])
    );
    assert_eq!(CLIP_VISION_OPENAI.undo(out), sources(&[("visual.proj", &[8, 4])]));
}

/// The official names and shapes of a layout list.
fn list(name: &str) -> BTreeMap<String, Source> {
    let path = format!("{}/fixtures/layouts/{name}.txt", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(path).unwrap();
    let entry = |line: &str| {
        let fields: Vec<&str> = line.split('\t').collect();
        let shape = fields[2].split(',').filter(|d| !d.is_empty()).map(|d| d.parse().unwrap()).collect();
        (fields[0].to_string(), Source::whole(0, fields[0], Stored::Plain, shape))
    };
    text.lines().map(entry).collect()
}

fn shapes(tensors: &BTreeMap<String, Source>) -> BTreeMap<&str, &[i64]> {
    tensors.iter().map(|(name, source)| (name.as_str(), &source.shape[..])).collect()
}

/// Their list becomes the official one, and the other way round, and both ways end with every tensor whole.
fn there_and_back(renames: &Renames, theirs: &str, official: &str) {
    let (theirs, official) = (list(theirs), list(official));
    assert_eq!(shapes(&renames.apply(theirs.clone())), shapes(&official));
    assert_eq!(shapes(&renames.undo(official.clone())), shapes(&theirs));
    assert_eq!(renames.apply(renames.undo(official.clone())), official);
    assert_eq!(renames.undo(renames.apply(theirs.clone())), theirs);
}

#[test]
fn flux1_there_and_back() {
    there_and_back(&FLUX1_DIFFUSERS, "flux1-dev.diffusers", "flux1-dev");
}

#[test]
fn flux2_there_and_back() {
    there_and_back(&FLUX2_DIFFUSERS, "flux2-dev.diffusers", "flux2-dev");
}

#[test]
fn autoencoder_there_and_back() {
    there_and_back(&AUTOENCODER_DIFFUSERS, "ae.diffusers", "ae");
}

#[test]
fn klein_and_the_second_autoencoder_come_back() {
    for name in ["flux2-klein-4b.diffusers", "flux2-klein-9b.diffusers"] {
        let theirs = list(name);
        let official = FLUX2_DIFFUSERS.apply(theirs.clone());
        assert!(official.keys().all(|n| !n.contains("transformer_blocks")), "{name}");
        assert_eq!(FLUX2_DIFFUSERS.undo(official), theirs, "{name}");
    }
    let official = list("flux2-ae");
    let theirs = AUTOENCODER_DIFFUSERS.undo(official.clone());
    assert!(theirs.contains_key("post_quant_conv.weight") && theirs.contains_key("bn.running_mean"));
    assert_eq!(AUTOENCODER_DIFFUSERS.apply(theirs), official);
}

#[test]
fn what_stands_beside_siglips_vision_tower_is_known_by_name() {
    for name in [
        "logit_bias",
        "text_model.encoder.layers.26.mlp.fc2.bias",
        "text_model.head.weight",
        "vision_model.head.attention.in_proj_weight",
        "vision_model.head.mlp.fc1.bias",
    ] {
        assert!(is_beside_siglip(name), "{name}");
    }
    for name in [
        "vision_model.encoder.layers.26.mlp.fc2.bias",
        "vision_model.post_layernorm.weight",
        "text_model.head.extra",
        "text_model.encoder.layers.3.self_attn.q_norm.weight",
        "vision_model.head",
    ] {
        assert!(!is_beside_siglip(name), "{name}");
    }
}

#[test]
fn shifted_counts_from_another_layer() {
    let decoder: &[(&str, &[i64])] = &[
        ("1.weight", &[64, 16, 3, 3]),
        ("1.bias", &[64]),
        ("3.conv.0.weight", &[64, 64, 3, 3]),
        ("7.weight", &[64, 64, 3, 3]),
        ("18.bias", &[3]),
    ];
    let out = rename(&TAESD_DECODER, decoder);
    let names = ["0.bias", "0.weight", "17.bias", "2.conv.0.weight", "6.weight"];
    assert_eq!(out.keys().collect::<Vec<_>>(), names.map(|name| format!("decoder.layers.{name}")).each_ref());
    let back = TAESD_DECODER.undo(TAESD_DECODER.apply(sources(decoder)));
    assert_eq!(back, sources(decoder));
}

#[test]
fn an_encoder_of_taesd_keeps_its_numbers() {
    let names: &[(&str, &[i64])] =
        &[("0.bias", &[64]), ("14.weight", &[16, 64, 3, 3]), ("1.conv.4.bias", &[64])];
    let out = rename(&TAESD_ENCODER, names);
    let names = ["0.bias", "1.conv.4.bias", "14.weight"];
    assert_eq!(out.keys().collect::<Vec<_>>(), names.map(|name| format!("encoder.layers.{name}")).each_ref());
}

#[test]
fn newer_names_of_a_depth_model_become_those_of_its_files() {
    let out = rename(&DEPTH_TRANSFORMERS_5, &[("backbone.encoder.layer.11.attention.o_proj.bias", &[8])]);
    assert!(out.contains_key("backbone.encoder.layer.11.attention.output.dense.bias"));
}

#[test]
fn norms_spelled_weight_become_scales() {
    let out = rename(&NORMS_SPELLED_WEIGHT, &[("single_blocks.7.norm.key_norm.weight", &[128])]);
    assert!(out.contains_key("single_blocks.7.norm.key_norm.scale"));
}

#[test]
fn a_controlnet_there_and_back() {
    let theirs = sources(&[
        ("controlnet_blocks.0.weight", &[4, 4]),
        ("controlnet_x_embedder.bias", &[4]),
        ("input_hint_block.blocks.5.weight", &[16, 16, 3, 3]),
        ("input_hint_block.conv_out.bias", &[16]),
        ("transformer_blocks.0.ff.net.2.weight", &[4, 16]),
        ("x_embedder.weight", &[4, 64]),
    ]);
    let ours = CONTROLNET_DIFFUSERS.apply(theirs.clone());
    let names: Vec<&str> = ours.keys().map(String::as_str).collect();
    assert_eq!(
        names,
        [
            "controlnet_blocks.0.weight",
            "double_blocks.0.img_mlp.2.weight",
            "img_in.weight",
            "input_hint_block.12.weight",
            "input_hint_block.14.bias",
            "pos_embed_input.bias",
        ]
    );
    assert_eq!(CONTROLNET_DIFFUSERS.undo(ours), theirs);
}

#[test]
fn llama_names_become_those_of_t5() {
    let out = rename(&T5_LLAMA, &[("enc.blk.3.ffn_gate.weight", &[8, 4]), ("token_embd.weight", &[9, 4])]);
    assert!(out.contains_key("encoder.block.3.layer.1.DenseReluDense.wi_0.weight"));
    assert!(out.contains_key("shared.weight"));
}
