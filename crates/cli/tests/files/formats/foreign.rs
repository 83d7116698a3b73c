//! What a file is that is no part of FLUX.1, or one in a form that is not read: said by name, by the library and by
//! `inspect`. The names are those of the real files, their shapes small where no shape tells.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use tch_flux::checkpoint::{Access, Checkpoint, Family};
use tch_flux::convert::{Conversion, convert};
use tch_flux::family::ModelFamily;
use tch_flux::generation::{PartOverrides, Parts, Pipeline, Settings};
use tch_flux::{Error, FileProblem};

use super::{report, run};
use crate::support::{Line, layout, temp, write_sparse};

/// Lines of names, of which some say their shape: `name[4,8]`.
pub fn lines(names: &str, dtype: &str) -> Vec<Line> {
    let line = |name: &str| {
        let (name, shape) = name.strip_suffix(']').and_then(|n| n.split_once('[')).unwrap_or((name, "2,2"));
        let shape = shape.split(',').map(|size| size.parse().unwrap()).collect();
        (name.to_string(), dtype.to_string(), shape)
    };
    names.split_whitespace().map(line).collect()
}

/// What each is called, where it would be given, and some of its names.
const FOREIGN: &[(&str, &str, &str)] = &[
    (
        "Chroma",
        "transformer",
        "distilled_guidance_layer.in_proj.weight distilled_guidance_layer.norms.0.scale[8] img_in.weight[8,64] \
         double_blocks.0.img_attn.norm.key_norm.scale[4] double_blocks.0.img_attn.qkv.weight[24,8] final_layer.linear.weight[64,8]",
    ),
    (
        "Chroma",
        "transformer",
        "distilled_guidance_layer.layers.0.linear_1.weight transformer_blocks.0.attn.norm_added_k.weight[4] \
         x_embedder.weight[8,64] context_embedder.weight single_transformer_blocks.0.proj_mlp.weight",
    ),
    (
        "CogVideoX",
        "transformer",
        "patch_embed.proj.weight[8,16,2,2] time_embedding.linear_1.weight transformer_blocks.0.norm1.linear.weight",
    ),
    (
        "Bria FIBO 2",
        "transformer",
        "perceiver.layers.0.cross_attn_norm.weight[8] noise_refiner.0.attention.to_q.weight \
         noise_refiner.0.adaLN_modulation.0.weight",
    ),
    // Of which layers are called as the matrices of a LoRA.
    (
        "Krea 2",
        "transformer",
        "text_fusion.layerwise_blocks.0.norm1.weight[8] transformer_blocks.0.ff.up.weight transformer_blocks.0.ff.down.weight",
    ),
    (
        "ACE-Step",
        "transformer",
        "proj_in_conv.weight[8,4,2] condition_embedder.weight layers.0.self_attn_norm.weight[8]",
    ),
    (
        "Stable Video Diffusion",
        "transformer",
        "conv_in.weight[8,8,3,3] add_embedding.linear_1.weight down_blocks.0.resnets.0.spatial_res_block.conv1.weight[8,8,3,3]",
    ),
    (
        "Stable Video Diffusion",
        "autoencoder",
        "encoder.conv_in.weight[8,3,3,3] decoder.conv_in.weight[8,4,3,3] quant_conv.weight[8,8,1,1] \
         decoder.up_blocks.0.resnets.0.temporal_res_block.conv1.weight[8,8,3,1,1]",
    ),
    ("video autoencoder", "autoencoder", "encoder.proj_in.weight decoder.conv_in.weight[8,12,1,1,1]"),
    (
        "Qwen-Image 2.1",
        "autoencoder",
        "encoder.conv_in.weight[8,4,3,3] decoder.conv_in.weight[8,64,3,3] quant_conv.weight[8,8,1,1]",
    ),
    (
        "FLUX.2",
        "transformer",
        "double_stream_modulation_img.lin.weight double_blocks.0.img_attn.norm.key_norm.scale[4] img_in.weight[8,128]",
    ),
    (
        "FLUX.2",
        "transformer",
        "double_stream_modulation_img.linear.weight transformer_blocks.0.attn.norm_added_k.weight[4] \
         single_transformer_blocks.0.attn.to_qkv_mlp_proj.weight",
    ),
    (
        "FLUX.3",
        "transformer",
        "early_stream_modulations.image.lin.weight content_mode_blocks.image.0.q_proj.weight single_blocks.0.mlp_in.weight",
    ),
    (
        "FLUX.3",
        "transformer",
        "early_stream_modulations.image.linear.weight mode_blocks.image.0.attn.to_q.weight context_embedder.weight",
    ),
    (
        "Stable Diffusion 3",
        "transformer",
        "joint_blocks.0.context_block.attn.qkv.weight joint_blocks.0.x_block.attn.qkv.weight x_embedder.proj.weight[8,16,2,2]",
    ),
    (
        "Stable Diffusion 3",
        "transformer",
        "transformer_blocks.0.norm1_context.linear.weight transformer_blocks.0.attn.norm_added_k.weight[4] \
         pos_embed.proj.weight[8,16,2,2] context_embedder.weight time_text_embed.text_embedder.linear_1.weight",
    ),
    (
        "Qwen-Image",
        "transformer",
        "transformer_blocks.0.img_mod.1.weight transformer_blocks.0.attn.norm_added_k.weight[4] img_in.weight txt_norm.weight[4]",
    ),
    (
        "HunyuanVideo",
        "transformer",
        "txt_in.individual_token_refiner.blocks.0.adaLN_modulation.1.weight double_blocks.0.img_attn.norm.key_norm.scale[4]",
    ),
    (
        "HunyuanVideo",
        "transformer",
        "context_embedder.token_refiner.refiner_blocks.0.attn.to_q.weight transformer_blocks.0.attn.norm_added_k.weight[4]",
    ),
    (
        "LongCat",
        "transformer",
        "time_embed.timestep_embedder.linear_1.weight transformer_blocks.0.attn.norm_added_k.weight[4] context_embedder.weight[4,3584]",
    ),
    (
        "Bria",
        "transformer",
        "time_embed.timestep_embedder.linear_1.weight transformer_blocks.0.attn.norm_added_k.weight[4] context_embedder.weight[4,4096]",
    ),
    (
        "Ovis",
        "transformer",
        "context_embedder_norm.weight[4] transformer_blocks.0.attn.norm_added_k.weight[4] timestep_embedder.linear_1.weight",
    ),
    (
        "AuraFlow",
        "transformer",
        "double_layers.0.attn.w1q.weight cond_seq_linear.weight single_layers.0.attn.w1q.weight",
    ),
    (
        "AuraFlow",
        "transformer",
        "joint_transformer_blocks.0.attn.to_q.weight register_tokens[1,2,2] pos_embed.proj.weight",
    ),
    (
        "HiDream",
        "transformer",
        "double_stream_blocks.0.block.adaLN_modulation.1.weight caption_projection.0.linear.weight",
    ),
    (
        "Z-Image",
        "transformer",
        "layers.0.adaLN_modulation.0.weight cap_embedder.0.weight[4] cap_embedder.1.weight noise_refiner.0.attention.qkv.weight",
    ),
    (
        "Z-Image",
        "transformer",
        "all_x_embedder.2-1.weight noise_refiner.0.adaLN_modulation.0.weight cap_embedder.1.weight",
    ),
    (
        "Lumina 2",
        "transformer",
        "time_caption_embed.caption_embedder.0.weight[4] noise_refiner.0.attn.to_q.weight",
    ),
    (
        "Lumina 2",
        "transformer",
        "cap_embedder.0.weight[4] noise_refiner.0.attention.qkv.weight layers.0.adaLN_modulation.1.weight",
    ),
    (
        "Wan",
        "transformer",
        "head.modulation[1,2,4] blocks.0.self_attn.q.weight blocks.0.self_attn.norm_q.weight[4]",
    ),
    ("Wan", "transformer", "condition_embedder.time_embedder.linear_1.weight blocks.0.attn1.to_q.weight"),
    ("LTX", "transformer", "patchify_proj.weight transformer_blocks.0.scale_shift_table"),
    ("LTX", "transformer", "transformer_blocks.0.scale_shift_table proj_in.weight"),
    ("Mochi", "transformer", "t5_yproj.weight blocks.0.attn.qkv_x.weight"),
    (
        "Sana",
        "transformer",
        "caption_norm.weight[4] patch_embed.proj.weight transformer_blocks.0.attn1.to_q.weight",
    ),
    (
        "PixArt",
        "transformer",
        "adaln_single.linear.weight pos_embed.proj.weight transformer_blocks.0.attn1.to_q.weight",
    ),
    ("Cosmos", "transformer", "net.x_embedder.proj.1.weight net.blocks.0.self_attn.q_proj.weight"),
    ("Kandinsky", "transformer", "visual_transformer_blocks.0.visual_modulation.out_layer.weight"),
    (
        "CogView",
        "transformer",
        "time_condition_embed.timestep_embedder.linear_1.weight transformer_blocks.0.attn1.to_q.weight",
    ),
    ("Krea 2", "transformer", "text_fusion.projector.weight img_in.weight"),
    ("ERNIE", "transformer", "layers.0.adaLN_sa_ln.weight[4] text_proj.weight"),
    ("Ideogram", "transformer", "llm_cond_proj.weight layers.0.attention.qkv.weight"),
    (
        "Stable Diffusion XL",
        "transformer",
        "model.diffusion_model.input_blocks.0.0.weight[8,4,3,3] model.diffusion_model.label_emb.0.0.weight \
         conditioner.embedders.0.transformer.text_model.embeddings.token_embedding.weight \
         first_stage_model.decoder.conv_in.weight[8,4,3,3] first_stage_model.encoder.down.0.block.0.conv1.weight[8,8,3,3] \
         first_stage_model.quant_conv.weight[8,8,1,1]",
    ),
    (
        "Stable Diffusion 1.5",
        "transformer",
        "model.diffusion_model.input_blocks.0.0.weight[8,4,3,3] \
         model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight[8,768] \
         cond_stage_model.transformer.text_model.embeddings.token_embedding.weight",
    ),
    (
        "Stable Diffusion 2",
        "transformer",
        "model.diffusion_model.input_blocks.0.0.weight[8,4,3,3] \
         model.diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight[8,1024]",
    ),
    (
        "Stable Diffusion XL",
        "transformer",
        "conv_in.weight[8,4,3,3] add_embedding.linear_1.weight down_blocks.0.resnets.0.time_emb_proj.weight",
    ),
    (
        "Stable Diffusion",
        "transformer",
        "conv_in.weight[8,4,3,3] down_blocks.0.resnets.0.time_emb_proj.weight",
    ),
    ("Stable Cascade", "transformer", "clip_txt_mapper.weight down_blocks.0.0.channelwise.0.weight"),
    (
        "4 latent channels",
        "autoencoder",
        "encoder.down_blocks.0.resnets.0.conv1.weight[8,8,3,3] decoder.conv_in.weight[8,4,3,3] quant_conv.weight[8,8,1,1] \
         post_quant_conv.weight[4,4,1,1]",
    ),
    (
        "4 latent channels",
        "autoencoder",
        "encoder.down.0.block.0.conv1.weight[8,8,3,3] decoder.conv_in.weight[8,4,3,3] quant_conv.weight[8,8,1,1]",
    ),
    (
        "TAESD",
        "autoencoder",
        "encoder.layers.1.conv.0.weight[8,8,3,3] decoder.layers.0.weight[8,4,3,3] decoder.layers.2.conv.0.weight[8,8,3,3]",
    ),
    (
        "FLUX.2",
        "autoencoder",
        "encoder.down.0.block.0.conv1.weight[8,8,3,3] bn.running_mean[4] decoder.conv_in.weight[8,32,3,3]",
    ),
    ("Wan", "autoencoder", "decoder.middle.0.residual.0.gamma[8,1,1,1] encoder.conv1.weight[8,3,3,3,3]"),
    (
        "Qwen-Image",
        "autoencoder",
        "encoder.conv_in.weight[8,3,3,3,3] encoder.mid_block.attentions.0.to_qkv.weight quant_conv.weight[4,4,1,1,1]",
    ),
    (
        "HunyuanVideo",
        "autoencoder",
        "decoder.conv_in.conv.weight[8,4,3,3,3] encoder.down_blocks.0.resnets.0.conv1.conv.weight[8,8,3,3,3]",
    ),
    (
        "DC-AE",
        "autoencoder",
        "encoder.down_blocks.0.0.conv1.weight[8,8,3,3] decoder.conv_in.weight[8,32,3,3]",
    ),
    (
        "Stable Diffusion 3",
        "autoencoder",
        "model.diffusion_model.joint_blocks.0.x_block.attn.qkv.weight \
         first_stage_model.encoder.down.0.block.0.conv1.weight[8,8,3,3] first_stage_model.decoder.conv_in.weight[8,16,3,3]",
    ),
    (
        "UMT5",
        "t5",
        "shared.weight encoder.block.0.layer.0.SelfAttention.q.weight \
         encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight \
         encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight",
    ),
    (
        "T5 of version 1.0",
        "t5",
        "shared.weight encoder.block.0.layer.0.SelfAttention.q.weight encoder.block.0.layer.1.DenseReluDense.wi.weight",
    ),
    (
        "Qwen3 model",
        "t5",
        "model.embed_tokens.weight model.layers.0.self_attn.q_proj.weight model.layers.0.self_attn.q_norm.weight[4]",
    ),
    (
        "Qwen3-VL",
        "t5",
        "model.language_model.layers.0.self_attn.q_norm.weight[4] model.visual.patch_embed.proj.weight",
    ),
    (
        "Qwen2.5-VL",
        "t5",
        "model.layers.0.self_attn.q_proj.bias[4] visual.patch_embed.proj.weight model.layers.0.self_attn.q_proj.weight",
    ),
    ("Mistral", "t5", "language_model.model.layers.0.self_attn.q_proj.weight vision_tower.patch_conv.weight"),
    (
        "Gemma 2",
        "t5",
        "model.layers.0.pre_feedforward_layernorm.weight[4] model.layers.0.self_attn.q_proj.weight",
    ),
    ("Llama", "t5", "model.embed_tokens.weight model.layers.0.self_attn.q_proj.weight"),
    ("Llama", "t5", "blk.0.attn_q.weight token_embd.weight"),
    (
        "CLIP-G",
        "clip",
        "text_model.embeddings.token_embedding.weight[49408,1280] text_model.encoder.layers.0.mlp.fc1.weight",
    ),
    (
        "BERT",
        "clip",
        "bert.embeddings.word_embeddings.weight bert.encoder.layer.0.attention.self.query.weight",
    ),
    (
        "alimama",
        "controlnet",
        "controlnet_blocks.0.weight controlnet_x_embedder.weight[8,68] x_embedder.weight[8,64] \
         transformer_blocks.0.attn.norm_added_k.weight[4]",
    ),
    (
        "Qwen-Image",
        "controlnet",
        "controlnet_blocks.0.weight controlnet_x_embedder.weight transformer_blocks.0.img_mod.1.weight",
    ),
    (
        "Stable Diffusion 3",
        "controlnet",
        "controlnet_blocks.0.weight pos_embed_input.proj.weight transformer_blocks.0.attn.to_q.weight",
    ),
    (
        "Stable Diffusion XL",
        "controlnet",
        "controlnet_cond_embedding.conv_in.weight[4,3,3,3] add_embedding.linear_1.weight",
    ),
    (
        "Stable Diffusion",
        "controlnet",
        "controlnet_cond_embedding.conv_in.weight[4,3,3,3] down_blocks.0.resnets.0.conv1.weight[4,4,3,3]",
    ),
    (
        "Stable Diffusion",
        "controlnet",
        "control_model.input_hint_block.0.weight[4,3,3,3] control_model.time_embed.0.weight",
    ),
    ("PuLID", "transformer", "pulid_ca.0.to_q.weight pulid_encoder.proj_out"),
    ("IP-Adapter of Stable Diffusion", "transformer", "image_proj.proj.weight ip_adapter.1.to_k_ip.weight"),
    (
        "upscaler",
        "transformer",
        "conv_first.weight[8,3,3,3] conv_last.weight[3,8,3,3] body.0.rdb1.conv1.weight[4,4,3,3]",
    ),
    (
        "DINOv2",
        "transformer",
        "embeddings.patch_embeddings.projection.weight[8,3,14,14] encoder.layer.0.attention.attention.query.weight",
    ),
    // Parts of FLUX.1 in the place of others.
    ("Redux", "transformer", "redux_up.weight redux_down.weight"),
    (
        "LoRA",
        "transformer",
        "double_blocks.0.img_attn.qkv.lora_A.weight double_blocks.0.img_attn.qkv.lora_B.weight",
    ),
];

