//! FLUX.1's autoencoder: pixels to latents and back.
//!
//! Source: `black-forest-labs/flux` at 802fb47, `src/flux/modules/autoencoder.py`. Pictures are `[B, 3, H, W]` in
//! −1..1, latents `[B, z_channels, H/8, W/8]`.

mod any;
mod tiles;
mod tiny;

use serde::{Deserialize, Serialize};
use tch::Tensor;
use tch::nn::{Module, Path};

use crate::config::ConfigFile;
use crate::error::{Error, Result};
use crate::nn::{Conv2d, GroupNorm, Parameters, check_kind, check_sizes};
use crate::numerics::{self, Numerics};
use crate::ops::{self, Prologue};
use tiles::Scale;

pub(crate) use any::AnyAutoEncoder;
pub use tiny::{TinyAutoEncoder, TinyAutoEncoderParams};

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
    /// Latents are multiplied by this…
    pub scale_factor: f64,
    /// …after this was taken off.
    pub shift_factor: f64,
}

/// The scaling and the shift of Stable Diffusion 3's autoencoder. Its tensors have FLUX.1's names and shapes, so that only
/// its settings tell the two.
const STABLE_DIFFUSION_3: (f64, f64) = (1.5305, 0.0609);

impl AutoEncoderParams {
    /// The autoencoder of every FLUX.1.
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

    /// Whether diffusers' `config.json` says the sizes of these weights.
    pub(crate) fn has_sizes_of(&self, config: &ConfigFile) -> Result<bool> {
        let channels: Vec<i64> = self.ch_mult.iter().map(|mult| mult * self.ch).collect();
        let same = |key: &str, found: i64| Ok::<_, Error>(config.int(key)?.is_none_or(|said| said == found));
        Ok(config.ints("block_out_channels")?.is_none_or(|said| said == channels)
            && same("latent_channels", self.z_channels)?
            && same("layers_per_block", self.num_res_blocks as i64)?)
    }

