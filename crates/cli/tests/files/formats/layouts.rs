//! Whose names a file bears: official, diffusers', ComfyUI's, and what those leave open.

use std::collections::BTreeMap;
use std::path::Path;

use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};
use tch_flux::checkpoint::{Checkpoint, Family, LoadOptions};
use tch_flux::models::autoencoder::{AutoEncoder, AutoEncoderParams};
use tch_flux::models::flux1::{Flux1, Flux1Params};
use tch_flux::models::text::{ClipConfig, ClipText, T5Config, T5Encoder};
use tch_flux::nn::init;

use super::{load_as, mismatch, numbers, of, open, store, values};
use crate::support::{
    Line, Stored, f32s, layout, stored_all, temp, tiny, variables, write_file, write_sparse,
};

/// What diffusers calls the modules of a FLUX.1, as `reference/files.md` lists them; `+` joins rows, `~` lets the halves
/// change places.
const FLUX1: &str = "
img_in = x_embedder
txt_in = context_embedder
time_in.in_layer = time_text_embed.timestep_embedder.linear_1
time_in.out_layer = time_text_embed.timestep_embedder.linear_2
vector_in.in_layer = time_text_embed.text_embedder.linear_1
vector_in.out_layer = time_text_embed.text_embedder.linear_2
guidance_in.in_layer = time_text_embed.guidance_embedder.linear_1
guidance_in.out_layer = time_text_embed.guidance_embedder.linear_2
double_blocks.0.img_mod.lin = transformer_blocks.0.norm1.linear
double_blocks.0.txt_mod.lin = transformer_blocks.0.norm1_context.linear
double_blocks.0.img_mlp.0 = transformer_blocks.0.ff.net.0.proj
double_blocks.0.img_mlp.2 = transformer_blocks.0.ff.net.2
double_blocks.0.txt_mlp.0 = transformer_blocks.0.ff_context.net.0.proj
double_blocks.0.txt_mlp.2 = transformer_blocks.0.ff_context.net.2
single_blocks.0.modulation.lin = single_transformer_blocks.0.norm.linear
single_blocks.0.linear1 = single_transformer_blocks.0.attn.to_q + single_transformer_blocks.0.attn.to_k + single_transformer_blocks.0.attn.to_v + single_transformer_blocks.0.proj_mlp
single_blocks.0.linear2 = single_transformer_blocks.0.proj_out
";
const FLUX2: &str = "
img_in = x_embedder
txt_in = context_embedder
time_in.in_layer = time_guidance_embed.timestep_embedder.linear_1
time_in.out_layer = time_guidance_embed.timestep_embedder.linear_2
guidance_in.in_layer = time_guidance_embed.guidance_embedder.linear_1
guidance_in.out_layer = time_guidance_embed.guidance_embedder.linear_2
double_stream_modulation_img.lin = double_stream_modulation_img.linear
double_stream_modulation_txt.lin = double_stream_modulation_txt.linear
single_stream_modulation.lin = single_stream_modulation.linear
double_blocks.0.img_mlp.0 = transformer_blocks.0.ff.linear_in
double_blocks.0.img_mlp.2 = transformer_blocks.0.ff.linear_out
double_blocks.0.txt_mlp.0 = transformer_blocks.0.ff_context.linear_in
double_blocks.0.txt_mlp.2 = transformer_blocks.0.ff_context.linear_out
single_blocks.0.linear1 = single_transformer_blocks.0.attn.to_qkv_mlp_proj
single_blocks.0.linear2 = single_transformer_blocks.0.attn.to_out
";
const BOTH: &str = "
double_blocks.0.img_attn.qkv = transformer_blocks.0.attn.to_q + transformer_blocks.0.attn.to_k + transformer_blocks.0.attn.to_v
double_blocks.0.txt_attn.qkv = transformer_blocks.0.attn.add_q_proj + transformer_blocks.0.attn.add_k_proj + transformer_blocks.0.attn.add_v_proj
double_blocks.0.img_attn.proj = transformer_blocks.0.attn.to_out.0
double_blocks.0.txt_attn.proj = transformer_blocks.0.attn.to_add_out
double_blocks.0.img_attn.norm.query_norm = transformer_blocks.0.attn.norm_q
double_blocks.0.img_attn.norm.key_norm = transformer_blocks.0.attn.norm_k
double_blocks.0.txt_attn.norm.query_norm = transformer_blocks.0.attn.norm_added_q
double_blocks.0.txt_attn.norm.key_norm = transformer_blocks.0.attn.norm_added_k
single_blocks.0.norm.query_norm = single_transformer_blocks.0.attn.norm_q
single_blocks.0.norm.key_norm = single_transformer_blocks.0.attn.norm_k
final_layer.linear = proj_out
final_layer.adaLN_modulation.1 = ~ norm_out.linear
";