fn tiny() -> PathBuf {
    crate::support::root().join("fixtures/tiny")
}

/// What is said of a file in the place of a part of the small model.
fn said_of(path: &Path, part: &str) -> String {
    let own = |name: &str| (part == name).then(|| path.to_path_buf());
    let parts = PartOverrides {
        transformer: own("transformer"),
        autoencoder: own("autoencoder"),
        clip: own("clip"),
        t5: own("t5"),
        ..PartOverrides::default()
    };
    let opened = Pipeline::open(Parts::find_rest(parts, tiny()).unwrap(), Settings::default());
    let refused = opened.and_then(|mut pipeline| match part {
        "controlnet" => pipeline.set_controlnets(&[path.to_path_buf()]).map(drop),
        _ => pipeline.weights().map(drop),
    });
    match refused {
        Err(
            error @ Error::File {
                problem: FileProblem::OtherModel { .. } | FileProblem::Packed { .. }, ..
            },
        ) => {
            let said = error.to_string();
            assert!(said.starts_with(&path.display().to_string()), "{said}");
            said
        }
        other => panic!("{part}: {other:?}"),
    }
}

#[test]
fn models_of_other_families_are_named_with_what_works() {
    for (what, part, names) in FOREIGN {
        let (_folder, path) = temp("model.safetensors");
        write_sparse(&path, &lines(names, "BF16"));
        let said = said_of(&path, part);
        assert!(said.contains(what), "{what}: {said}");
        let works = match *part {
            "transformer" => "flux1-dev.safetensors",
            "autoencoder" => "ae.safetensors",
            "clip" => "clip_l.safetensors",
            "t5" => "t5xxl_fp16.safetensors",
            _ => "InstantX",
        };
        assert!(said.contains(works), "{what}: {said}");
        for part_of_flux in ["FLUX.1 transformer, in", "this is FLUX.1 ", "this is FLUX.1's autoencoder"] {
            assert!(!said.contains(part_of_flux), "{what}: {said}");
        }
        // `inspect` tells of each model in the file.
        let found = super::open(&path).contained();
        assert!(
            found.is_empty() || found.iter().any(|model| model.family.to_string().contains(what)),
            "{what}"
        );
    }
}

