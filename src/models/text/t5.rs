//! The encoder of T5 v1.1: tokens to states.
//!
//! Source: `transformers` 5.23.0, `models/t5/modeling_t5.py`, with the attention that it takes by default
//! (`scaled_dot_product_attention`, the position bias as the mask, no scaling). There is no mask for padding: FLUX.1
//! attends to it.

use serde::{Deserialize, Serialize};
use tch::nn::{Module, Path};
use tch::{Device, Kind, Tensor};

use crate::config::ConfigFile;
use crate::error::{Error, Result};
use crate::math::{merge_heads, split_heads};
use crate::models::Model;
use crate::nn::{Block, Embedding, Linear, Parameters, check_sizes, declare};
use crate::numerics;
use crate::ops::{self, Activation, Epilogue};

/// The sizes of a T5 encoder, in the names of its `config.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct T5Config {
    /// Pieces of the vocabulary.
    pub vocab_size: i64,
    /// Width of the states.
    pub d_model: i64,
    /// Width of a head.
    pub d_kv: i64,
    /// Width of the MLP.
    pub d_ff: i64,
    /// Layers.
    pub num_layers: usize,
    /// Heads.
    pub num_heads: i64,
    /// Buckets of relative distances.
    #[serde(default = "default_buckets")]
    pub relative_attention_num_buckets: i64,
    /// Distances beyond this share a bucket.
    #[serde(default = "default_distance")]
    pub relative_attention_max_distance: i64,
    /// Added to the mean square.
    #[serde(default = "default_epsilon")]
    pub layer_norm_epsilon: f64,
    /// The MLP's form; only `gated-gelu` is known.
    pub feed_forward_proj: String,
}

fn default_buckets() -> i64 {
    32
}

fn default_distance() -> i64 {
    128
}

fn default_epsilon() -> f64 {
    1e-6
}

impl T5Config {
    /// T5-XXL v1.1, the encoder of FLUX.1.
    pub fn xxl() -> Self {
        Self {
            vocab_size: 32128,
            d_model: 4096,
            d_kv: 64,
            d_ff: 10240,
            num_layers: 24,
            num_heads: 64,
            relative_attention_num_buckets: default_buckets(),
            relative_attention_max_distance: default_distance(),
            layer_norm_epsilon: default_epsilon(),
            feed_forward_proj: "gated-gelu".into(),
        }
    }

    /// Reads every size from the tensors' shapes, by their official names; `shape` gives `None` for a name that the
    /// file does not hold. What no shape says is as in T5-XXL.
    ///
    /// # Errors
    /// [`Error::Config`] names the first tensor that is missing or no matrix.
    pub fn from_shapes(shape: impl Fn(&str) -> Option<Vec<i64>>) -> Result<Self> {
        let matrix = |name: &str| super::matrix("T5 encoder of version 1.1", &shape, name);
        let first = "encoder.block.0.layer";
        let (vocab_size, d_model) = matrix("shared.weight")?;
        let (inner_dim, _) = matrix(&format!("{first}.0.SelfAttention.q.weight"))?;
        let (d_ff, _) = matrix(&format!("{first}.1.DenseReluDense.wi_0.weight"))?;
        let (relative_attention_num_buckets, num_heads) =
            matrix(&format!("{first}.0.SelfAttention.relative_attention_bias.weight"))?;
        let block = |i: &usize| shape(&format!("encoder.block.{i}.layer.0.SelfAttention.q.weight")).is_some();
        let num_layers = (0..).take_while(block).count();
        let d_kv = inner_dim / num_heads.max(1);
        Ok(Self {
            vocab_size,
            d_model,
            d_kv,
            d_ff,
            num_layers,
            num_heads,
            relative_attention_num_buckets,
            ..Self::xxl()
        })
    }

    /// Reads a `config.json`.
    ///
    /// # Errors
    /// [`Error::Io`]; [`Error::File`] with the key of what is missing, of another type, or not built here.
    pub fn read(path: impl AsRef<std::path::Path>) -> Result<Self> {
        Self::from_config(&ConfigFile::read(path.as_ref())?, None)
    }

