//! The sizes of a FLUX.1 transformer.

use serde::{Deserialize, Serialize};

use crate::config::ConfigFile;
use crate::error::{Error, Result};
use crate::family::ModelFamily;
use crate::nn::check_sizes;

/// The sizes of a FLUX.1 transformer, in the official names.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[doc(alias = "FluxParams")]
pub struct Flux1Params {
    /// Channels of a patch, conditions included.
    pub in_channels: i64,
    /// Channels of a predicted patch.
    pub out_channels: i64,
    /// Width of the pooled text vector.
    pub vec_in_dim: i64,
    /// Width of the text states.
    pub context_in_dim: i64,
    /// Width of the streams.
    pub hidden_size: i64,
    /// The MLP's width over `hidden_size`.
    pub mlp_ratio: f64,
    /// Attention heads.
    pub num_heads: i64,
    /// Double blocks.
    pub depth: usize,
    /// Single blocks.
    pub depth_single_blocks: usize,
    /// Parts of the head width for the three axes of a position.
    pub axes_dim: [i64; 3],
    /// Base of the rotary frequencies.
    pub theta: i64,
    /// Whether `qkv` has a bias.
    pub qkv_bias: bool,
    /// Whether the model is distilled for guidance, and so takes its strength as an input.
    pub guidance_embed: bool,
}

impl Flux1Params {
    /// FLUX.1 dev.
    pub const DEV: Self = Self {
        in_channels: 64,
        out_channels: 64,
        vec_in_dim: 768,
        context_in_dim: 4096,
        hidden_size: 3072,
        mlp_ratio: 4.0,
        num_heads: 24,
        depth: 19,
        depth_single_blocks: 38,
        axes_dim: [16, 56, 56],
        theta: 10_000,
        qkv_bias: true,
        guidance_embed: true,
    };
    /// FLUX.1 schnell, distilled to few steps.
    pub const SCHNELL: Self = Self { guidance_embed: false, ..Self::DEV };
    /// FLUX.1 Krea dev.
    pub const KREA_DEV: Self = Self::DEV;
    /// FLUX.1 Kontext dev, which reads the patches of a reference image behind the noisy ones.
    pub const KONTEXT_DEV: Self = Self::DEV;
    /// FLUX.1 Fill dev: 64 channels, 64 of the masked image, 256 of the mask.
    pub const FILL_DEV: Self = Self { in_channels: 384, ..Self::DEV };
    /// FLUX.1 Canny dev: 64 channels and 64 of the edges.
    pub const CANNY_DEV: Self = Self { in_channels: 128, ..Self::DEV };
    /// FLUX.1 Depth dev: 64 channels and 64 of the depth.
    pub const DEPTH_DEV: Self = Self { in_channels: 128, ..Self::DEV };

    /// Reads every size from the tensors' shapes, by their official names; `shape` gives `None` for a name that the
    /// file does not hold. The blocks are counted. The axes have the ratio of the official model, 1 : 3.5 : 3.5, and `theta`
    /// is the official one, since no tensor says them.
    ///
    /// # Errors
    /// [`Error::Config`] names the first tensor that is missing or has a shape that no FLUX.1 has.
    pub fn from_shapes(shape: impl Fn(&str) -> Option<Vec<i64>>) -> Result<Self> {
        Self::trunk_from_shapes(&shape, "transformer", Some("final_layer.linear.weight"))
    }

    /// Reads the sizes of a transformer or of a ControlNet. `last_layer` is the name of the last weight; a model without it
    /// has as many output channels as input channels.
    pub(super) fn trunk_from_shapes(
        shape: &impl Fn(&str) -> Option<Vec<i64>>,
        what: &str,
        last_layer: Option<&str>,
    ) -> Result<Self> {
        let matrix = |name: &str| match shape(name).as_deref() {
            Some(&[rows, columns]) => Ok((rows, columns)),
            Some(other) => Err(Error::Config(format!("{name} must be a matrix, but its shape is {other:?}"))),
            None if shape("double_blocks.0.img_attn.qkv.weight").is_some() => {
                Err(Error::MissingTensor { name: name.into() })
            }
            None => Err(Error::Config(format!("this is no FLUX.1 {what}: {name} is missing"))),
        };
        let blocks = |prefix: &str, layer: &str| {
            (0..).take_while(|i| shape(&format!("{prefix}.{i}.{layer}")).is_some()).count()
        };
        let (hidden_size, in_channels) = matrix("img_in.weight")?;
        check_sizes(&[("hidden_size", hidden_size), ("in_channels", in_channels)])?;
        let (_, context_in_dim) = matrix("txt_in.weight")?;
        let (_, vec_in_dim) = matrix("vector_in.in_layer.weight")?;
        let out_channels = match last_layer {
            Some(name) => matrix(name)?.0,
            None => in_channels,
        };
        let depth = blocks("double_blocks", "img_attn.qkv.weight");
        let depth_single_blocks = blocks("single_blocks", "linear1.weight");
        let (norm, mlp_hidden_dim) = if depth > 0 {
            ("double_blocks.0.img_attn.norm.key_norm.scale", matrix("double_blocks.0.img_mlp.0.weight")?.0)
        } else {
            let rows = matrix("single_blocks.0.linear1.weight")?.0;
            ("single_blocks.0.norm.key_norm.scale", rows.saturating_sub(3 * hidden_size))
        };
        let head_dim = match shape(norm).as_deref() {
            Some(&[d]) if d > 0 && d % 16 == 0 && hidden_size % d == 0 => d,
            other => {
                return Err(Error::Config(format!("{norm} gives no head width: its shape is {other:?}")));
            }
        };
        Ok(Self {
            in_channels,
            out_channels,
            vec_in_dim,
            context_in_dim,
            hidden_size,
            mlp_ratio: mlp_hidden_dim as f64 / hidden_size as f64,
            num_heads: hidden_size / head_dim,
            depth,
            depth_single_blocks,
            axes_dim: [head_dim / 8, head_dim / 16 * 7, head_dim / 16 * 7],
            theta: Self::DEV.theta,
            qkv_bias: depth == 0 || shape("double_blocks.0.img_attn.qkv.bias").is_some(),
            guidance_embed: shape("guidance_in.in_layer.weight").is_some(),
        })
    }