#[test]
fn a_wrapper_hides_no_other_family() {
    for prefix in ["module.", "model.diffusion_model.", "transformer.", "someones.own."] {
        for (what, part, names) in
            FOREIGN.iter().filter(|(_, part, names)| *part == "transformer" && !names.contains("model."))
        {
            if ["PuLID", "IP-Adapter of Stable Diffusion", "LoRA"].contains(what) {
                continue;
            }
            let (_folder, path) = temp("model.safetensors");
            let wrapped = lines(names, "BF16").into_iter().map(|(n, d, s)| (format!("{prefix}{n}"), d, s));
            write_sparse(&path, &wrapped.collect::<Vec<_>>());
            assert!(said_of(&path, part).contains(what), "{prefix} {what}");
        }
    }
}

#[test]
fn inspect_says_what_it_is_and_what_would_work() {
    // FLUX.2's autoencoder has sizes, which these few names do not tell.
    let chosen = |(what, part, _): &&(&str, &str, &str)| match *what {
        "FLUX.2" => *part != "autoencoder",
        _ => ["Chroma", "TAESD", "UMT5", "alimama"].contains(what),
    };
    for (what, _, names) in FOREIGN.iter().filter(chosen) {
        let (_folder, path) = temp("model.safetensors");
        write_sparse(&path, &lines(names, "BF16"));
        let told = report(&["inspect", path.to_str().unwrap(), "--json"]);
        assert!(told["family"].as_str().unwrap().contains(what), "{told}");
        assert!(told["note"].as_str().unwrap().contains("not run here: take "), "{told}");
        assert_eq!((&told["missing"], &told["sizes"]), (&serde_json::json!([]), &serde_json::Value::Null));
    }
}

