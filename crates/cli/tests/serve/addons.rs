//! Small models of random weights: add-ons of the small model, and transformers in its place.

use std::path::PathBuf;
use std::sync::LazyLock;

use tch::Device;
use tch::nn::VarStore;
use tch_flux::models::flux1::{ControlNet, ControlNetParams, Flux1, Flux1Params, IpAdapter, IpAdapterParams};
use tch_flux::models::vision::{
    ClipVision, ClipVisionConfig, DepthAnything, DepthConfig, Dinov2Config, ReduxConfig, ReduxImageEncoder,
    SiglipConfig, SiglipVision,
};
use tch_flux::nn;

/// The small model's sizes.
const SIZES: Flux1Params = Flux1Params {
    vec_in_dim: 64,
    context_in_dim: 64,
    hidden_size: 128,
    num_heads: 4,
    depth: 2,
    depth_single_blocks: 2,
    axes_dim: [4, 14, 14],
    ..Flux1Params::SCHNELL
};

/// A file of random weights.
fn random<M>(path: PathBuf, build: impl Fn(&VarStore) -> tch_flux::Result<M>) -> PathBuf {
    let vs = VarStore::new(Device::Cpu);
    build(&vs).unwrap();
    nn::init(&vs, 3).unwrap();
    vs.save(&path).unwrap();
    path
}

/// Small models of every kind that may stand beside the small one.
pub struct AddonModels {
    pub folder: tempfile::TempDir,
    pub plain: PathBuf,
    pub union: PathBuf,
    pub adapter: PathBuf,
    pub encoder: PathBuf,
    pub fill: PathBuf,
    pub control: PathBuf,
    pub depth: PathBuf,
}

impl AddonModels {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let net = |name: &str, num_mode| {
            let params = ControlNetParams { flux: SIZES, num_mode, conditioning_embedding_channels: None };
            random(at(name), |vs| ControlNet::new(vs.root(), &params))
        };
        let adapter = IpAdapterParams {
            clip_embeddings_dim: 24,
            cross_attention_dim: 64,
            clip_extra_context_tokens: 4,
            hidden_size: 128,
            depth: 2,
        };
        let clip = ClipVisionConfig {
            hidden_size: 64,
            intermediate_size: 96,
            projection_dim: 24,
            num_hidden_layers: 1,
            num_attention_heads: 1,
            image_size: 28,
            patch_size: 14,
            hidden_act: "quick_gelu".into(),
            layer_norm_eps: 1e-5,
        };
        let siglip = SiglipConfig {
            hidden_size: 32,
            intermediate_size: 48,
            num_hidden_layers: 1,
            num_attention_heads: 4,
            image_size: 40,
            patch_size: 10,
            ..SiglipConfig::default()
        };
        // As its official repository has it.
        for name in ["redux", "redux/image_encoder", "depth"] {
            std::fs::create_dir(at(name)).unwrap();
        }
        random(at("redux/image_encoder/model.safetensors"), |vs| SiglipVision::new(vs.root(), &siglip));
        std::fs::write(at("redux/image_encoder/config.json"), serde_json::to_string(&siglip).unwrap())
            .unwrap();
        let redux = ReduxConfig { redux_dim: 32, txt_in_features: 64 };
        random(at("redux/flux1-redux-dev.safetensors"), |vs| ReduxImageEncoder::new(vs.root(), &redux));
        let depth = DepthConfig {
            backbone_config: Dinov2Config {
                hidden_size: 32,
                num_hidden_layers: 4,
                num_attention_heads: 2,
                image_size: 28,
                out_indices: Some(vec![1, 2, 3, 4]),
                ..DepthConfig::default().backbone_config
            },
            reassemble_hidden_size: 32,
            neck_hidden_sizes: vec![8, 8, 16, 16],
            fusion_hidden_size: 8,
            head_hidden_size: 8,
            ..DepthConfig::default()
        };
        random(at("depth/model.safetensors"), |vs| DepthAnything::new(vs.root(), &depth));
        std::fs::write(at("depth/config.json"), serde_json::to_string(&depth).unwrap()).unwrap();
        let wide = |name: &str, in_channels| {
            let params = Flux1Params { in_channels, ..SIZES };
            random(at(name), |vs| Flux1::new(vs.root(), &params))
        };
        Self {
            plain: net("plain.safetensors", None),
            union: net("union.safetensors", Some(7)),
            adapter: random(at("adapter.safetensors"), |vs| IpAdapter::new(vs.root(), &adapter)),
            encoder: random(at("encoder.safetensors"), |vs| ClipVision::new(vs.root(), &clip)),
            fill: wide("fill.safetensors", 384),
            control: wide("control.safetensors", 128),
            depth: at("depth"),
            folder,
        }
    }
}

pub fn addon_models() -> &'static AddonModels {
    static ADDON_MODELS: LazyLock<AddonModels> = LazyLock::new(AddonModels::new);
    &ADDON_MODELS
}
