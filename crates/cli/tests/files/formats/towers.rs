//! Files that hold all that is wanted, and more: both towers of CLIP, T5's decoder, what a training left.

use std::collections::BTreeMap;

use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};
use tch_flux::checkpoint::{Checkpoint, Family, LoadOptions};
use tch_flux::models::autoencoder::{AutoEncoder, AutoEncoderParams};
use tch_flux::models::text::ClipConfig;
use tch_flux::models::vision::{ClipVision, ClipVisionConfig};

use super::layouts::{clip, clip_config, is, made, t5};
use super::{mismatch, of, open, refused, store};
use crate::support::gguf;
use crate::support::{Stored, f32s, layout, stored, stored_all, temp, variables, write_sparse};

fn vision_config() -> ClipVisionConfig {
    ClipVisionConfig {
        hidden_size: 64,
        intermediate_size: 96,
        projection_dim: 24,
        num_hidden_layers: 2,
        num_attention_heads: 1,
        image_size: 28,
        patch_size: 14,
        hidden_act: "quick_gelu".into(),
        layer_norm_eps: 1e-5,
    }
}

fn vision() -> VarStore {
    made(|vs| drop(ClipVision::new(vs.root(), &vision_config()).unwrap()), 5)
}

fn autoencoder() -> VarStore {
    let params = AutoEncoderParams {
        ch: 32,
        ch_mult: vec![1, 2],
        num_res_blocks: 1,
        z_channels: 4,
        ..AutoEncoderParams::flux1()
    };
    made(|vs| drop(AutoEncoder::new(vs.root(), &params).unwrap()), 4)
}

/// What a whole CLIP of transformers has beside its two towers.
fn beside_the_towers() -> Vec<Stored> {
    let ids = |count: i64| (0..count).flat_map(i64::to_le_bytes).collect::<Vec<u8>>();
    vec![
        f32s("text_projection.weight", &[24, 24], &[0.5; 24 * 24]),
        f32s("logit_scale", &[], &[4.6]),
        ("text_model.embeddings.position_ids".into(), "I64".into(), vec![1, 77], ids(77)),
        ("vision_model.embeddings.position_ids".into(), "I64".into(), vec![1, 5], ids(5)),
    ]
}

fn whole_clip(text: &VarStore) -> Vec<Stored> {
    [stored_all(text, Kind::Float), stored_all(&vision(), Kind::Float), beside_the_towers()].concat()
}

/// The same in OpenAI's names: queries, keys and values in one, and a projection that is multiplied from the right.
fn openai(text: &VarStore, text_prefix: &str) -> Vec<Stored> {
    let mut named = BTreeMap::new();
    for (tower, resblocks, vs) in [
        ("text_model", format!("{text_prefix}transformer"), text),
        ("vision_model", "visual.transformer".to_string(), &vision()),
    ] {
        let all = variables(vs);
        for i in 0..2 {
            let layer =
                |name: &str, kind: &str| all[&format!("{tower}.encoder.layers.{i}.{name}.{kind}")].copy();
            for kind in ["weight", "bias"] {
                let block = |name: &str| format!("{resblocks}.resblocks.{i}.{name}");
                let qkv = ["q", "k", "v"].map(|part| layer(&format!("self_attn.{part}_proj"), kind));
                named.insert(block(&format!("attn.in_proj_{kind}")), Tensor::cat(&qkv, 0));
                for (theirs, ours) in [
                    ("attn.out_proj", "self_attn.out_proj"),
                    ("ln_1", "layer_norm1"),
                    ("ln_2", "layer_norm2"),
                    ("mlp.c_fc", "mlp.fc1"),
                    ("mlp.c_proj", "mlp.fc2"),
                ] {
                    named.insert(block(&format!("{theirs}.{kind}")), layer(ours, kind));
                }
            }
        }
    }
    let (text, vision) = (variables(text), variables(&vision()));
    for (theirs, ours) in [
        ("token_embedding.weight", "text_model.embeddings.token_embedding.weight"),
        ("positional_embedding", "text_model.embeddings.position_embedding.weight"),
        ("ln_final.weight", "text_model.final_layer_norm.weight"),
        ("ln_final.bias", "text_model.final_layer_norm.bias"),
    ] {
        named.insert(format!("{text_prefix}{theirs}"), text[ours].copy());
    }
    for (theirs, ours) in [
        ("visual.class_embedding", "vision_model.embeddings.class_embedding"),
        ("visual.positional_embedding", "vision_model.embeddings.position_embedding.weight"),
        ("visual.conv1.weight", "vision_model.embeddings.patch_embedding.weight"),
        ("visual.ln_pre.weight", "vision_model.pre_layrnorm.weight"),
        ("visual.ln_pre.bias", "vision_model.pre_layrnorm.bias"),
        ("visual.ln_post.weight", "vision_model.post_layernorm.weight"),
        ("visual.ln_post.bias", "vision_model.post_layernorm.bias"),
    ] {
        named.insert(theirs.into(), vision[ours].copy());
    }
    named.insert("visual.proj".into(), vision["visual_projection.weight"].tr().contiguous());
    named.insert(format!("{text_prefix}text_projection"), Tensor::ones([24, 24], (Kind::Float, Device::Cpu)));
    let mut tensors: Vec<Stored> =
        named.iter().map(|(name, tensor)| stored(name, tensor, Kind::Float)).collect();
    tensors.push(f32s("logit_scale", &[], &[4.6]));
    tensors
}

