//! A tiny autoencoder (TAESD; TAEF1 for FLUX.1): convolutions alone, a hundredth of the work, pictures nearly as good.
//!
//! Source: diffusers 0.42.1, `models/autoencoders/autoencoder_tiny.py`, `vae.py` lines 757–896 (`EncoderTiny`,
//! `DecoderTiny`) and `models/unets/unet_2d_blocks.py` lines 552–586, in whose names the parameters are; and
//! `madebyollin/taesd` at 5cccb12, `taesd.py`, whose files hold encoder and decoder apart.

use serde::{Deserialize, Serialize};
use tch::Tensor;
use tch::nn::{Module, Path};

use super::tiles::{self, Scale};
use crate::config::ConfigFile;
use crate::error::{Error, Result};
use crate::models::Model;
use crate::nn::{Conv2d, Parameters, check_kind, check_sizes};
use crate::numerics;
use crate::ops::{self, Prologue};

/// The sizes of a tiny autoencoder, in the names of diffusers' `config.json`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct TinyAutoEncoderParams {
    /// Channels of a picture.
    pub in_channels: i64,
    /// Channels of a decoded picture.
    pub out_channels: i64,
    /// Channels of a latent.
    pub latent_channels: i64,
    /// Channels of every layer between these.
    pub block_out_channels: i64,
    /// Blocks of each stage of the encoder; every stage but the first halves the sides. Empty where there is no encoder.
    pub num_encoder_blocks: Vec<usize>,
    /// Blocks of each stage of the decoder, where every stage but the last doubles the sides. Empty where there is no decoder.
    pub num_decoder_blocks: Vec<usize>,
    /// What latents are multiplied by, after the shift.
    pub scaling_factor: f64,
    /// What is subtracted from latents before they are scaled.
    pub shift_factor: f64,
}

impl TinyAutoEncoderParams {
    /// Returns the sizes of TAEF1, which reads FLUX.1's latents as the transformer returns them.
    pub fn taef1() -> Self {
        Self {
            in_channels: 3,
            out_channels: 3,
            latent_channels: 16,
            block_out_channels: 64,
            num_encoder_blocks: vec![1, 3, 3, 3],
            num_decoder_blocks: vec![3, 3, 3, 1],
            scaling_factor: 1.0,
            shift_factor: 0.0,
        }
    }

    /// Reads every size from the tensors' shapes, by diffusers' names; `shape` gives `None` for a name that the file does
    /// not hold. The factors are TAEF1's, since no tensor says them.
    ///
    /// # Errors
    /// [`Error::Config`] where the layers are not those of a tiny autoencoder.
    pub fn from_shapes(shape: impl Fn(&str) -> Option<Vec<i64>>) -> Result<Self> {
        let mut params = Self { num_encoder_blocks: vec![], num_decoder_blocks: vec![], ..Self::taef1() };
        if let Some(Layers { blocks, first, last }) = Layers::from_shapes("encoder", &shape)? {
            params.num_encoder_blocks = blocks;
            (params.in_channels, params.block_out_channels, params.latent_channels) =
                (first.1, first.0, last.0);
        }
        if let Some(Layers { blocks, first, last }) = Layers::from_shapes("decoder", &shape)? {
            params.num_decoder_blocks = blocks;
            (params.latent_channels, params.block_out_channels, params.out_channels) =
                (first.1, first.0, last.0);
        }
        match params.num_encoder_blocks.is_empty() && params.num_decoder_blocks.is_empty() {
            true => Err(not_tiny("neither encoder.layers.0 nor decoder.layers.0 is there")),
            false => Ok(params),
        }
    }

