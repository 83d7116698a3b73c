//! ControlNets of FLUX.1: a few of the transformer's blocks that read a control picture together with the noisy one.
//!
//! Source: diffusers 0.42.1, `models/controlnets/controlnet_flux.py` (InstantX' and Shakker's, and XLabs'), and
//! `XLabs-AI/x-flux` at 4749542, `src/flux/controlnet.py`, whose names these are.

use serde::{Deserialize, Serialize};
use tch::nn::{Module, Path};
use tch::{Kind, Tensor};

use super::params::TRUNK_KEYS;
use super::trunk::Trunk;
use super::{Flux1Input, Flux1Params, Residuals};
use crate::config::ConfigFile;
use crate::error::{Error, Result};
use crate::family::ModelFamily;
use crate::models::Model;
use crate::nn::{Block, Conv2d, Embedding, Linear, Parameters, check_kind, check_sizes};
use crate::numerics;
use crate::ops;

/// The modes of a union ControlNet, by their number.
///
/// Source: the model cards of InstantX's `FLUX.1-dev-Controlnet-Union` and Shakker's `FLUX.1-dev-ControlNet-Union-Pro`.
pub const MODES: [&str; 7] = ["canny", "tile", "depth", "blur", "pose", "gray", "low-quality"];

/// Pixels to a side of an output of the hint's convolutions.
const HINT: i64 = 8;

/// The sizes of a ControlNet.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[doc(alias = "FluxControlNetModel")]
pub struct ControlNetParams {
    /// Sizes of its blocks and embedders. It has no last layer, and `out_channels` has no meaning.
    #[serde(flatten)]
    pub flux: Flux1Params,
    /// Count of modes of a union, which is told the mode of each picture.
    pub num_mode: Option<i64>,
    /// Channels that convolutions make of the picture's pixels, in XLabs' ControlNets. Others read pictures that the
    /// autoencoder has encoded.
    pub conditioning_embedding_channels: Option<i64>,
}

impl ControlNetParams {
    /// Reads every size from the tensors' shapes, by XLabs' names, as [`Flux1Params::from_shapes`] does.
    ///
    /// # Errors
    /// [`Error::Config`] names the first tensor that is missing or has a shape that no ControlNet has.
    pub fn from_shapes(shape: impl Fn(&str) -> Option<Vec<i64>>) -> Result<Self> {
        let rows = |name: &str| shape(name)?.first().copied();
        Ok(Self {
            flux: Flux1Params::trunk_from_shapes(&shape, "ControlNet", None)?,
            num_mode: rows("controlnet_mode_embedder.weight"),
            conditioning_embedding_channels: rows("input_hint_block.14.weight"),
        })
    }

    /// Takes the axes from diffusers' `config.json`, whose other sizes must agree with those of the weights. Returns warnings
    /// about settings that are not obeyed, too.
    ///
    /// # Errors
    /// [`Error::File`] with the key of what disagrees, is of another type, or is not built here.
    pub(crate) fn with_config(self, config: &ConfigFile) -> Result<(Self, Vec<String>)> {
        config.check_class(&["FluxControlNetModel"])?;
        let (modes, hint) = (self.num_mode, self.conditioning_embedding_channels);
        for (key, found) in [("num_mode", modes), ("conditioning_embedding_channels", hint)] {
            if let Some(value) = config.int(key)? {
                config.agree(key, Some(value), found)?;
            }
        }
        if hint.is_some() {
            config.only("patch_size", config.int("patch_size")?, 2)?;
        }
        let flux = self.flux.with_trunk_config(config)?;
        let known = [&TRUNK_KEYS[..], &["num_mode", "conditioning_embedding_channels"]].concat();
        let unknown = config.unknown_keys(&known);
        let warnings = if unknown.is_empty() { Vec::new() } else { vec![config.unknown(&unknown)] };
        Ok((Self { flux, ..self }, warnings))
    }

