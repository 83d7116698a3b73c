//! CLIP's vision model: a picture to a vector.
//!
//! Source: `transformers` 5.23.0, `models/clip/modeling_clip.py`, with the attention that it takes by default
//! (`scaled_dot_product_attention`), and `models/clip/image_processing_clip.py`.

use serde::{Deserialize, Serialize};
use tch::nn::{Module, Path};
use tch::{Kind, Tensor};

use crate::error::{Error, Result};
use crate::image::Image;
use crate::models::Model;
use crate::models::text::clip::{ClipLayer, LayerSizes};
use crate::models::text::{matrix, read_config, read_nested_config};
use crate::nn::{Embedding, LayerNorm, Linear, Parameters, check_sizes, declare};
use crate::numerics;
use crate::ops::{self, Epilogue};

/// The mean of each channel of the pictures that CLIP was trained on, in 0..1.
const MEAN: [f64; 3] = [0.48145466, 0.4578275, 0.40821073];
/// The standard deviation of each channel.
const STD: [f64; 3] = [0.26862954, 0.26130258, 0.27577711];

/// The sizes of a CLIP vision model, in the names of its `config.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ClipVisionConfig {
    /// Width of the states.
    pub hidden_size: i64,
    /// Width of the MLP.
    pub intermediate_size: i64,
    /// Width of the vector of a picture.
    pub projection_dim: i64,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Heads.
    pub num_attention_heads: i64,
    /// Pixels to a side of a picture.
    pub image_size: i64,
    /// Pixels to a side of a patch.
    pub patch_size: i64,
    /// The MLP's activation: `quick_gelu` or `gelu`.
    #[serde(default = "quick_gelu")]
    pub hidden_act: String,
    /// Added to the variance.
    #[serde(default = "eps")]
    pub layer_norm_eps: f64,
}

fn quick_gelu() -> String {
    "quick_gelu".into()
}

fn eps() -> f64 {
    1e-5
}

impl ClipVisionConfig {
    /// Reads every size from the tensors' shapes, by their official names; `shape` gives `None` for a name that the
    /// file does not hold. Heads are 64 wide and the rest is as in CLIP-L, since no shape says them.
    ///
    /// # Errors
    /// [`Error::Config`] names the first tensor that is missing or has a shape that no such model has.
    pub fn from_shapes(shape: impl Fn(&str) -> Option<Vec<i64>>) -> Result<Self> {
        let matrix = |name: &str| matrix("CLIP vision model", &shape, name);
        let (num_positions, hidden_size) = matrix("vision_model.embeddings.position_embedding.weight")?;
        let (intermediate_size, _) = matrix("vision_model.encoder.layers.0.mlp.fc1.weight")?;
        let (projection_dim, _) = matrix("visual_projection.weight")?;
        let patch = shape("vision_model.embeddings.patch_embedding.weight");
        let Some(&[_, 3, patch_size, _]) = patch.as_deref() else {
            let name = "vision_model.embeddings.patch_embedding.weight";
            return Err(Error::Config(format!("{name} is no kernel over three channels: {patch:?}")));
        };
        let layer = |i: &usize| shape(&format!("vision_model.encoder.layers.{i}.mlp.fc1.weight")).is_some();
        let side = ((num_positions - 1).max(0) as f64).sqrt().round() as i64;
        Ok(Self {
            hidden_size,
            intermediate_size,
            projection_dim,
            num_hidden_layers: (0..).take_while(layer).count(),
            num_attention_heads: (hidden_size / 64).max(1),
            image_size: side * patch_size,
            patch_size,
            hidden_act: quick_gelu(),
            layer_norm_eps: eps(),
        })
    }

