//! IP-Adapters of FLUX.1: pictures as prompts, which the double blocks attend to in addition to the text.
//!
//! Source: `XLabs-AI/x-flux` at 4749542, `src/flux/modules/layers.py` (`ImageProjModel`, `IPDoubleStreamBlockProcessor`),
//! whose names these are, and diffusers 0.42.1, `models/transformers/transformer_flux.py`
//! (`FluxIPAdapterAttnProcessor`).

use serde::{Deserialize, Serialize};
use tch::Tensor;
use tch::nn::{Module, Path};

use super::Flux1Params;
use crate::error::{Error, Result};
use crate::math;
use crate::models::Model;
use crate::nn::{Block, LayerNorm, Linear, Parameters, check_sizes};
use crate::ops::{self, Epilogue};

/// The sizes of an IP-Adapter.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct IpAdapterParams {
    /// Width of the vector that the image encoder makes of a picture.
    pub clip_embeddings_dim: i64,
    /// Width of the tokens that are made of this vector.
    pub cross_attention_dim: i64,
    /// Count of tokens of a picture.
    pub clip_extra_context_tokens: i64,
    /// Width of the transformer.
    pub hidden_size: i64,
    /// Double blocks of the transformer.
    pub depth: usize,
}

impl IpAdapterParams {
    /// Reads every size from the tensors' shapes, by XLabs' names; `shape` gives `None` for a name that the file does
    /// not hold.
    ///
    /// # Errors
    /// [`Error::Config`] names the first tensor that is missing or has a shape that no IP-Adapter has.
    pub fn from_shapes(shape: impl Fn(&str) -> Option<Vec<i64>>) -> Result<Self> {
        let missing = |name: &str| Error::Config(format!("this is no IP-Adapter: {name} is missing"));
        let matrix = |name: &str| match shape(name).as_deref() {
            Some(&[rows, columns]) => Ok((rows, columns)),
            _ => Err(missing(name)),
        };
        let (rows, clip_embeddings_dim) = matrix("ip_adapter_proj_model.proj.weight")?;
        let norm = "ip_adapter_proj_model.norm.weight";
        let cross_attention_dim = match shape(norm).as_deref() {
            Some(&[width]) if width > 0 && rows % width == 0 => width,
            Some(found) => {
                return Err(Error::Config(format!("{norm} of {found:?} shares no {rows} rows")));
            }
            None => return Err(missing(norm)),
        };
        let (hidden_size, _) = matrix(&key(0))?;
        Ok(Self {
            clip_embeddings_dim,
            cross_attention_dim,
            clip_extra_context_tokens: rows / cross_attention_dim,
            hidden_size,
            depth: (0..).take_while(|&i| shape(&key(i)).is_some()).count(),
        })
    }

    /// Checks that the IP-Adapter fits a transformer of these sizes.
    ///
    /// # Errors
    /// [`Error::Config`] with the first size that differs.
    pub fn check_fits(&self, transformer: &Flux1Params) -> Result<()> {
        let sizes = [
            ("width", self.hidden_size, transformer.hidden_size),
            ("number of double blocks", self.depth as i64, transformer.depth as i64),
        ];
        match sizes.iter().find(|(_, found, expected)| found != expected) {
            Some((name, found, expected)) => Err(Error::Config(format!(
                "the IP-Adapter is for another transformer: its {name} is {found}, and that of the transformer {expected}"
            ))),
            None => Ok(()),
        }
    }
}

fn key(block: usize) -> String {
    format!("double_blocks.{block}.processor.ip_adapter_double_stream_k_proj.weight")
}

/// An IP-Adapter: it makes of the image encoder's vectors the keys and values for each double block.
///
/// Building it allocates no weights; fill it with [`Checkpoint::load`](crate::checkpoint::Checkpoint::load).
#[derive(Debug)]
pub struct IpAdapter {
    proj: Linear,
    norm: LayerNorm,
    blocks: Vec<[Linear; 2]>,
    params: IpAdapterParams,
    parameters: Parameters,
}

impl Model for IpAdapter {
    fn parameters(&self) -> &Parameters {
        &self.parameters
    }
}

impl IpAdapter {
    /// Declares `ip_adapter_proj_model` and two layers for each double block.
    ///
    /// # Errors
    /// [`Error::Config`] for sizes that no model has.
    pub fn new(vs: Path, params: &IpAdapterParams) -> Result<Self> {
        let IpAdapterParams { clip_embeddings_dim, cross_attention_dim, hidden_size, .. } = *params;
        let tokens = params.clip_extra_context_tokens;
        check_sizes(&[
            ("clip_embeddings_dim", clip_embeddings_dim),
            ("cross_attention_dim", cross_attention_dim),
            ("clip_extra_context_tokens", tokens),
            ("hidden_size", hidden_size),
        ])?;
        let projection = &vs / "ip_adapter_proj_model";
        let block = |i: usize| {
            let vs = &vs / "double_blocks" / i / "processor";
            ["k", "v"].map(|which| {
                let name = format!("ip_adapter_double_stream_{which}_proj");
                Linear::new(&vs / name, cross_attention_dim, hidden_size, true)
            })
        };
        let blocks = &vs / "double_blocks";
        let offload_blocks = (0..params.depth).map(|i| Block::new([blocks.path(&i.to_string())]));
        let collector = Parameters::collect(&vs);
        Ok(Self {
            proj: Linear::new(&projection / "proj", clip_embeddings_dim, tokens * cross_attention_dim, true),
            norm: LayerNorm::new(&projection / "norm", cross_attention_dim, 1e-5),
            blocks: (0..params.depth).map(block).collect(),
            params: params.clone(),
            parameters: collector.finish().with_blocks(offload_blocks),
        })
    }