    /// Reads the settings, where the sizes of the tensors may be known, too: both must agree, and the sizes of the tensors
    /// stand for what the file leaves out.
    pub(crate) fn from_config(config: &ConfigFile, shapes: Option<&Self>) -> Result<Self> {
        config.check_model_type(&["t5", "mt5"])?;
        let size = |key: &str, field: fn(&Self) -> i64| config.size(key, shapes.map(field));
        // What a file leaves out is as in `transformers`' `T5Config`, whose usual MLP is that of the first T5.
        let feed_forward_proj = match config.text("feed_forward_proj")? {
            Some("gated-gelu" | "gated-gelu_new") => "gated-gelu".to_string(),
            other => {
                let other = other.unwrap_or("relu");
                let reason = format!("is {other:?}; only \"gated-gelu\" (v1.1) is known");
                return Err(config.wrong("feed_forward_proj", reason));
            }
        };
        config.only("dense_act_fn", config.text("dense_act_fn")?, "gelu_new")?;
        config.only("is_gated_act", config.flag("is_gated_act")?, true)?;
        config.only("is_decoder", config.flag("is_decoder")?, false)?;
        let layers = size("num_layers", |sizes| sizes.num_layers as i64)?;
        let buckets = "relative_attention_num_buckets";
        Ok(Self {
            vocab_size: size("vocab_size", |sizes| sizes.vocab_size)?,
            d_model: size("d_model", |sizes| sizes.d_model)?,
            d_kv: size("d_kv", |sizes| sizes.d_kv)?,
            d_ff: size("d_ff", |sizes| sizes.d_ff)?,
            num_layers: config.count("num_layers", layers)?,
            num_heads: size("num_heads", |sizes| sizes.num_heads)?,
            relative_attention_num_buckets: match config.int(buckets)? {
                None => shapes.map_or(default_buckets(), |sizes| sizes.relative_attention_num_buckets),
                Some(_) => size(buckets, |sizes| sizes.relative_attention_num_buckets)?,
            },
            relative_attention_max_distance: config
                .int("relative_attention_max_distance")?
                .unwrap_or(default_distance()),
            layer_norm_epsilon: config.float("layer_norm_epsilon")?.unwrap_or(default_epsilon()),
            feed_forward_proj,
        })
    }
}

/// A norm by the root mean square, without a bias.
#[derive(Debug)]
struct T5LayerNorm {
    weight: Tensor,
    eps: f64,
}

impl T5LayerNorm {
    fn new(vs: Path, config: &T5Config) -> Self {
        Self { weight: declare(&vs, "weight", &[config.d_model]), eps: config.layer_norm_epsilon }
    }
}

impl Module for T5LayerNorm {
    fn forward(&self, xs: &Tensor) -> Tensor {
        ops::rms_norm(&self.weight, self.eps, xs)
    }
}

#[derive(Debug)]
struct T5Attention {
    q: Linear,
    k: Linear,
    v: Linear,
    o: Linear,
    num_heads: i64,
}

impl T5Attention {
    fn new(vs: &Path, config: &T5Config) -> Self {
        let inner_dim = config.num_heads * config.d_kv;
        Self {
            q: Linear::new(vs / "q", config.d_model, inner_dim, false),
            k: Linear::new(vs / "k", config.d_model, inner_dim, false),
            v: Linear::new(vs / "v", config.d_model, inner_dim, false),
            o: Linear::new(vs / "o", inner_dim, config.d_model, false),
            num_heads: config.num_heads,
        }
    }

    /// Returns `residual` plus the attention over `x`.
    fn forward(&self, x: &Tensor, position_bias: &Tensor, residual: &Tensor) -> Tensor {
        let project = |layer: &Linear| ops::linear(layer, x, Epilogue::default());
        let heads = |layer: &Linear| split_heads(&project(layer), self.num_heads); // [B, H, L, d]
        let (q, k, v) = (heads(&self.q), heads(&self.k), heads(&self.v));
        let attn = ops::biased_attention(&q, &k, &v, position_bias);
        ops::linear(
            &self.o,
            &merge_heads(&attn),
            Epilogue { residual: Some(residual), ..Epilogue::default() },
        )
    }
}

#[derive(Debug)]
struct T5DenseGatedActDense {
    wi_0: Linear,
    wi_1: Linear,
    wo: Linear,
}

impl T5DenseGatedActDense {
    fn new(vs: &Path, config: &T5Config) -> Self {
        Self {
            wi_0: Linear::new(vs / "wi_0", config.d_model, config.d_ff, false),
            wi_1: Linear::new(vs / "wi_1", config.d_model, config.d_ff, false),
            wo: Linear::new(vs / "wo", config.d_ff, config.d_model, false),
        }
    }
}

impl T5DenseGatedActDense {
    /// Returns `residual` plus the MLP of `x`.
    fn forward(&self, x: &Tensor, residual: &Tensor) -> Tensor {
        let hidden_linear = ops::linear(&self.wi_1, x, Epilogue::default());
        let gelu =
            Epilogue { activation: Activation::GeluNew, factor: Some(&hidden_linear), ..Epilogue::default() };
        let hidden = ops::linear(&self.wi_0, x, gelu);
        ops::linear(&self.wo, &hidden, Epilogue { residual: Some(residual), ..Epilogue::default() })
    }
}

/// A layer: attention and MLP, each behind its norm.
#[derive(Debug)]
struct T5Block {
    attention_norm: T5LayerNorm,
    attention: T5Attention,
    dense_norm: T5LayerNorm,
    dense: T5DenseGatedActDense,
}

impl T5Block {
    fn new(vs: Path, config: &T5Config) -> Self {
        let (attention, dense) = (&vs / "layer" / 0, &vs / "layer" / 1);
        Self {
            attention: T5Attention::new(&(&attention / "SelfAttention"), config),
            attention_norm: T5LayerNorm::new(attention / "layer_norm", config),
            dense: T5DenseGatedActDense::new(&(&dense / "DenseReluDense"), config),
            dense_norm: T5LayerNorm::new(dense / "layer_norm", config),
        }
    }