    /// Takes the factors from diffusers' `config.json`, whose sizes must agree with those of the weights. Returns warnings about
    /// settings that are not obeyed, too.
    ///
    /// # Errors
    /// [`Error::File`] with the key of what disagrees, is of another type, or is not built here.
    pub(crate) fn with_config(self, config: &ConfigFile) -> Result<(Self, Vec<String>)> {
        config.check_class(&["AutoencoderTiny"])?;
        let int = |key: &str, found: i64| match config.int(key)? {
            Some(value) => config.agree(key, value, found),
            None => Ok(()),
        };
        int("in_channels", self.in_channels)?;
        int("out_channels", self.out_channels)?;
        int("latent_channels", self.latent_channels)?;
        let halves = [("encoder", &self.num_encoder_blocks), ("decoder", &self.num_decoder_blocks)];
        for (half, blocks) in halves.into_iter().filter(|(_, blocks)| !blocks.is_empty()) {
            let (counts, widths) = (format!("num_{half}_blocks"), format!("{half}_block_out_channels"));
            if let Some(value) = config.ints(&counts)? {
                config.agree(&counts, value, blocks.iter().map(|&count| count as i64).collect())?;
            }
            if let Some(value) = config.ints(&widths)? {
                config.agree(&widths, value, vec![self.block_out_channels; blocks.len()])?;
            }
        }
        config.only("act_fn", config.text("act_fn")?, "relu")?;
        config.only("upsample_fn", config.text("upsample_fn")?, "nearest")?;
        config.only("upsampling_scaling_factor", config.int("upsampling_scaling_factor")?, 2)?;
        let scaling_factor = config.float("scaling_factor")?.unwrap_or(self.scaling_factor);
        if scaling_factor == 0.0 {
            return Err(config.wrong("scaling_factor", "is 0, by which no latent can be divided"));
        }
        let shift_factor = config.float("shift_factor")?.unwrap_or(self.shift_factor);
        let unknown: Vec<&str> = config.unknown_keys(&[
            "act_fn",
            // The name of these widths in the first version.
            "block_out_channels",
            "decoder_block_out_channels",
            "encoder_block_out_channels",
            "force_upcast",
            "in_channels",
            "latent_channels",
            // These two are for latents as 8-bit pictures, which no pipeline makes.
            "latent_magnitude",
            "latent_shift",
            "num_decoder_blocks",
            "num_encoder_blocks",
            "out_channels",
            "scaling_factor",
            "shift_factor",
            "upsample_fn",
            "upsampling_scaling_factor",
        ]);
        let warnings = if unknown.is_empty() { Vec::new() } else { vec![config.unknown(&unknown)] };
        Ok((Self { scaling_factor, shift_factor, ..self }, warnings))
    }

    /// Returns the count of pixels to a side of a latent.
    pub fn downsampling(&self) -> i64 {
        1 << (self.num_decoder_blocks.len().max(self.num_encoder_blocks.len()).max(1) - 1)
    }
}

fn not_tiny(text: &str) -> Error {
    Error::Config(format!("this is no tiny autoencoder: {text}"))
}

/// The layers of a half, as the names of its tensors tell them.
struct Layers {
    /// Count of blocks after each of its convolutions but the last.
    blocks: Vec<usize>,
    /// Rows and columns of the first convolution.
    first: (i64, i64),
    /// Rows and columns of the last convolution.
    last: (i64, i64),
}

impl Layers {
    /// Returns `None` where there is no such half.
    fn from_shapes(half: &str, shape: impl Fn(&str) -> Option<Vec<i64>>) -> Result<Option<Self>> {
        let conv = |i: usize| match shape(&format!("{half}.layers.{i}.weight")).as_deref() {
            Some(&[out, into, 3, 3]) => Ok(Some((out, into))),
            Some(other) => {
                Err(not_tiny(&format!("{half}.layers.{i}.weight is no kernel of 3 × 3, but {other:?}")))
            }
            None => Ok(None),
        };
        let is_block = |i: usize| shape(&format!("{half}.layers.{i}.conv.0.weight")).is_some();
        let Some(first) = conv(0)? else { return Ok(None) };
        let (mut blocks, mut count, mut last, mut gap, mut i) = (Vec::new(), 0, first, 0, 1);
        // An activation or a change of size has no tensors, and there is never more than one of them in a row.
        while gap < 2 {
            if let Some(found) = conv(i)? {
                blocks.push(count);
                (last, count, gap) = (found, 0, 0);
            } else if is_block(i) {
                (count, gap) = (count + 1, 0);
            } else {
                gap += 1;
            }
            i += 1;
        }
        match blocks.is_empty() || count > 0 {
            true => Err(not_tiny(&format!("the {half} does not end with a convolution"))),
            false => Ok(Some(Self { blocks, first, last })),
        }
    }
}

/// Three convolutions and a shortcut: `relu(conv(x) + x)`.
#[derive(Debug)]
struct Block {
    conv: [Conv2d; 3],
}

impl Block {
    fn new(vs: Path, channels: i64) -> Self {
        Self { conv: [0, 2, 4].map(|i| Conv2d::new(&vs / "conv" / i, channels, channels, 3, 1, 1)) }
    }
}