    /// The factors that diffusers' `config.json` says, and the sizes of the weights, with which it must agree. The second
    /// is what it says that is not obeyed, in words.
    ///
    /// # Errors
    /// [`Error::File`] with the key of what disagrees, is of another type, or is not built here.
    pub(crate) fn with_config(self, config: &ConfigFile) -> Result<(Self, Vec<String>)> {
        config.check_class(&["AutoencoderKL"])?;
        let int = |key: &str, found: i64| match config.int(key)? {
            Some(said) => config.agree(key, said, found),
            None => Ok(()),
        };
        int("in_channels", self.in_channels)?;
        int("out_channels", self.out_ch)?;
        int("latent_channels", self.z_channels)?;
        int("layers_per_block", self.num_res_blocks as i64)?;
        let channels: Vec<i64> = self.ch_mult.iter().map(|mult| mult * self.ch).collect();
        if let Some(said) = config.ints("block_out_channels")? {
            config.agree("block_out_channels", said, channels)?;
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

    /// Pixels to a side of a latent.
    pub fn downsampling(&self) -> i64 {
        1 << (self.ch_mult.len() - 1)
    }
}

/// Attention over the pixels of the smallest level, with one head. Source: `autoencoder.py` lines 24–53.
#[derive(Debug)]
pub struct AttnBlock {
    norm: GroupNorm,
    q: Conv2d,
    k: Conv2d,
    v: Conv2d,
    proj_out: Conv2d,
}

impl AttnBlock {
    /// `in_channels` is a multiple of the 32 groups.
    pub fn new(vs: Path, in_channels: i64) -> Self {
        let conv = |name: &str| Conv2d::new(&vs / name, in_channels, in_channels, 1, 1, 0);
        Self {
            norm: GroupNorm::new(&vs / "norm", in_channels),
            q: conv("q"),
            k: conv("k"),
            v: conv("v"),
            proj_out: conv("proj_out"),
        }
    }
}

impl Module for AttnBlock {
    fn forward(&self, x: &Tensor) -> Tensor {
        ops::on_picture(x, self.q.weight(), |x| {
            let h_ = ops::group_norm(&self.norm, x);
            let h_ = ops::pixel_attention([&self.q, &self.k, &self.v], &h_);
            ops::conv2d(&self.proj_out, &h_, Prologue::Nothing, Some(x))
        })
    }
}

/// Two convolutions and a shortcut. Source: `autoencoder.py` lines 56–86.
#[derive(Debug)]
pub struct ResnetBlock {
    norm1: GroupNorm,
    conv1: Conv2d,
    norm2: GroupNorm,
    conv2: Conv2d,
    nin_shortcut: Option<Conv2d>,
}

impl ResnetBlock {
    /// The shortcut has weights where the widths differ.
    pub fn new(vs: Path, in_channels: i64, out_channels: i64) -> Self {
        Self {
            norm1: GroupNorm::new(&vs / "norm1", in_channels),
            conv1: Conv2d::new(&vs / "conv1", in_channels, out_channels, 3, 1, 1),
            norm2: GroupNorm::new(&vs / "norm2", out_channels),
            conv2: Conv2d::new(&vs / "conv2", out_channels, out_channels, 3, 1, 1),
            nin_shortcut: (in_channels != out_channels)
                .then(|| Conv2d::new(&vs / "nin_shortcut", in_channels, out_channels, 1, 1, 0)),
        }
    }
}

impl Module for ResnetBlock {
    fn forward(&self, x: &Tensor) -> Tensor {
        ops::on_picture(x, self.conv1.weight(), |x| {
            let h = ops::conv2d(&self.conv1, &ops::group_norm_silu(&self.norm1, x), Prologue::Nothing, None);
            let h = ops::group_norm_silu(&self.norm2, &h);
            let x = match &self.nin_shortcut {
                Some(conv) => ops::conv2d(conv, x, Prologue::Nothing, None),
                None => x.shallow_clone(),
            };
            ops::conv2d(&self.conv2, &h, Prologue::Nothing, Some(&x))
        })
    }
}

/// Halves the sides. Source: `autoencoder.py` lines 89–99.
#[derive(Debug)]
struct Downsample {
    conv: Conv2d,
}

impl Module for Downsample {
    fn forward(&self, x: &Tensor) -> Tensor {
        ops::conv2d(&self.conv, x, Prologue::PaddedAfter, None)
    }
}

/// Doubles the sides. Source: `autoencoder.py` lines 102–110.
#[derive(Debug)]
struct Upsample {
    conv: Conv2d,
}

impl Module for Upsample {
    fn forward(&self, x: &Tensor) -> Tensor {
        ops::conv2d(&self.conv, x, Prologue::Doubled, None)
    }
}

/// The smallest level: `block_1`, `attn_1`, `block_2`.
#[derive(Debug)]
struct Mid {
    block_1: ResnetBlock,
    attn_1: AttnBlock,
    block_2: ResnetBlock,
}

impl Mid {
    fn new(vs: Path, channels: i64) -> Self {
        Self {
            block_1: ResnetBlock::new(&vs / "block_1", channels, channels),
            attn_1: AttnBlock::new(&vs / "attn_1", channels),
            block_2: ResnetBlock::new(&vs / "block_2", channels, channels),
        }
    }

    fn forward(&self, h: &Tensor) -> Result<Tensor> {
        let layers: [&dyn Module; 3] = [&self.block_1, &self.attn_1, &self.block_2];
        one_by_one(h.shallow_clone(), layers)
    }
}

/// Layer after layer, as long as the result is wanted.
fn one_by_one<'a>(h: Tensor, layers: impl IntoIterator<Item = &'a dyn Module>) -> Result<Tensor> {
    layers.into_iter().try_fold(h, |h, layer| numerics::check_cancelled(&h).map(|()| layer.forward(&h)))
}

/// One level: its blocks, then the change of size.
#[derive(Debug)]
struct Level<R> {
    block: Vec<ResnetBlock>,
    resample: Option<R>,
}

impl<R: Module> Level<R> {
    fn new(vs: &Path, widths: &[(i64, i64)], resample: Option<R>) -> Self {
        let block =
            widths.iter().zip(0..).map(|(&(from, to), i)| ResnetBlock::new(vs / "block" / i, from, to));
        Self { block: block.collect(), resample }
    }

