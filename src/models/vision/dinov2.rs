//! DINOv2: a picture's patches to states, of which a depth model reads some.
//!
//! Source: `transformers` 5.23.0, `models/dinov2/modeling_dinov2.py` (`Dinov2Backbone`), with the attention that it takes
//! by default (`scaled_dot_product_attention`). The parameters have the names of published files.

use serde::{Deserialize, Serialize};
use tch::nn::{Module, Path};
use tch::{Kind, Tensor};

use crate::error::{Error, Result};
use crate::math::{merge_heads, scaled_dot_product_attention, split_heads};
use crate::nn::{Conv2d, LayerNorm, Linear, check_sizes, declare};
use crate::numerics;
use crate::ops::{self, Activation, Epilogue};

/// The sizes of a DINOv2, in the names of its `config.json`; what may be left out there is as in DINOv2-base.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Dinov2Config {
    /// Width of the states.
    pub hidden_size: i64,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Heads.
    pub num_attention_heads: i64,
    /// Width of the MLP over that of the states.
    pub mlp_ratio: f64,
    /// The MLP's activation: `gelu`.
    pub hidden_act: String,
    /// Added to the variance.
    pub layer_norm_eps: f64,
    /// Side of the pictures that it was trained on, for whose patches there are positions.
    pub image_size: i64,
    /// Pixels to a side of a patch.
    pub patch_size: i64,
    /// Channels of a picture.
    pub num_channels: i64,
    /// Whether queries, keys and values have biases.
    pub qkv_bias: bool,
    /// Whether the MLP is gated, as in the giant model, which is not supported.
    pub use_swiglu_ffn: bool,
    /// Which states are returned, by their numbers: 0 is the input of the first layer, `n` the output of the `n`-th; numbers
    /// below 0 count from the end.
    pub out_indices: Option<Vec<i64>>,
    /// Which states are returned, by their names (`stem`, `stage1`, …), where there are no numbers. Without both it is the
    /// last state.
    pub out_features: Option<Vec<String>>,
    /// Whether the states that are returned go through the last norm.
    pub apply_layernorm: bool,
}

impl Default for Dinov2Config {
    fn default() -> Self {
        Self {
            hidden_size: 768,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            mlp_ratio: 4.0,
            hidden_act: "gelu".into(),
            layer_norm_eps: 1e-6,
            image_size: 224,
            patch_size: 14,
            num_channels: 3,
            qkv_bias: true,
            use_swiglu_ffn: false,
            out_indices: None,
            out_features: None,
            apply_layernorm: true,
        }
    }
}

impl Dinov2Config {
    /// Returns the numbers of the states that the backbone returns, from the first layer on.
    ///
    /// # Errors
    /// [`Error::Config`] for a state that it does not have.
    pub fn outputs(&self) -> Result<Vec<usize>> {
        let last = self.num_hidden_layers as i64;
        let by_name = |name: &String| match name.strip_prefix("stage") {
            Some(number) => number.parse().ok(),
            None => (name == "stem").then_some(0),
        };
        let indices: Vec<Option<i64>> = match (&self.out_indices, &self.out_features) {
            (Some(indices), _) => {
                indices.iter().map(|&i| Some(if i < 0 { i + last + 1 } else { i })).collect()
            }
            (None, Some(names)) => names.iter().map(by_name).collect(),
            (None, None) => vec![Some(last)],
        };
        let states: Option<Vec<usize>> = indices
            .into_iter()
            .map(|state| state.filter(|state| (0..=last).contains(state)).map(|state| state as usize))
            .collect();
        let mut states = states.ok_or_else(|| {
            let (indices, names) = (&self.out_indices, &self.out_features);
            Error::Config(format!("DINOv2 of {last} layers has no states {indices:?}, {names:?}"))
        })?;
        states.sort_unstable();
        states.dedup();
        Ok(states)
    }

    /// Returns the count of patches to a side of the pictures that it was trained on.
    fn grid(&self) -> i64 {
        self.image_size / self.patch_size
    }

    fn check(&self) -> Result<()> {
        check_sizes(&[
            ("hidden_size", self.hidden_size),
            ("num_hidden_layers", self.num_hidden_layers as i64),
            ("num_attention_heads", self.num_attention_heads),
            ("image_size", self.image_size),
            ("patch_size", self.patch_size),
            ("num_channels", self.num_channels),
            ("the MLP's width", self.mlp_width()),
            ("patches to a side", self.grid()),
        ])?;
        let wrong = |text: String| Err(Error::Config(text));
        if self.hidden_size % self.num_attention_heads != 0 {
            let (heads, width) = (self.num_attention_heads, self.hidden_size);
            return wrong(format!("DINOv2's {heads} heads do not divide its hidden_size {width}"));
        }
        if self.hidden_act != "gelu" {
            return wrong(format!("DINOv2's hidden_act is {:?}; gelu is known", self.hidden_act));
        }
        if self.use_swiglu_ffn {
            return wrong("DINOv2 with use_swiglu_ffn (the giant model) is not known".into());
        }
        Ok(())
    }

