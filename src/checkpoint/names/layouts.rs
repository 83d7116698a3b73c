//! The layouts: for each, whose names become which official ones.

use super::Rename::{
    self, Concat, Pointwise, Reversed, Same, Shifted, Split, SwapHalves, Tensor as One, Transposed,
};
use super::{Renames, numbers};
use crate::family::ModelFamily;

const IMG_QKV: &[&str] = &[
    "transformer_blocks.{}.attn.to_q",
    "transformer_blocks.{}.attn.to_k",
    "transformer_blocks.{}.attn.to_v",
];
const TXT_QKV: &[&str] = &[
    "transformer_blocks.{}.attn.add_q_proj",
    "transformer_blocks.{}.attn.add_k_proj",
    "transformer_blocks.{}.attn.add_v_proj",
];

/// Returns diffusers' names of a family's transformer.
pub fn transformer_diffusers(family: ModelFamily) -> &'static Renames {
    match family {
        ModelFamily::Flux1 => &FLUX1_DIFFUSERS,
        ModelFamily::Flux2 => &FLUX2_DIFFUSERS,
    }
}

/// diffusers' `FluxTransformer2DModel`.
pub const FLUX1_DIFFUSERS: Renames = Renames(&[
    Same("x_embedder", "img_in"),
    Same("context_embedder", "txt_in"),
    Same("time_text_embed.timestep_embedder.linear_1", "time_in.in_layer"),
    Same("time_text_embed.timestep_embedder.linear_2", "time_in.out_layer"),
    Same("time_text_embed.text_embedder.linear_1", "vector_in.in_layer"),
    Same("time_text_embed.text_embedder.linear_2", "vector_in.out_layer"),
    Same("time_text_embed.guidance_embedder.linear_1", "guidance_in.in_layer"),
    Same("time_text_embed.guidance_embedder.linear_2", "guidance_in.out_layer"),
    Same("transformer_blocks.{}.norm1.linear", "double_blocks.{}.img_mod.lin"),
    Same("transformer_blocks.{}.norm1_context.linear", "double_blocks.{}.txt_mod.lin"),
    Concat(IMG_QKV, "double_blocks.{}.img_attn.qkv"),
    Concat(TXT_QKV, "double_blocks.{}.txt_attn.qkv"),
    One("transformer_blocks.{}.attn.norm_q.weight", "double_blocks.{}.img_attn.norm.query_norm.scale"),
    One("transformer_blocks.{}.attn.norm_k.weight", "double_blocks.{}.img_attn.norm.key_norm.scale"),
    One("transformer_blocks.{}.attn.norm_added_q.weight", "double_blocks.{}.txt_attn.norm.query_norm.scale"),
    One("transformer_blocks.{}.attn.norm_added_k.weight", "double_blocks.{}.txt_attn.norm.key_norm.scale"),
    Same("transformer_blocks.{}.attn.to_out.0", "double_blocks.{}.img_attn.proj"),
    Same("transformer_blocks.{}.attn.to_add_out", "double_blocks.{}.txt_attn.proj"),
    Same("transformer_blocks.{}.ff.net.0.proj", "double_blocks.{}.img_mlp.0"),
    Same("transformer_blocks.{}.ff.net.2", "double_blocks.{}.img_mlp.2"),
    Same("transformer_blocks.{}.ff_context.net.0.proj", "double_blocks.{}.txt_mlp.0"),
    Same("transformer_blocks.{}.ff_context.net.2", "double_blocks.{}.txt_mlp.2"),
    Same("single_transformer_blocks.{}.norm.linear", "single_blocks.{}.modulation.lin"),
    Concat(
        &[
            "single_transformer_blocks.{}.attn.to_q",
            "single_transformer_blocks.{}.attn.to_k",
            "single_transformer_blocks.{}.attn.to_v",
            "single_transformer_blocks.{}.proj_mlp",
        ],
        "single_blocks.{}.linear1",
    ),
    Same("single_transformer_blocks.{}.proj_out", "single_blocks.{}.linear2"),
    One("single_transformer_blocks.{}.attn.norm_q.weight", "single_blocks.{}.norm.query_norm.scale"),
    One("single_transformer_blocks.{}.attn.norm_k.weight", "single_blocks.{}.norm.key_norm.scale"),
    Same("proj_out", "final_layer.linear"),
    // diffusers puts the scale first, the official code the shift.
    SwapHalves("norm_out.linear", "final_layer.adaLN_modulation.1"),
]);

