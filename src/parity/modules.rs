//! The modules that cases can be of.

use serde::Serialize;

/// A module that a case can be of, and the arguments that its `params` hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Module {
    /// As the case's metadata has it.
    pub name: &'static str,
    /// Arguments that must be there.
    pub params: &'static [&'static str],
    /// Arguments that have a default. Others are not looked at.
    pub optional: &'static [&'static str],
}

const fn module(
    name: &'static str,
    params: &'static [&'static str],
    optional: &'static [&'static str],
) -> Module {
    Module { name, params, optional }
}

macro_rules! flux {
    ($($more:literal),*) => {
        &[
            "in_channels", "out_channels", "vec_in_dim", "context_in_dim", "hidden_size", "mlp_ratio", "num_heads",
            "depth", "depth_single_blocks", "axes_dim", "theta", "qkv_bias", "guidance_embed", $($more),*
        ]
    };
}

macro_rules! diffusers_flux {
    ($($more:literal),*) => {
        &[
            "in_channels", "num_layers", "num_single_layers", "attention_head_dim", "num_attention_heads",
            "joint_attention_dim", "pooled_projection_dim", "guidance_embeds", "axes_dims_rope", $($more),*
        ]
    };
}

/// All of them, by their names.
pub const MODULES: &[Module] = &[
    module("diffusers.AutoencoderKL", &["scaling_factor", "shift_factor"], &[]),
    module("diffusers.AutoencoderTiny", &["scaling_factor", "shift_factor"], &[]),
    module(
        "diffusers.FluxControlNetModel",
        diffusers_flux!("conditioning_scale"),
        &["out_channels", "num_mode", "conditioning_embedding_channels", "controlnet_mode"],
    ),
    module("diffusers.FluxIPAdapterAttnProcessor", diffusers_flux!("scales"), &["out_channels"]),
    module(
        "diffusers.FluxTransformer2DModel",
        diffusers_flux!(),
        &["out_channels", "controlnet_blocks_repeat"],
    ),
    module("diffusers.ReduxImageEncoder", &[], &["redux_dim", "txt_in_features"]),
    module("diffusers.schedulers", &["sampler", "height", "width", "seed"], &[]),
    module("flux.math.apply_rope", &[], &[]),
    module("flux.math.attention", &[], &[]),
    module("flux.math.rope", &["dim", "theta"], &[]),
    module("flux.model.Flux", flux!(), &["controlnet_blocks_repeat"]),
    module("flux.model.FluxLoraWrapper", flux!(), &["lora_scale"]),
    module("flux.modules.autoencoder.AttnBlock", &["in_channels"], &[]),
    module(
        "flux.modules.autoencoder.AutoEncoder",
        &[
            "resolution",
            "in_channels",
            "ch",
            "out_ch",
            "ch_mult",
            "num_res_blocks",
            "z_channels",
            "scale_factor",
            "shift_factor",
        ],
        &[],
    ),
    module("flux.modules.autoencoder.ResnetBlock", &["in_channels"], &["out_channels"]),
    module(
        "flux.modules.layers.DoubleStreamBlock",
        &["hidden_size", "num_heads"],
        &["mlp_ratio", "qkv_bias"],
    ),
    module("flux.modules.layers.EmbedND", &["dim", "theta", "axes_dim"], &[]),
    module("flux.modules.layers.LastLayer", &["hidden_size", "patch_size", "out_channels"], &[]),
    module("flux.modules.layers.MLPEmbedder", &["in_dim", "hidden_dim"], &[]),
    module("flux.modules.layers.Modulation", &["dim", "double"], &[]),
    module("flux.modules.layers.QKNorm", &["dim"], &[]),
    module("flux.modules.layers.RMSNorm", &["dim"], &[]),
    module("flux.modules.layers.SelfAttention", &["dim"], &["num_heads", "qkv_bias"]),
    module("flux.modules.layers.SingleStreamBlock", &["hidden_size", "num_heads"], &["mlp_ratio"]),
    module("flux.modules.layers.timestep_embedding", &["dim"], &["max_period", "time_factor"]),
    module(
        "flux.modules.lora.LinearLora",
        &["in_features", "out_features", "bias", "rank"],
        &["lora_bias", "scale"],
    ),
    module("flux.sampling.denoise", flux!(), &["guidance"]),
    module("flux.sampling.get_noise", &["num_samples", "height", "width", "seed", "dtype"], &["rule"]),
    module(
        "flux.sampling.get_schedule",
        &["num_steps", "image_seq_len"],
        &["base_shift", "max_shift", "shift"],
    ),
    module("flux.sampling.prepare", &[], &[]),
    module("flux.sampling.unpack", &["height", "width"], &[]),
    module("torch.nn.functional.interpolate", &["height", "width"], &[]),
    module(
        "transformers.CLIPTextModel",
        &["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"],
        &["max_position_embeddings", "hidden_act", "layer_norm_eps", "eos_token_id"],
    ),
    module(
        "transformers.CLIPVisionModelWithProjection",
        &[
            "hidden_size",
            "intermediate_size",
            "projection_dim",
            "num_hidden_layers",
            "num_attention_heads",
            "image_size",
            "patch_size",
        ],
        &["hidden_act", "layer_norm_eps"],
    ),
    module("transformers.DPTImageProcessorPil", &[], &[]),
    module(
        "transformers.DepthAnythingForDepthEstimation",
        &[],
        &[
            "backbone_config",
            "patch_size",
            "reassemble_hidden_size",
            "reassemble_factors",
            "neck_hidden_sizes",
            "fusion_hidden_size",
            "head_in_index",
            "head_hidden_size",
            "depth_estimation_type",
            "max_depth",
        ],
    ),
    module(
        "transformers.Dinov2Backbone",
        &[],
        &[
            "hidden_size",
            "num_hidden_layers",
            "num_attention_heads",
            "mlp_ratio",
            "hidden_act",
            "layer_norm_eps",
            "image_size",
            "patch_size",
            "num_channels",
            "qkv_bias",
            "use_swiglu_ffn",
            "out_indices",
            "out_features",
            "apply_layernorm",
        ],
    ),
    module(
        "transformers.SiglipVisionModel",
        &[],
        &[
            "hidden_size",
            "intermediate_size",
            "num_hidden_layers",
            "num_attention_heads",
            "num_channels",
            "image_size",
            "patch_size",
            "hidden_act",
            "layer_norm_eps",
        ],
    ),
    module(
        "transformers.T5EncoderModel",
        &["vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_heads", "feed_forward_proj"],
        &["relative_attention_num_buckets", "relative_attention_max_distance", "layer_norm_epsilon"],
    ),
];

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};
    use std::path::Path;

    use serde_json::{Map, Value};

    use super::super::Case;
    use super::*;
    use crate::error::Error;

    /// The cases of the repository, one of each module.
    fn cases() -> BTreeMap<String, Case> {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/parity");
        let paths = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
        paths.map(|path| Case::open(path).unwrap()).map(|case| (case.module.clone(), case)).collect()
    }

    #[test]
    fn the_list_is_that_of_the_modules_that_are_run() {
        let run = [include_str!("layers.rs"), include_str!("models.rs")].concat();
        let arm = |line: &str| {
            let (name, rest) = line.trim().strip_prefix('"')?.split_once('"')?;
            rest.trim_start().starts_with("=>").then(|| name.to_string())
        };
        let run: BTreeSet<String> = run.lines().filter_map(arm).collect();
        let listed: BTreeSet<String> = MODULES.iter().map(|module| module.name.to_string()).collect();
        assert_eq!(listed, run);
        assert_eq!(listed.len(), MODULES.len(), "each once");
        assert!(MODULES.is_sorted_by_key(|module| module.name));
    }

    #[test]
    fn what_must_be_there_is_missed_and_the_rest_is_not() {
        let mut wrong = Vec::new();
        for (name, mut case) in cases() {
            let module = MODULES.iter().find(|module| module.name == name).unwrap();
            let Value::Object(all) = case.params.clone() else { panic!("{name}") };
            for param in module.params {
                assert!(all.contains_key(*param), "{name}: {param}");
                let mut fewer = all.clone();
                fewer.remove(*param);
                case.params = Value::Object(fewer);
                let missed = matches!(case.compute(), Err(Error::Case(text)) if text.contains("params"));
                if !missed {
                    wrong.push(format!("{name}: {param} is not missed"));
                }
            }
            let known =
                |name: &String| module.params.contains(&&**name) || module.optional.contains(&&**name);
            let known: Map<String, Value> = all.into_iter().filter(|(name, _)| known(name)).collect();
            case.params = Value::Object(known);
            let compared = case.run().unwrap().unwrap();
            if !compared.iter().all(|one| one.passes(false)) {
                wrong.push(format!("{name}: something else is looked at"));
            }
        }
        assert!(wrong.is_empty(), "{wrong:?}");
    }
}