    fn mlp_width(&self) -> i64 {
        (self.hidden_size as f64 * self.mlp_ratio) as i64
    }
}

#[derive(Debug)]
struct Attention {
    query: Linear,
    key: Linear,
    value: Linear,
    dense: Linear,
    num_heads: i64,
}

impl Attention {
    fn new(vs: Path, config: &Dinov2Config) -> Self {
        let (inner, width) = (&vs / "attention", config.hidden_size);
        let linear = |name: &str| Linear::new(&inner / name, width, width, config.qkv_bias);
        Self {
            query: linear("query"),
            key: linear("key"),
            value: linear("value"),
            dense: Linear::new(&vs / "output" / "dense", width, width, true),
            num_heads: config.num_attention_heads,
        }
    }

    /// Returns `x + scale * attention(hidden)`: `[B, L, D]` with `scale` `[B, 1, D]`.
    fn forward(&self, hidden: &Tensor, scale: &Tensor, x: &Tensor) -> Tensor {
        let project = |layer: &Linear| ops::linear(layer, hidden, Epilogue::default());
        let heads = |layer: &Linear| split_heads(&project(layer), self.num_heads); // [B, H, L, d]
        let (q, k, v) = (heads(&self.query), heads(&self.key), heads(&self.value));
        let scaling = (q.size()[3] as f64).powf(-0.5);
        let attn = scaled_dot_product_attention(&q, &k, &v, None, false, Some(scaling));
        let epilogue = Epilogue { gate: Some(scale), residual: Some(x), ..Epilogue::default() };
        ops::linear(&self.dense, &merge_heads(&attn), epilogue)
    }
}

#[derive(Debug)]
struct Layer {
    norm1: LayerNorm,
    attention: Attention,
    layer_scale1: Tensor,
    norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    layer_scale2: Tensor,
}

impl Layer {
    fn new(vs: Path, config: &Dinov2Config) -> Self {
        let (width, inner) = (config.hidden_size, config.mlp_width());
        Self {
            norm1: LayerNorm::new(&vs / "norm1", width, config.layer_norm_eps),
            attention: Attention::new(&vs / "attention", config),
            layer_scale1: declare(&(&vs / "layer_scale1"), "lambda1", &[width]),
            norm2: LayerNorm::new(&vs / "norm2", width, config.layer_norm_eps),
            fc1: Linear::new(&vs / "mlp" / "fc1", width, inner, true),
            fc2: Linear::new(&vs / "mlp" / "fc2", inner, width, true),
            layer_scale2: declare(&(&vs / "layer_scale2"), "lambda1", &[width]),
        }
    }
}

impl Module for Layer {
    fn forward(&self, x: &Tensor) -> Tensor {
        let per_batch = |scale: &Tensor| scale.view([1, 1, -1]).repeat([x.size()[0], 1, 1]); // [B, 1, D]
        let scale = per_batch(&self.layer_scale1);
        let x = &self.attention.forward(&self.norm1.forward(x), &scale, x);

        let activation = Epilogue { activation: Activation::GeluErf, ..Epilogue::default() };
        let hidden = ops::linear(&self.fc1, &self.norm2.forward(x), activation);
        let scale = per_batch(&self.layer_scale2);
        ops::linear(
            &self.fc2,
            &hidden,
            Epilogue { gate: Some(&scale), residual: Some(x), ..Epilogue::default() },
        )
    }
}

/// DINOv2 in the names of `transformers.Dinov2Backbone`. It is a part of a depth model, which checks that it is filled.
#[derive(Debug)]
#[doc(alias = "Dinov2Backbone")]
pub struct Dinov2 {
    cls_token: Tensor,
    position_embeddings: Tensor,
    projection: Conv2d,
    layers: Vec<Layer>,
    layernorm: LayerNorm,
    outputs: Vec<usize>,
    config: Dinov2Config,
}

impl Dinov2 {
    /// Declares every parameter but the mask token, which only training uses.
    ///
    /// # Errors
    /// [`Error::Config`] where the heads do not divide the width, or what is asked for is not known.
    pub fn new(vs: Path, config: &Dinov2Config) -> Result<Self> {
        config.check()?;
        let outputs = config.outputs()?;
        let (embeddings, layers) = (&vs / "embeddings", &vs / "encoder" / "layer");
        let (width, patch, positions) = (config.hidden_size, config.patch_size, config.grid().pow(2) + 1);
        let patches = &embeddings / "patch_embeddings" / "projection";
        Ok(Self {
            cls_token: declare(&embeddings, "cls_token", &[1, 1, width]),
            position_embeddings: declare(&embeddings, "position_embeddings", &[1, positions, width]),
            projection: Conv2d::new(patches, config.num_channels, width, patch, patch, 0),
            layers: (0..config.num_hidden_layers).map(|i| Layer::new(&layers / i, config)).collect(),
            layernorm: LayerNorm::new(&vs / "layernorm", width, config.layer_norm_eps),
            outputs,
            config: config.clone(),
        })
    }