/// What diffusers' `FluxControlNetModel` has beside the names of the transformer: theirs, and those of XLabs.
const CONTROLNET: [Rename; 9] = [
    Same("controlnet_x_embedder", "pos_embed_input"),
    Same("input_hint_block.conv_in", "input_hint_block.0"),
    Same("input_hint_block.blocks.0", "input_hint_block.2"),
    Same("input_hint_block.blocks.1", "input_hint_block.4"),
    Same("input_hint_block.blocks.2", "input_hint_block.6"),
    Same("input_hint_block.blocks.3", "input_hint_block.8"),
    Same("input_hint_block.blocks.4", "input_hint_block.10"),
    Same("input_hint_block.blocks.5", "input_hint_block.12"),
    Same("input_hint_block.conv_out", "input_hint_block.14"),
];

/// diffusers' `FluxControlNetModel`.
pub const CONTROLNET_DIFFUSERS: Renames =
    Renames(&joined::<{ FLUX1_DIFFUSERS.0.len() + CONTROLNET.len() }>(FLUX1_DIFFUSERS.0, &CONTROLNET));

/// The rules of one list and then of another, `N` of them in all.
const fn joined<const N: usize>(first: &[Rename], second: &[Rename]) -> [Rename; N] {
    let mut all = [first[0]; N];
    let mut i = 0;
    while i < N {
        all[i] = if i < first.len() { first[i] } else { second[i - first.len()] };
        i += 1;
    }
    all
}

/// diffusers' `Flux2Transformer2DModel`.
pub const FLUX2_DIFFUSERS: Renames = Renames(&[
    Same("x_embedder", "img_in"),
    Same("context_embedder", "txt_in"),
    Same("time_guidance_embed.timestep_embedder.linear_1", "time_in.in_layer"),
    Same("time_guidance_embed.timestep_embedder.linear_2", "time_in.out_layer"),
    Same("time_guidance_embed.guidance_embedder.linear_1", "guidance_in.in_layer"),
    Same("time_guidance_embed.guidance_embedder.linear_2", "guidance_in.out_layer"),
    Same("double_stream_modulation_img.linear", "double_stream_modulation_img.lin"),
    Same("double_stream_modulation_txt.linear", "double_stream_modulation_txt.lin"),
    Same("single_stream_modulation.linear", "single_stream_modulation.lin"),
    Concat(IMG_QKV, "double_blocks.{}.img_attn.qkv"),
    Concat(TXT_QKV, "double_blocks.{}.txt_attn.qkv"),
    One("transformer_blocks.{}.attn.norm_q.weight", "double_blocks.{}.img_attn.norm.query_norm.scale"),
    One("transformer_blocks.{}.attn.norm_k.weight", "double_blocks.{}.img_attn.norm.key_norm.scale"),
    One("transformer_blocks.{}.attn.norm_added_q.weight", "double_blocks.{}.txt_attn.norm.query_norm.scale"),
    One("transformer_blocks.{}.attn.norm_added_k.weight", "double_blocks.{}.txt_attn.norm.key_norm.scale"),
    Same("transformer_blocks.{}.attn.to_out.0", "double_blocks.{}.img_attn.proj"),
    Same("transformer_blocks.{}.attn.to_add_out", "double_blocks.{}.txt_attn.proj"),
    Same("transformer_blocks.{}.ff.linear_in", "double_blocks.{}.img_mlp.0"),
    Same("transformer_blocks.{}.ff.linear_out", "double_blocks.{}.img_mlp.2"),
    Same("transformer_blocks.{}.ff_context.linear_in", "double_blocks.{}.txt_mlp.0"),
    Same("transformer_blocks.{}.ff_context.linear_out", "double_blocks.{}.txt_mlp.2"),
    Same("single_transformer_blocks.{}.attn.to_qkv_mlp_proj", "single_blocks.{}.linear1"),
    Same("single_transformer_blocks.{}.attn.to_out", "single_blocks.{}.linear2"),
    One("single_transformer_blocks.{}.attn.norm_q.weight", "single_blocks.{}.norm.query_norm.scale"),
    One("single_transformer_blocks.{}.attn.norm_k.weight", "single_blocks.{}.norm.key_norm.scale"),
    Same("proj_out", "final_layer.linear"),
    SwapHalves("norm_out.linear", "final_layer.adaLN_modulation.1"),
]);