/// The first blocks of a layout, with axes of at most a few numbers.
fn small(list: &str) -> Vec<(String, Vec<i64>)> {
    let first = |name: &str| {
        let mut fields = name.split('.');
        !fields.next().unwrap().ends_with("_blocks") || fields.next() == Some("0")
    };
    let smaller = |d: &i64| if d % 384 == 0 { d / 384 } else { (d % 7) + 2 };
    let lines = layout(list).into_iter().filter(|(name, ..)| first(name));
    lines.map(|(name, _, shape)| (name, shape.iter().map(smaller).collect())).collect()
}

fn stored(tensors: &[(String, Vec<i64>)]) -> Vec<Stored> {
    let count = |shape: &[i64]| shape.iter().product::<i64>() as usize;
    tensors.iter().map(|(name, shape)| f32s(name, shape, &numbers(name, count(shape)))).collect()
}

fn floats(stored: &Stored) -> Vec<f32> {
    stored.3.as_chunks::<4>().0.iter().map(|&bytes| f32::from_le_bytes(bytes)).collect()
}

/// The numbers of each official tensor, by a table of modules.
fn by_table(theirs: &[Stored], table: &str) -> BTreeMap<String, Vec<f32>> {
    let theirs: BTreeMap<&str, Vec<f32>> = theirs.iter().map(|t| (t.0.as_str(), floats(t))).collect();
    let mut official = BTreeMap::new();
    for line in table.lines().filter(|line| !line.is_empty()) {
        let (module, from) = line.split_once(" = ").unwrap();
        for kind in [".weight", ".bias"] {
            let (from, swapped) = from.strip_prefix("~ ").map_or((from, false), |from| (from, true));
            let parts: Option<Vec<_>> =
                from.split(" + ").map(|from| theirs.get(format!("{from}{kind}").as_str())).collect();
            let Some(parts) = parts else { continue };
            let mut numbers = parts.into_iter().flatten().copied().collect::<Vec<_>>();
            if swapped {
                let half = numbers.len() / 2;
                numbers.rotate_left(half);
            }
            let kind = if module.ends_with("_norm") { ".scale" } else { kind };
            official.insert(format!("{module}{kind}"), numbers);
        }
    }
    official
}