    /// Takes the axes from diffusers' `config.json`, whose other sizes must agree with those of the weights. Returns warnings
    /// about settings that are not obeyed, too.
    ///
    /// # Errors
    /// [`Error::File`] with the key of what disagrees, is of another type, or is not built here.
    pub(crate) fn with_config(self, config: &ConfigFile) -> Result<(Self, Vec<String>)> {
        config.check_class(&[ModelFamily::Flux1.row().transformer_class])?;
        let patch_size = config.int("patch_size")?.unwrap_or(1);
        // Without `out_channels` diffusers takes as many as come in.
        let out_channels = match config.int("out_channels")? {
            None if patch_size != 1 => config.int("in_channels")?,
            value => value,
        };
        if let Some(value) = out_channels {
            // A patch of `patch_size` a side is drawn from as many numbers as the last layer makes.
            config.agree(
                "out_channels",
                value.saturating_mul(patch_size.saturating_mul(patch_size)),
                self.out_channels,
            )?;
        }
        let params = self.with_trunk_config(config)?;
        let unknown = config.unknown_keys(&TRUNK_KEYS);
        let warnings = if unknown.is_empty() { Vec::new() } else { vec![config.unknown(&unknown)] };
        Ok((params, warnings))
    }

    /// Applies the settings that a transformer and its ControlNets have in common.
    pub(super) fn with_trunk_config(self, config: &ConfigFile) -> Result<Self> {
        let sizes = [
            ("in_channels", self.in_channels),
            ("num_layers", self.depth as i64),
            ("num_single_layers", self.depth_single_blocks as i64),
            ("attention_head_dim", self.hidden_size / self.num_heads),
            ("num_attention_heads", self.num_heads),
            ("joint_attention_dim", self.context_in_dim),
            ("pooled_projection_dim", self.vec_in_dim),
        ];
        for (key, found) in sizes {
            if let Some(value) = config.int(key)? {
                config.agree(key, value, found)?;
            }
        }
        if let Some(value) = config.flag("guidance_embeds")? {
            config.agree("guidance_embeds", value, self.guidance_embed)?;
        }
        let key = "axes_dims_rope";
        let Some(axes) = config.ints(key)? else { return Ok(self) };
        let head_dim = self.hidden_size / self.num_heads;
        let wrong = |reason: String| Err(config.wrong(key, format!("is {axes:?}: {reason}")));
        let Ok(axes_dim) = <[i64; 3]>::try_from(&axes[..]) else {
            return wrong("a position of FLUX.1 has three axes".into());
        };
        if axes_dim.iter().any(|&dim| dim < 2 || dim > head_dim || dim % 2 != 0) {
            return wrong("each must be an even number above 0".into());
        }
        match axes_dim.iter().sum::<i64>() {
            sum if sum == head_dim => Ok(Self { axes_dim, ..self }),
            sum => wrong(format!("they sum to {sum}, and a head of the weights is {head_dim} wide")),
        }
    }

    /// Returns the variant as far as the input channels tell it: `dev` or `schnell`, `Fill`, `Canny or Depth`.
    pub fn variant(&self) -> &'static str {
        let Self { in_channels, out_channels, guidance_embed, .. } = *self;
        let variant = ModelFamily::Flux1.variant(in_channels, out_channels, guidance_embed);
        variant.map_or("unknown", |variant| variant.name)
    }
}

/// The keys of the settings of a transformer in diffusers' folder.
pub(super) const TRUNK_KEYS: [&str; 11] = [
    "attention_head_dim",
    "axes_dims_rope",
    "guidance_embeds",
    "in_channels",
    "joint_attention_dim",
    "num_attention_heads",
    "num_layers",
    "num_single_layers",
    "out_channels",
    "patch_size",
    "pooled_projection_dim",
];