/// The official names with the scales of the q and k norms spelled `.weight`, as some writers of both generations do.
pub const NORMS_SPELLED_WEIGHT: Renames = Renames(&[
    One(
        "double_blocks.{}.img_attn.norm.query_norm.weight",
        "double_blocks.{}.img_attn.norm.query_norm.scale",
    ),
    One("double_blocks.{}.img_attn.norm.key_norm.weight", "double_blocks.{}.img_attn.norm.key_norm.scale"),
    One(
        "double_blocks.{}.txt_attn.norm.query_norm.weight",
        "double_blocks.{}.txt_attn.norm.query_norm.scale",
    ),
    One("double_blocks.{}.txt_attn.norm.key_norm.weight", "double_blocks.{}.txt_attn.norm.key_norm.scale"),
    One("single_blocks.{}.norm.query_norm.weight", "single_blocks.{}.norm.query_norm.scale"),
    One("single_blocks.{}.norm.key_norm.weight", "single_blocks.{}.norm.key_norm.scale"),
]);

/// llama.cpp's names of a T5 encoder.
pub const T5_LLAMA: Renames = Renames(&[
    One("token_embd.weight", "shared.weight"),
    One("enc.output_norm.weight", "encoder.final_layer_norm.weight"),
    One("enc.blk.{}.attn_norm.weight", "encoder.block.{}.layer.0.layer_norm.weight"),
    One("enc.blk.{}.attn_q.weight", "encoder.block.{}.layer.0.SelfAttention.q.weight"),
    One("enc.blk.{}.attn_k.weight", "encoder.block.{}.layer.0.SelfAttention.k.weight"),
    One("enc.blk.{}.attn_v.weight", "encoder.block.{}.layer.0.SelfAttention.v.weight"),
    One("enc.blk.{}.attn_o.weight", "encoder.block.{}.layer.0.SelfAttention.o.weight"),
    One(
        "enc.blk.{}.attn_rel_b.weight",
        "encoder.block.{}.layer.0.SelfAttention.relative_attention_bias.weight",
    ),
    One("enc.blk.{}.ffn_norm.weight", "encoder.block.{}.layer.1.layer_norm.weight"),
    One("enc.blk.{}.ffn_gate.weight", "encoder.block.{}.layer.1.DenseReluDense.wi_0.weight"),
    One("enc.blk.{}.ffn_up.weight", "encoder.block.{}.layer.1.DenseReluDense.wi_1.weight"),
    One("enc.blk.{}.ffn_down.weight", "encoder.block.{}.layer.1.DenseReluDense.wo.weight"),
]);

