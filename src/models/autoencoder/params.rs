//! The sizes of an autoencoder.

use serde::{Deserialize, Serialize};

use crate::config::ConfigFile;
use crate::error::{Error, Result};

/// The sizes of an autoencoder, in the official names.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AutoEncoderParams {
    /// Side of the pictures that it was trained on; nothing depends on it.
    pub resolution: i64,
    /// Channels of a picture.
    pub in_channels: i64,
    /// Channels of the first level.
    pub ch: i64,
    /// Channels of a decoded picture.
    pub out_ch: i64,
    /// Channels of each level over `ch`; every level but the last halves the sides.
    pub ch_mult: Vec<i64>,
    /// Residual blocks of a level of the encoder; the decoder has one more.
    pub num_res_blocks: usize,
    /// Channels of a latent.
    pub z_channels: i64,
    /// What latents are multiplied by, after the shift.
    pub scale_factor: f64,
    /// What is subtracted from latents before they are scaled.
    pub shift_factor: f64,
}

/// The scale and the shift of Stable Diffusion 3's autoencoder. Its tensors have the names and shapes of FLUX.1's, so only
/// the settings tell them apart.
const STABLE_DIFFUSION_3: (f64, f64) = (1.5305, 0.0609);

impl AutoEncoderParams {
    /// Returns the sizes of the autoencoder of every FLUX.1.
    pub fn flux1() -> Self {
        Self {
            resolution: 256,
            in_channels: 3,
            ch: 128,
            out_ch: 3,
            ch_mult: vec![1, 2, 4, 4],
            num_res_blocks: 2,
            z_channels: 16,
            scale_factor: 0.3611,
            shift_factor: 0.1159,
        }
    }

    /// Reads every size from the tensors' shapes, by their official names; `shape` gives `None` for a name that the
    /// file does not hold. The factors are FLUX.1's, since no tensor says them.
    ///
    /// # Errors
    /// [`Error::Config`] names the first tensor that is missing or has a shape that no autoencoder has.
    pub fn from_shapes(shape: impl Fn(&str) -> Option<Vec<i64>>) -> Result<Self> {
        let conv = |name: &str| match shape(name).as_deref() {
            Some(&[out, into, _, _]) => Ok((out, into)),
            Some(other) => Err(Error::Config(format!("{name} must be a kernel, but its shape is {other:?}"))),
            None => Err(Error::Config(format!("this is no FLUX.1 autoencoder: {name} is missing"))),
        };
        let (ch, in_channels) = conv("encoder.conv_in.weight")?;
        let (out_ch, _) = conv("decoder.conv_out.weight")?;
        let (_, z_channels) = conv("decoder.conv_in.weight")?;
        let block = |level: usize, i: usize| format!("encoder.down.{level}.block.{i}.conv1.weight");
        let levels = (0..).take_while(|&level| shape(&block(level, 0)).is_some()).count();
        let num_res_blocks = (0..).take_while(|&i| shape(&block(0, i)).is_some()).count();
        let ch_mult =
            (0..levels).map(|level| Ok(conv(&block(level, 0))?.0 / ch.max(1))).collect::<Result<Vec<_>>>()?;
        if ch <= 0 || ch_mult.is_empty() || ch_mult.contains(&0) {
            return Err(Error::Config("this is no FLUX.1 autoencoder: the encoder has no levels".into()));
        }
        Ok(Self { in_channels, ch, out_ch, ch_mult, num_res_blocks, z_channels, ..Self::flux1() })
    }

    /// Returns whether diffusers' `config.json` has the sizes of these weights.
    pub(crate) fn matches_config(&self, config: &ConfigFile) -> Result<bool> {
        let channels: Vec<i64> = self.ch_mult.iter().map(|mult| mult * self.ch).collect();
        let same =
            |key: &str, found: i64| Ok::<_, Error>(config.int(key)?.is_none_or(|value| value == found));
        Ok(config.ints("block_out_channels")?.is_none_or(|value| value == channels)
            && same("latent_channels", self.z_channels)?
            && same("layers_per_block", self.num_res_blocks as i64)?)
    }