    fn forward(&self, x: &Tensor, position_bias: &Tensor) -> Tensor {
        let x = self.attention.forward(&self.attention_norm.forward(x), position_bias, x);
        self.dense.forward(&self.dense_norm.forward(&x), &x)
    }
}

/// The T5 encoder, in the names of `transformers.T5EncoderModel`.
#[derive(Debug)]
#[doc(alias = "T5EncoderModel")]
pub struct T5Encoder {
    shared: Embedding,
    relative_attention_bias: Embedding,
    block: Vec<T5Block>,
    final_layer_norm: T5LayerNorm,
    config: T5Config,
    parameters: Parameters,
}

impl Model for T5Encoder {
    fn parameters(&self) -> &Parameters {
        &self.parameters
    }
}

impl T5Encoder {
    /// Declares every parameter; the embedding is `shared`.
    ///
    /// # Errors
    /// [`Error::Config`] where the MLP is not the gated one of v1.1.
    pub fn new(vs: Path, config: &T5Config) -> Result<Self> {
        if config.feed_forward_proj != "gated-gelu" {
            return Err(Error::Config(format!(
                "T5's feed_forward_proj is {:?}; only \"gated-gelu\" (v1.1) is known",
                config.feed_forward_proj
            )));
        }
        check_sizes(&[
            ("vocab_size", config.vocab_size),
            ("d_model", config.d_model),
            ("d_kv", config.d_kv),
            ("d_ff", config.d_ff),
            ("num_heads", config.num_heads),
            ("num_heads * d_kv", config.num_heads.saturating_mul(config.d_kv)),
            ("relative_attention_max_distance", config.relative_attention_max_distance),
        ])?;
        if config.relative_attention_num_buckets < 4 || config.relative_attention_num_buckets > 1 << 22 {
            let buckets = config.relative_attention_num_buckets;
            return Err(Error::Config(format!(
                "relative_attention_num_buckets must be at least 4, not {buckets}"
            )));
        }
        let encoder = &vs / "encoder";
        let blocks = &encoder / "block";
        let offload_blocks = (0..config.num_layers).map(|i| Block::new([blocks.path(&i.to_string())]));
        let collector = Parameters::collect(&vs);
        Ok(Self {
            shared: Embedding::new(&vs / "shared", config.vocab_size, config.d_model),
            relative_attention_bias: Embedding::new(
                &blocks / 0 / "layer" / 0 / "SelfAttention" / "relative_attention_bias",
                config.relative_attention_num_buckets,
                config.num_heads,
            ),
            block: (0..config.num_layers).map(|i| T5Block::new(&blocks / i, config)).collect(),
            final_layer_norm: T5LayerNorm::new(&encoder / "final_layer_norm", config),
            config: config.clone(),
            parameters: collector.finish().with_blocks(offload_blocks),
        })
    }

    /// Encodes tokens `[B, L]` (int64) to the last hidden states `[B, L, d_model]`.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::Unfilled`], [`Error::Tch`] for a token outside the vocabulary.
    pub fn forward(&self, input_ids: &Tensor) -> Result<Tensor> {
        let _scope = self.parameters.enter()?;
        super::clip::check_tokens(input_ids, self.config.vocab_size, i64::MAX)?;
        let position_bias = self.position_bias(input_ids.size()[1], input_ids.device());
        let x = self.shared.forward(input_ids);
        let x = self.block.iter().enumerate().try_fold(x, |x, (i, block)| {
            numerics::check_cancelled(&x)?;
            self.linears().run_block(i, || block.forward(&x, &position_bias))
        })?;
        Ok(self.final_layer_norm.forward(&x))
    }

    /// Returns the bias `[1, H, L, L]` of the first layer, which all layers share.
    fn position_bias(&self, len: i64, device: Device) -> Tensor {
        // The bias depends only on the distance of query and key, of which there are 2L − 1. The row of the last query begins
        // with the first of them, and each earlier row begins one later.
        let relative_position = Tensor::arange_start(1 - len, len, (Kind::Int64, device));
        let bias = self.relative_attention_bias.forward(&self.bucket(&relative_position)); // [2L − 1, H]
        let bias = bias.tr().contiguous();
        let rows = bias.as_strided([bias.size()[0], len, len], [2 * len - 1, 1, 1], None);
        rows.flip([1]).unsqueeze(0)
    }

    /// Returns the bucket of each distance. Half of the buckets are for each direction. Of these, half are for a single
    /// distance each, and the others grow with the logarithm.
    fn bucket(&self, relative_position: &Tensor) -> Tensor {
        let buckets = self.config.relative_attention_num_buckets / 2;
        let max_exact = buckets / 2;
        let direction = relative_position.gt(0).to_kind(Kind::Int64) * buckets;
        let distance = relative_position.abs();
        let growth = (self.config.relative_attention_max_distance as f64 / max_exact as f64).ln();
        let steps = (distance.to_kind(Kind::Float) / max_exact).log() / growth * (buckets - max_exact);
        let far = (steps.to_kind(Kind::Int64) + max_exact).clamp_max(buckets - 1);
        direction + distance.where_self(&distance.lt(max_exact), &far)
    }
}