/// The form, what its tensors are called beside `transformer_blocks.0.attn.norm_added_k.weight`, and their type.
const PACKED: &[(&str, &str, &str)] = &[
    ("quanto", "X.weight._data X.weight._scale X.input_scale X.output_scale", "F8_E4M3"),
    ("quanto", "X.weight._data._data X.weight._scale X.weight._shift", "U8"),
    ("SVDQuant", "X.qweight X.wscales X.smooth_factor X.smooth_factor_orig X.proj_down X.proj_up", "I8"),
    ("SVDQuant", "X.qweight X.wscales X.smooth X.lora_down X.lora_up X.wcscales X.wtscale", "I8"),
    ("nunchaku", "X.qweight X.wscales[2] X.wzeros", "I32"),
    ("nunchaku", "X.qweight X.scales X.scaled_zeros", "I16"),
    ("HQQ", "X.W_q X.scale X.zero X.shape[2]", "U8"),
    ("GPTQ", "X.qweight X.qzeros X.scales X.g_idx[2]", "I32"),
    ("AWQ", "X.qweight X.qzeros X.scales", "I32"),
    ("compressed-tensors", "X.weight_packed X.weight_scale X.weight_shape[2]", "I32"),
    ("torchao", "X._weight_qdata X._weight_scale", "F8_E4M3"),
    ("torchao", "X.weight:qdata X.weight:scale", "F8_E4M3"),
    ("torchao", "X.weight.tensor_impl.int_data X.weight.tensor_impl.scale", "I8"),
    ("ModelOpt", "X.weight X.weight_quantizer._amax X.input_quantizer._amax", "F32"),
    ("SDNQ", "X.weight X.scale X.zero_point", "U8"),
    (
        "peft",
        "X.base_layer.weight X.base_layer.bias[2] X.lora_A.default.weight X.lora_B.default.weight",
        "BF16",
    ),
];