impl Module for Block {
    fn forward(&self, x: &Tensor) -> Tensor {
        let [first, second, third] = &self.conv;
        let h = ops::conv2d(first, x, Prologue::Nothing, None).relu();
        let h = ops::conv2d(second, &h, Prologue::Nothing, None).relu();
        ops::conv2d(third, &h, Prologue::Nothing, Some(x)).relu()
    }
}

/// A layer of the encoder or of the decoder.
#[derive(Debug)]
enum Layer {
    Conv(Conv2d),
    Relu,
    Block(Block),
    /// A convolution that doubles the sides first.
    Upsample(Conv2d),
}

impl Layer {
    fn forward(&self, x: &Tensor) -> Tensor {
        match self {
            Self::Conv(conv) => ops::conv2d(conv, x, Prologue::Nothing, None),
            Self::Relu => x.relu(),
            Self::Block(block) => block.forward(x),
            Self::Upsample(conv) => ops::conv2d(conv, x, Prologue::Doubled, None),
        }
    }
}

/// A list of layers, the first of which is a convolution.
#[derive(Debug)]
struct Sequence {
    layers: Vec<Layer>,
}

impl Sequence {
    /// Declares `EncoderTiny`, which makes a latent of a picture.
    fn encoder(vs: Path, p: &TinyAutoEncoderParams) -> Self {
        let (vs, width) = (&vs / "layers", p.block_out_channels);
        let (mut layers, mut at) = (Vec::new(), 0);
        for (stage, &blocks) in p.num_encoder_blocks.iter().enumerate() {
            layers.push(Layer::Conv(match stage {
                0 => Conv2d::new(&vs / at, p.in_channels, width, 3, 1, 1),
                _ => Conv2d::without_bias(&(&vs / at), width, width, 3, 2, 1),
            }));
            layers.extend((at + 1..=at + blocks).map(|i| Layer::Block(Block::new(&vs / i, width))));
            at += 1 + blocks;
        }
        layers.push(Layer::Conv(Conv2d::new(&vs / at, width, p.latent_channels, 3, 1, 1)));
        Self { layers }
    }

    /// Declares `DecoderTiny`, which makes a picture of a latent.
    fn decoder(vs: Path, p: &TinyAutoEncoderParams) -> Self {
        let (vs, width) = (&vs / "layers", p.block_out_channels);
        let first = Conv2d::new(&vs / 0, p.latent_channels, width, 3, 1, 1);
        let (mut layers, mut at) = (vec![Layer::Conv(first), Layer::Relu], 2);
        for (stage, &blocks) in p.num_decoder_blocks.iter().enumerate() {
            layers.extend((at..at + blocks).map(|i| Layer::Block(Block::new(&vs / i, width))));
            at += blocks;
            if stage + 1 < p.num_decoder_blocks.len() {
                // The change of size has an index in the list, too.
                layers.push(Layer::Upsample(Conv2d::without_bias(&(&vs / (at + 1)), width, width, 3, 1, 1)));
                at += 2;
            }
        }
        layers.push(Layer::Conv(Conv2d::new(&vs / at, width, p.out_channels, 3, 1, 1)));
        Self { layers }
    }

    /// Returns the kernel of the first layer, whose kind is that of all layers.
    fn weight(&self) -> Option<&Tensor> {
        match self.layers.first() {
            Some(Layer::Conv(conv)) => Some(conv.weight()),
            _ => None,
        }
    }

    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let Some(weight) = self.weight() else { return Ok(x.shallow_clone()) };
        ops::try_on_picture(x, weight, |x| {
            self.layers.iter().try_fold(x.shallow_clone(), |x, layer| {
                numerics::check_cancelled(&x).map(|()| layer.forward(&x))
            })
        })
    }
}

/// The `AutoencoderTiny` of diffusers with the scale and shift of its `config.json`. A file in the original names holds
/// only one half.
#[derive(Debug)]
#[doc(alias = "AutoencoderTiny")]
#[doc(alias = "TAESD")]
pub struct TinyAutoEncoder {
    encoder: Option<Sequence>,
    decoder: Option<Sequence>,
    params: TinyAutoEncoderParams,
    parameters: Parameters,
}

impl Model for TinyAutoEncoder {
    fn parameters(&self) -> &Parameters {
        &self.parameters
    }
}