    /// Takes the factors from diffusers' `config.json`, whose sizes must agree with those of the weights. Returns warnings about
    /// settings that are not obeyed, too.
    ///
    /// # Errors
    /// [`Error::File`] with the key of what disagrees, is of another type, or is not built here.
    pub(crate) fn with_config(self, config: &ConfigFile) -> Result<(Self, Vec<String>)> {
        config.check_class(&["AutoencoderKL"])?;
        let int = |key: &str, found: i64| match config.int(key)? {
            Some(value) => config.agree(key, value, found),
            None => Ok(()),
        };
        int("in_channels", self.in_channels)?;
        int("out_channels", self.out_ch)?;
        int("latent_channels", self.z_channels)?;
        int("layers_per_block", self.num_res_blocks as i64)?;
        let channels: Vec<i64> = self.ch_mult.iter().map(|mult| mult * self.ch).collect();
        if let Some(value) = config.ints("block_out_channels")? {
            config.agree("block_out_channels", value, channels)?;
        }
        for (key, known) in
            [("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")]
        {
            for block in config.texts(key)?.unwrap_or_default() {
                config.only(key, Some(block), known)?;
            }
        }
        let act_fn = config.text("act_fn")?.filter(|name| *name != "swish");
        config.only("act_fn", act_fn, "silu")?;
        config.only("norm_num_groups", config.int("norm_num_groups")?, 32)?;
        config.only("mid_block_add_attention", config.flag("mid_block_add_attention")?, true)?;
        config.only("use_quant_conv", config.flag("use_quant_conv")?, false)?;
        config.only("use_post_quant_conv", config.flag("use_post_quant_conv")?, false)?;
        let mut warnings = Vec::new();
        let mut factor = |key: &str, official: f64| match config.float(key)? {
            Some(factor) => Ok::<_, Error>(factor),
            None => {
                let path = config.path().display();
                warnings.push(format!("{path}: there is no {key}: FLUX.1's, {official}, is taken"));
                Ok(official)
            }
        };
        let (scale_factor, shift_factor) =
            (factor("scaling_factor", self.scale_factor)?, factor("shift_factor", self.shift_factor)?);
        if (scale_factor, shift_factor) == STABLE_DIFFUSION_3 {
            warnings.push(format!(
                "{}: {scale_factor} and {shift_factor} are the factors of Stable Diffusion 3's autoencoder, which has the \
                 tensors of FLUX.1's: its pictures of FLUX.1's latents are none; take ae.safetensors, or diffusers' vae/",
                config.path().display()
            ));
        }
        if scale_factor == 0.0 {
            return Err(config.wrong("scaling_factor", "is 0, by which no latent can be divided"));
        }
        for key in ["latents_mean", "latents_std"] {
            if config.has(key) {
                let path = config.path().display();
                warnings
                    .push(format!("{path}: {key} is not obeyed, as FLUX.1's pipelines in diffusers do not"));
            }
        }
        let unknown: Vec<&str> = config.unknown_keys(&[
            "act_fn",
            "block_out_channels",
            "down_block_types",
            // Decoding is in the kind that the pipeline computes in, as in FLUX.1's pipelines of diffusers.
            "force_upcast",
            "in_channels",
            "latent_channels",
            "latents_mean",
            "latents_std",
            "layers_per_block",
            "mid_block_add_attention",
            "norm_num_groups",
            "out_channels",
            "sample_size",
            "scaling_factor",
            "shift_factor",
            "up_block_types",
            "use_post_quant_conv",
            "use_quant_conv",
        ]);
        if !unknown.is_empty() {
            warnings.push(config.unknown(&unknown));
        }
        Ok((Self { scale_factor, shift_factor, ..self }, warnings))
    }

    /// Returns the count of pixels to a side of a latent.
    pub fn downsampling(&self) -> i64 {
        1 << (self.ch_mult.len() - 1)
    }
}
