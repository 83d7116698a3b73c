//! SigLIP's vision tower: a picture to the states of its patches.
//!
//! Source: `transformers` 5.23.0, `models/siglip/modeling_siglip.py`, with the attention that it takes by default
//! (`scaled_dot_product_attention`). Redux reads the states of all patches, so the head that pools them is left out.

use serde::{Deserialize, Serialize};
use tch::nn::{Module, Path};
use tch::{Kind, Tensor};

use crate::error::{Error, Result};
use crate::image::Image;
use crate::math::{merge_heads, scaled_dot_product_attention, split_heads};
use crate::models::Model;
use crate::models::text::{matrix, read_config};
use crate::nn::{Conv2d, Embedding, LayerNorm, Linear, Parameters, check_kind, check_sizes};
use crate::numerics;
use crate::ops::{self, Activation, Epilogue};

/// The sizes of a SigLIP vision tower, in the names of its `config.json`. What that file leaves out is as in
/// `transformers`' `SiglipVisionConfig`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SiglipConfig {
    /// Width of the states.
    pub hidden_size: i64,
    /// Width of the MLP.
    pub intermediate_size: i64,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Heads.
    pub num_attention_heads: i64,
    /// Channels of a picture.
    pub num_channels: i64,
    /// Pixels of a side of the pictures.
    pub image_size: i64,
    /// Pixels of a side of a patch.
    pub patch_size: i64,
    /// The MLP's activation: `gelu_pytorch_tanh` or `gelu`.
    pub hidden_act: String,
    /// Added to the variance.
    pub layer_norm_eps: f64,
}

impl Default for SiglipConfig {
    fn default() -> Self {
        Self {
            hidden_size: 768,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 12,
            num_channels: 3,
            image_size: 224,
            patch_size: 16,
            hidden_act: "gelu_pytorch_tanh".into(),
            layer_norm_eps: 1e-6,
        }
    }
}

/// The heads of the published SigLIPs, by their widths: base, large, so400m, giant.
const HEADS: [(i64, i64); 4] = [(768, 12), (1024, 16), (1152, 16), (1536, 16)];

/// Pixels of a side that published SigLIPs were trained with.
const IMAGE_SIZES: [i64; 4] = [224, 256, 384, 512];

impl SiglipConfig {
    /// Returns the sizes of `google/siglip-so400m-patch14-384`, whose states Redux reads.
    pub fn so400m() -> Self {
        Self {
            hidden_size: 1152,
            intermediate_size: 4304,
            num_hidden_layers: 27,
            num_attention_heads: 16,
            image_size: 384,
            patch_size: 14,
            ..Self::default()
        }
    }

    /// Reads the sizes from the tensors' shapes, by their official names; `shape` gives `None` for a name that the file
    /// does not hold. The heads are those of the published model of this width. The size of the pictures is that of a
    /// published model with as many patches, since no shape says how many pixels are left over at the edges.
    ///
    /// # Errors
    /// [`Error::Config`] names the first tensor that is missing or misshapen, or says that no published model has this
    /// width.
    pub fn from_shapes(shape: impl Fn(&str) -> Option<Vec<i64>>) -> Result<Self> {
        let patch = "vision_model.embeddings.patch_embedding.weight";
        let matrix = |name: &str| matrix("SigLIP vision model", &shape, name);
        let found = shape(patch).unwrap_or_default();
        let [hidden_size, num_channels, patch_size, _] = found[..] else {
            return Err(Error::Config(format!("{patch} must have four axes, but its shape is {found:?}")));
        };
        let (positions, _) = matrix("vision_model.embeddings.position_embedding.weight")?;
        let (intermediate_size, _) = matrix("vision_model.encoder.layers.0.mlp.fc1.weight")?;
        let layer = |i: &usize| shape(&format!("vision_model.encoder.layers.{i}.mlp.fc1.weight")).is_some();
        let Some(&(_, num_attention_heads)) = HEADS.iter().find(|(width, _)| *width == hidden_size) else {
            return Err(Error::Config(format!(
                "no published SigLIP is {hidden_size} wide, and no shape says its heads: put its config.json \
                 beside it"
            )));
        };
        let side = (positions as f64).sqrt() as i64;
        let fits = |pixels: &&i64| patch_size > 0 && **pixels / patch_size == side;
        Ok(Self {
            hidden_size,
            intermediate_size,
            num_hidden_layers: (0..).take_while(layer).count(),
            num_attention_heads,
            num_channels,
            image_size: IMAGE_SIZES.iter().find(fits).copied().unwrap_or(side * patch_size),
            patch_size,
            ..Self::default()
        })
    }