    fn forward(&self, h: &Tensor) -> Result<Tensor> {
        let layers = self.block.iter().map(|block| block as &dyn Module);
        one_by_one(
            h.shallow_clone(),
            layers.chain(self.resample.iter().map(|resample| resample as &dyn Module)),
        )
    }
}

/// Pixels to the mean and the log-variance of a latent. Source: `autoencoder.py` lines 113–186.
#[derive(Debug)]
struct Encoder {
    conv_in: Conv2d,
    down: Vec<Level<Downsample>>,
    mid: Mid,
    norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Encoder {
    fn new(vs: Path, p: &AutoEncoderParams) -> Self {
        let conv_in = Conv2d::new(&vs / "conv_in", p.in_channels, p.ch, 3, 1, 1);
        let mut block_in = p.ch;
        let mut down = Vec::new();
        for (level, mult) in p.ch_mult.iter().enumerate() {
            let vs = &vs / "down" / level;
            let block_out = p.ch * mult;
            let mut widths = vec![(block_out, block_out); p.num_res_blocks];
            if let Some(first) = widths.first_mut() {
                first.0 = block_in;
                block_in = block_out;
            }
            let resample = (level + 1 != p.ch_mult.len()).then(|| Downsample {
                conv: Conv2d::new(&vs / "downsample" / "conv", block_in, block_in, 3, 2, 0),
            });
            down.push(Level::new(&vs, &widths, resample));
        }
        Self {
            conv_in,
            down,
            mid: Mid::new(&vs / "mid", block_in),
            norm_out: GroupNorm::new(&vs / "norm_out", block_in),
            conv_out: Conv2d::new(&vs / "conv_out", block_in, 2 * p.z_channels, 3, 1, 1),
        }
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        ops::try_on_picture(x, self.conv_in.weight(), |x| {
            let h = ops::conv2d(&self.conv_in, x, Prologue::Nothing, None);
            let h = self.down.iter().try_fold(h, |h, level| level.forward(&h))?;
            let h = ops::group_norm_silu(&self.norm_out, &self.mid.forward(&h)?);
            Ok(ops::conv2d(&self.conv_out, &h, Prologue::Nothing, None))
        })
    }
}

/// A latent to pixels. Source: `autoencoder.py` lines 189–273.
#[derive(Debug)]
struct Decoder {
    conv_in: Conv2d,
    mid: Mid,
    /// By level, the smallest pictures last, as the names count them; run in reverse.
    up: Vec<Level<Upsample>>,
    norm_out: GroupNorm,
    conv_out: Conv2d,
}

impl Decoder {
    fn new(vs: Path, p: &AutoEncoderParams) -> Self {
        let mut block_in = p.ch * p.ch_mult.last().copied().unwrap_or(1);
        let conv_in = Conv2d::new(&vs / "conv_in", p.z_channels, block_in, 3, 1, 1);
        let mid = Mid::new(&vs / "mid", block_in);
        let mut up = Vec::new();
        for (level, mult) in p.ch_mult.iter().enumerate().rev() {
            let vs = &vs / "up" / level;
            let block_out = p.ch * mult;
            let mut widths = vec![(block_out, block_out); p.num_res_blocks + 1];
            widths[0].0 = block_in;
            block_in = block_out;
            let resample = (level != 0).then(|| Upsample {
                conv: Conv2d::new(&vs / "upsample" / "conv", block_in, block_in, 3, 1, 1),
            });
            up.insert(0, Level::new(&vs, &widths, resample));
        }
        Self {
            conv_in,
            mid,
            up,
            norm_out: GroupNorm::new(&vs / "norm_out", block_in),
            conv_out: Conv2d::new(&vs / "conv_out", block_in, p.out_ch, 3, 1, 1),
        }
    }

    fn forward(&self, z: &Tensor) -> Result<Tensor> {
        ops::try_on_picture(z, self.conv_in.weight(), |z| {
            let h = self.mid.forward(&ops::conv2d(&self.conv_in, z, Prologue::Nothing, None))?;
            let h = ops::as_weights(&h, self.conv_in.weight());
            let h = self.up.iter().rev().try_fold(h, |h, level| level.forward(&h))?;
            Ok(ops::conv2d(
                &self.conv_out,
                &ops::group_norm_silu(&self.norm_out, &h),
                Prologue::Nothing,
                None,
            ))
        })
    }
}

/// Encoder and decoder with the official scale and shift between.
///
/// Source: `autoencoder.py` lines 291–328. The latent is the mean, without sampling.
#[derive(Debug)]
pub struct AutoEncoder {
    encoder: Encoder,
    decoder: Decoder,
    params: AutoEncoderParams,
    parameters: Parameters,
}

impl AutoEncoder {
    /// Declares every parameter under its official name.
    ///
    /// # Errors
    /// [`Error::Config`] where a level's channels are no multiple of the 32 groups of its norms.
    pub fn new(vs: Path, params: &AutoEncoderParams) -> Result<Self> {
        check_sizes(&[
            ("in_channels", params.in_channels),
            ("ch", params.ch),
            ("out_ch", params.out_ch),
            ("z_channels", params.z_channels),
        ])?;
        let width = |m: &i64| m.checked_mul(params.ch).filter(|width| (1..=1 << 22).contains(width));
        let levels = &params.ch_mult;
        if levels.is_empty()
            || levels.len() > 16
            || !levels.iter().all(|m| width(m).is_some_and(|w| w % 32 == 0))
        {
            return Err(Error::Config(format!(
                "channels {} × {:?} must be multiples of the 32 groups of the norms",
                params.ch, params.ch_mult
            )));
        }
        let ((encoder, decoder), parameters) = Parameters::of(&vs, || {
            Ok((Encoder::new(&vs / "encoder", params), Decoder::new(&vs / "decoder", params)))
        })?;
        Ok(Self { encoder, decoder, params: params.clone(), parameters })
    }