/// The text model of CLIP in OpenAI's names, which open_clip and LongCLIP have too; ours are those of transformers.
///
/// Source: `openai/CLIP`, `clip/model.py`, `CLIP`.
pub const CLIP_OPENAI: Renames = Renames(&[
    One("token_embedding.weight", "text_model.embeddings.token_embedding.weight"),
    One("positional_embedding", "text_model.embeddings.position_embedding.weight"),
    One("positional_embedding_res", "text_model.embeddings.position_embedding_res"),
    Same("transformer.resblocks.{}.ln_1", "text_model.encoder.layers.{}.layer_norm1"),
    Split(
        "transformer.resblocks.{}.attn.in_proj_weight",
        &[
            "text_model.encoder.layers.{}.self_attn.q_proj.weight",
            "text_model.encoder.layers.{}.self_attn.k_proj.weight",
            "text_model.encoder.layers.{}.self_attn.v_proj.weight",
        ],
    ),
    Split(
        "transformer.resblocks.{}.attn.in_proj_bias",
        &[
            "text_model.encoder.layers.{}.self_attn.q_proj.bias",
            "text_model.encoder.layers.{}.self_attn.k_proj.bias",
            "text_model.encoder.layers.{}.self_attn.v_proj.bias",
        ],
    ),
    Same("transformer.resblocks.{}.attn.out_proj", "text_model.encoder.layers.{}.self_attn.out_proj"),
    Same("transformer.resblocks.{}.ln_2", "text_model.encoder.layers.{}.layer_norm2"),
    Same("transformer.resblocks.{}.mlp.c_fc", "text_model.encoder.layers.{}.mlp.fc1"),
    Same("transformer.resblocks.{}.mlp.c_proj", "text_model.encoder.layers.{}.mlp.fc2"),
    Same("ln_final", "text_model.final_layer_norm"),
]);

/// The vision model of CLIP in OpenAI's names, with its projection.
///
/// Source: `openai/CLIP`, `clip/model.py`, `VisionTransformer`, which multiplies by `proj` from the right.
pub const CLIP_VISION_OPENAI: Renames = Renames(&[
    One("visual.class_embedding", "vision_model.embeddings.class_embedding"),
    One("visual.positional_embedding", "vision_model.embeddings.position_embedding.weight"),
    One("visual.conv1.weight", "vision_model.embeddings.patch_embedding.weight"),
    Same("visual.ln_pre", "vision_model.pre_layrnorm"),
    Same("visual.transformer.resblocks.{}.ln_1", "vision_model.encoder.layers.{}.layer_norm1"),
    Split(
        "visual.transformer.resblocks.{}.attn.in_proj_weight",
        &[
            "vision_model.encoder.layers.{}.self_attn.q_proj.weight",
            "vision_model.encoder.layers.{}.self_attn.k_proj.weight",
            "vision_model.encoder.layers.{}.self_attn.v_proj.weight",
        ],
    ),
    Split(
        "visual.transformer.resblocks.{}.attn.in_proj_bias",
        &[
            "vision_model.encoder.layers.{}.self_attn.q_proj.bias",
            "vision_model.encoder.layers.{}.self_attn.k_proj.bias",
            "vision_model.encoder.layers.{}.self_attn.v_proj.bias",
        ],
    ),
    Same(
        "visual.transformer.resblocks.{}.attn.out_proj",
        "vision_model.encoder.layers.{}.self_attn.out_proj",
    ),
    Same("visual.transformer.resblocks.{}.ln_2", "vision_model.encoder.layers.{}.layer_norm2"),
    Same("visual.transformer.resblocks.{}.mlp.c_fc", "vision_model.encoder.layers.{}.mlp.fc1"),
    Same("visual.transformer.resblocks.{}.mlp.c_proj", "vision_model.encoder.layers.{}.mlp.fc2"),
    Same("visual.ln_post", "vision_model.post_layernorm"),
    Transposed("visual.proj", "visual_projection.weight"),
]);

