//! The `config.json` from which diffusers and transformers build a model, from the shapes of its tensors.

use std::path::Path;

use serde_json::{Map, Value, json};

use crate::checkpoint::{Checkpoint, Family, read_index};
use crate::error::{Error, FileProblem, Result};
use crate::family::ModelFamily;
use crate::models::autoencoder::{AutoEncoderParams, TinyAutoEncoderParams};
use crate::models::flux1::{ControlNetParams, Flux1Params};
use crate::models::text::{ClipConfig, T5Config};

/// The diffusers whose fields these are.
const DIFFUSERS: &str = "0.42.1";

/// The settings of a model in the names of diffusers or transformers. `own`, the settings that the input came with, says
/// what no shape does, such as the factors of an autoencoder's latents.
///
/// # Errors
/// [`Error::Config`] for sizes that diffusers builds no model of.
pub(super) fn of(official: &Checkpoint, family: &Family, own: Option<Value>) -> Result<Option<Value>> {
    let shape = |name: &str| official.shape(name);
    let config = match family {
        Family::Transformer { family: ModelFamily::Flux1, .. } => flux1(&Flux1Params::from_shapes(shape)?)?,
        Family::Transformer { family: ModelFamily::Flux2, .. } => flux2(&shape)?,
        Family::ControlNet { .. } => controlnet(&ControlNetParams::from_shapes(shape)?)?,
        Family::AutoEncoder { family, .. } => autoencoder(&shape, *family)?,
        Family::TinyAutoEncoder { .. } => tiny_autoencoder(&shape)?,
        Family::Clip | Family::T5 { .. } | Family::Siglip if own.is_some() => Value::Null,
        Family::Clip => text("CLIPTextModel", "clip_text_model", ClipConfig::from_shapes(shape)?),
        Family::T5 { .. } => text("T5EncoderModel", "t5", T5Config::from_shapes(shape)?),
        _ => return Ok(None),
    };
    let same = own.filter(|own| config.is_null() || own.get("_class_name") == config.get("_class_name"));
    Ok(Some(match (config, same) {
        (Value::Object(mut config), Some(Value::Object(own))) => {
            config.extend(own);
            without_quantization(Value::Object(config))
        }
        (Value::Null, Some(own)) => without_quantization(own),
        (config, _) => config,
    }))
}

/// What no shape says, and so is lost where no `config.json` is written.
const IN_NO_SHAPE: [&str; 9] = [
    "axes_dims_rope",
    "eos_token_id",
    "hidden_act",
    "layer_norm_eps",
    "layer_norm_epsilon",
    "num_attention_heads",
    "relative_attention_max_distance",
    "scaling_factor",
    "shift_factor",
];

/// What the settings that the input came with say otherwise than the shapes do by themselves: `scaling_factor 0.5`.
pub(super) fn lost(official: &Checkpoint, family: &Family, own: &Value) -> Result<Vec<String>> {
    let Some(usual) = of(official, family, None)? else { return Ok(Vec::new()) };
    let own = own.get("text_config").unwrap_or(own);
    let differs = |key: &&&str| {
        let (own, usual) = (own.get(key).filter(|own| !own.is_null()), usual.get(key));
        // `1` is `1.0`.
        let same = |a: &Value, b: &Value| a == b || (a.is_number() && a.as_f64() == b.as_f64());
        own.zip(usual).is_some_and(|(own, usual)| !same(own, usual))
    };
    Ok(IN_NO_SHAPE.iter().filter(differs).map(|key| format!("{key} {}", own[*key])).collect())
}

/// The `config.json` that lies in the same folder as the weights.
pub(super) fn beside(input: &Path) -> Result<Option<Value>> {
    let folder = if input.is_dir() { input } else { input.parent().unwrap_or(Path::new("")) };
    let path = folder.join("config.json");
    if !path.is_file() {
        return Ok(None);
    }
    let problem = |reason: String| Error::file(&path)(FileProblem::Settings { reason });
    let text = read_index(&path)?;
    let value: Value = serde_json::from_str(&text).map_err(|e| problem(e.to_string()))?;
    if value.is_object() { Ok(Some(value)) } else { Err(problem("it is no JSON object".into())) }
}