impl TinyAutoEncoder {
    /// Declares every parameter under diffusers' name.
    ///
    /// # Errors
    /// [`Error::Config`] for sizes that no model has.
    pub fn new(vs: Path, params: &TinyAutoEncoderParams) -> Result<Self> {
        check_sizes(&[
            ("in_channels", params.in_channels),
            ("out_channels", params.out_channels),
            ("latent_channels", params.latent_channels),
            ("block_out_channels", params.block_out_channels),
        ])?;
        let halves = [&params.num_encoder_blocks, &params.num_decoder_blocks];
        let too_many =
            |blocks: &&Vec<usize>| blocks.len() > 16 || blocks.iter().any(|&count| count > 1 << 10);
        if halves.iter().all(|blocks| blocks.is_empty()) || halves.iter().any(too_many) {
            let text = format!("no tiny autoencoder has {:?} and {:?} blocks", halves[0], halves[1]);
            return Err(Error::Config(text));
        }
        let [encodes, decodes] = halves.map(|blocks| !blocks.is_empty());
        let collector = Parameters::collect(&vs);
        Ok(Self {
            encoder: encodes.then(|| Sequence::encoder(&vs / "encoder", params)),
            decoder: decodes.then(|| Sequence::decoder(&vs / "decoder", params)),
            params: params.clone(),
            parameters: collector.finish(),
        })
    }

    /// Returns the sizes that the model was built with.
    pub fn params(&self) -> &TinyAutoEncoderParams {
        &self.params
    }

    /// Encodes pictures `[B, 3, H, W]` in −1..1 to latents `[B, latent_channels, H/8, W/8]`, as a transformer reads them.
    ///
    /// # Errors
    /// [`Error::Config`] where there is no encoder; [`Error::Shape`], [`Error::Kind`], [`Error::Unfilled`].
    pub fn encode(&self, x: &Tensor) -> Result<Tensor> {
        let encoder = half(&self.encoder, "encoder")?;
        self.check("x", x, self.params.in_channels, encoder)?;
        let _scope = self.parameters.enter()?;
        // The layers compute with pixels in 0..1.
        let z = encoder.forward(&((x + 1.0) / 2.0))?;
        Ok((z - self.params.shift_factor) * self.params.scaling_factor)
    }

    /// Decodes latents to pictures, which may leave −1..1 a little.
    ///
    /// # Errors
    /// As [`TinyAutoEncoder::encode`], of the decoder.
    pub fn decode(&self, z: &Tensor) -> Result<Tensor> {
        let decoder = half(&self.decoder, "decoder")?;
        self.check("z", z, self.params.latent_channels, decoder)?;
        let _scope = self.parameters.enter()?;
        let z = z / self.params.scaling_factor + self.params.shift_factor;
        let z = (z / 3.0).tanh() * 3.0;
        Ok(decoder.forward(&z)? * 2.0 - 1.0)
    }

    /// Encodes pictures in tiles, as [`AutoEncoder::encode_tiled`](super::AutoEncoder::encode_tiled) does.
    ///
    /// # Errors
    /// As [`TinyAutoEncoder::encode`] and [`AutoEncoder::encode_tiled`](super::AutoEncoder::encode_tiled).
    pub fn encode_tiled(&self, x: &Tensor, tile: i64, overlap: i64) -> Result<Tensor> {
        self.check("x", x, self.params.in_channels, half(&self.encoder, "encoder")?)?;
        let side = self.params.downsampling();
        if x.size()[2] % side != 0 || x.size()[3] % side != 0 {
            let expected = format!("sides that are multiples of {side}");
            return Err(Error::Shape { what: "x", expected, found: x.size() });
        }
        let (tile, overlap) = (tile / side * side, overlap / side * side);
        tiles::tiled(x, tile, overlap, Scale::Down(side), |x| self.encode(x))
    }

    /// Decodes latents in tiles.
    ///
    /// # Errors
    /// As [`TinyAutoEncoder::encode_tiled`].
    pub fn decode_tiled(&self, z: &Tensor, tile: i64, overlap: i64) -> Result<Tensor> {
        self.check("z", z, self.params.latent_channels, half(&self.decoder, "decoder")?)?;
        let side = self.params.downsampling();
        tiles::tiled(z, tile / side, overlap / side, Scale::Up(side), |z| self.decode(z))
    }

    fn check(&self, what: &'static str, x: &Tensor, channels: i64, half: &Sequence) -> Result<()> {
        self.parameters.check_filled()?;
        match (&x.size()[..], half.weight()) {
            (&[_, c, h, w], Some(weight)) if c == channels && h > 0 && w > 0 => {
                check_kind(what, x, x.kind(), weight)
            }
            _ => {
                let expected = format!("[B, {channels}, H, W]");
                Err(Error::Shape { what, expected, found: x.size() })
            }
        }
    }
}

