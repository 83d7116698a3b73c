//! Models of other families, as data: what each is called, and the names and shapes by which it is known.
//!
//! The names are those of the models' own repositories, of ComfyUI, and of diffusers 0.42.1.

use std::collections::BTreeMap;

use Sign::{Begins, Has, Lacks, Rank, Size, Wider};

/// A model that is recognised, and that nothing here runs.
#[derive(Debug, PartialEq, Eq)]
pub struct ForeignModel {
    /// What it is in a few words: `Chroma transformer`.
    pub name: &'static str,
    /// What it would be a part of, in its own pipeline.
    pub role: Role,
}

/// The part of a pipeline that a model is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// What predicts the velocity, or the noise.
    Transformer,
    /// What turns latents into pictures.
    Autoencoder,
    /// What turns a prompt into states.
    TextEncoder,
    /// What leads a transformer along a control picture.
    ControlNet,
    /// What leads a transformer along a picture's contents, or a face.
    IpAdapter,
    /// What reads pictures.
    ImageEncoder,
    /// What enlarges pictures.
    Upscaler,
    /// What gives a text encoder a word of one's own.
    Embedding,
    /// A change to another model, in a form that is not read.
    Adapter,
}

impl Role {
    /// What FLUX.1 has in this place.
    pub(crate) fn of_flux1(self) -> &'static str {
        match self {
            Self::Transformer => {
                "a FLUX.1 transformer (flux1-dev.safetensors, flux1-schnell.safetensors, a finetune or a GGUF file of them, or \
                 diffusers' transformer/)"
            }
            Self::Autoencoder => {
                "FLUX.1's autoencoder, which has 16 latent channels (ae.safetensors, or diffusers' vae/)"
            }
            Self::TextEncoder => {
                "CLIP-L (clip_l.safetensors, text_encoder/) and T5-XXL v1.1 (t5xxl_fp16.safetensors, its fp8 or GGUF files, \
                 text_encoder_2/)"
            }
            Self::ControlNet => "a ControlNet of FLUX.1 as XLabs, InstantX or Shakker publish them",
            Self::IpAdapter => "XLabs' IP-Adapter of FLUX.1, or FLUX.1 Redux",
            Self::ImageEncoder => "CLIP-L's vision model for an IP-Adapter, or SigLIP for FLUX.1 Redux",
            Self::Upscaler => "another program that enlarges the finished picture",
            Self::Embedding => "a LoRA of FLUX.1: words of one's own are not read",
            Self::Adapter => "a LoRA, LoHa or LoKr of FLUX.1, or a model that the change is merged into",
        }
    }
}