/// Without what says how weights were quantised: the written ones are not, or say so themselves.
pub(super) fn without_quantization(mut config: Value) -> Value {
    if let Value::Object(fields) = &mut config {
        fields.remove("quantization_config");
    }
    config
}

fn text(class: &str, model_type: &str, sizes: impl serde::Serialize) -> Value {
    let mut config = serde_json::to_value(sizes).unwrap_or_default();
    if let Value::Object(fields) = &mut config {
        fields.insert("architectures".into(), json!([class]));
        fields.insert("model_type".into(), json!(model_type));
    }
    config
}

fn flux1(params: &Flux1Params) -> Result<Value> {
    if params.mlp_ratio != 4.0 || !params.qkv_bias {
        let reason = "diffusers builds FLUX.1 with an MLP four times as wide as the model, and biases alone";
        return Err(Error::Config(reason.into()));
    }
    Ok(json!({
        "_class_name": ModelFamily::Flux1.row().transformer_class,
        "_diffusers_version": DIFFUSERS,
        "attention_head_dim": params.hidden_size / params.num_heads,
        "axes_dims_rope": params.axes_dim,
        "guidance_embeds": params.guidance_embed,
        "in_channels": params.in_channels,
        "joint_attention_dim": params.context_in_dim,
        "num_attention_heads": params.num_heads,
        "num_layers": params.depth,
        "num_single_layers": params.depth_single_blocks,
        "out_channels": params.out_channels,
        "patch_size": 1,
        "pooled_projection_dim": params.vec_in_dim,
    }))
}

fn controlnet(params: &ControlNetParams) -> Result<Value> {
    let mut config = flux1(&params.flux)?;
    if let Value::Object(fields) = &mut config {
        fields.insert("_class_name".into(), json!("FluxControlNetModel"));
        fields.remove("out_channels");
        fields.insert("num_mode".into(), json!(params.num_mode));
        let channels = params.conditioning_embedding_channels;
        fields.insert("conditioning_embedding_channels".into(), json!(channels));
        // The hint's pixels become patches of 2 × 2; what the autoencoder encodes comes as patches.
        fields.insert("patch_size".into(), json!(if channels.is_some() { 2 } else { 1 }));
    }
    Ok(config)
}

type Shape<'a> = dyn Fn(&str) -> Option<Vec<i64>> + 'a;

/// How many of `{}` there are from 0 on.
fn count(shape: &Shape, pattern: &str) -> usize {
    (0usize..).take_while(|i| shape(&pattern.replacen("{}", &i.to_string(), 1)).is_some()).count()
}

fn flux2(shape: &Shape) -> Result<Value> {
    let size = |name: &str, axis: usize| {
        let size = shape(name).and_then(|shape| shape.get(axis).copied()).filter(|size| *size > 0);
        size.ok_or_else(|| Error::Config(format!("this is no FLUX.2 transformer: {name} is missing")))
    };
    let hidden = size("img_in.weight", 0)?;
    let head = size("double_blocks.0.img_attn.norm.key_norm.scale", 0)?;
    Ok(json!({
        "_class_name": ModelFamily::Flux2.row().transformer_class,
        "_diffusers_version": DIFFUSERS,
        "attention_head_dim": head,
        "axes_dims_rope": vec![head / 4; 4],
        "eps": 1e-6,
        "guidance_embeds": shape("guidance_in.in_layer.weight").is_some(),
        "in_channels": size("img_in.weight", 1)?,
        "joint_attention_dim": size("txt_in.weight", 1)?,
        "mlp_ratio": size("double_blocks.0.img_mlp.2.weight", 1)? as f64 / hidden as f64,
        "num_attention_heads": hidden / head,
        "num_layers": count(shape, "double_blocks.{}.img_attn.qkv.weight"),
        "num_single_layers": count(shape, "single_blocks.{}.linear1.weight"),
        "out_channels": size("final_layer.linear.weight", 0)?,
        "patch_size": 1,
        "rope_theta": 2000,
        "timestep_guidance_channels": size("time_in.in_layer.weight", 1)?,
    }))
}