/// Loads a checkpoint into a store of these names and compares all numbers.
fn gives(
    checkpoint: &Checkpoint,
    shapes: &BTreeMap<String, Vec<i64>>,
    expected: &BTreeMap<String, Vec<f32>>,
) {
    assert_eq!(shapes.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    let vs = store(shapes.iter().map(|(name, shape)| (name.as_str(), shape.clone())));
    assert_eq!(checkpoint.load(&vs, LoadOptions::default()).unwrap().tensors, expected.len());
    for (name, variable) in variables(&vs) {
        assert!(values(&variable) == expected[&name], "{name}");
    }
}

/// A file, and a folder of three shards of it, with their index.
fn both_ways(tensors: &[Stored], check: impl Fn(&Path)) {
    let (_folder, path) = temp("diffusion_pytorch_model.safetensors");
    write_file(&path, tensors);
    check(&path);
    let folder = tempfile::tempdir().unwrap();
    let mut map = serde_json::Map::new();
    for i in 0..3 {
        let shard = format!("diffusion_pytorch_model-{:05}-of-00003.safetensors", i + 1);
        let mine: Vec<Stored> = tensors.iter().skip(i).step_by(3).cloned().collect();
        map.extend(mine.iter().map(|(name, ..)| (name.clone(), shard.clone().into())));
        write_file(&folder.path().join(shard), &mine);
    }
    let index = serde_json::json!({ "metadata": {}, "weight_map": map }).to_string();
    std::fs::write(folder.path().join("diffusion_pytorch_model.safetensors.index.json"), index).unwrap();
    check(folder.path());
}

fn shapes(checkpoint: &Checkpoint) -> BTreeMap<String, Vec<i64>> {
    checkpoint.names().map(|name| (name.to_string(), checkpoint.shape(name).unwrap())).collect()
}

fn names(list: &[(String, Vec<i64>)]) -> Vec<&str> {
    list.iter().map(|(name, _)| name.as_str()).collect()
}

#[test]
fn diffusers_flux1_gives_the_official_numbers_as_one_file_and_in_shards() {
    let theirs = stored(&small("flux1-dev.diffusers"));
    let expected = by_table(&theirs, &format!("{FLUX1}{BOTH}"));
    assert_eq!(expected.keys().collect::<Vec<_>>(), names(&small("flux1-dev")));
    both_ways(&theirs, |path| {
        let checkpoint = open(path).official();
        gives(&checkpoint, &shapes(&checkpoint), &expected);
    });
}

#[test]
fn diffusers_flux2_gives_the_official_numbers_as_one_file_and_in_shards() {
    for list in ["flux2-dev.diffusers", "flux2-klein-4b.diffusers"] {
        let theirs = stored(&small(list));
        let expected = by_table(&theirs, &format!("{FLUX2}{BOTH}"));
        both_ways(&theirs, |path| {
            let checkpoint = open(path).official();
            gives(&checkpoint, &shapes(&checkpoint), &expected);
        });
    }
    let expected = by_table(&stored(&small("flux2-dev.diffusers")), &format!("{FLUX2}{BOTH}"));
    assert_eq!(expected.keys().collect::<Vec<_>>(), names(&small("flux2-dev")));
}

/// What diffusers calls an official tensor of an autoencoder.
fn diffusers_autoencoder(official: &str) -> String {
    let mut name = official.to_string();
    for (i, level) in ["up.0.", "up.1.", "up.2.", "up.3."].iter().enumerate() {
        if let Some(rest) = official.strip_prefix(&format!("decoder.{level}")) {
            name = format!("decoder.up_blocks.{}.{rest}", 3 - i);
        }
    }
    for (ours, theirs) in [
        ("encoder.quant_conv", "quant_conv"),
        ("decoder.post_quant_conv", "post_quant_conv"),
        ("encoder.down.", "encoder.down_blocks."),
        (".mid.block_1.", ".mid_block.resnets.0."),
        (".mid.block_2.", ".mid_block.resnets.1."),
        (".mid.attn_1.norm.", ".mid_block.attentions.0.group_norm."),
        (".mid.attn_1.proj_out.", ".mid_block.attentions.0.to_out.0."),
        (".mid.attn_1.", ".mid_block.attentions.0.to_"),
        (".block.", ".resnets."),
        (".nin_shortcut.", ".conv_shortcut."),
        (".downsample.", ".downsamplers.0."),
        (".upsample.", ".upsamplers.0."),
        ("coder.norm_out.", "coder.conv_norm_out."),
    ] {
        name = name.replace(ours, theirs);
    }
    name
}

#[test]
fn both_autoencoders_give_the_official_numbers_in_the_names_of_diffusers() {
    for list in ["ae", "flux2-ae"] {
        let official: Vec<_> = small_autoencoder(list);
        let mut theirs = Vec::new();
        let (mut expected, mut wanted) = (BTreeMap::new(), BTreeMap::new());
        for (name, shape) in &official {
            let numbers = numbers(name, shape.iter().product::<i64>() as usize);
            let mut shape_of_theirs = shape.clone();
            // diffusers has linear layers where the official code has 1×1 convolutions.
            if name.contains("attn_1") && shape.len() == 4 {
                shape_of_theirs.truncate(2);
            }
            theirs.push(f32s(&diffusers_autoencoder(name), &shape_of_theirs, &numbers));
            expected.insert(name.clone(), numbers);
            wanted.insert(name.clone(), shape.clone());
        }
        if list == "ae" {
            let mut mine: Vec<_> = theirs.iter().map(|t| t.0.clone()).collect();
            mine.sort();
            let list = layout("ae.diffusers");
            assert_eq!(mine, list.iter().map(|(name, ..)| name.clone()).collect::<Vec<_>>());
        }
        both_ways(&theirs, |path| gives(&open(path).official(), &wanted, &expected));
        let vae: Vec<Stored> =
            expected.iter().map(|(name, n)| f32s(&format!("vae.{name}"), &wanted[name], n)).collect();
        gives(&of(&vae).official(), &wanted, &expected);
    }
}

/// All floats of an autoencoder's layout, with 1 or 2 channels.
fn small_autoencoder(list: &str) -> Vec<(String, Vec<i64>)> {
    let smaller = |d: &i64| if *d >= 128 { d / 128 } else { *d };
    let floats = layout(list).into_iter().filter(|(_, dtype, _)| dtype == "F32");
    floats.map(|(name, _, shape)| (name, shape.iter().map(smaller).collect())).collect()
}

#[test]
fn every_layout_of_a_transformer_loads_at_full_size_without_a_copy() {
    for list in ["flux1-dev", "flux1-schnell", "flux1-fill-dev", "flux1-canny-dev", "flux2-dev"] {
        for prefix in ["", "model.diffusion_model.", "diffusion_model."] {
            full_size(list, prefix);
        }
    }
}

#[test]
fn every_layout_of_an_autoencoder_loads_at_full_size_without_a_copy() {
    for list in ["ae", "flux2-ae"] {
        for prefix in ["", "vae.", "first_stage_model."] {
            full_size(list, prefix);
        }
    }
}

fn prefixed(list: &str, prefix: &str) -> Vec<Line> {
    layout(list).into_iter().map(|(name, dtype, shape)| (format!("{prefix}{name}"), dtype, shape)).collect()
}

/// A store of the names and kinds of a layout.
fn declared(list: &str) -> VarStore {
    let lines = layout(list);
    let floats = lines.iter().filter(|(_, dtype, _)| dtype != "I64");
    let vs = store(floats.map(|(name, _, shape)| (name.as_str(), shape.clone())));
    for (name, ..) in lines.iter().filter(|(_, dtype, _)| dtype == "I64") {
        let (module, leaf) = name.rsplit_once('.').unwrap();
        let _ = vs.root().sub(module).add(leaf, Tensor::from(0i64), false);
    }
    vs
}

fn full_size(list: &str, prefix: &str) {
    let (_folder, path) = temp("w.safetensors");
    write_sparse(&path, &prefixed(list, prefix));
    let checkpoint = open(&path).official();
    let vs = declared(list);
    let loaded = checkpoint.load(&vs, LoadOptions::default()).unwrap();
    assert_eq!((loaded.tensors, loaded.borrowed), (layout(list).len(), layout(list).len()), "{prefix}{list}");
    for (name, dtype, shape) in layout(list) {
        let variable = &vs.variables()[&name];
        assert_eq!(variable.size(), shape, "{name}");
        let kind = match dtype.as_str() {
            "I64" => Kind::Int64,
            "F32" => Kind::Float,
            _ => Kind::BFloat16,
        };
        assert_eq!(variable.kind(), kind, "{name}");
    }
    assert_eq!(super::sum(&checkpoint.types_in_memory(loaded.kind, false)), loaded.bytes);
}

#[test]
fn the_parts_of_an_all_in_one_file_load_at_full_size_without_a_copy() {
    let parts = [
        ("flux1-dev", "model.diffusion_model."),
        ("ae", "vae."),
        ("clip-l-text", "text_encoders.clip_l.transformer."),
        ("t5-xxl-encoder", "text_encoders.t5xxl.transformer."),
    ];
    let mut lines: Vec<Line> = parts.iter().flat_map(|(list, prefix)| prefixed(list, prefix)).collect();
    lines.push(("text_encoders.clip_l.logit_scale".into(), "F32".into(), vec![]));
    lines.push(("text_encoders.t5xxl.logit_scale".into(), "F32".into(), vec![]));
    let projection = "text_encoders.clip_l.transformer.text_projection.weight";
    lines.push((projection.into(), "F32".into(), vec![768, 768]));
    let (_folder, path) = temp("w.safetensors");
    write_sparse(&path, &lines);
    let found = open(&path).contained();
    assert_eq!(
        found.iter().map(|model| model.prefix.as_str()).collect::<Vec<_>>(),
        parts.map(|(_, prefix)| prefix)
    );
    for (model, (list, _)) in found.iter().zip(parts) {
        let checkpoint = open(&path).part(&model.prefix, &model.family);
        let mut shapes: BTreeMap<String, Vec<i64>> =
            layout(list).into_iter().map(|(name, _, shape)| (name, shape)).collect();
        shapes.remove("encoder.embed_tokens.weight");
        let vs = store(shapes.iter().map(|(name, shape)| (name.as_str(), shape.clone())));
        let loaded = checkpoint.load(&vs, LoadOptions::default()).unwrap_or_else(|e| panic!("{list}: {e}"));
        assert_eq!((loaded.tensors, loaded.borrowed), (shapes.len(), shapes.len()), "{list}");
    }
}

#[test]
fn a_transformer_without_a_prefix_is_found_beside_an_autoencoder_with_one() {
    let (transformer, autoencoder) = (stored(&small("flux1-dev")), stored(&small_autoencoder("ae")));
    let expected = transformer.iter().map(|t| (t.0.clone(), floats(t))).collect();
    let vae = autoencoder.iter().cloned().map(|(name, d, s, b)| (format!("vae.{name}"), d, s, b));
    let whole = || of(&transformer.iter().cloned().chain(vae.clone()).collect::<Vec<_>>());
    let found = whole().contained();
    assert_eq!(found.iter().map(|model| model.prefix.as_str()).collect::<Vec<_>>(), ["", "vae."]);
    let first = whole().part("", &found[0].family);
    gives(&first, &small("flux1-dev").into_iter().collect(), &expected);
    let expected = autoencoder.iter().map(|t| (t.0.clone(), floats(t))).collect();
    let shapes = small_autoencoder("ae").into_iter().collect();
    gives(&whole().part("vae.", &found[1].family), &shapes, &expected);
}

#[test]
fn norms_that_are_spelled_weight_are_the_same_norms() {
    for list in ["flux1-dev", "flux2-dev"] {
        let official = small(list);
        let mut tensors = stored(&official);
        let expected = tensors.iter().map(|t| (t.0.clone(), floats(t))).collect();
        let mut changed = 0;
        for (name, ..) in &mut tensors {
            if let Some(norm) = name.strip_suffix("_norm.scale") {
                *name = format!("{norm}_norm.weight");
                changed += 1;
            }
        }
        assert_eq!(changed, 6);
        let checkpoint = of(&tensors).official();
        gives(&checkpoint, &official.into_iter().collect(), &expected);
    }
}

#[test]
fn what_no_rule_knows_is_reported_in_every_layout() {
    for (list, official) in [
        ("flux1-dev", "flux1-dev"),
        ("flux1-dev.diffusers", "flux1-dev"),
        ("flux2-dev", "flux2-dev"),
        ("flux2-dev.diffusers", "flux2-dev"),
    ] {
        for (prefix, other) in [("", "unknown.weight"), ("model.diffusion_model.", "another_model.decay")] {
            let mut tensors = stored(&small(list));
            tensors.iter_mut().for_each(|(name, ..)| *name = format!("{prefix}{name}"));
            tensors.push(f32s(other, &[1], &[1.0]));
            tensors.push(f32s(&format!("{prefix}transformer_blocks.0.new.weight"), &[1], &[1.0]));
            let vs = store(small(official).iter().map(|(name, shape)| (name.as_str(), shape.clone())));
            let found = mismatch(of(&tensors).official().load(&vs, LoadOptions::default()));
            assert!(found.missing.is_empty() && found.misshapen.is_empty(), "{found}");
            let mut unexpected = found.unexpected;
            unexpected.sort();
            assert_eq!(unexpected, sorted([other, "transformer_blocks.0.new.weight"]), "{prefix}{list}");
        }
    }
    // One of three that belong together: the others are not joined with nothing.
    let mut tensors = stored(&small("flux1-dev.diffusers"));
    tensors.retain(|(name, ..)| name != "transformer_blocks.0.attn.to_k.weight");
    let vs = store(small("flux1-dev").iter().map(|(name, shape)| (name.as_str(), shape.clone())));
    let found = mismatch(of(&tensors).official().load(&vs, LoadOptions::default()));
    assert_eq!(found.missing, ["double_blocks.0.img_attn.qkv.weight"]);
    let left = ["q", "v"].map(|c| format!("transformer_blocks.0.attn.to_{c}.weight"));
    assert_eq!(found.unexpected, left);
}

fn sorted<const N: usize>(mut names: [&str; N]) -> [&str; N] {
    names.sort();
    names
}

#[test]
fn a_tensor_under_both_of_its_names_is_reported() {
    let mut tensors = stored(&small("flux1-dev"));
    let norm = "double_blocks.0.img_attn.norm.key_norm";
    let shape = tensors.iter().find(|(name, ..)| *name == format!("{norm}.scale")).unwrap().2.clone();
    tensors.push(f32s(&format!("{norm}.weight"), &shape, &numbers("other", shape[0] as usize)));
    let vs = store(small("flux1-dev").iter().map(|(name, shape)| (name.as_str(), shape.clone())));
    let found = mismatch(of(&tensors).official().load(&vs, LoadOptions::default()));
    assert_eq!(found.unexpected.len(), 1, "{found}");
}

// The models of a small all-in-one file.

fn t5_config() -> T5Config {
    T5Config {
        vocab_size: 40,
        d_model: 16,
        d_kv: 4,
        d_ff: 24,
        num_layers: 2,
        num_heads: 3,
        ..T5Config::xxl()
    }
}

pub(super) fn clip_config() -> ClipConfig {
    ClipConfig {
        vocab_size: 40,
        hidden_size: 24,
        intermediate_size: 32,
        num_hidden_layers: 2,
        num_attention_heads: 3,
        eos_token_id: 39,
        ..ClipConfig::large()
    }
}

/// A store that a constructor has declared its parameters in, with random values.
pub(super) fn made(build: impl FnOnce(&VarStore), seed: u64) -> VarStore {
    let vs = VarStore::new(Device::Cpu);
    build(&vs);
    init(&vs, seed).unwrap();
    vs
}

pub(super) fn t5() -> VarStore {
    made(|vs| drop(T5Encoder::new(vs.root(), &t5_config()).unwrap()), 2)
}

pub(super) fn clip() -> VarStore {
    made(|vs| drop(ClipText::new(vs.root(), &clip_config()).unwrap()), 3)
}

/// The same names without values, filled from a checkpoint: all numbers must be those that were written.
pub(super) fn is(checkpoint: &Checkpoint, written: &VarStore) {
    let written = variables(written);
    let vs = store(written.iter().map(|(name, tensor)| (name.as_str(), tensor.size())));
    load_as(checkpoint, &vs, Kind::Float);
    for (name, variable) in variables(&vs) {
        assert!(variable.equal(&written[&name]), "{name}");
    }
}

#[test]
fn t5_loads_its_embedding_under_either_name_or_both() {
    let (shared, tokens) = ("shared.weight", "encoder.embed_tokens.weight");
    for prefix in ["", "text_encoders.t5xxl.transformer.", "text_encoders.t5xxl."] {
        for names in [&[shared][..], &[tokens], &[shared, tokens]] {
            let mut tensors = stored_all(&t5(), Kind::Float);
            let at = tensors.iter().position(|(name, ..)| name == shared).unwrap();
            let (_, dtype, shape, bytes) = tensors.remove(at);
            let named = |name: &&str| (name.to_string(), dtype.clone(), shape.clone(), bytes.clone());
            tensors.extend(names.iter().map(named));
            tensors.iter_mut().for_each(|(name, ..)| *name = format!("{prefix}{name}"));
            is(&of(&tensors).official(), &t5());
        }
    }
}

#[test]
fn clip_loads_with_and_without_its_prefix_and_beside_what_it_does_not_use() {
    for prefix in ["", "text_encoders.clip_l.transformer.", "text_encoders.clip_l."] {
        for own in ["text_model.", ""] {
            for beside in [false, true] {
                let mut tensors = stored_all(&clip(), Kind::Float);
                for (name, ..) in &mut tensors {
                    *name = format!("{prefix}{own}{}", name.strip_prefix("text_model.").unwrap());
                }
                if beside {
                    tensors.push(f32s(&format!("{prefix}text_projection.weight"), &[2, 2], &[1.0; 4]));
                    tensors.push(f32s(&format!("{prefix}logit_scale"), &[], &[4.6]));
                    let ids = (0..77i64).flat_map(i64::to_le_bytes).collect();
                    let name = format!("{prefix}{own}embeddings.position_ids");
                    tensors.push((name, "I64".into(), vec![1, 77], ids));
                }
                is(&of(&tensors).official(), &clip());
            }
        }
    }
}

#[test]
fn each_part_of_an_all_in_one_file_gets_its_own_numbers() {
    let params = Flux1Params { axes_dim: [4, 14, 14], ..tiny() };
    let flux = made(|vs| drop(Flux1::new(vs.root(), &params).unwrap()), 1);
    let ae = AutoEncoderParams {
        ch: 32,
        ch_mult: vec![1, 2],
        num_res_blocks: 1,
        z_channels: 4,
        ..AutoEncoderParams::flux1()
    };
    let autoencoder = made(|vs| drop(AutoEncoder::new(vs.root(), &ae).unwrap()), 4);
    let parts = [
        (flux, "model.diffusion_model."),
        (autoencoder, "vae."),
        (clip(), "text_encoders.clip_l.transformer."),
        (t5(), "text_encoders.t5xxl.transformer."),
    ];
    let mut tensors = vec![
        f32s("text_encoders.clip_l.logit_scale", &[], &[4.6]),
        f32s("text_encoders.t5xxl.logit_scale", &[], &[4.6]),
        f32s("text_encoders.clip_l.transformer.text_projection.weight", &[2, 2], &[1.0; 4]),
    ];
    for (vs, prefix) in &parts {
        tensors.extend(
            stored_all(vs, Kind::Float).into_iter().map(|(n, d, s, b)| (format!("{prefix}{n}"), d, s, b)),
        );
    }
    let whole = of(&tensors);
    assert_eq!(whole.family(), Family::AllInOne);
    // Of several models, none is meant more than another.
    assert_eq!(whole.names().count(), of(&tensors).official().names().count());
    let found = whole.contained();
    assert_eq!(found.len(), 4);
    for (model, (vs, prefix)) in found.iter().zip(&parts) {
        assert_eq!(model.prefix, *prefix);
        is(&of(&tensors).part(&model.prefix, &model.family), vs);
    }
    // What belongs to none of them is reported by each.
    tensors.push(f32s("cond_stage_model.x", &[1], &[1.0]));
    for (model, (vs, _)) in found.iter().zip(&parts) {
        let checkpoint = of(&tensors).part(&model.prefix, &model.family);
        let empty = store(variables(vs).iter().map(|(name, tensor)| (name.as_str(), tensor.size())));
        let found = mismatch(checkpoint.load(&empty, LoadOptions::default()));
        assert_eq!(found.unexpected, ["cond_stage_model.x"]);
    }
}