#[test]
fn packed_forms_are_named_with_the_model_within() {
    for layer in ["transformer_blocks.0.attn.to_q", "transformer.transformer_blocks.0.attn.to_q"] {
        for (what, names, dtype) in PACKED {
            let (_folder, path) = temp("model.safetensors");
            let mut tensors = lines(&names.replace('X', layer), dtype);
            let prefix = layer.strip_suffix("transformer_blocks.0.attn.to_q").unwrap();
            tensors
                .extend(lines(&format!("{prefix}transformer_blocks.0.attn.norm_added_k.weight[4]"), "BF16"));
            write_sparse(&path, &tensors);
            let said = said_of(&path, "transformer");
            assert!(said.contains(what) && said.contains("FLUX.1 transformer"), "{what}: {said}");
            // None of it is poured into a model, and none is converted.
            let checkpoint = Checkpoint::open(&path, Access::Map).unwrap();
            assert!(matches!(checkpoint.family(), Family::Packed { .. }));
            let refused = checkpoint.load(&super::store_for(&checkpoint), Default::default());
            assert!(
                matches!(refused, Err(Error::File { problem: FileProblem::Packed { .. }, .. })),
                "{refused:?}"
            );
            let out = path.with_file_name("out.safetensors");
            let refused = convert(&path, &out, &Conversion::default(), &mut |_| ControlFlow::Continue(()));
            assert!(!out.exists() && refused.unwrap_err().to_string().contains(what));
        }
    }
}