fn autoencoder(shape: &Shape, family: ModelFamily) -> Result<Value> {
    let params = AutoEncoderParams::from_shapes(shape)?;
    let channels: Vec<i64> = params.ch_mult.iter().map(|mult| mult * params.ch).collect();
    let decoder = |level: usize| shape(&format!("decoder.up.{level}.block.0.conv1.weight"))?.first().copied();
    let decoder: Vec<i64> = (0..channels.len()).filter_map(decoder).collect();
    let mut config = json!({
        "_class_name": family.row().autoencoder_class,
        "_diffusers_version": DIFFUSERS,
        "act_fn": "silu",
        "block_out_channels": channels,
        "down_block_types": vec!["DownEncoderBlock2D"; channels.len()],
        "in_channels": params.in_channels,
        "latent_channels": params.z_channels,
        "layers_per_block": params.num_res_blocks,
        "mid_block_add_attention": shape("encoder.mid.attn_1.q.weight").is_some(),
        "norm_num_groups": 32,
        "out_channels": params.out_ch,
        "sample_size": 1024,
        "up_block_types": vec!["UpDecoderBlock2D"; channels.len()],
        "use_post_quant_conv": shape("decoder.post_quant_conv.weight").is_some(),
        "use_quant_conv": shape("encoder.quant_conv.weight").is_some(),
    });
    let more = match family {
        ModelFamily::Flux2 => json!({
            "batch_norm_eps": 1e-4,
            "batch_norm_momentum": 0.1,
            "decoder_block_out_channels": if decoder == channels { Value::Null } else { json!(decoder) },
            "patch_size": [2, 2],
        }),
        ModelFamily::Flux1 if decoder != channels => {
            let reason = "diffusers builds FLUX.1's decoder as wide as its encoder alone";
            return Err(Error::Config(reason.into()));
        }
        ModelFamily::Flux1 => json!({
            "force_upcast": true,
            "latents_mean": null,
            "latents_std": null,
            "scaling_factor": params.scale_factor,
            "shift_factor": params.shift_factor,
        }),
    };
    if let (Value::Object(fields), Value::Object(more)) = (&mut config, more) {
        fields.extend::<Map<String, Value>>(more);
    }
    Ok(config)
}

fn tiny_autoencoder(shape: &Shape) -> Result<Value> {
    let params = TinyAutoEncoderParams::from_shapes(shape)?;
    let (encoder, decoder) = (&params.num_encoder_blocks, &params.num_decoder_blocks);
    if encoder.is_empty() || decoder.is_empty() {
        let reason =
            "diffusers builds encoder and decoder of a tiny autoencoder together, and one is not here";
        return Err(Error::Config(reason.into()));
    }
    Ok(json!({
        "_class_name": "AutoencoderTiny",
        "_diffusers_version": DIFFUSERS,
        "act_fn": "relu",
        "decoder_block_out_channels": vec![params.block_out_channels; decoder.len()],
        "encoder_block_out_channels": vec![params.block_out_channels; encoder.len()],
        "in_channels": params.in_channels,
        "latent_channels": params.latent_channels,
        "num_decoder_blocks": decoder,
        "num_encoder_blocks": encoder,
        "out_channels": params.out_channels,
        "scaling_factor": params.scaling_factor,
        "shift_factor": params.shift_factor,
        "upsample_fn": "nearest",
    }))
}
