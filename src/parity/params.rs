//! The arguments of the modules, as a case's `params` has them; what may be left out has the official default.

use serde::Deserialize;
use tch::Kind;

use crate::error::{Error, Result};
use crate::models::flux1::Flux1Params;
use crate::sampling::{NoiseRule, Sampler};

#[derive(Deserialize)]
pub(super) struct RopeParams {
    pub(super) dim: i64,
    pub(super) theta: i64,
}

#[derive(Deserialize)]
pub(super) struct EmbedParams {
    pub(super) dim: i64,
    pub(super) theta: i64,
    pub(super) axes_dim: Vec<i64>,
}

#[derive(Deserialize)]
pub(super) struct TimestepParams {
    pub(super) dim: i64,
    #[serde(default = "ten_thousand")]
    pub(super) max_period: f64,
    #[serde(default = "one_thousand")]
    pub(super) time_factor: f64,
}

fn ten_thousand() -> f64 {
    10_000.0
}

fn one_thousand() -> f64 {
    1_000.0
}

#[derive(Deserialize)]
pub(super) struct MlpParams {
    pub(super) in_dim: i64,
    pub(super) hidden_dim: i64,
}

#[derive(Deserialize)]
pub(super) struct DimParams {
    pub(super) dim: i64,
}

#[derive(Deserialize)]
pub(super) struct AttentionParams {
    pub(super) dim: i64,
    #[serde(default = "eight")]
    pub(super) num_heads: i64,
    #[serde(default)]
    pub(super) qkv_bias: bool,
}

fn eight() -> i64 {
    8
}

#[derive(Deserialize)]
pub(super) struct ModulationParams {
    pub(super) dim: i64,
    pub(super) double: bool,
}

#[derive(Deserialize)]
pub(super) struct BlockParams {
    pub(super) hidden_size: i64,
    pub(super) num_heads: i64,
    #[serde(default = "four")]
    pub(super) mlp_ratio: f64,
    #[serde(default)]
    pub(super) qkv_bias: bool,
}

fn four() -> f64 {
    4.0
}

#[derive(Deserialize)]
pub(super) struct LastParams {
    pub(super) hidden_size: i64,
    pub(super) patch_size: i64,
    pub(super) out_channels: i64,
}

#[derive(Deserialize)]
pub(super) struct LoraParams {
    pub(super) in_features: i64,
    pub(super) out_features: i64,
    pub(super) bias: bool,
    pub(super) rank: i64,
    #[serde(default = "yes")]
    pub(super) lora_bias: bool,
    #[serde(default = "one")]
    pub(super) scale: f64,
}

fn yes() -> bool {
    true
}

fn one() -> f64 {
    1.0
}

#[derive(Deserialize)]
pub(super) struct WrapperParams {
    #[serde(flatten)]
    pub(super) flux: Flux1Params,
    #[serde(default = "one")]
    pub(super) lora_scale: f64,
}

#[derive(Deserialize)]
pub(super) struct ConvParams {
    pub(super) in_channels: i64,
    pub(super) out_channels: Option<i64>,
}

#[derive(Deserialize)]
pub(super) struct SizeParams {
    pub(super) height: i64,
    pub(super) width: i64,
}

#[derive(Deserialize)]
pub(super) struct NoiseParams {
    pub(super) num_samples: i64,
    pub(super) height: i64,
    pub(super) width: i64,
    pub(super) seed: u64,
    pub(super) dtype: String,
    pub(super) rule: Option<String>,
}

impl NoiseParams {
    pub(super) fn kind(&self) -> Result<Kind> {
        match self.dtype.trim_start_matches("torch.") {
            "bfloat16" => Ok(Kind::BFloat16),
            "float32" => Ok(Kind::Float),
            "float16" => Ok(Kind::Half),
            other => Err(Error::Case(format!("noise of {other} is not known"))),
        }
    }

    pub(super) fn rule(&self) -> NoiseRule {
        if self.rule.as_deref() == Some("legacy") { NoiseRule::Legacy } else { NoiseRule::Current }
    }
}

#[derive(Deserialize)]
pub(super) struct ScheduleParams {
    pub(super) num_steps: usize,
    pub(super) image_seq_len: i64,
    #[serde(default = "base_shift")]
    pub(super) base_shift: f64,
    #[serde(default = "max_shift")]
    pub(super) max_shift: f64,
    #[serde(default = "yes")]
    pub(super) shift: bool,
}

fn base_shift() -> f64 {
    0.5
}

fn max_shift() -> f64 {
    1.15
}

#[derive(Deserialize)]
pub(super) struct DenoiseParams {
    #[serde(default = "four")]
    pub(super) guidance: f64,
}

/// Of the arguments of diffusers' autoencoder, those that no shape says.
#[derive(Deserialize)]
pub(super) struct DiffusersAutoencoderParams {
    pub(super) scaling_factor: f64,
    pub(super) shift_factor: f64,
}

/// The arguments of diffusers' transformer.
#[derive(Deserialize)]
pub(super) struct DiffusersParams {
    pub(super) in_channels: i64,
    pub(super) out_channels: Option<i64>,
    pub(super) num_layers: usize,
    pub(super) num_single_layers: usize,
    pub(super) attention_head_dim: i64,
    pub(super) num_attention_heads: i64,
    pub(super) joint_attention_dim: i64,
    pub(super) pooled_projection_dim: i64,
    pub(super) guidance_embeds: bool,
    pub(super) axes_dims_rope: [i64; 3],
}

impl DiffusersParams {
    pub(super) fn official(&self) -> Flux1Params {
        Flux1Params {
            in_channels: self.in_channels,
            out_channels: self.out_channels.unwrap_or(self.in_channels),
            vec_in_dim: self.pooled_projection_dim,
            context_in_dim: self.joint_attention_dim,
            hidden_size: self.attention_head_dim * self.num_attention_heads,
            mlp_ratio: 4.0,
            num_heads: self.num_attention_heads,
            depth: self.num_layers,
            depth_single_blocks: self.num_single_layers,
            axes_dim: self.axes_dims_rope,
            theta: 10_000,
            qkv_bias: true,
            guidance_embed: self.guidance_embeds,
        }
    }
}

#[derive(Deserialize)]
pub(super) struct SamplerParams {
    pub(super) sampler: Sampler,
    pub(super) height: i64,
    pub(super) width: i64,
    pub(super) seed: u64,
}
