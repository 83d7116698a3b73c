//! FLUX.1's autoencoder: pixels to latents and back.
//!
//! Source: `black-forest-labs/flux` at 802fb47, `src/flux/modules/autoencoder.py`. Pictures are `[B, 3, H, W]` in
//! −1..1, latents `[B, z_channels, H/8, W/8]`.

mod any;
mod params;
mod tiles;
mod tiny;

use tch::Tensor;
use tch::nn::{Module, Path};

use crate::error::{Error, Result};
use crate::models::Model;
use crate::nn::{Conv2d, GroupNorm, Parameters, check_kind, check_sizes};
use crate::numerics;
use crate::ops::{self, Prologue};
use tiles::Scale;

pub(crate) use any::AnyAutoEncoder;
pub use params::AutoEncoderParams;
pub use tiny::{TinyAutoEncoder, TinyAutoEncoderParams};

/// Attention over the pixels of the smallest level, with a single head. Source: `autoencoder.py` lines 24–53.
#[derive(Debug)]
pub struct AttnBlock {
    norm: GroupNorm,
    q: Conv2d,
    k: Conv2d,
    v: Conv2d,
    proj_out: Conv2d,
}

impl AttnBlock {
    /// Declares the norm and four convolutions. `in_channels` must be a multiple of the 32 groups.
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
    /// Declares the layers. The shortcut has weights where the widths differ.
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
        run_layers(h.shallow_clone(), layers)
    }
}

/// Runs layers one after the other, until the run is cancelled.
fn run_layers<'a>(h: Tensor, layers: impl IntoIterator<Item = &'a dyn Module>) -> Result<Tensor> {
    layers.into_iter().try_fold(h, |h, layer| numerics::check_cancelled(&h).map(|()| layer.forward(&h)))
}

/// A level: its blocks, then the change of size.
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
        run_layers(
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

impl Model for AutoEncoder {
    fn parameters(&self) -> &Parameters {
        &self.parameters
    }
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
        let collector = Parameters::collect(&vs);
        Ok(Self {
            encoder: Encoder::new(&vs / "encoder", params),
            decoder: Decoder::new(&vs / "decoder", params),
            params: params.clone(),
            parameters: collector.finish(),
        })
    }

    /// Returns the sizes that the model was built with.
    pub fn params(&self) -> &AutoEncoderParams {
        &self.params
    }

    /// Returns the kind of the weights, which the inputs must have.
    pub fn kind(&self) -> tch::Kind {
        self.decoder.conv_in.weight().kind()
    }

    /// Encodes pictures `[B, 3, H, W]` in −1..1 to latents `[B, z_channels, H/8, W/8]`, scaled and shifted.
    ///
    /// # Errors
    /// [`Error::Shape`] where the channels are wrong, [`Error::Kind`], [`Error::Unfilled`] before a checkpoint was loaded.
    pub fn encode(&self, x: &Tensor) -> Result<Tensor> {
        self.check("x", x, self.params.in_channels)?;
        let _scope = self.parameters.enter()?;
        let mean = self.encoder.forward(x)?.chunk(2, 1).swap_remove(0);
        Ok((mean - self.params.shift_factor) * self.params.scale_factor)
    }

    /// Decodes latents to pictures, which may leave −1..1 a little.
    ///
    /// # Errors
    /// As [`AutoEncoder::encode`].
    pub fn decode(&self, z: &Tensor) -> Result<Tensor> {
        self.check("z", z, self.params.z_channels)?;
        let _scope = self.parameters.enter()?;
        let z = z / self.params.scale_factor + self.params.shift_factor;
        self.decoder.forward(&z)
    }

    /// Encodes pictures as [`AutoEncoder::encode`] does, in tiles of `tile` × `tile` pixels. Neighbours share `overlap` pixels
    /// and fade into each other. This saves memory, since attention and norms see a single tile at a time. A picture of a
    /// single tile has the bits of `encode`.
    ///
    /// # Errors
    /// As [`AutoEncoder::encode`]; [`Error::Config`] where a tile overlaps another by more than a half, [`Error::Shape`]
    /// where a side of the picture is no multiple of the pixels of a latent.
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

    /// Decodes latents as [`AutoEncoder::decode`] does, in tiles; see [`AutoEncoder::encode_tiled`].
    ///
    /// # Errors
    /// As [`AutoEncoder::encode_tiled`].
    pub fn decode_tiled(&self, z: &Tensor, tile: i64, overlap: i64) -> Result<Tensor> {
        self.check("z", z, self.params.z_channels)?;
        let side = self.params.downsampling();
        tiles::tiled(z, tile / side, overlap / side, Scale::Up(side), |z| self.decode(z))
    }

    /// Encodes pictures and decodes their latents.
    ///
    /// # Errors
    /// As [`AutoEncoder::encode`].
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.decode(&self.encode(x)?)
    }

    fn check(&self, what: &'static str, x: &Tensor, channels: i64) -> Result<()> {
        self.parameters.check_filled()?;
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