/// The vision model of a file.
fn vision_of(tensors: &[Stored]) -> Checkpoint {
    of(tensors).part("", &Family::ClipVision)
}

#[test]
fn both_towers_of_a_whole_clip_are_read_from_the_same_file() {
    let tensors = whole_clip(&clip());
    let text = of(&tensors).official();
    is(&text, &clip());
    is(&vision_of(&tensors), &vision());
    let [warning] = text.warnings() else { panic!("{:?}", text.warnings()) };
    for part in
        ["w.safetensors", "CLIP text model", "vision_model.* (", "visual_projection.weight", "logit_scale"]
    {
        assert!(warning.contains(part), "{warning}");
    }
    assert!(text.left_aside().iter().any(|name| name == "vision_model.embeddings.class_embedding"));
    assert!(vision_of(&tensors).warnings()[0].contains("CLIP vision model"));
}

#[test]
fn a_clip_with_nothing_beside_its_text_model_says_nothing() {
    let text = of(&stored_all(&clip(), Kind::Float)).official();
    assert_eq!((text.warnings(), text.left_aside()), (&[][..], &[][..]));
}

#[test]
fn within_a_tower_everything_is_reported() {
    let mut tensors = whole_clip(&clip());
    tensors.retain(|(name, ..)| name != "text_model.encoder.layers.1.mlp.fc2.bias");
    tensors.push(f32s("text_model.encoder.layers.0.gate", &[1], &[0.0]));
    tensors.push(f32s("vision_model.encoder.layers.0.gate", &[1], &[0.0]));
    let load = |checkpoint: Checkpoint, written: &VarStore| {
        let written = variables(written);
        let vs = store(written.iter().map(|(name, tensor)| (name.as_str(), tensor.size())));
        mismatch(checkpoint.load(&vs, LoadOptions::default()))
    };
    let found = load(of(&tensors).official(), &clip());
    assert_eq!(found.missing, ["text_model.encoder.layers.1.mlp.fc2.bias"]);
    assert_eq!(found.unexpected, ["text_model.encoder.layers.0.gate"]);
    let found = load(vision_of(&tensors), &vision());
    assert_eq!(
        (found.missing.len(), &found.unexpected[..]),
        (0, &["vision_model.encoder.layers.0.gate".to_string()][..])
    );
}

#[test]
fn clip_is_read_in_the_names_of_openai_and_of_open_clip() {
    for prefix in ["", "text."] {
        let mut tensors = openai(&clip(), prefix);
        tensors.push(f32s(&format!("{prefix}attn_mask"), &[2, 2], &[0.0; 4]));
        tensors.push(("context_length".into(), "I64".into(), vec![], 77i64.to_le_bytes().to_vec()));
        let whole = of(&tensors);
        let text = whole.contained().into_iter().find(|model| model.family == Family::Clip).unwrap();
        assert_eq!(text.prefix, prefix);
        let read = whole.part(&text.prefix, &text.family);
        is(&read, &clip());
        assert_eq!(ClipConfig::from_shapes(|name| read.shape(name)).unwrap().hidden_size, 24);
        is(&vision_of(&tensors), &vision());
        let config = ClipVisionConfig::from_shapes(|name| vision_of(&tensors).shape(name)).unwrap();
        assert_eq!(config, vision_config());
    }
}