/// Returns the half, or an error that says how to get it.
fn half<'a>(half: &'a Option<Sequence>, name: &str) -> Result<&'a Sequence> {
    half.as_ref().ok_or_else(|| {
        let text = format!(
            "this tiny autoencoder has no {name}: name diffusers' file, which holds both halves, or put the one with \
             the {name} beside the other (taef1_encoder.safetensors, taef1_decoder.safetensors)"
        );
        Error::Config(text)
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use tch::Device;
    use tch::nn::VarStore;

    use super::*;
    use crate::shim;

    fn built(params: &TinyAutoEncoderParams) -> (VarStore, TinyAutoEncoder) {
        let mut vs = VarStore::new(Device::Cpu);
        let model = TinyAutoEncoder::new(vs.root(), params).unwrap();
        crate::nn::init(&vs, 3).unwrap();
        vs.freeze();
        (vs, model)
    }

    #[test]
    fn the_sizes_are_read_from_the_names_and_shapes_of_each_half() {
        let whole = TinyAutoEncoderParams::taef1();
        let odd = TinyAutoEncoderParams {
            num_encoder_blocks: vec![2, 0, 1],
            num_decoder_blocks: vec![1, 2],
            latent_channels: 4,
            block_out_channels: 8,
            ..whole.clone()
        };
        let alone = |params: &TinyAutoEncoderParams| {
            [
                TinyAutoEncoderParams { num_encoder_blocks: vec![], ..params.clone() },
                TinyAutoEncoderParams { num_decoder_blocks: vec![], ..params.clone() },
            ]
        };
        for params in [alone(&whole), alone(&odd)].concat().into_iter().chain([whole, odd]) {
            let vs = VarStore::new(Device::Cpu);
            TinyAutoEncoder::new(vs.root(), &params).unwrap();
            let shapes: BTreeMap<_, _> = vs.variables().into_iter().map(|(n, t)| (n, t.size())).collect();
            assert_eq!(TinyAutoEncoderParams::from_shapes(|name| shapes.get(name).cloned()).unwrap(), params);
        }
        assert!(TinyAutoEncoderParams::from_shapes(|_| None).is_err());
    }

    #[test]
    fn a_half_that_is_missing_is_named() {
        let params = TinyAutoEncoderParams {
            num_encoder_blocks: vec![],
            block_out_channels: 8,
            ..TinyAutoEncoderParams::taef1()
        };
        let (_vs, model) = built(&params);
        let z = shim::randn(&[1, 16, 2, 3], 1).unwrap();
        assert_eq!(model.decode(&z).unwrap().size(), [1, 3, 16, 24]);
        let x = shim::randn(&[1, 3, 16, 24], 1).unwrap();
        assert!(model.encode(&x).unwrap_err().to_string().contains("has no encoder"));
    }

    /// A tile differs from the whole picture only as far from its border as the kernels reach.
    #[test]
    fn tiles_differ_from_the_whole_at_their_borders_alone() {
        let params = TinyAutoEncoderParams {
            num_encoder_blocks: vec![0, 0, 0, 0],
            num_decoder_blocks: vec![0, 0, 0, 1],
            block_out_channels: 8,
            ..TinyAutoEncoderParams::taef1()
        };
        let (_vs, model) = built(&params);
        let z = shim::randn(&[1, 16, 24, 24], 1).unwrap();
        let far = |a: &Tensor, b: &Tensor| f64::try_from((a - b).abs().max()).unwrap();
        let (whole, tiled) = (model.decode(&z).unwrap(), model.decode_tiled(&z, 96, 32).unwrap());
        // The second tile begins 64 pixels from the corner.
        let corner = |x: &Tensor| x.narrow(2, 0, 32).narrow(3, 0, 32);
        assert!(far(&corner(&whole), &corner(&tiled)) < 1e-5);
        assert!(far(&whole, &tiled) > 1e-3, "the tiles were not computed apart");
        let x = model.decode(&z).unwrap();
        let (whole, tiled) = (model.encode(&x).unwrap(), model.encode_tiled(&x, 96, 32).unwrap());
        let corner = |x: &Tensor| x.narrow(2, 0, 4).narrow(3, 0, 4);
        assert!(far(&corner(&whole), &corner(&tiled)) < 1e-5);
    }
}