    /// Returns `union`, `XLabs`, or `InstantX` for a ControlNet that reads a single kind of picture from the autoencoder.
    pub fn variant(&self) -> &'static str {
        match (self.num_mode, self.conditioning_embedding_channels) {
            (Some(_), _) => "union",
            (None, Some(_)) => "XLabs",
            (None, None) => "InstantX",
        }
    }

    /// Checks that the ControlNet fits a transformer of these sizes.
    ///
    /// # Errors
    /// [`Error::Config`] with the first size that differs.
    pub fn check_fits(&self, transformer: &Flux1Params) -> Result<()> {
        let sizes = [
            ("hidden_size", self.flux.hidden_size, transformer.hidden_size),
            ("in_channels", self.flux.in_channels, transformer.out_channels),
            ("context_in_dim", self.flux.context_in_dim, transformer.context_in_dim),
            ("vec_in_dim", self.flux.vec_in_dim, transformer.vec_in_dim),
        ];
        match sizes.iter().find(|(_, found, expected)| found != expected) {
            Some((name, found, expected)) => Err(Error::Config(format!(
                "the ControlNet is for another transformer: its {name} is {found}, and that of the transformer asks for \
                 {expected}"
            ))),
            None => Ok(()),
        }
    }
}

/// Convolutions with SiLU between them, three of which halve the sides: pixels to what is packed into patches.
#[derive(Debug)]
struct Hint(Vec<Conv2d>);

impl Hint {
    /// Declares the children 0, 2, … 14 of the `torch.nn.Sequential`.
    fn new(vs: &Path, channels: i64) -> Self {
        let conv = |i: i64| {
            let stride = if i > 0 && i < 7 && i % 2 == 0 { 2 } else { 1 };
            let (into, out) = (if i == 0 { 3 } else { 16 }, if i == 7 { channels } else { 16 });
            Conv2d::new(vs / (2 * i), into, out, 3, stride, 1)
        };
        Self((0..8).map(conv).collect())
    }
}

impl Module for Hint {
    fn forward(&self, x: &Tensor) -> Tensor {
        let mut x = x.shallow_clone();
        for (i, conv) in self.0.iter().enumerate() {
            let into = if i == 0 { x } else { x.silu() };
            x = conv.forward(&into);
        }
        x
    }
}

/// A ControlNet: it makes of the noisy patches, the text and a picture what is added to the transformer's streams.
///
/// Building it allocates no weights; fill it with [`Checkpoint::load`](crate::checkpoint::Checkpoint::load).
/// Source: `controlnet_flux.py` lines 44–340.
#[derive(Debug)]
#[doc(alias = "FluxControlNetModel")]
pub struct ControlNet {
    trunk: Trunk,
    controlnet_mode_embedder: Option<Embedding>,
    input_hint_block: Option<Hint>,
    pos_embed_input: Linear,
    controlnet_blocks: Vec<Linear>,
    controlnet_single_blocks: Vec<Linear>,
    params: ControlNetParams,
    parameters: Parameters,
}

impl Model for ControlNet {
    fn parameters(&self) -> &Parameters {
        &self.parameters
    }
}

impl ControlNet {
    /// Declares every parameter.
    ///
    /// # Errors
    /// As [`Flux1::new`](super::Flux1::new).
    pub fn new(vs: Path, params: &ControlNetParams) -> Result<Self> {
        let Flux1Params { in_channels, hidden_size, depth, depth_single_blocks, .. } = params.flux;
        let optional = [
            ("num_mode", params.num_mode),
            ("conditioning_embedding_channels", params.conditioning_embedding_channels),
        ];
        for (name, size) in optional {
            size.map_or(Ok(()), |size| check_sizes(&[(name, size)]))?;
        }
        if params.conditioning_embedding_channels.is_some_and(|channels| channels * 4 != in_channels) {
            return Err(Error::Config(format!(
                "patches of 2 × 2 of the hint's {:?} channels are no {in_channels} channels",
                params.conditioning_embedding_channels
            )));
        }
        let block =
            |i: usize, names: [&str; 2]| Block::new(names.map(|name| (&vs / name).path(&i.to_string())));
        let double = (0..depth).map(|i| block(i, ["double_blocks", "controlnet_blocks"]));
        let single =
            (0..depth_single_blocks).map(|i| block(i, ["single_blocks", "controlnet_single_blocks"]));
        let zero = |name: &str, i: usize| Linear::new(&vs / name / i, hidden_size, hidden_size, true);
        let collector = Parameters::collect(&vs);
        Ok(Self {
            trunk: Trunk::new(&vs, &params.flux)?,
            controlnet_mode_embedder: params
                .num_mode
                .map(|modes| Embedding::new(&vs / "controlnet_mode_embedder", modes, hidden_size)),
            input_hint_block: params
                .conditioning_embedding_channels
                .map(|channels| Hint::new(&(&vs / "input_hint_block"), channels)),
            pos_embed_input: Linear::new(&vs / "pos_embed_input", in_channels, hidden_size, true),
            controlnet_blocks: (0..depth).map(|i| zero("controlnet_blocks", i)).collect(),
            controlnet_single_blocks: (0..depth_single_blocks)
                .map(|i| zero("controlnet_single_blocks", i))
                .collect(),
            params: params.clone(),
            parameters: collector.finish().with_blocks(double.chain(single)),
        })
    }