#[test]
fn what_is_wrong_within_openais_names_is_reported() {
    let load = |tensors: &[Stored]| {
        let written = variables(&clip());
        let vs = store(written.iter().map(|(name, tensor)| (name.as_str(), tensor.size())));
        mismatch(of(tensors).official().load(&vs, LoadOptions::default()))
    };
    let mut tensors = openai(&clip(), "");
    tensors.push(f32s("transformer.resblocks.0.gate", &[1], &[0.0]));
    assert_eq!(load(&tensors).unexpected, ["transformer.resblocks.0.gate"]);
    // Rows that do not share among three stay as they are, to be reported.
    let name = "transformer.resblocks.1.attn.in_proj_bias";
    tensors = openai(&clip(), "").into_iter().filter(|(other, ..)| other != name).collect();
    tensors.push(f32s(name, &[70], &[0.0; 70]));
    let found = load(&tensors);
    assert_eq!(found.unexpected, [name]);
    assert_eq!(found.missing.len(), 3, "{found}");
}

/// Positions are read from two tables, the first for 20 tokens and the second for those behind: as `model_longclip.py` adds
/// them, each behind its mask.
#[test]
fn all_positions_of_longclip_are_read() {
    let long = ClipConfig { max_position_embeddings: 248, ..clip_config() };
    let text = made(|vs| drop(tch_flux::models::text::ClipText::new(vs.root(), &long).unwrap()), 3);
    let name = "text_model.embeddings.position_embedding.weight";
    // In transformers' names, as one table.
    let read = of(&whole_clip(&text)).official();
    assert_eq!(ClipConfig::from_shapes(|name| read.shape(name)).unwrap().max_position_embeddings, 248);
    is(&read, &text);
    // In OpenAI's and in those of a port to transformers, as two.
    let (first, second) = (super::numbers("first", 248 * 24), super::numbers("second", 248 * 24));
    let expected = [&first[..20 * 24], &second[20 * 24..]].concat();
    for (theirs, res, tensors) in [
        ("positional_embedding", "positional_embedding_res", openai(&text, "")),
        (name, "text_model.embeddings.position_embedding_res", whole_clip(&text)),
    ] {
        let mut tensors: Vec<Stored> = tensors.into_iter().filter(|(name, ..)| name != theirs).collect();
        tensors.push(f32s(theirs, &[248, 24], &first));
        tensors.push(f32s(res, &[248, 24], &second));
        let read = of(&tensors).official();
        assert!(super::values(&read.tensor(name).unwrap()) == expected, "{theirs}");
        assert_eq!(read.names().count(), variables(&text).len());
    }
}

/// A decoder as T5ForConditionalGeneration has it, and the head.
fn decoder() -> Vec<Stored> {
    let layer = "decoder.block.0.layer";
    vec![
        f32s("lm_head.weight", &[40, 16], &[0.1; 640]),
        f32s("decoder.embed_tokens.weight", &[40, 16], &[0.1; 640]),
        f32s("decoder.final_layer_norm.weight", &[16], &[1.0; 16]),
        f32s(&format!("{layer}.0.SelfAttention.q.weight"), &[12, 16], &[0.1; 192]),
        f32s(&format!("{layer}.0.SelfAttention.relative_attention_bias.weight"), &[32, 3], &[0.1; 96]),
        f32s(&format!("{layer}.1.EncDecAttention.k.weight"), &[12, 16], &[0.1; 192]),
        f32s(&format!("{layer}.2.DenseReluDense.wi_0.weight"), &[24, 16], &[0.1; 384]),
    ]
}