    /// Reads a `config.json`, of the vision model alone or of the whole CLIP (`vision_config`).
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::File`].
    pub fn read(path: impl AsRef<std::path::Path>) -> Result<Self> {
        // The whole CLIP's own projection counts. Within its settings, those that are CLIPVisionConfig's defaults may be
        // left out.
        #[derive(Deserialize)]
        struct Whole {
            vision_config: Option<serde_json::Value>,
            projection_dim: Option<i64>,
        }
        let whole: Whole = read_config(path.as_ref())?;
        let defaults = [
            ("hidden_size", 768),
            ("intermediate_size", 3072),
            ("projection_dim", 512),
            ("num_hidden_layers", 12),
            ("num_attention_heads", 12),
            ("image_size", 224),
            ("patch_size", 32),
        ];
        let config: Self = read_nested_config(path.as_ref(), "vision_config", &defaults)?;
        let projection_dim = whole.vision_config.and(whole.projection_dim).unwrap_or(config.projection_dim);
        Ok(Self { projection_dim, ..config })
    }
}

/// CLIP's vision model with its projection, in the names of `transformers.CLIPVisionModelWithProjection`.
#[derive(Debug)]
#[doc(alias = "CLIPVisionModelWithProjection")]
pub struct ClipVision {
    class_embedding: Tensor,
    patch_embedding: Tensor,
    position_embedding: Embedding,
    pre_layrnorm: LayerNorm,
    layers: Vec<ClipLayer>,
    post_layernorm: LayerNorm,
    visual_projection: Linear,
    config: ClipVisionConfig,
    parameters: Parameters,
}

impl Model for ClipVision {
    fn parameters(&self) -> &Parameters {
        &self.parameters
    }
}

impl ClipVision {
    /// Declares every parameter.
    ///
    /// # Errors
    /// [`Error::Config`] where the heads do not divide the width, patches the picture, or the activation is unknown.
    pub fn new(vs: Path, config: &ClipVisionConfig) -> Result<Self> {
        let ClipVisionConfig { hidden_size, patch_size, image_size, layer_norm_eps, .. } = *config;
        check_sizes(&[
            ("hidden_size", hidden_size),
            ("intermediate_size", config.intermediate_size),
            ("projection_dim", config.projection_dim),
            ("num_attention_heads", config.num_attention_heads),
            ("image_size", image_size),
            ("patch_size", patch_size),
        ])?;
        if image_size % patch_size != 0 || image_size > 4096 {
            return Err(Error::Config(format!(
                "patches of {patch_size} pixels do not divide a picture of {image_size}"
            )));
        }
        let sizes = LayerSizes {
            hidden_size,
            intermediate_size: config.intermediate_size,
            num_attention_heads: config.num_attention_heads,
            hidden_act: &config.hidden_act,
            layer_norm_eps,
            causal: false,
        };
        let collector = Parameters::collect(&vs);
        let root = &vs;
        let vs = root / "vision_model";
        let (embeddings, layers) = (&vs / "embeddings", &vs / "encoder" / "layers");
        let positions = (image_size / patch_size).pow(2) + 1;
        let kernel = [hidden_size, 3, patch_size, patch_size];
        Ok(Self {
            class_embedding: declare(&embeddings, "class_embedding", &[hidden_size]),
            patch_embedding: declare(&(&embeddings / "patch_embedding"), "weight", &kernel),
            position_embedding: Embedding::new(&embeddings / "position_embedding", positions, hidden_size),
            pre_layrnorm: LayerNorm::new(&vs / "pre_layrnorm", hidden_size, layer_norm_eps),
            layers: (0..config.num_hidden_layers)
                .map(|i| ClipLayer::new(&layers / i, &sizes))
                .collect::<Result<_>>()?,
            post_layernorm: LayerNorm::new(&vs / "post_layernorm", hidden_size, layer_norm_eps),
            visual_projection: Linear::new(
                root / "visual_projection",
                hidden_size,
                config.projection_dim,
                false,
            ),
            config: config.clone(),
            parameters: collector.finish(),
        })
    }

    /// Returns the sizes that the model was built with.
    pub fn config(&self) -> &ClipVisionConfig {
        &self.config
    }

    /// Returns the picture as [`ClipVision::forward`] takes it, `[1, 3, S, S]` in f32: its shorter side is resized to `S` with
    /// Pillow's `BICUBIC`, the longer side is cropped to the middle, and each channel is normalised.
    ///
    /// # Errors
    /// [`Error::Tch`] where memory runs out.
    pub fn preprocess(&self, image: &Image) -> Result<Tensor> {
        let side = self.config.image_size as u32;
        let (short, long) = (image.width.min(image.height).max(1), image.width.max(image.height));
        let long = (u64::from(side) * u64::from(long) / u64::from(short)).max(1) as u32;
        let (width, height) = if image.width <= image.height { (side, long) } else { (long, side) };
        let resized = image.resize_bicubic(width, height);
        let (left, top) = (i64::from((width - side) / 2), i64::from((height - side) / 2));

        let size = [1, i64::from(height), i64::from(width), 3];
        let pixels = Tensor::f_from_slice(&resized.rgb)?.f_reshape(size)?.permute([0, 3, 1, 2]);
        let pixels = pixels.f_narrow(2, top, side.into())?.f_narrow(3, left, side.into())?;
        let in_bytes = |values: [f64; 3]| {
            Tensor::from_slice(&values.map(|value| (value * 255.0) as f32)).reshape([1, 3, 1, 1])
        };
        Ok(pixels.f_to_kind(Kind::Float)?.f_sub(&in_bytes(MEAN))?.f_div(&in_bytes(STD))?)
    }

    /// Returns `image_embeds` `[B, projection_dim]` of pictures `[B, 3, S, S]`.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::Unfilled`], [`Error::Cancelled`] within [`numerics::with_cancel`].
    pub fn forward(&self, pixel_values: &Tensor) -> Result<Tensor> {
        let _scope = self.parameters.enter()?;
        let (size, side) = (pixel_values.size(), self.config.image_size);
        if !matches!(size[..], [_, 3, h, w] if h == side && w == side) {
            let expected = format!("[B, 3, {side}, {side}]");
            return Err(Error::Shape { what: "pixel_values", expected, found: size });
        }
        let (b, patch) = (size[0], [self.config.patch_size; 2]);
        let pixels = pixel_values.f_to_kind(self.patch_embedding.kind())?;
        let patches = pixels.f_conv2d(&self.patch_embedding, None::<&Tensor>, patch, [0, 0], [1, 1], 1)?; // [B, D, h, w]
        let patches = patches.flatten(2, 3).transpose(1, 2); // [B, h·w, D]
        let class = self.class_embedding.expand([b, 1, -1], false);
        let x = Tensor::f_cat(&[class, patches], 1)?;
        let position_ids = Tensor::arange(x.size()[1], (Kind::Int64, x.device())).unsqueeze(0);
        let x = self.pre_layrnorm.forward(&(x + self.position_embedding.forward(&position_ids)));
        let x = self
            .layers
            .iter()
            .try_fold(x, |x, layer| numerics::check_cancelled(&x).map(|()| layer.forward(&x)))?;
        let pooled = self.post_layernorm.forward(&x.select(1, 0)); // [B, D]
        Ok(ops::linear(&self.visual_projection, &pooled, Epilogue::default()))
    }
}