    /// Returns the kind of the weights.
    pub(super) fn kind(&self) -> Kind {
        self.projection.weight().kind()
    }

    /// Returns the states `[B, 1 + L, D]` of pictures `[B, C, H, W]` that the configuration names, in the order of the layers.
    /// The first token is that of the whole picture, and the others are those of its `L` patches.
    ///
    /// # Errors
    /// [`Error::Shape`] where the channels are wrong, or the sides no multiples of a patch's.
    pub fn forward(&self, pixel_values: &Tensor) -> Result<Vec<Tensor>> {
        let (channels, patch) = (self.config.num_channels, self.config.patch_size);
        match pixel_values.size()[..] {
            [_, c, h, w] if c == channels && h >= patch && w >= patch && h % patch == 0 && w % patch == 0 => {
            }
            _ => {
                let expected = format!("[B, {channels}, H, W] with sides that are multiples of {patch}");
                return Err(Error::Shape { what: "pixel_values", expected, found: pixel_values.size() });
            }
        }
        let normalize = |x: &Tensor| match self.config.apply_layernorm {
            true => self.layernorm.forward(x),
            false => x.shallow_clone(),
        };
        let mut x = self.embed(pixel_values)?;
        let mut outputs = Vec::new();
        for (state, layer) in self.layers.iter().map(Some).chain([None]).enumerate() {
            if self.outputs.contains(&state) {
                outputs.push(normalize(&x));
            }
            if let Some(layer) = layer {
                numerics::check_cancelled(&x)?;
                x = layer.forward(&x);
            }
        }
        Ok(outputs)
    }

    /// Embeds the patches behind the token of the whole picture, and adds their positions.
    fn embed(&self, pixel_values: &Tensor) -> Result<Tensor> {
        let (b, height, width) = (pixel_values.size()[0], pixel_values.size()[2], pixel_values.size()[3]);
        let pixel_values = pixel_values.f_to_kind(self.kind())?;
        let patches = self.projection.forward(&pixel_values).flatten(2, -1).transpose(1, 2); // [B, L, D]
        let cls_tokens = self.cls_token.f_expand([b, -1, -1], false)?;
        let embeddings = Tensor::f_cat(&[cls_tokens, patches], 1)?;
        Ok(embeddings.f_add(&self.positions(height, width)?)?)
    }

    /// Returns the positions of a picture's patches: the trained ones, or their bicubic interpolation in f32.
    fn positions(&self, height: i64, width: i64) -> Result<Tensor> {
        let (grid, patch) = (self.config.grid(), self.config.patch_size);
        let (down, across) = (height / patch, width / patch);
        if down * across == grid * grid && height == width {
            return Ok(self.position_embeddings.shallow_clone());
        }
        let dim = self.config.hidden_size;
        let class = self.position_embeddings.f_narrow(1, 0, 1)?;
        let patches = self.position_embeddings.f_narrow(1, 1, grid * grid)?;
        let patches = patches.f_reshape([1, grid, grid, dim])?.f_permute([0, 3, 1, 2])?; // [1, D, H, W]
        let patches = patches
            .f_to_kind(numerics::at_least_f32(patches.kind()))?
            .f_upsample_bicubic2d([down, across], false, None, None)?
            .f_to_kind(self.position_embeddings.kind())?;
        let patches = patches.f_permute([0, 2, 3, 1])?.f_reshape([1, -1, dim])?; // [1, L, D]
        Ok(Tensor::f_cat(&[class, patches], 1)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_states_are_named_by_numbers_or_by_stages() {
        let config = Dinov2Config { num_hidden_layers: 12, ..Dinov2Config::default() };
        let named = |names: &[&str]| Some(names.iter().map(|name| name.to_string()).collect());
        assert_eq!(config.outputs().unwrap(), [12]);
        let indices = Dinov2Config { out_indices: Some(vec![9, 10, -2, -1]), ..config.clone() };
        assert_eq!(indices.outputs().unwrap(), [9, 10, 11, 12]);
        let stages = Dinov2Config { out_features: named(&["stem", "stage12", "stage3"]), ..config.clone() };
        assert_eq!(stages.outputs().unwrap(), [0, 3, 12]);
        for wrong in [named(&["stage13"]), named(&["layer1"])] {
            assert!(Dinov2Config { out_features: wrong, ..config.clone() }.outputs().is_err());
        }
    }
}