#[test]
fn the_encoder_of_a_whole_t5_is_read() {
    let tensors = [stored_all(&t5(), Kind::Float), decoder()].concat();
    let read = of(&tensors).official();
    is(&read, &t5());
    let [warning] = read.warnings() else { panic!("{:?}", read.warnings()) };
    assert!(warning.contains("decoder.* (6 tensors)") && warning.contains("lm_head.weight"), "{warning}");
    assert_eq!(read.left_aside().len(), decoder().len());
}

#[test]
fn of_a_whole_t5_the_embedding_may_stand_under_the_decoders_name_alone() {
    let mut tensors = stored_all(&t5(), Kind::Float);
    for (name, ..) in tensors.iter_mut().filter(|(name, ..)| name == "shared.weight") {
        *name = "decoder.embed_tokens.weight".into();
    }
    is(&of(&tensors).official(), &t5());
}

#[test]
fn the_bytes_of_a_tokenizer_beside_t5_are_left_aside() {
    for prefix in ["", "text_encoders.t5xxl."] {
        for own in ["", "transformer."].into_iter().take(if prefix.is_empty() { 1 } else { 2 }) {
            let mut tensors = stored_all(&t5(), Kind::Float);
            tensors.iter_mut().for_each(|(name, ..)| *name = format!("{prefix}{own}{name}"));
            tensors.push((format!("{prefix}spiece_model"), "U8".into(), vec![5], b"piece".to_vec()));
            let read = of(&tensors).official();
            is(&read, &t5());
            assert_eq!(read.left_aside(), [format!("{prefix}spiece_model")]);
        }
    }
}

#[test]
fn the_encoder_of_a_whole_t5_in_llama_cpps_names_is_read() {
    let names = [
        ("token_embd.weight", "shared.weight"),
        ("enc.output_norm.weight", "encoder.final_layer_norm.weight"),
    ];
    let blocks = [
        ("attn_norm", "0.layer_norm"),
        ("attn_q", "0.SelfAttention.q"),
        ("attn_k", "0.SelfAttention.k"),
        ("attn_v", "0.SelfAttention.v"),
        ("attn_o", "0.SelfAttention.o"),
        ("attn_rel_b", "0.SelfAttention.relative_attention_bias"),
        ("ffn_norm", "1.layer_norm"),
        ("ffn_gate", "1.DenseReluDense.wi_0"),
        ("ffn_up", "1.DenseReluDense.wi_1"),
        ("ffn_down", "1.DenseReluDense.wo"),
    ];
    let theirs = |name: &str| {
        let fixed = names.iter().find(|(_, ours)| *ours == name).map(|(theirs, _)| theirs.to_string());
        fixed.unwrap_or_else(|| {
            let (block, rest) = name.strip_prefix("encoder.block.").unwrap().split_once(".layer.").unwrap();
            let module = rest.strip_suffix(".weight").unwrap();
            let (theirs, _) = blocks.iter().find(|(_, ours)| *ours == module).unwrap();
            format!("enc.blk.{block}.{theirs}.weight")
        })
    };
    let mut tensors: Vec<Stored> =
        variables(&t5()).iter().map(|(name, tensor)| stored(&theirs(name), tensor, Kind::Float)).collect();
    for name in [
        "dec.blk.0.attn_q.weight",
        "dec.blk.0.cross_attn_k.weight",
        "dec.output_norm.weight",
        "output.weight",
    ] {
        tensors.push(f32s(name, &[16, 16], &[0.5; 256]));
    }
    let (_folder, path) = temp("t5.gguf");
    let (mut infos, mut data) = (Vec::new(), Vec::new());
    for (name, _, shape, bytes) in &tensors {
        let dims: Vec<u64> = shape.iter().rev().map(|&d| d as u64).collect();
        infos.push(gguf::tensor(name, &dims, gguf::F32, data.len() as u64));
        data.extend(bytes);
        data.resize(data.len().next_multiple_of(32), 0);
    }
    let architecture = gguf::key("general.architecture", gguf::STRING, gguf::text("t5"));
    let mut file = gguf::file(&[architecture], &infos, 0);
    file.extend(data);
    std::fs::write(&path, file).unwrap();
    let read = open(&path).official();
    is(&read, &t5());
    assert_eq!(read.left_aside().len(), 4);
    assert!(read.warnings()[0].contains("dec.* (3 tensors), output.weight"), "{:?}", read.warnings());
}