    /// The sizes that it was built with.
    pub fn params(&self) -> &AutoEncoderParams {
        &self.params
    }

    /// The kind of its weights, which its inputs must have.
    pub fn kind(&self) -> tch::Kind {
        self.decoder.conv_in.weight().kind()
    }

    /// Chooses between the official bits and speed; see [`Numerics`].
    pub fn set_numerics(&self, numerics: Numerics) {
        self.parameters.ops().set(numerics);
    }

    /// Gives back the memory that fast runs keep for the next one.
    pub fn release_workspace(&self) {
        self.parameters.ops().release();
    }

    /// Pictures `[B, 3, H, W]` in −1..1 to latents `[B, z_channels, H/8, W/8]`, scaled and shifted.
    ///
    /// # Errors
    /// [`Error::Shape`] where the channels are wrong, [`Error::Kind`], [`Error::Unfilled`] before a checkpoint was loaded.
    pub fn encode(&self, x: &Tensor) -> Result<Tensor> {
        self.check("x", x, self.params.in_channels)?;
        let _ops = self.parameters.ops().enter();
        let mean = self.encoder.forward(x)?.chunk(2, 1).swap_remove(0);
        Ok((mean - self.params.shift_factor) * self.params.scale_factor)
    }

    /// Latents to pictures, which may leave −1..1 a little.
    ///
    /// # Errors
    /// As [`AutoEncoder::encode`].
    pub fn decode(&self, z: &Tensor) -> Result<Tensor> {
        self.check("z", z, self.params.z_channels)?;
        let _ops = self.parameters.ops().enter();
        let z = z / self.params.scale_factor + self.params.shift_factor;
        self.decoder.forward(&z)
    }

    /// As [`AutoEncoder::encode`], in tiles of `tile` × `tile` pixels, neighbours of which share `overlap` pixels and
    /// fade into each other: for memory's sake, since attention and norms then see a tile each. What one tile holds is
    /// as `encode` has it.
    ///
    /// # Errors
    /// As [`AutoEncoder::encode`]; [`Error::Config`] where a tile overlaps another by more than a half, [`Error::Shape`]
    /// where a side of the picture is not whole latents.
    pub fn encode_tiled(&self, x: &Tensor, tile: i64, overlap: i64) -> Result<Tensor> {
        self.check("x", x, self.params.in_channels)?;
        let side = self.params.downsampling();
        if x.size()[2] % side != 0 || x.size()[3] % side != 0 {
            let expected = format!("sides that are multiples of {side}");
            return Err(Error::Shape { what: "x", expected, found: x.size() });
        }
        let (tile, overlap) = (tile / side * side, overlap / side * side);
        tiles::tiled(x, tile, overlap, Scale::Down(side), |x| self.encode(x))
    }

    /// As [`AutoEncoder::decode`], in tiles; see [`AutoEncoder::encode_tiled`].
    ///
    /// # Errors
    /// As [`AutoEncoder::encode_tiled`].
    pub fn decode_tiled(&self, z: &Tensor, tile: i64, overlap: i64) -> Result<Tensor> {
        self.check("z", z, self.params.z_channels)?;
        let side = self.params.downsampling();
        tiles::tiled(z, tile / side, overlap / side, Scale::Up(side), |z| self.decode(z))
    }

    /// Pictures through a latent and back.
    ///
    /// # Errors
    /// As [`AutoEncoder::encode`].
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.decode(&self.encode(x)?)
    }

    fn check(&self, what: &'static str, x: &Tensor, channels: i64) -> Result<()> {
        self.parameters.check()?;
        match x.size()[..] {
            [_, c, h, w] if c == channels && h > 0 && w > 0 => {
                check_kind(what, x, x.kind(), self.decoder.conv_in.weight())
            }
            _ => {
                let expected = format!("[B, {channels}, H, W]");
                Err(Error::Shape { what, expected, found: x.size() })
            }
        }
    }
}