    /// Returns the sizes that the model was built with.
    pub fn params(&self) -> &IpAdapterParams {
        &self.params
    }

    /// Returns what the double blocks attend to in every step, from vectors `[B, N, clip_embeddings_dim]` of `N` prompt
    /// pictures for each of the `B` pictures of the batch. `scales` says how much of the attention is added: a single scale
    /// for all blocks, or a scale for each block.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::Unfilled`], [`Error::Request`] where the scales are neither one nor as many as the blocks.
    pub fn prompt(&self, image_embeds: &Tensor, num_heads: i64, scales: &[f64]) -> Result<ImagePrompt> {
        let _scope = self.parameters.enter()?;
        let (size, width) = (image_embeds.size(), self.params.clip_embeddings_dim);
        let &[b, n, found] = &size[..] else {
            let expected = format!("[B, N, {width}]");
            return Err(Error::Shape { what: "image_embeds", expected, found: size });
        };
        if found != width {
            let expected = format!("[{b}, {n}, {width}]");
            return Err(Error::Shape { what: "image_embeds", expected, found: size });
        }
        let blocks = self.blocks.len();
        if !matches!(scales.len(), 1) && scales.len() != blocks {
            let count = scales.len();
            return Err(Error::Request(format!(
                "{count} scales for {blocks} double blocks: one for all of them, or one for each"
            )));
        }
        let tokens = n * self.params.clip_extra_context_tokens;
        let x = ops::linear(&self.proj, &image_embeds.f_flatten(0, 1)?, Epilogue::default());
        let x = x.f_reshape([b * n, -1, self.params.cross_attention_dim])?;
        let x = self.norm.forward(&x).f_reshape([b, tokens, -1])?;
        let blocks = self.blocks.iter().enumerate().map(|(i, layers)| {
            let heads =
                |layer: &Linear| math::split_heads(&ops::linear(layer, &x, Epilogue::default()), num_heads);
            let [key, value] = self.linears().run_block(i, || layers.each_ref().map(heads))?; // [B, H, N·tokens, d]
            Ok(KeyValue { key, value, scale: scales[if scales.len() == 1 { 0 } else { i }] })
        });
        Ok(ImagePrompt { blocks: blocks.collect::<Result<_>>()? })
    }
}

/// The keys and values `[B, H, N·tokens, d]` that a double block attends to.
#[derive(Debug)]
struct KeyValue {
    key: Tensor,
    value: Tensor,
    scale: f64,
}

/// Pictures as a prompt, from [`IpAdapter::prompt`].
#[derive(Debug)]
pub struct ImagePrompt {
    blocks: Vec<KeyValue>,
}

impl ImagePrompt {
    /// Concatenates the prompts of several pictures along the batch, with the scales of the first.
    ///
    /// # Errors
    /// [`Error::Config`] where there are none, [`Error::Tch`] where their shapes differ.
    pub fn cat(all: &[&Self]) -> Result<Self> {
        let Some(first) = all.first() else { return Err(Error::Config("no image prompts".into())) };
        let block = |(i, block): (usize, &KeyValue)| {
            let cat = |tensor: fn(&KeyValue) -> &Tensor| {
                let tensors: Option<Vec<_>> =
                    all.iter().map(|prompt| prompt.blocks.get(i).map(tensor)).collect();
                let tensors =
                    tensors.ok_or_else(|| Error::Config("image prompts of different models".into()))?;
                math::cat(&tensors, 0)
            };
            Ok(KeyValue { key: cat(|b| &b.key)?, value: cat(|b| &b.value)?, scale: block.scale })
        };
        Ok(Self { blocks: first.blocks.iter().enumerate().map(block).collect::<Result<_>>()? })
    }

    /// Returns what is added to the picture's tokens after the double block `i`, whose queries `[B, H, L, d]` are normalised
    /// and not rotated.
    pub(super) fn attend(&self, i: usize, query: &Tensor) -> Option<Tensor> {
        let KeyValue { key, value, scale } = self.blocks.get(i)?;
        let attn = math::scaled_dot_product_attention(query, key, value, None, false, None);
        Some(math::merge_heads(&attn) * *scale)
    }

    /// Returns whether the prompt is for a batch of `b` pictures and for a transformer of these sizes.
    pub(super) fn fits(&self, b: i64, params: &Flux1Params) -> bool {
        let (heads, width) = (params.num_heads, params.hidden_size / params.num_heads);
        let fits =
            |x: &Tensor| matches!(x.size()[..], [batch, h, _, d] if (batch, h, d) == (b, heads, width));
        self.blocks.len() == params.depth && self.blocks.iter().all(|b| fits(&b.key) && fits(&b.value))
    }
}