/// One thing that must hold for a family's names.
#[derive(Debug, Clone, Copy)]
pub(super) enum Sign {
    /// There is a tensor of this name.
    Has(&'static str),
    /// There is none of this name.
    Lacks(&'static str),
    /// Some name begins so.
    Begins(&'static str),
    /// There is a tensor of this name with this size along this axis.
    Size(&'static str, usize, i64),
    /// There is a tensor of this name with so many axes.
    Rank(&'static str, usize),
    /// The first tensor has more columns than the second.
    Wider(&'static str, &'static str),
}

impl Sign {
    /// The name of which the file must have a tensor.
    pub(super) fn name(self) -> Option<&'static str> {
        match self {
            Has(name) | Size(name, ..) | Rank(name, _) | Wider(name, _) => Some(name),
            Lacks(_) | Begins(_) => None,
        }
    }

    /// Whether it holds for the tensors whose names begin with `prefix`.
    fn holds(self, names: &BTreeMap<&str, &[i64]>, prefix: &str) -> bool {
        let shape = |name: &str| names.get(format!("{prefix}{name}").as_str()).copied();
        let columns = |name: &str| shape(name).and_then(|shape| shape.get(1).copied());
        match self {
            Has(name) => shape(name).is_some(),
            Lacks(name) => shape(name).is_none(),
            Begins(start) => {
                let start = format!("{prefix}{start}");
                names.range(start.as_str()..).next().is_some_and(|(name, _)| name.starts_with(&start))
            }
            Size(name, axis, size) => shape(name).is_some_and(|shape| shape.get(axis) == Some(&size)),
            Rank(name, axes) => shape(name).is_some_and(|shape| shape.len() == axes),
            Wider(name, other) => {
                matches!((columns(name), columns(other)), (Some(one), Some(two)) if one > two)
            }
        }
    }
}

/// How a model is known: all signs of one of its layouts hold.
#[derive(Debug)]
pub(super) struct Signature {
    pub(super) model: ForeignModel,
    pub(super) layouts: &'static [&'static [Sign]],
}

impl Signature {
    const fn new(name: &'static str, role: Role, layouts: &'static [&'static [Sign]]) -> Self {
        Self { model: ForeignModel { name, role }, layouts }
    }

    fn fits(&self, names: &BTreeMap<&str, &[i64]>, prefix: &str) -> bool {
        self.layouts.iter().any(|signs| signs.iter().all(|sign| sign.holds(names, prefix)))
    }
}

/// The model whose names begin with `prefix`, where it is of another family.
pub(super) fn find(names: &BTreeMap<&str, &[i64]>, prefix: &str) -> Option<&'static ForeignModel> {
    SIGNATURES.iter().find(|signature| signature.fits(names, prefix)).map(|signature| &signature.model)
}

/// The autoencoder of Stable Diffusion 3 has FLUX.1's names and shapes: only what it lies beside tells.
pub(super) static STABLE_DIFFUSION_3_AUTOENCODER: ForeignModel =
    ForeignModel { name: "Stable Diffusion 3 autoencoder", role: Role::Autoencoder };
/// The transformer that it lies beside.
pub(super) const STABLE_DIFFUSION_3: &str = "Stable Diffusion 3 transformer";

const CLIP_TOKENS: &str = "text_model.embeddings.token_embedding.weight";
const FLUX1_NORM: &str = "transformer_blocks.0.attn.norm_added_k.weight";
const SD_CROSS: &str = "input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight";
const SD_CROSS_DIFFUSERS: &str = "down_blocks.0.attentions.0.transformer_blocks.0.attn2.to_k.weight";

/// The first that fits is the answer, so a narrower one stands before a wider one.
static SIGNATURES: &[Signature] = {
    use Role::{
        Autoencoder, ControlNet, Embedding, ImageEncoder, IpAdapter, TextEncoder, Transformer, Upscaler,
    };
    &[
        Signature::new(
            "embedding of a word (textual inversion)",
            Embedding,
            &[
                &[Has("emb_params")],
                &[Begins("string_to_param.")],
                &[Rank("clip_l", 2)],
                &[Rank("clip_g", 2)],
                &[Rank("t5xxl", 2)],
            ],
        ),
        // ControlNets hold the names of the transformer that they are made from.
        Signature::new(
            "inpainting ControlNet of FLUX.1 (alimama), whose control has channels for a mask",
            ControlNet,
            &[&[
                Wider("controlnet_x_embedder.weight", "x_embedder.weight"),
                Has("controlnet_blocks.0.weight"),
            ]],
        ),
        Signature::new(
            "ControlNet of Qwen-Image",
            ControlNet,
            &[&[Has("controlnet_blocks.0.weight"), Has("transformer_blocks.0.img_mod.1.weight")]],
        ),
        Signature::new(
            "ControlNet of Stable Diffusion 3",
            ControlNet,
            &[
                &[Has("pos_embed_input.proj.weight"), Has("controlnet_blocks.0.weight")],
                &[Has("controlnet_blocks.0.weight"), Has("pos_embed.proj.weight")],
            ],
        ),
        Signature::new(
            "ControlNet of Z-Image",
            ControlNet,
            &[
                &[Has("control_all_x_embedder.2-1.weight")],
                &[Has("control_layers.0.adaLN_modulation.0.weight")],
            ],
        ),
        Signature::new(
            "ControlNet of Stable Diffusion XL",
            ControlNet,
            &[
                &[Has("controlnet_cond_embedding.conv_in.weight"), Has("add_embedding.linear_1.weight")],
                &[Has("input_hint_block.0.weight"), Has("label_emb.0.0.weight")],
            ],
        ),
        Signature::new(
            "ControlNet of Stable Diffusion",
            ControlNet,
            &[
                &[Has("controlnet_cond_embedding.conv_in.weight")],
                // XLabs' ControlNets of FLUX.1 have such a block, too.
                &[Has("input_hint_block.0.weight"), Has("zero_convs.0.0.weight")],
                &[Begins("control_model.")],
            ],
        ),
        Signature::new(
            "PuLID for FLUX.1, which leads a transformer along a face",
            IpAdapter,
            &[
                &[Has("pulid_ca.0.to_q.weight")],
                &[Begins("pulid_ca.")],
                &[Begins("pulid_encoder.")],
                &[Begins("id_adapter_attn_layers.")],
            ],
        ),
        Signature::new(
            "IP-Adapter of Stable Diffusion",
            IpAdapter,
            &[&[Begins("ip_adapter.1.to_k_ip")], &[Begins("image_proj."), Begins("ip_adapter.")]],
        ),
        // Transformers, some of which hold names of FLUX.1's.
        Signature::new(
            "Chroma transformer (a FLUX.1 without modulations, with a distilled_guidance_layer)",
            Transformer,
            &[
                &[Has("distilled_guidance_layer.in_proj.weight")],
                &[Has("distilled_guidance_layer.norms.0.scale")],
                &[Has("distilled_guidance_layer.norms.0.weight")],
                &[Begins("distilled_guidance_layer.")],
            ],
        ),
        Signature::new(
            "FLUX.3 transformer",
            Transformer,
            &[
                &[Has("early_stream_modulations.image.lin.weight")],
                &[Has("early_stream_modulations.image.linear.weight")],
                &[Begins("content_mode_blocks.")],
            ],
        ),
        Signature::new(
            "HunyuanVideo or HunyuanImage transformer",
            Transformer,
            &[
                &[Has("txt_in.individual_token_refiner.blocks.0.adaLN_modulation.1.weight")],
                &[Has("context_embedder.token_refiner.refiner_blocks.0.attn.to_q.weight")],
            ],
        ),
        Signature::new(
            "Qwen-Image transformer",
            Transformer,
            &[
                &[Has("transformer_blocks.0.img_mod.1.weight")],
                &[Has("txt_norm.weight"), Has("transformer_blocks.0.attn.add_k_proj.weight")],
                &[Has("txt_in.text_norm.weight")],
            ],
        ),
        Signature::new(
            STABLE_DIFFUSION_3,
            Transformer,
            &[
                &[Has("joint_blocks.0.context_block.attn.qkv.weight")],
                &[Has("joint_blocks.0.x_block.attn.qkv.weight")],
                &[Has("joint_blocks.0.context_block.adaLN_modulation.1.weight")],
                &[Has("transformer_blocks.0.norm1_context.linear.weight"), Has("pos_embed.proj.weight")],
            ],
        ),
        Signature::new(
            "LongCat-Image transformer",
            Transformer,
            &[&[
                Has("time_embed.timestep_embedder.linear_1.weight"),
                Has(FLUX1_NORM),
                Size("context_embedder.weight", 1, 3584),
            ]],
        ),
        Signature::new(
            "Bria transformer",
            Transformer,
            &[&[Has("time_embed.timestep_embedder.linear_1.weight"), Has(FLUX1_NORM)]],
        ),
        Signature::new(
            "Ovis-Image transformer",
            Transformer,
            &[&[Has("context_embedder_norm.weight"), Has(FLUX1_NORM)]],
        ),
        Signature::new(
            "AuraFlow transformer",
            Transformer,
            &[
                &[Has("double_layers.0.attn.w1q.weight")],
                &[Has("joint_transformer_blocks.0.attn.to_q.weight")],
                &[Has("joint_transformer_blocks.0.attn.add_k_proj.weight")],
            ],
        ),
        Signature::new(
            "HiDream transformer",
            Transformer,
            &[
                &[Has("double_stream_blocks.0.block.adaLN_modulation.1.weight")],
                &[Begins("double_stream_blocks.0.block.")],
            ],
        ),
        Signature::new(
            "Bria FIBO 2 transformer",
            Transformer,
            &[&[Has("perceiver.layers.0.cross_attn_norm.weight"), Begins("noise_refiner.0.")]],
        ),
        Signature::new(
            "Z-Image transformer",
            Transformer,
            &[
                &[Has("all_x_embedder.2-1.weight")],
                &[Has("layers.0.adaLN_modulation.0.weight"), Has("cap_embedder.1.weight")],
                &[Has("noise_refiner.0.adaLN_modulation.0.weight")],
            ],
        ),
        Signature::new(
            "Lumina 2 transformer",
            Transformer,
            &[
                &[Has("time_caption_embed.caption_embedder.0.weight")],
                &[Has("cap_embedder.0.weight"), Has("noise_refiner.0.attention.qkv.weight")],
            ],
        ),
        Signature::new(
            "Wan transformer",
            Transformer,
            &[
                &[Has("head.modulation"), Has("blocks.0.self_attn.q.weight")],
                &[Has("condition_embedder.time_embedder.linear_1.weight")],
                &[Has("blocks.0.self_attn.norm_q.weight")],
            ],
        ),
        Signature::new(
            "LTX-Video transformer",
            Transformer,
            &[
                &[Has("patchify_proj.weight")],
                &[Has("transformer_blocks.0.scale_shift_table"), Has("proj_in.weight")],
            ],
        ),
        Signature::new(
            "Mochi transformer",
            Transformer,
            &[&[Has("t5_yproj.weight")], &[Has("time_embed.caption_proj.weight")]],
        ),
        Signature::new(
            "Sana transformer",
            Transformer,
            &[&[Has("attention_y_norm.weight")], &[Has("caption_norm.weight")]],
        ),
        Signature::new(
            "Allegro transformer",
            Transformer,
            &[&[
                Has("adaln_single.emb.timestep_embedder.linear_1.weight"),
                Has("pos_embed.proj.weight"),
                Lacks("scale_shift_table_y"),
                Size("proj_out.weight", 0, 16),
            ]],
        ),
        Signature::new(
            "PixArt transformer",
            Transformer,
            &[
                &[Has("adaln_single.linear.weight"), Has("pos_embed.proj.weight")],
                &[Has("t_block.1.weight"), Has("y_embedder.y_proj.fc1.weight")],
            ],
        ),
        Signature::new(
            "Cosmos transformer",
            Transformer,
            &[
                &[Has("x_embedder.proj.1.weight")],
                &[Has("time_embed.t_embedder.linear_1.weight"), Has("patch_embed.proj.weight")],
            ],
        ),
        Signature::new(
            "Kandinsky 5 transformer",
            Transformer,
            &[&[Has("visual_transformer_blocks.0.visual_modulation.out_layer.weight")]],
        ),
        Signature::new(
            "Kandinsky 6 transformer",
            Transformer,
            &[&[Has("video_text_embeddings.in_layer.weight")]],
        ),
        Signature::new(
            "CogVideoX transformer",
            Transformer,
            &[&[
                Has("transformer_blocks.0.norm1.linear.weight"),
                Has("patch_embed.proj.weight"),
                Has("time_embedding.linear_1.weight"),
            ]],
        ),
        Signature::new(
            "MotifVideo transformer",
            Transformer,
            &[&[Rank("x_embedder.proj.weight", 5), Has("context_embedder.linear_1.weight")]],
        ),
        Signature::new(
            "PRX transformer",
            Transformer,
            &[&[Has("blocks.0.attention.img_qkv_proj.weight"), Has("img_in.weight")]],
        ),
        Signature::new("Cosmos 3 transformer", Transformer, &[&[Has("norm_moe_gen.weight")]]),
        Signature::new("MiniMax H3 transformer", Transformer, &[&[Has("audio_proj_in.weight")]]),
        Signature::new(
            "Stable Audio transformer",
            Transformer,
            &[&[Has("preprocess_conv.weight"), Has("postprocess_conv.weight")]],
        ),
        Signature::new(
            "ACE-Step transformer",
            Transformer,
            &[
                &[Has("proj_in_conv.weight"), Has("condition_embedder.weight")],
                &[Has("genre_embedder.weight")],
            ],
        ),
        Signature::new(
            "prior of Kandinsky 2 or unCLIP",
            Transformer,
            &[&[Has("proj_to_clip_embeddings.weight")]],
        ),
        Signature::new(
            "DiT of ImageNet's classes",
            Transformer,
            &[&[
                Has("proj_out_1.weight"),
                Has("transformer_blocks.0.norm1.emb.timestep_embedder.linear_1.weight"),
            ]],
        ),
        Signature::new(
            "CogView 4 or GLM-Image transformer",
            Transformer,
            &[&[Has("time_condition_embed.timestep_embedder.linear_1.weight")]],
        ),
        Signature::new(
            "Krea 2 transformer",
            Transformer,
            &[
                &[Has("text_fusion.projector.weight")],
                &[Has("txtfusion.projector.weight")],
                &[Has("text_fusion.layerwise_blocks.0.norm1.weight")],
            ],
        ),
        Signature::new(
            "ERNIE-Image transformer",
            Transformer,
            &[&[Has("layers.0.adaLN_sa_ln.weight"), Has("text_proj.weight")]],
        ),
        Signature::new("Ideogram 4 transformer", Transformer, &[&[Has("llm_cond_proj.weight")]]),
        Signature::new("Hunyuan-DiT transformer", Transformer, &[&[Has("mlp_t5.0.weight")]]),
        Signature::new(
            "OmniGen transformer",
            Transformer,
            &[&[Has("llm.layers.0.self_attn.qkv_proj.weight")]],
        ),
        Signature::new(
            "Stable Cascade model",
            Transformer,
            &[&[Has("clip_txt_mapper.weight")], &[Has("clf.1.weight")]],
        ),
        // U-Nets.
        Signature::new(
            "Kandinsky 3 model",
            Transformer,
            &[&[Has("add_time_condition.attention.to_q.weight"), Has("conv_in.weight")]],
        ),
        Signature::new(
            "Stable Video Diffusion model",
            Transformer,
            &[
                &[Has("down_blocks.0.resnets.0.spatial_res_block.conv1.weight")],
                &[Has("input_blocks.1.0.time_stack.in_layers.0.weight")],
            ],
        ),
        Signature::new(
            "Stable Diffusion XL checkpoint",
            Transformer,
            &[
                &[Has("input_blocks.0.0.weight"), Has("label_emb.0.0.weight")],
                &[
                    Has("conv_in.weight"),
                    Has("add_embedding.linear_1.weight"),
                    Begins("down_blocks.0.resnets.0."),
                ],
            ],
        ),
        Signature::new(
            "Stable Diffusion 1.5 checkpoint",
            Transformer,
            &[
                &[Has("input_blocks.0.0.weight"), Size(SD_CROSS, 1, 768)],
                &[Has("conv_in.weight"), Size(SD_CROSS_DIFFUSERS, 1, 768)],
            ],
        ),
        Signature::new(
            "Stable Diffusion 2 checkpoint",
            Transformer,
            &[
                &[Has("input_blocks.0.0.weight"), Size(SD_CROSS, 1, 1024)],
                &[Has("conv_in.weight"), Size(SD_CROSS_DIFFUSERS, 1, 1024)],
            ],
        ),
        Signature::new(
            "Stable Diffusion checkpoint (1.5, 2 or XL)",
            Transformer,
            &[
                &[Has("input_blocks.0.0.weight")],
                &[Has("down_blocks.0.resnets.0.time_emb_proj.weight"), Has("conv_in.weight")],
            ],
        ),
        // Autoencoders.
        Signature::new(
            "autoencoder of Stable Video Diffusion",
            Autoencoder,
            &[
                &[Has("decoder.up_blocks.0.resnets.0.temporal_res_block.conv1.weight")],
                &[Has("decoder.up.0.block.0.time_stack.in_layers.0.weight")],
            ],
        ),
        Signature::new(
            "consistency decoder of Stable Diffusion",
            Autoencoder,
            &[&[Has("decoder_unet.conv_in.weight")]],
        ),
        Signature::new(
            "autoencoder of Qwen-Image 2.1",
            Autoencoder,
            &[&[Size("encoder.conv_in.weight", 1, 4), Size("decoder.conv_in.weight", 1, 64)]],
        ),
        Signature::new(
            "Stable Diffusion autoencoder (of 1.5, 2 or XL, with 4 latent channels)",
            Autoencoder,
            &[
                // FLUX.2's autoencoder has such convolutions, too, and norms of batches.
                &[Size("decoder.conv_in.weight", 1, 4), Has("quant_conv.weight"), Lacks("bn.running_mean")],
                &[
                    Size("decoder.conv_in.weight", 1, 4),
                    Has("post_quant_conv.weight"),
                    Lacks("bn.running_mean"),
                ],
            ],
        ),
        Signature::new(
            "tiny autoencoder of Stable Diffusion (TAESD, with 4 latent channels)",
            Autoencoder,
            &[
                &[Size("decoder.layers.0.weight", 1, 4), Has("decoder.layers.2.conv.0.weight")],
                &[Has("3.conv.0.weight"), Size("1.weight", 1, 4)],
            ],
        ),
        Signature::new(
            "autoencoder of Wan or Qwen-Image",
            Autoencoder,
            &[
                &[Has("decoder.middle.0.residual.0.gamma")],
                &[Rank("encoder.conv_in.weight", 5), Has("encoder.mid_block.attentions.0.to_qkv.weight")],
            ],
        ),
        Signature::new(
            "video autoencoder (HunyuanVideo, LTX-Video, CogVideoX)",
            Autoencoder,
            &[
                &[Rank("decoder.conv_in.weight", 5)],
                &[Rank("decoder.conv_in.conv_s.weight", 5)],
                &[Rank("decoder.conv_in.conv.weight", 5)],
                &[Rank("encoder.conv_in.weight", 5)],
                &[Rank("encoder.conv_in.conv.weight", 5)],
            ],
        ),
        Signature::new(
            "deep-compression autoencoder of Sana (DC-AE)",
            Autoencoder,
            &[
                &[Has("encoder.project_in.conv.weight")],
                &[Has("decoder.stages.1.op_list.0.main.conv.conv.weight")],
                &[Has("encoder.down_blocks.0.0.conv1.weight")],
            ],
        ),
        Signature::new(
            "autoencoder with a codebook (VQ-GAN)",
            Autoencoder,
            &[&[Has("quantize.embedding.weight")]],
        ),
        // Text encoders.
        Signature::new(
            "UMT5 encoder, of Wan or AuraFlow",
            TextEncoder,
            &[
                &[Has("encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight")],
                &[Has("blocks.1.pos_embedding.embedding.weight"), Has("token_embedding.weight")],
                &[Has("enc.blk.1.attn_rel_b.weight")],
            ],
        ),
        Signature::new(
            "T5 of version 1.0 (whose feed-forward layers have no gate)",
            TextEncoder,
            &[&[Has("encoder.block.0.layer.1.DenseReluDense.wi.weight")]],
        ),
        Signature::new(
            "CLIP-G text model, of Stable Diffusion XL and 3",
            TextEncoder,
            &[
                &[Size(CLIP_TOKENS, 1, 1280), Size(CLIP_TOKENS, 0, 49408)],
                &[Size("token_embedding.weight", 1, 1280), Has("positional_embedding")],
            ],
        ),
        Signature::new(
            "CLIP-H text model, of Stable Diffusion 2",
            TextEncoder,
            &[
                &[Size(CLIP_TOKENS, 1, 1024), Size(CLIP_TOKENS, 0, 49408)],
                &[Size("token_embedding.weight", 1, 1024), Has("positional_embedding")],
            ],
        ),
        Signature::new(
            "Qwen3-VL model, FLUX.3's text encoder",
            TextEncoder,
            &[
                &[
                    Has("model.language_model.layers.0.self_attn.q_norm.weight"),
                    Has("model.visual.patch_embed.proj.weight"),
                ],
                &[
                    Has("language_model.layers.0.self_attn.q_norm.weight"),
                    Has("visual.patch_embed.proj.weight"),
                ],
            ],
        ),
        Signature::new(
            "Qwen2.5-VL model, Qwen-Image's text encoder",
            TextEncoder,
            &[
                &[Has("visual.patch_embed.proj.weight"), Has("model.layers.0.self_attn.q_proj.bias")],
                &[
                    Has("model.visual.patch_embed.proj.weight"),
                    Has("model.language_model.layers.0.self_attn.q_proj.weight"),
                ],
            ],
        ),
        Signature::new(
            "Mistral model with pictures, FLUX.2 dev's text encoder",
            TextEncoder,
            &[
                &[
                    Has("language_model.model.layers.0.self_attn.q_proj.weight"),
                    Has("vision_tower.patch_conv.weight"),
                ],
                &[
                    Has("model.language_model.layers.0.self_attn.q_proj.weight"),
                    Has("model.vision_tower.patch_conv.weight"),
                ],
            ],
        ),
        Signature::new(
            "Gemma 2 model, Lumina's and Sana's text encoder",
            TextEncoder,
            &[
                &[
                    Has("model.layers.0.pre_feedforward_layernorm.weight"),
                    Lacks("model.layers.0.self_attn.q_norm.weight"),
                ],
                &[
                    Has("layers.0.pre_feedforward_layernorm.weight"),
                    Lacks("layers.0.self_attn.q_norm.weight"),
                ],
            ],
        ),
        Signature::new(
            "Gemma 3 model",
            TextEncoder,
            &[
                &[Has("model.layers.0.pre_feedforward_layernorm.weight")],
                &[Has("layers.0.pre_feedforward_layernorm.weight")],
                &[Has("language_model.model.layers.0.pre_feedforward_layernorm.weight")],
            ],
        ),
        Signature::new(
            "Qwen3 model, the text encoder of FLUX.2 klein and Z-Image",
            TextEncoder,
            &[
                &[Has("model.layers.0.self_attn.q_norm.weight")],
                &[Has("layers.0.self_attn.q_norm.weight"), Has("embed_tokens.weight")],
                &[Has("blk.0.attn_q_norm.weight"), Has("token_embd.weight")],
            ],
        ),
        Signature::new(
            "Qwen2 model",
            TextEncoder,
            &[
                &[Has("model.layers.0.self_attn.q_proj.bias")],
                &[Has("layers.0.self_attn.q_proj.bias"), Has("embed_tokens.weight")],
                &[Has("blk.0.attn_q.bias"), Has("token_embd.weight")],
            ],
        ),
        Signature::new(
            "language model (Llama, Mistral or alike)",
            TextEncoder,
            &[
                &[Has("model.layers.0.self_attn.q_proj.weight")],
                &[Has("layers.0.self_attn.q_proj.weight"), Has("embed_tokens.weight")],
                &[Has("language_model.model.layers.0.self_attn.q_proj.weight")],
                &[Has("model.language_model.layers.0.self_attn.q_proj.weight")],
                &[Has("blk.0.attn_q.weight"), Has("token_embd.weight")],
                &[Has("blk.0.attn_qkv.weight"), Has("token_embd.weight")],
                &[Has("transformer.h.0.attn.c_attn.weight")],
                &[Has("h.0.attn.c_attn.weight"), Has("wte.weight")],
            ],
        ),
        Signature::new(
            "BERT-like text model",
            TextEncoder,
            &[
                &[Has("embeddings.word_embeddings.weight")],
                &[Has("bert.embeddings.word_embeddings.weight")],
                &[Has("roberta.embeddings.word_embeddings.weight")],
            ],
        ),
        // What reads or enlarges pictures.
        Signature::new(
            "EVA-CLIP vision model, which PuLID reads",
            ImageEncoder,
            &[&[Has("visual.blocks.0.attn.q_proj.weight")]],
        ),
        Signature::new(
            "DINOv2 vision model",
            ImageEncoder,
            &[
                &[
                    Has("embeddings.patch_embeddings.projection.weight"),
                    Has("encoder.layer.0.attention.attention.query.weight"),
                ],
                &[Has("patch_embed.proj.weight"), Has("blocks.0.ls1.gamma")],
            ],
        ),
        Signature::new(
            "upscaler (ESRGAN or alike)",
            Upscaler,
            &[
                &[Has("conv_first.weight"), Has("conv_last.weight")],
                &[Has("model.0.weight"), Has("model.1.sub.0.RDB1.conv1.0.weight")],
                &[Has("conv_first.weight"), Has("conv_after_body.weight")],
            ],
        ),
        Signature::new(
            "motion module of AnimateDiff",
            Transformer,
            &[
                &[Has("down_blocks.0.motion_modules.0.temporal_transformer.norm.weight")],
                &[Begins("down_blocks.0.motion_modules.")],
            ],
        ),
    ]
};

/// The names by which something may be known, the prefixes of which are looked at.
pub(super) fn anchors() -> impl Iterator<Item = &'static str> {
    SIGNATURES.iter().flat_map(|signature| signature.layouts).filter_map(|signs| signs.first()?.name())
}

/// The form of a change to another model that is not read, by the ends of its names.
pub(super) fn adapter(names: &BTreeMap<&str, &[i64]>) -> Option<&'static ForeignModel> {
    let has = |end: &&str| names.keys().any(|name| name.ends_with(end));
    ADAPTERS.iter().find(|(ends, _)| ends.iter().all(has)).map(|(_, model)| model)
}

const fn adapter_of(name: &'static str) -> ForeignModel {
    ForeignModel { name, role: Role::Adapter }
}

/// The names of LyCORIS and of peft, all of which must be there.
static ADAPTERS: &[(&[&str], ForeignModel)] = &[
    (&[".oft_blocks"], adapter_of("OFT or BOFT adapter")),
    (&[".oft_diag"], adapter_of("OFT adapter")),
    (&[".oft_R.weight"], adapter_of("OFT adapter")),
    (&[".oft_R.default.weight"], adapter_of("OFT adapter")),
    (&[".boft_R"], adapter_of("BOFT adapter")),
    (&[".a1.weight", ".b1.weight"], adapter_of("GLoRA adapter")),
    (&[".vera_lambda_b"], adapter_of("VeRA adapter")),
    (&[".on_input"], adapter_of("IA³ adapter")),
    (&[".ia3_l"], adapter_of("IA³ adapter")),
];

/// The model that the header of a GGUF file names.
pub(super) fn of_architecture(architecture: &str) -> Option<&'static ForeignModel> {
    ARCHITECTURES.iter().find(|(name, _)| *name == architecture).map(|(_, model)| model)
}