/// diffusers' `AutoencoderKL` as FLUX.1 uses it, and its `AutoencoderKLFlux2`.
pub const AUTOENCODER_DIFFUSERS: Renames = Renames(&[
    Same("encoder.down_blocks.{}.resnets.{}.norm1", "encoder.down.{}.block.{}.norm1"),
    Same("encoder.down_blocks.{}.resnets.{}.conv1", "encoder.down.{}.block.{}.conv1"),
    Same("encoder.down_blocks.{}.resnets.{}.norm2", "encoder.down.{}.block.{}.norm2"),
    Same("encoder.down_blocks.{}.resnets.{}.conv2", "encoder.down.{}.block.{}.conv2"),
    Same("encoder.down_blocks.{}.resnets.{}.conv_shortcut", "encoder.down.{}.block.{}.nin_shortcut"),
    Same("encoder.down_blocks.{}.downsamplers.0.conv", "encoder.down.{}.downsample.conv"),
    Reversed("decoder.up_blocks.{}.resnets.{}.norm1", "decoder.up.{}.block.{}.norm1"),
    Reversed("decoder.up_blocks.{}.resnets.{}.conv1", "decoder.up.{}.block.{}.conv1"),
    Reversed("decoder.up_blocks.{}.resnets.{}.norm2", "decoder.up.{}.block.{}.norm2"),
    Reversed("decoder.up_blocks.{}.resnets.{}.conv2", "decoder.up.{}.block.{}.conv2"),
    Reversed("decoder.up_blocks.{}.resnets.{}.conv_shortcut", "decoder.up.{}.block.{}.nin_shortcut"),
    Reversed("decoder.up_blocks.{}.upsamplers.0.conv", "decoder.up.{}.upsample.conv"),
    Same("encoder.mid_block.resnets.0.norm1", "encoder.mid.block_1.norm1"),
    Same("encoder.mid_block.resnets.1.norm1", "encoder.mid.block_2.norm1"),
    Same("encoder.mid_block.resnets.0.conv1", "encoder.mid.block_1.conv1"),
    Same("encoder.mid_block.resnets.1.conv1", "encoder.mid.block_2.conv1"),
    Same("encoder.mid_block.resnets.0.norm2", "encoder.mid.block_1.norm2"),
    Same("encoder.mid_block.resnets.1.norm2", "encoder.mid.block_2.norm2"),
    Same("encoder.mid_block.resnets.0.conv2", "encoder.mid.block_1.conv2"),
    Same("encoder.mid_block.resnets.1.conv2", "encoder.mid.block_2.conv2"),
    Same("decoder.mid_block.resnets.0.norm1", "decoder.mid.block_1.norm1"),
    Same("decoder.mid_block.resnets.1.norm1", "decoder.mid.block_2.norm1"),
    Same("decoder.mid_block.resnets.0.conv1", "decoder.mid.block_1.conv1"),
    Same("decoder.mid_block.resnets.1.conv1", "decoder.mid.block_2.conv1"),
    Same("decoder.mid_block.resnets.0.norm2", "decoder.mid.block_1.norm2"),
    Same("decoder.mid_block.resnets.1.norm2", "decoder.mid.block_2.norm2"),
    Same("decoder.mid_block.resnets.0.conv2", "decoder.mid.block_1.conv2"),
    Same("decoder.mid_block.resnets.1.conv2", "decoder.mid.block_2.conv2"),
    Same("encoder.mid_block.attentions.0.group_norm", "encoder.mid.attn_1.norm"),
    Same("decoder.mid_block.attentions.0.group_norm", "decoder.mid.attn_1.norm"),
    Pointwise("encoder.mid_block.attentions.0.to_q", "encoder.mid.attn_1.q"),
    Pointwise("encoder.mid_block.attentions.0.to_k", "encoder.mid.attn_1.k"),
    Pointwise("encoder.mid_block.attentions.0.to_v", "encoder.mid.attn_1.v"),
    Pointwise("encoder.mid_block.attentions.0.to_out.0", "encoder.mid.attn_1.proj_out"),
    Pointwise("decoder.mid_block.attentions.0.to_q", "decoder.mid.attn_1.q"),
    Pointwise("decoder.mid_block.attentions.0.to_k", "decoder.mid.attn_1.k"),
    Pointwise("decoder.mid_block.attentions.0.to_v", "decoder.mid.attn_1.v"),
    Pointwise("decoder.mid_block.attentions.0.to_out.0", "decoder.mid.attn_1.proj_out"),
    Same("quant_conv", "encoder.quant_conv"),
    Same("post_quant_conv", "decoder.post_quant_conv"),
    Same("encoder.conv_norm_out", "encoder.norm_out"),
    Same("decoder.conv_norm_out", "decoder.norm_out"),
]);