/// UMT5 has a position bias in every block: an encoder of another kind, whatever stands beside it.
#[test]
fn the_encoder_of_umt5_is_refused() {
    let mut tensors = [stored_all(&t5(), Kind::Float), decoder()].concat();
    let bias = "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight";
    tensors.push(f32s(bias, &[32, 3], &[0.1; 96]));
    let written = variables(&t5());
    let vs = store(written.iter().map(|(name, tensor)| (name.as_str(), tensor.size())));
    let found = mismatch(of(&tensors).official().load(&vs, LoadOptions::default()));
    assert!(found.unexpected.contains(&bias.to_string()), "{:?}", found.unexpected);
    assert!(of(&tensors).family().to_string().contains("UMT5"), "{}", of(&tensors).family());
}

#[test]
fn what_a_training_left_beside_an_autoencoder_is_left_aside() {
    for prefix in ["", "first_stage_model."] {
        let mut tensors = stored_all(&autoencoder(), Kind::Float);
        tensors.extend([
            f32s("loss.logvar", &[], &[0.0]),
            f32s("loss.discriminator.main.0.weight", &[2, 2], &[0.0; 4]),
            f32s("loss.perceptual_loss.lin0.model.1.weight", &[1, 2, 1, 1], &[0.0; 2]),
            f32s("model_ema.decay", &[], &[0.999]),
            f32s("model_ema.encoderconv_inweight", &[2], &[0.0; 2]),
        ]);
        tensors.iter_mut().for_each(|(name, ..)| *name = format!("{prefix}{name}"));
        // Where the checkpoint of a trainer keeps them.
        tensors.push(("global_step".into(), "I64".into(), vec![], 9i64.to_le_bytes().to_vec()));
        tensors.push(f32s("optimizer_states.0.state.0.exp_avg", &[2], &[0.0; 2]));
        let read = of(&tensors).official();
        is(&read, &autoencoder());
        assert_eq!(read.left_aside().len(), 7, "{:?}", read.left_aside());
        let said = read.warnings().join("\n");
        for part in ["loss.* (3 tensors)", "model_ema.* (2 tensors)", "global_step"] {
            assert!(said.contains(part), "{said}");
        }
        // What is inside stays strict.
        tensors.push(f32s(&format!("{prefix}decoder.up.0.block.0.gate"), &[1], &[0.0]));
        let written = variables(&autoencoder());
        let vs = store(written.iter().map(|(name, tensor)| (name.as_str(), tensor.size())));
        let found = mismatch(of(&tensors).official().load(&vs, LoadOptions::default()));
        assert_eq!(found.unexpected, ["decoder.up.0.block.0.gate"]);
    }
}

#[test]
fn optimizer_states_beside_a_transformer_are_left_aside_and_unknown_modules_are_not() {
    let (_folder, path) = temp("flux1-dev.safetensors");
    let mut lines = layout("flux1-dev");
    lines.push(("optimizer.state.0.exp_avg".into(), "F32".into(), vec![4]));
    lines.push(("img_in.weight.exp_avg_sq".into(), "F32".into(), vec![4]));
    lines.push(("lr_schedulers.0.last_epoch".into(), "I64".into(), vec![]));
    lines.push(("another_module.weight".into(), "F32".into(), vec![4]));
    write_sparse(&path, &lines);
    let read = open(&path).official();
    assert_eq!(read.left_aside().len(), 3, "{:?}", read.left_aside());
    assert!(read.shape("another_module.weight").is_some(), "it is reported when it is loaded");
}

/// Text encoders in fp8 have scales, and ComfyUI's have the tokenizer beside them.
#[test]
fn a_scale_whose_weight_is_missing_is_an_error_beside_other_towers_too() {
    let mut tensors = whole_clip(&clip());
    tensors.push(f32s("text_model.encoder.layers.0.mlp.fc3.scale_weight", &[], &[2.0]));
    let (name, reason) = refused(&tensors);
    assert!(name.ends_with("fc3.scale_weight") && reason.contains("no fp8 tensor"), "{name}: {reason}");
}