fn inspected(path: &Path) -> String {
    let output = run(&["inspect", path.to_str().unwrap()]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn mflux_is_told_by_its_words_of_32_bits() {
    let (_folder, path) = temp("model.safetensors");
    let header = r#"{"__metadata__":{"quantization_level":"4","mflux_version":"0.18.0"},
        "transformer_blocks.0.attn.norm_added_k.weight":{"dtype":"BF16","shape":[2],"data_offsets":[0,4]},
        "transformer_blocks.0.attn.to_q.biases":{"dtype":"BF16","shape":[2,1],"data_offsets":[4,8]},
        "transformer_blocks.0.attn.to_q.scales":{"dtype":"BF16","shape":[2,1],"data_offsets":[8,12]},
        "transformer_blocks.0.attn.to_q.weight":{"dtype":"U32","shape":[2,1],"data_offsets":[12,20]}}"#;
    std::fs::write(&path, crate::support::framed(header, &[0; 20])).unwrap();
    for said in [said_of(&path, "transformer"), inspected(&path)] {
        assert!(said.contains("MLX (mflux)") && said.contains("FLUX.1 transformer"), "{said}");
    }
}

#[test]
fn the_architecture_of_a_gguf_file_tells_where_its_names_do_not() {
    use crate::support::gguf;
    for (architecture, what) in
        [("qwen_image", "Qwen-Image"), ("sdxl", "Stable Diffusion XL"), ("gemma3", "Gemma 3"), ("wan", "Wan")]
    {
        let (_folder, path) = temp("model.gguf");
        let key = gguf::key("general.architecture", gguf::STRING, gguf::text(architecture));
        let tensor = gguf::tensor("of.no.known.name", &[4], gguf::F32, 0);
        std::fs::write(&path, gguf::file(&[key], &[tensor], 16)).unwrap();
        let said = said_of(&path, "transformer");
        assert!(said.contains(what), "{said}");
    }
}

/// What is FLUX.1 stays FLUX.1, whatever its sizes.
#[test]
fn what_is_flux1_is_taken_for_nothing_else() {
    let names = ["flux1-dev", "flux1-schnell", "flux1-fill-dev", "flux1-canny-dev", "flux1-dev.diffusers"];
    for name in names {
        let (_folder, path) = temp("model.safetensors");
        write_sparse(&path, &layout(name));
        assert!(
            matches!(super::open(&path).family(), Family::Transformer { family: ModelFamily::Flux1, .. }),
            "{name}"
        );
    }
    // Fewer blocks (Flux.1 Lite, Flex.1), more inputs (Flex.2).
    for (channels, blocks) in [(64, 8), (196, 8), (64, 4)] {
        let (_folder, path) = temp("model.safetensors");
        let mut lines = layout("flux1-dev");
        lines.retain(|(n, ..)| {
            n.strip_prefix("double_blocks.")
                .is_none_or(|n| n.split('.').next().unwrap().parse::<i64>().unwrap() < blocks)
        });
        lines.iter_mut().filter(|(n, ..)| n == "img_in.weight").for_each(|(.., shape)| shape[1] = channels);
        write_sparse(&path, &lines);
        assert!(
            matches!(super::open(&path).family(), Family::Transformer { family: ModelFamily::Flux1, .. }),
            "{channels} {blocks}"
        );
    }
    for (name, family) in [
        ("ae", "FLUX.1 autoencoder"),
        ("ae.diffusers", "FLUX.1 autoencoder"),
        ("clip-l-text", "CLIP text model"),
        ("t5-xxl-encoder", "T5 encoder"),
        ("siglip-so400m", "SigLIP vision model"),
        ("flux1-redux-dev", "FLUX.1 Redux embedder"),
    ] {
        let (_folder, path) = temp("model.safetensors");
        write_sparse(&path, &layout(name));
        assert_eq!(super::open(&path).family().name(), family);
    }
}