/// What files of SigLIP hold beside the states of a picture's patches: the text tower, the head that pools the patches, and
/// the two numbers of its training. `*` at the end stands for `weight` or `bias`.
const BESIDE_SIGLIP: [&str; 23] = [
    "logit_scale",
    "logit_bias",
    "text_model.embeddings.position_ids",
    "text_model.embeddings.token_embedding.weight",
    "text_model.embeddings.position_embedding.weight",
    "text_model.encoder.layers.{}.layer_norm1.*",
    "text_model.encoder.layers.{}.self_attn.k_proj.*",
    "text_model.encoder.layers.{}.self_attn.v_proj.*",
    "text_model.encoder.layers.{}.self_attn.q_proj.*",
    "text_model.encoder.layers.{}.self_attn.out_proj.*",
    "text_model.encoder.layers.{}.layer_norm2.*",
    "text_model.encoder.layers.{}.mlp.fc1.*",
    "text_model.encoder.layers.{}.mlp.fc2.*",
    "text_model.final_layer_norm.*",
    "text_model.head.*",
    "vision_model.embeddings.position_ids",
    "vision_model.head.probe",
    "vision_model.head.attention.in_proj_weight",
    "vision_model.head.attention.in_proj_bias",
    "vision_model.head.attention.out_proj.*",
    "vision_model.head.layernorm.*",
    "vision_model.head.mlp.fc1.*",
    "vision_model.head.mlp.fc2.*",
];

/// Whether a tensor of a SigLIP file is known, and none of the vision tower's own.
pub(in crate::checkpoint) fn is_beside_siglip(name: &str) -> bool {
    BESIDE_SIGLIP.iter().any(|pattern| match pattern.strip_suffix('*') {
        Some(module) => {
            ["weight", "bias"].iter().any(|kind| numbers(&format!("{module}{kind}"), name).is_some())
        }
        None => numbers(pattern, name).is_some(),
    })
}

/// DINOv2 in a depth model, in the names that transformers has had since version 5; published files have the older ones.
pub const DEPTH_TRANSFORMERS_5: Renames = Renames(&[
    Same("backbone.encoder.layer.{}.attention.q_proj", "backbone.encoder.layer.{}.attention.attention.query"),
    Same("backbone.encoder.layer.{}.attention.k_proj", "backbone.encoder.layer.{}.attention.attention.key"),
    Same("backbone.encoder.layer.{}.attention.v_proj", "backbone.encoder.layer.{}.attention.attention.value"),
    Same("backbone.encoder.layer.{}.attention.o_proj", "backbone.encoder.layer.{}.attention.output.dense"),
]);

/// A file of TAESD's encoder alone, in the names of `madebyollin/taesd`; ours are diffusers'.
pub const TAESD_ENCODER: Renames =
    Renames(&[Same("{}", "encoder.layers.{}"), Same("{}.conv.{}", "encoder.layers.{}.conv.{}")]);

/// The same of the decoder.
pub const TAESD_DECODER: Renames =
    Renames(&[Shifted("{}", "decoder.layers.{}", 1), Shifted("{}.conv.{}", "decoder.layers.{}.conv.{}", 1)]);
