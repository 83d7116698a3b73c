//! CLIP's text model: tokens to states and one pooled vector.
//!
//! Source: `transformers` 5.23.0, `models/clip/modeling_clip.py`, with the attention that it takes by default
//! (`scaled_dot_product_attention`, causal).

use serde::{Deserialize, Serialize};
use tch::nn::{Module, Path};
use tch::{Kind, Tensor};

use crate::config::ConfigFile;
use crate::error::{Error, Result};
use crate::math::{merge_heads, scaled_dot_product_attention, split_heads};
use crate::models::Model;
use crate::nn::{Embedding, LayerNorm, Linear, Parameters, check_sizes};
use crate::numerics;
use crate::ops::{self, Activation, Epilogue};

/// The sizes of a CLIP text model, in the names of its `config.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClipConfig {
    /// Pieces of the vocabulary.
    pub vocab_size: i64,
    /// Width of the states.
    pub hidden_size: i64,
    /// Width of the MLP.
    pub intermediate_size: i64,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Heads.
    pub num_attention_heads: i64,
    /// The longest prompt in tokens, both marks included.
    #[serde(default = "default_positions")]
    pub max_position_embeddings: i64,
    /// The MLP's activation: `quick_gelu` or `gelu`.
    #[serde(default = "default_act")]
    pub hidden_act: String,
    /// Added to the variance.
    #[serde(default = "default_eps")]
    pub layer_norm_eps: f64,
    /// The end mark. 2 stands for the highest token of the prompt, since old files name it wrongly.
    #[serde(default = "default_eos")]
    pub eos_token_id: i64,
}

fn default_positions() -> i64 {
    77
}

fn default_act() -> String {
    "quick_gelu".into()
}

fn default_eps() -> f64 {
    1e-5
}

fn default_eos() -> i64 {
    49407
}

impl ClipConfig {
    /// CLIP-L (`openai/clip-vit-large-patch14`), the text model of FLUX.1.
    pub fn large() -> Self {
        Self {
            vocab_size: 49408,
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            max_position_embeddings: default_positions(),
            hidden_act: default_act(),
            layer_norm_eps: default_eps(),
            eos_token_id: default_eos(),
        }
    }

    /// Reads every size from the tensors' shapes, by their official names; `shape` gives `None` for a name that the
    /// file does not hold. Heads are 64 wide and the rest is as in CLIP-L, since no shape says them.
    ///
    /// # Errors
    /// [`Error::Config`] names the first tensor that is missing or no matrix.
    pub fn from_shapes(shape: impl Fn(&str) -> Option<Vec<i64>>) -> Result<Self> {
        let matrix = |name: &str| super::matrix("CLIP text model", &shape, name);
        let (vocab_size, hidden_size) = matrix("text_model.embeddings.token_embedding.weight")?;
        let (max_position_embeddings, _) = matrix("text_model.embeddings.position_embedding.weight")?;
        let (intermediate_size, _) = matrix("text_model.encoder.layers.0.mlp.fc1.weight")?;
        let layer = |i: &usize| shape(&format!("text_model.encoder.layers.{i}.mlp.fc1.weight")).is_some();
        Ok(Self {
            vocab_size,
            hidden_size,
            intermediate_size,
            num_hidden_layers: (0..).take_while(layer).count(),
            num_attention_heads: (hidden_size / 64).max(1),
            max_position_embeddings,
            ..Self::large()
        })
    }