    /// Reads a `config.json`, of the vision tower alone or of the whole SigLIP (`vision_config`).
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::File`], [`Error::Config`] where it belongs to another model.
    pub fn read(path: impl AsRef<std::path::Path>) -> Result<Self> {
        #[derive(Deserialize)]
        struct Whole {
            model_type: Option<String>,
            vision_config: Option<serde_json::Value>,
        }
        let path = path.as_ref();
        let whole: Whole = read_config(path)?;
        if let Some(model) = whole.model_type.filter(|model| !model.starts_with("siglip")) {
            let text = format!("{}: this is the configuration of {model:?}, not of SigLIP", path.display());
            return Err(Error::Config(text));
        }
        match whole.vision_config {
            Some(config) => serde_json::from_value(config)
                .map_err(|e| Error::Config(format!("{}: vision_config: {e}", path.display()))),
            None => read_config(path),
        }
    }

    /// Returns the count of patches of a picture, which is that of the states.
    pub fn patches(&self) -> i64 {
        (self.image_size / self.patch_size.max(1)).pow(2)
    }

    /// Returns a picture as the tower reads it, `[1, 3, image_size, image_size]` in f32 and −1..1: it is resized with Pillow's
    /// bicubic filter, whatever its aspect ratio.
    ///
    /// Source: `transformers` 5.23.0, `models/siglip/image_processing_pil_siglip.py` with `image_processing_backends.py`
    /// (`PilBackend`) and `image_transforms.py`: bytes become f64 and are scaled, then f32 and shifted.
    ///
    /// # Errors
    /// [`Error::Tch`] where memory runs out.
    pub fn preprocess(&self, image: &Image) -> Result<Tensor> {
        let side = self.image_size as u32;
        let image = image.resize_bicubic(side, side);
        let size = [1, self.image_size, self.image_size, 3];
        let bytes = Tensor::f_from_slice(&image.rgb)?.f_reshape(size)?.permute([0, 3, 1, 2]).contiguous();
        let scaled = bytes.f_to_kind(Kind::Double)?.f_mul_scalar(1.0 / 255.0)?.f_to_kind(Kind::Float)?;
        Ok(scaled.f_sub_scalar(0.5)?.f_div_scalar(0.5)?)
    }
}

/// Returns the MLP's activation, by its name in a configuration.
fn activation(name: &str) -> Result<Activation> {
    match name {
        "gelu_pytorch_tanh" => Ok(Activation::GeluTanh),
        "gelu" => Ok(Activation::GeluErf),
        _ => Err(Error::Config(format!(
            "SigLIP's hidden_act is {name:?}; gelu_pytorch_tanh and gelu are known"
        ))),
    }
}

#[derive(Debug)]
struct SiglipAttention {
    k_proj: Linear,
    v_proj: Linear,
    q_proj: Linear,
    out_proj: Linear,
    num_heads: i64,
}

impl SiglipAttention {
    fn new(vs: Path, config: &SiglipConfig) -> Self {
        let linear = |name: &str| Linear::new(&vs / name, config.hidden_size, config.hidden_size, true);
        Self {
            k_proj: linear("k_proj"),
            v_proj: linear("v_proj"),
            q_proj: linear("q_proj"),
            out_proj: linear("out_proj"),
            num_heads: config.num_attention_heads,
        }
    }
}

impl Module for SiglipAttention {
    fn forward(&self, x: &Tensor) -> Tensor {
        let project = |layer: &Linear| ops::linear(layer, x, Epilogue::default());
        let heads = |layer: &Linear| split_heads(&project(layer), self.num_heads); // [B, H, L, d]
        let (q, k, v) = (heads(&self.q_proj), heads(&self.k_proj), heads(&self.v_proj));
        let scale = (q.size()[3] as f64).powf(-0.5);
        let attn = scaled_dot_product_attention(&q, &k, &v, None, false, Some(scale));
        ops::linear(&self.out_proj, &merge_heads(&attn), Epilogue::default())
    }
}

#[derive(Debug)]
struct SiglipLayer {
    layer_norm1: LayerNorm,
    self_attn: SiglipAttention,
    layer_norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    activation: Activation,
}

impl SiglipLayer {
    fn new(vs: Path, config: &SiglipConfig) -> Result<Self> {
        let (width, inner) = (config.hidden_size, config.intermediate_size);
        Ok(Self {
            layer_norm1: LayerNorm::new(&vs / "layer_norm1", width, config.layer_norm_eps),
            self_attn: SiglipAttention::new(&vs / "self_attn", config),
            layer_norm2: LayerNorm::new(&vs / "layer_norm2", width, config.layer_norm_eps),
            fc1: Linear::new(&vs / "mlp" / "fc1", width, inner, true),
            fc2: Linear::new(&vs / "mlp" / "fc2", inner, width, true),
            activation: activation(&config.hidden_act)?,
        })
    }
}

impl Module for SiglipLayer {
    fn forward(&self, x: &Tensor) -> Tensor {
        let x = x + self.self_attn.forward(&self.layer_norm1.forward(x));
        let activation = Epilogue { activation: self.activation, ..Epilogue::default() };
        let hidden = ops::linear(&self.fc1, &self.layer_norm2.forward(&x), activation);
        ops::linear(&self.fc2, &hidden, Epilogue { residual: Some(&x), ..Epilogue::default() })
    }
}

/// SigLIP's vision tower without its pooling head, in the names that published files have (`vision_model.…`).
#[derive(Debug)]
#[doc(alias = "SiglipVisionModel")]
pub struct SiglipVision {
    patch_embedding: Conv2d,
    position_embedding: Embedding,
    layers: Vec<SiglipLayer>,
    post_layernorm: LayerNorm,
    config: SiglipConfig,
    parameters: Parameters,
}

impl Model for SiglipVision {
    fn parameters(&self) -> &Parameters {
        &self.parameters
    }
}

impl SiglipVision {
    /// Declares every parameter.
    ///
    /// # Errors
    /// [`Error::Config`] where the heads do not divide the width, a picture has no patch, or the activation is unknown.
    pub fn new(vs: Path, config: &SiglipConfig) -> Result<Self> {
        check_sizes(&[
            ("hidden_size", config.hidden_size),
            ("intermediate_size", config.intermediate_size),
            ("num_attention_heads", config.num_attention_heads),
            ("num_channels", config.num_channels),
            ("image_size", config.image_size),
            ("patch_size", config.patch_size),
        ])?;
        check_sizes(&[("the count of patches", config.patches())])?;
        if config.hidden_size % config.num_attention_heads != 0 {
            return Err(Error::Config(format!(
                "SigLIP's {} heads do not divide its hidden_size {}",
                config.num_attention_heads, config.hidden_size
            )));
        }
        let collector = Parameters::collect(&vs);
        let vs = &vs / "vision_model";
        let (embeddings, layers) = (&vs / "embeddings", &vs / "encoder" / "layers");
        let (width, patch) = (config.hidden_size, config.patch_size);
        let patches = &embeddings / "patch_embedding";
        Ok(Self {
            patch_embedding: Conv2d::new(patches, config.num_channels, width, patch, patch, 0),
            position_embedding: Embedding::new(&embeddings / "position_embedding", config.patches(), width),
            layers: (0..config.num_hidden_layers)
                .map(|i| SiglipLayer::new(&layers / i, config))
                .collect::<Result<_>>()?,
            post_layernorm: LayerNorm::new(&vs / "post_layernorm", width, config.layer_norm_eps),
            config: config.clone(),
            parameters: collector.finish(),
        })
    }

    /// Returns the sizes that the model was built with.
    pub fn config(&self) -> &SiglipConfig {
        &self.config
    }

    /// Encodes pictures `[B, C, image_size, image_size]`, as [`SiglipConfig::preprocess`] makes them, to the states of their
    /// patches `[B, patches, hidden_size]` (`last_hidden_state`). The pixels become the kind of the weights.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::Kind`] on another device, [`Error::Unfilled`].
    pub fn forward(&self, pixel_values: &Tensor) -> Result<Tensor> {
        let _scope = self.parameters.enter()?;
        let SiglipConfig { num_channels, image_size, .. } = self.config;
        if pixel_values.dim() != 4 || pixel_values.size()[1..] != [num_channels, image_size, image_size] {
            let expected = format!("[B, {num_channels}, {image_size}, {image_size}]");
            return Err(Error::Shape { what: "pixel_values", expected, found: pixel_values.size() });
        }
        let weight = self.patch_embedding.weight();
        check_kind("pixel_values", pixel_values, weight.kind(), weight)?;
        let x = self.patch_embedding.forward(&pixel_values.to_kind(weight.kind())); // [B, D, h, w]
        let x = x.flatten(2, -1).transpose(1, 2); // [B, h·w, D]
        let position_ids = Tensor::arange(self.config.patches(), (Kind::Int64, x.device())).unsqueeze(0);
        let x = x + self.position_embedding.forward(&position_ids);
        let x = self
            .layers
            .iter()
            .try_fold(x, |x, layer| numerics::check_cancelled(&x).map(|()| layer.forward(&x)))?;
        Ok(self.post_layernorm.forward(&x))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(len: usize) -> Vec<u8> {
        let step = |x: &mut u32| {
            *x = x.wrapping_mul(1_103_515_245).wrapping_add(12345) & 0x7fff_ffff;
            Some((*x >> 16) as u8)
        };
        std::iter::repeat(()).scan(12345, |x, ()| step(x)).take(len).collect()
    }

    /// The sum is that of `SiglipImageProcessorPil` of transformers 5.23.0 with Pillow 13.0.0, of the f32 values' bytes.
    #[test]
    fn pixels_are_those_of_the_image_processor_bit_for_bit() {
        let image = Image { width: 61, height: 37, rgb: noise(3 * 61 * 37) };
        let config = SiglipConfig { image_size: 48, ..SiglipConfig::default() };
        let x = config.preprocess(&image).unwrap();
        assert_eq!(x.size(), [1, 3, 48, 48]);
        let values = Vec::<f32>::try_from(x.reshape([-1])).unwrap();
        let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3);
        let sum = values.iter().flat_map(|v| v.to_le_bytes()).fold(0xcbf2_9ce4_8422_2325, step);
        assert_eq!(sum, 0x7d44_2cf5_5ab2_d8b5);
    }

    #[test]
    fn a_configuration_is_read_whole_or_alone_and_what_it_leaves_out_is_the_default() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.json");
        let read = |text: &str| {
            std::fs::write(&path, text).unwrap();
            SiglipConfig::read(&path)
        };
        let sizes = r#""hidden_size":1152,"image_size":384,"intermediate_size":4304,"model_type":"siglip_vision_model",
            "num_attention_heads":16,"num_hidden_layers":27,"patch_size":14"#;
        let whole = format!(r#"{{"model_type":"siglip","text_config":{{}},"vision_config":{{{sizes}}}}}"#);
        assert_eq!(read(&whole).unwrap(), SiglipConfig::so400m());
        assert_eq!(read(&format!("{{{sizes}}}")).unwrap(), SiglipConfig::so400m());
        assert_eq!(read(r#"{"model_type":"siglip","vision_config":{}}"#).unwrap(), SiglipConfig::default());
        let other = read(r#"{"model_type":"clip_vision_model","hidden_size":1024}"#).unwrap_err().to_string();
        assert!(other.contains("clip_vision_model"), "{other}");
    }

    #[test]
    fn sizes_that_cannot_be_are_refused() {
        let build = |config: SiglipConfig| {
            let vs = tch::nn::VarStore::new(tch::Device::Cpu);
            SiglipVision::new(vs.root(), &config).unwrap_err().to_string()
        };
        let base = SiglipConfig::default;
        assert!(build(SiglipConfig { num_attention_heads: 7, ..base() }).contains("7 heads"));
        assert!(build(SiglipConfig { patch_size: 300, ..base() }).contains("count of patches"));
        assert!(build(SiglipConfig { patch_size: 0, ..base() }).contains("patch_size"));
        assert!(build(SiglipConfig { hidden_act: "relu".into(), ..base() }).contains("relu"));
    }

    #[test]
    fn pictures_of_another_size_are_refused() {
        let vs = tch::nn::VarStore::new(tch::Device::Cpu);
        let config = SiglipConfig {
            hidden_size: 8,
            intermediate_size: 8,
            num_hidden_layers: 1,
            num_attention_heads: 2,
            image_size: 9,
            patch_size: 4,
            ..SiglipConfig::default()
        };
        let model = SiglipVision::new(vs.root(), &config).unwrap();
        crate::nn::init(&vs, 1).unwrap();
        let zeros = |size: &[i64]| Tensor::zeros(size, tch::kind::FLOAT_CPU);
        // A pixel is left over on the right and below.
        assert_eq!(model.forward(&zeros(&[2, 3, 9, 9])).unwrap().size(), [2, 4, 8]);
        assert!(matches!(model.forward(&zeros(&[1, 3, 8, 9])), Err(Error::Shape { .. })));
        assert!(matches!(model.forward(&zeros(&[3, 9, 9])), Err(Error::Shape { .. })));
    }
}