/// What `general.architecture` says: city96's names of models for pictures, llama.cpp's of models for text.
static ARCHITECTURES: &[(&str, ForeignModel)] = &[
    ("sd1", ForeignModel { name: "Stable Diffusion 1.5 model", role: Role::Transformer }),
    ("sdxl", ForeignModel { name: "Stable Diffusion XL model", role: Role::Transformer }),
    ("sd3", ForeignModel { name: STABLE_DIFFUSION_3, role: Role::Transformer }),
    ("aura", ForeignModel { name: "AuraFlow transformer", role: Role::Transformer }),
    ("hidream", ForeignModel { name: "HiDream transformer", role: Role::Transformer }),
    ("ltxv", ForeignModel { name: "LTX-Video transformer", role: Role::Transformer }),
    ("hyvid", ForeignModel { name: "HunyuanVideo transformer", role: Role::Transformer }),
    ("wan", ForeignModel { name: "Wan transformer", role: Role::Transformer }),
    ("cosmos", ForeignModel { name: "Cosmos transformer", role: Role::Transformer }),
    ("lumina2", ForeignModel { name: "Lumina 2 or Z-Image transformer", role: Role::Transformer }),
    ("qwen_image", ForeignModel { name: "Qwen-Image transformer", role: Role::Transformer }),
    ("llama", ForeignModel { name: "Llama language model", role: Role::TextEncoder }),
    ("mistral3", ForeignModel { name: "Mistral language model", role: Role::TextEncoder }),
    ("qwen2", ForeignModel { name: "Qwen2 language model", role: Role::TextEncoder }),
    (
        "qwen2vl",
        ForeignModel { name: "Qwen2.5-VL model, Qwen-Image's text encoder", role: Role::TextEncoder },
    ),
    ("qwen3", ForeignModel { name: "Qwen3 model, FLUX.2 klein's text encoder", role: Role::TextEncoder }),
    ("qwen3vl", ForeignModel { name: "Qwen3-VL model, FLUX.3's text encoder", role: Role::TextEncoder }),
    ("gemma2", ForeignModel { name: "Gemma 2 model", role: Role::TextEncoder }),
    ("gemma3", ForeignModel { name: "Gemma 3 model", role: Role::TextEncoder }),
    ("bert", ForeignModel { name: "BERT-like text model", role: Role::TextEncoder }),
    ("clip", ForeignModel { name: "picture projector of a language model", role: Role::ImageEncoder }),
    ("mmproj", ForeignModel { name: "picture projector of a language model", role: Role::ImageEncoder }),
];

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    #[test]
    fn every_layout_begins_with_what_finds_it() {
        for signature in SIGNATURES {
            assert!(!signature.layouts.is_empty(), "{}", signature.model.name);
            for signs in signature.layouts {
                assert!(!matches!(signs.first(), None | Some(Lacks(_))), "{}", signature.model.name);
            }
        }
    }
}