    /// Returns the sizes that the model was built with.
    pub fn params(&self) -> &ControlNetParams {
        &self.params
    }

    /// Embeds the picture as all steps read it, `[B, Li, D]`. It takes pixels `[B, 3, H, W]` in −1..1 where the ControlNet has a
    /// hint block, else the patches of the encoded picture `[B, Li, in_channels]`.
    ///
    /// # Errors
    /// [`Error::Shape`], [`Error::Kind`], [`Error::Unfilled`].
    pub fn embed(&self, controlnet_cond: &Tensor) -> Result<Tensor> {
        let _scope = self.parameters.enter()?;
        let (size, channels) = (controlnet_cond.size(), self.params.flux.in_channels);
        let fits = match (&self.input_hint_block, &size[..]) {
            (Some(_), &[_, 3, h, w]) => h > 0 && w > 0 && h % (2 * HINT) == 0 && w % (2 * HINT) == 0,
            (None, &[_, _, found]) => found == channels,
            _ => false,
        };
        if !fits {
            let expected = match self.input_hint_block {
                Some(_) => format!("[B, 3, H, W] with sides that are multiples of {}", 2 * HINT),
                None => format!("[B, L, {channels}]"),
            };
            return Err(Error::Shape { what: "controlnet_cond", expected, found: size });
        }
        let weight = &self.pos_embed_input.weight;
        check_kind("controlnet_cond", controlnet_cond, controlnet_cond.kind(), weight)?;
        let patches = match &self.input_hint_block {
            Some(hint) => ModelFamily::Flux1.latent().pack(&hint.forward(controlnet_cond))?,
            None => controlnet_cond.shallow_clone(),
        };
        Ok(ops::linear(&self.pos_embed_input, &patches, ops::Epilogue::default()))
    }