    /// Reads a `config.json`, of the text model alone or of the whole CLIP (`text_config`).
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::File`] with the key of what is missing, of another type, or not built here.
    pub fn read(path: impl AsRef<std::path::Path>) -> Result<Self> {
        Self::from_config(&ConfigFile::read(path.as_ref())?, None)
    }

    /// Reads the settings, where the sizes of the tensors may be known, too: both must agree, and the sizes of the tensors
    /// stand for what the file leaves out.
    pub(crate) fn from_config(config: &ConfigFile, shapes: Option<&Self>) -> Result<Self> {
        config.check_model_type(&["clip", "clip_text_model"])?;
        let section = config.section("text_config")?;
        let config = section.as_ref().unwrap_or(config);
        // What the settings of the whole CLIP leave out is as in `transformers`' `CLIPTextConfig`.
        let size = |key: &str, field: fn(&Self) -> i64, default: i64| match (shapes, config.int(key)?) {
            (None, None) if section.is_some() => Ok(default),
            _ => config.size(key, shapes.map(field)),
        };
        let hidden_act = config.text("hidden_act")?.unwrap_or("quick_gelu");
        if activation(hidden_act).is_err() {
            return Err(
                config.wrong("hidden_act", format!("is {hidden_act:?}; quick_gelu and gelu are known"))
            );
        }
        let hidden_size = size("hidden_size", |sizes| sizes.hidden_size, 512)?;
        let num_attention_heads = config.int("num_attention_heads")?.unwrap_or(8);
        if num_attention_heads < 1 || hidden_size % num_attention_heads != 0 {
            let reason =
                format!("is {num_attention_heads}, which does not divide the hidden_size {hidden_size}");
            return Err(config.wrong("num_attention_heads", reason));
        }
        let layers = size("num_hidden_layers", |sizes| sizes.num_hidden_layers as i64, 12)?;
        Ok(Self {
            vocab_size: size("vocab_size", |sizes| sizes.vocab_size, 49408)?,
            hidden_size,
            intermediate_size: size("intermediate_size", |sizes| sizes.intermediate_size, 2048)?,
            num_hidden_layers: config.count("num_hidden_layers", layers)?,
            num_attention_heads,
            max_position_embeddings: match config.int("max_position_embeddings")? {
                None => shapes.map_or(default_positions(), |sizes| sizes.max_position_embeddings),
                Some(_) => size("max_position_embeddings", |sizes| sizes.max_position_embeddings, 77)?,
            },
            hidden_act: hidden_act.into(),
            layer_norm_eps: config.float("layer_norm_eps")?.unwrap_or(default_eps()),
            eos_token_id: config.int("eos_token_id")?.unwrap_or(default_eos()),
        })
    }
}

/// Returns the MLP's activation, by its name in a configuration.
fn activation(name: &str) -> Result<Activation> {
    match name {
        "quick_gelu" => Ok(Activation::QuickGelu),
        "gelu" => Ok(Activation::GeluErf),
        _ => Err(Error::Config(format!("CLIP's hidden_act is {name:?}; quick_gelu and gelu are known"))),
    }
}

/// The sizes of a layer of CLIP's text model or of its vision model.
pub(crate) struct LayerSizes<'a> {
    pub(crate) hidden_size: i64,
    pub(crate) intermediate_size: i64,
    pub(crate) num_attention_heads: i64,
    pub(crate) hidden_act: &'a str,
    pub(crate) layer_norm_eps: f64,
    /// Whether each state attends only to itself and to those before it, as those of text do.
    pub(crate) causal: bool,
}

#[derive(Debug)]
struct ClipAttention {
    q_proj: Linear,
    k_proj: Linear,
    v_proj: Linear,
    out_proj: Linear,
    num_heads: i64,
    causal: bool,
}

impl ClipAttention {
    fn new(vs: Path, sizes: &LayerSizes) -> Self {
        let linear = |name: &str| Linear::new(&vs / name, sizes.hidden_size, sizes.hidden_size, true);
        Self {
            q_proj: linear("q_proj"),
            k_proj: linear("k_proj"),
            v_proj: linear("v_proj"),
            out_proj: linear("out_proj"),
            num_heads: sizes.num_attention_heads,
            causal: sizes.causal,
        }
    }
}

impl Module for ClipAttention {
    fn forward(&self, x: &Tensor) -> Tensor {
        let project = |layer: &Linear| ops::linear(layer, x, Epilogue::default());
        let heads = |layer: &Linear| split_heads(&project(layer), self.num_heads); // [B, H, L, d]
        let (q, k, v) = (heads(&self.q_proj), heads(&self.k_proj), heads(&self.v_proj));
        let scale = (q.size()[3] as f64).powf(-0.5);
        let attn = scaled_dot_product_attention(&q, &k, &v, None, self.causal, Some(scale));
        ops::linear(&self.out_proj, &merge_heads(&attn), Epilogue::default())
    }
}

/// A layer of CLIP's text model or of its vision model.
#[derive(Debug)]
pub(crate) struct ClipLayer {
    layer_norm1: LayerNorm,
    self_attn: ClipAttention,
    layer_norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    activation: Activation,
}

impl ClipLayer {
    /// Returns [`Error::Config`] where the heads do not divide the width, or the activation is unknown.
    pub(crate) fn new(vs: Path, sizes: &LayerSizes) -> Result<Self> {
        let (width, inner, heads) = (sizes.hidden_size, sizes.intermediate_size, sizes.num_attention_heads);
        if width % heads != 0 {
            return Err(Error::Config(format!("CLIP's {heads} heads do not divide its hidden_size {width}")));
        }
        Ok(Self {
            layer_norm1: LayerNorm::new(&vs / "layer_norm1", width, sizes.layer_norm_eps),
            self_attn: ClipAttention::new(&vs / "self_attn", sizes),
            layer_norm2: LayerNorm::new(&vs / "layer_norm2", width, sizes.layer_norm_eps),
            fc1: Linear::new(&vs / "mlp" / "fc1", width, inner, true),
            fc2: Linear::new(&vs / "mlp" / "fc2", inner, width, true),
            activation: activation(sizes.hidden_act)?,
        })
    }
}

impl Module for ClipLayer {
    fn forward(&self, x: &Tensor) -> Tensor {
        let x = x + self.self_attn.forward(&self.layer_norm1.forward(x));
        let activation = Epilogue { activation: self.activation, ..Epilogue::default() };
        let hidden = ops::linear(&self.fc1, &self.layer_norm2.forward(&x), activation);
        ops::linear(&self.fc2, &hidden, Epilogue { residual: Some(&x), ..Epilogue::default() })
    }
}

/// The outputs of the text model.
#[derive(Debug)]
pub struct ClipOutput {
    /// `[B, L, hidden_size]`.
    pub last_hidden_state: Tensor,
    /// The state at the end mark: `[B, hidden_size]`.
    pub pooler_output: Tensor,
}

/// CLIP's text model, in the names of `transformers.CLIPTextModel` (`text_model.…`).
#[derive(Debug)]
#[doc(alias = "CLIPTextModel")]
pub struct ClipText {
    token_embedding: Embedding,
    position_embedding: Embedding,
    layers: Vec<ClipLayer>,
    final_layer_norm: LayerNorm,
    config: ClipConfig,
    parameters: Parameters,
}

impl Model for ClipText {
    fn parameters(&self) -> &Parameters {
        &self.parameters
    }
}

impl ClipText {
    /// Declares every parameter.
    ///
    /// # Errors
    /// [`Error::Config`] where the heads do not divide the width, or the activation is unknown.
    pub fn new(vs: Path, config: &ClipConfig) -> Result<Self> {
        check_sizes(&[
            ("vocab_size", config.vocab_size),
            ("hidden_size", config.hidden_size),
            ("intermediate_size", config.intermediate_size),
            ("num_attention_heads", config.num_attention_heads),
            ("max_position_embeddings", config.max_position_embeddings),
        ])?;
        let sizes = LayerSizes {
            hidden_size: config.hidden_size,
            intermediate_size: config.intermediate_size,
            num_attention_heads: config.num_attention_heads,
            hidden_act: &config.hidden_act,
            layer_norm_eps: config.layer_norm_eps,
            causal: true,
        };
        let collector = Parameters::collect(&vs);
        let vs = &vs / "text_model";
        let (embeddings, layers) = (&vs / "embeddings", &vs / "encoder" / "layers");
        let (width, positions) = (config.hidden_size, config.max_position_embeddings);
        Ok(Self {
            token_embedding: Embedding::new(&embeddings / "token_embedding", config.vocab_size, width),
            position_embedding: Embedding::new(&embeddings / "position_embedding", positions, width),
            layers: (0..config.num_hidden_layers)
                .map(|i| ClipLayer::new(&layers / i, &sizes))
                .collect::<Result<_>>()?,
            final_layer_norm: LayerNorm::new(&vs / "final_layer_norm", width, config.layer_norm_eps),
            config: config.clone(),
            parameters: collector.finish(),
        })
    }

    /// Returns the sizes that the model was built with.
    pub fn config(&self) -> &ClipConfig {
        &self.config
    }

    /// Encodes tokens `[B, L]` (int64), at most `max_position_embeddings` of them.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::Unfilled`], [`Error::Request`] for a token outside the vocabulary.
    pub fn forward(&self, input_ids: &Tensor) -> Result<ClipOutput> {
        let _scope = self.parameters.enter()?;
        check_tokens(input_ids, self.config.vocab_size, self.config.max_position_embeddings)?;
        let (b, l) = (input_ids.size()[0], input_ids.size()[1]);
        let position_ids = Tensor::arange(l, (Kind::Int64, input_ids.device())).unsqueeze(0);
        let x = self.token_embedding.forward(input_ids) + self.position_embedding.forward(&position_ids);
        let x = self
            .layers
            .iter()
            .try_fold(x, |x, layer| numerics::check_cancelled(&x).map(|()| layer.forward(&x)))?;
        let last_hidden_state = self.final_layer_norm.forward(&x);

        let end = match self.config.eos_token_id {
            2 => input_ids.argmax(-1, false),
            eos => input_ids.eq(eos).to_kind(Kind::Int64).argmax(-1, false),
        };
        let batch = Tensor::arange(b, (Kind::Int64, input_ids.device()));
        let pooler_output = last_hidden_state.index(&[Some(batch), Some(end)]);
        Ok(ClipOutput { last_hidden_state, pooler_output })
    }
}

/// Checks that tokens are `[B, L]`, not too many, and of the vocabulary: on some devices libtorch reads past the end of a
/// table without an error.
pub(super) fn check_tokens(input_ids: &Tensor, vocab_size: i64, max_len: i64) -> Result<()> {
    let size = input_ids.size();
    if size.len() != 2 || size[1] == 0 || size[1] > max_len {
        let most = if max_len == i64::MAX { String::new() } else { format!(", at most {max_len} tokens") };
        return Err(Error::Shape { what: "input_ids", expected: format!("[B, L]{most}"), found: size });
    }
    let (low, high) = (i64::try_from(input_ids.min())?, i64::try_from(input_ids.max())?);
    if low < 0 || high >= vocab_size {
        return Err(Error::Request(format!(
            "tokens from {low} to {high} do not fit a vocabulary of {vocab_size}: the tokenizer is another model's"
        )));
    }
    Ok(())
}