    /// Returns what is added to the transformer's streams in a step, times `conditioning_scale`. `embedded` is the output of
    /// [`ControlNet::embed`]. `controlnet_mode` tells a union, and no other ControlNet, what the picture is.
    ///
    /// # Errors
    /// As [`Flux1::forward`](super::Flux1::forward); [`Error::Request`] as [`ControlNet::check_mode`].
    pub fn forward(
        &self,
        input: &Flux1Input,
        embedded: &Tensor,
        controlnet_mode: Option<i64>,
        conditioning_scale: f64,
    ) -> Result<Residuals> {
        let _scope = self.parameters.enter()?;
        self.trunk.check(input)?;
        self.check_mode(controlnet_mode)?;
        let Trunk { img_in, txt_in, double_blocks, single_blocks, params, .. } = &self.trunk;
        let (b, img_len) = (input.img.size()[0], input.img.size()[1]);
        let expected = [b, img_len, params.hidden_size];
        if embedded.size() != expected {
            let (expected, found) = (format!("{expected:?}"), embedded.size());
            return Err(Error::Shape { what: "the embedded controlnet_cond", expected, found });
        }

        let mut img = ops::linear(img_in, input.img, ops::Epilogue::default()) + embedded;
        let vec = self.trunk.vec(input.timesteps, input.guidance, input.y)?;
        let mut txt = ops::linear(txt_in, input.txt, ops::Epilogue::default());
        let mut txt_ids = input.txt_ids.shallow_clone();
        if let (Some(embedder), Some(mode)) = (&self.controlnet_mode_embedder, controlnet_mode) {
            let mode = Tensor::f_full([b, 1], mode, (Kind::Int64, img.device()))?;
            txt = Tensor::f_cat(&[embedder.forward(&mode), txt], 1)?;
            txt_ids = Tensor::f_cat(&[txt_ids.f_narrow(1, 0, 1)?, txt_ids], 1)?;
        }
        let pe = self.trunk.pe(&txt_ids, input.img_ids);

        let scaled = |block: &Linear, img: &Tensor| {
            let sample = ops::linear(block, img, ops::Epilogue::default());
            if conditioning_scale == 1.0 { sample } else { sample * conditioning_scale }
        };
        let mut double = Vec::new();
        for (i, (block, controlnet_block)) in double_blocks.iter().zip(&self.controlnet_blocks).enumerate() {
            numerics::check_cancelled(&img)?;
            let sample;
            (img, txt, sample) = self.linears().run_block(i, || {
                let (img, txt) = block.run(&img, &txt, &block.modulation(&vec), &pe);
                let sample = scaled(controlnet_block, &img);
                (img, txt, sample)
            })?;
            double.push(sample);
        }

        let mut single = Vec::new();
        if !single_blocks.is_empty() {
            let txt_len = txt.size()[1];
            let mut x = Tensor::f_cat(&[txt, img], 1)?;
            let depth = single_blocks.len();
            let pairs = single_blocks.iter().zip(&self.controlnet_single_blocks);
            for (i, (block, controlnet_block)) in pairs.enumerate() {
                numerics::check_cancelled(&x)?;
                let from = if i + 1 == depth { txt_len } else { 0 };
                let sample;
                (x, sample) = self.linears().run_block(double_blocks.len() + i, || {
                    let x = block.run(&x, &block.modulation(&vec), &pe, from);
                    let sample = scaled(controlnet_block, &x.narrow(1, x.size()[1] - img_len, img_len));
                    (x, sample)
                })?;
                single.push(sample);
            }
        }
        Ok(Residuals { double, single, repeat: self.input_hint_block.is_some() })
    }

    /// Checks that the mode is one of those of a union, and that there is none for another ControlNet.
    ///
    /// # Errors
    /// [`Error::Request`] where it is not so.
    pub fn check_mode(&self, controlnet_mode: Option<i64>) -> Result<()> {
        self.params.check_mode(controlnet_mode)
    }
}

impl ControlNetParams {
    /// See [`ControlNet::check_mode`].
    pub(crate) fn check_mode(&self, mode: Option<i64>) -> Result<()> {
        let wrong = |text: String| Err(Error::Request(text));
        match (self.num_mode, mode) {
            (None, Some(mode)) => wrong(format!("the ControlNet is no union: it has no mode {mode}")),
            (Some(modes), None) => wrong(format!(
                "a union ControlNet is told what the picture is: give a mode, 0 to {} or a name ({})",
                modes - 1,
                MODES.join(", ")
            )),
            (Some(modes), Some(mode)) if !(0..modes).contains(&mode) => {
                wrong(format!("the ControlNet has the modes 0 to {}, and none of number {mode}", modes - 1))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use tch::Device;
    use tch::nn::VarStore;

    use super::*;

    #[test]
    fn all_linears_but_the_embedders_are_in_a_block() {
        let flux = Flux1Params {
            hidden_size: 16,
            num_heads: 1,
            axes_dim: [4, 6, 6],
            depth: 1,
            depth_single_blocks: 2,
            ..Flux1Params::SCHNELL
        };
        let params = ControlNetParams { flux, num_mode: None, conditioning_embedding_channels: None };
        let vs = VarStore::new(Device::Cpu);
        let model = ControlNet::new(vs.root(), &params).unwrap();
        let linears = model.linears();
        let outside: Vec<&str> = linears.names().filter(|name| !linears.is_in_block(name)).collect();
        let embedders = [
            "img_in.weight",
            "pos_embed_input.weight",
            "time_in.in_layer.weight",
            "time_in.out_layer.weight",
            "txt_in.weight",
            "vector_in.in_layer.weight",
            "vector_in.out_layer.weight",
        ];
        assert_eq!(outside, embedders);
    }
}
