//! FLUX.1: the transformer, its parameters and its variants.
//!
//! Source: `black-forest-labs/flux` at 802fb47, `src/flux/model.py` and the `configs` of `src/flux/util.py`.

mod additions;
mod cache;
mod controlnet;
mod ip_adapter;
mod params;
mod steps;
mod trunk;

use tch::Tensor;
use tch::nn::Path;

use super::Model;
use crate::error::{Error, Result};
use crate::layers::{AttentionHook, LastLayer};
use crate::nn::{Block, Parameters, check_sizes};
use crate::numerics::{self, Quantize};
use crate::ops;

pub use additions::{Additions, Residuals};
pub use cache::{CachedSteps, StepCache};
pub use controlnet::{ControlNet, ControlNetParams, MODES};
pub use ip_adapter::{ImagePrompt, IpAdapter, IpAdapterParams};
pub use params::Flux1Params;
use steps::Modulations;
pub use steps::Steps;
use trunk::Trunk;

/// The inputs of one step, in the official names.
#[derive(Debug)]
pub struct Flux1Input<'a> {
    /// Noisy patches `[B, Li, in_channels]`.
    pub img: &'a Tensor,
    /// Their positions `[B, Li, 3]`, f32.
    pub img_ids: &'a Tensor,
    /// Text states `[B, Lt, context_in_dim]`.
    pub txt: &'a Tensor,
    /// Their positions `[B, Lt, 3]`, f32.
    pub txt_ids: &'a Tensor,
    /// Times `[B]`, from 1 for noise to 0 for the picture.
    pub timesteps: &'a Tensor,
    /// Pooled text `[B, vec_in_dim]`.
    pub y: &'a Tensor,
    /// Guidance strengths `[B]`; only a distilled model reads them.
    pub guidance: Option<&'a Tensor>,
}

/// How [`Flux1::forward`] computes a step. By default it computes the whole step from its input alone.
#[derive(Debug, Default)]
pub struct Flux1Options<'a> {
    /// The steps that [`Flux1::prepare_steps`] has prepared, and the index of this step among them. `timesteps`, `guidance`,
    /// `y` and the positions of the input are not read then.
    pub prepared: Option<(&'a Steps, usize)>,
    /// What other models add between the blocks.
    pub additions: Additions<'a>,
    /// What earlier steps have left, with which a part of this step may be skipped.
    pub cache: Option<&'a mut CachedSteps>,
}

/// The FLUX.1 transformer: noisy patches and a text to the velocity of every patch.
///
/// Building it allocates no weights; fill it with [`Checkpoint::load`](crate::checkpoint::Checkpoint::load).
/// Source: `model.py` lines 35–120.
#[derive(Debug)]
#[doc(alias = "Flux")]
pub struct Flux1 {
    trunk: Trunk,
    final_layer: LastLayer,
    parameters: Parameters,
}

impl Model for Flux1 {
    fn parameters(&self) -> &Parameters {
        &self.parameters
    }
}

impl Flux1 {
    /// Declares every parameter under its official name.
    ///
    /// # Errors
    /// [`Error::Config`] where the heads do not divide the hidden size, or the axes do not sum to the head width.
    pub fn new(vs: Path, params: &Flux1Params) -> Result<Self> {
        check_sizes(&[("out_channels", params.out_channels)])?;
        // The modulation is computed before the blocks run.
        let block = |kind: &str, i: usize, modulation: &[&str]| {
            let name = (&vs / kind).path(&i.to_string());
            let modulation: Vec<_> = modulation.iter().map(|layer| format!("{name}.{layer}")).collect();
            Block::new([name]).excluding(modulation)
        };
        let double = (0..params.depth).map(|i| block("double_blocks", i, &["img_mod", "txt_mod"]));
        let single = (0..params.depth_single_blocks).map(|i| block("single_blocks", i, &["modulation"]));
        let collector = Parameters::collect(&vs);
        Ok(Self {
            trunk: Trunk::new(&vs, params)?,
            final_layer: LastLayer::new(&vs / "final_layer", params.hidden_size, 1, params.out_channels),
            parameters: collector.finish().with_blocks(double.chain(single)),
        })
    }

    /// Returns the sizes that the model was built with.
    pub fn params(&self) -> &Flux1Params {
        &self.trunk.params
    }

    /// Returns the velocity of every patch: `[B, Li, out_channels]`.
    ///
    /// # Errors
    /// [`Error::Shape`] and [`Error::Kind`] where an input does not fit the model or the others, [`Error::MissingGuidance`],
    /// [`Error::Unfilled`] before a checkpoint was loaded, [`Error::Cancelled`] within [`numerics::with_cancel`],
    /// [`Error::Shape`] for an addition that does not fit, and [`Error::Config`] for a step that was not prepared.
    pub fn forward(&self, input: &Flux1Input, options: Flux1Options) -> Result<Tensor> {
        let Flux1Options { prepared, additions, mut cache } = options;
        let _scope = self.parameters.enter()?;
        self.trunk.check(input)?;
        additions.check(input, &self.trunk.params)?;
        if let Some(velocity) = cache.as_mut().map(|cache| cache.predicted()).transpose()?.flatten() {
            return Ok(velocity.f_to_kind(input.img.kind())?);
        }
        if let Some((steps, step)) = prepared {
            let (modulations, pe) = steps.step(step)?;
            return self.run_blocks(input, modulations, pe, &additions, cache);
        }
        let vec = self.trunk.vec(input.timesteps, input.guidance, input.y)?;
        let pe = self.trunk.pe(input.txt_ids, input.img_ids);
        self.run_blocks(input, &self.modulations(&vec), &pe, &additions, cache)
    }

    /// Computes once what all steps of a picture share: `timesteps` are those of every step, and the other inputs are the
    /// same in each. Returns `None` where the exact numerics compute each step on its own, since a product of many rows
    /// differs in its last bits from the product of a single row.
    ///
    /// # Errors
    /// As [`Flux1::forward`].
    pub fn prepare_steps(&self, input: &Flux1Input, timesteps: &[f64]) -> Result<Option<Steps>> {
        let _scope = self.parameters.numerics().enter();
        if timesteps.is_empty()
            || input.img.size().first() != Some(&1)
            || !numerics::is_fast([input.img, input.y])
        {
            return Ok(None);
        }
        self.parameters.check_filled()?;
        self.trunk.check(input)?;
        // The loop over the steps passes each time in the kind of the patches.
        let times = Tensor::f_from_slice(timesteps)?.f_to_kind(input.timesteps.kind())?;
        let times = times.f_to_device(input.img.device())?;
        let vec = self.trunk.vec(&times, input.guidance, input.y)?;
        let all = self.modulations(&vec);
        let step = |i| Modulations::join(&[&all], |all| Ok(all[0].f_narrow(0, i, 1)?));
        let steps = (0..timesteps.len() as i64).map(step).collect::<Result<_>>()?;
        Ok(Some(Steps::new(steps, self.trunk.pe(input.txt_ids, input.img_ids))))
    }

    /// Calls [`Flux1::quantize_int8`] or [`Flux1::quantize_fp8`], as `quantize` says.
    ///
    /// # Errors
    /// As these.
    pub fn quantize(&self, quantize: Quantize) -> Result<()> {
        match quantize {
            Quantize::None => Ok(()),
            Quantize::Int8 => self.quantize_int8(),
            Quantize::Fp8 => self.quantize_fp8(),
        }
    }

    /// Quantises the weights of the blocks' linear layers to int8, with a scale for each row, and frees their previous values.
    /// Their products are computed in int8, too, with a scale for the activations of each token. What is small or sensitive
    /// (the embedders, the modulation, the last layer) stays as it is. This is for the CPU and [`Numerics::Fast`]; the exact
    /// form computes with the values that the int8 stand for.
    ///
    /// [`Numerics::Fast`]: crate::numerics::Numerics::Fast
    ///
    /// # Errors
    /// [`Error::Tch`] where memory runs out, [`Error::Request`] on another device.
    pub fn quantize_int8(&self) -> Result<()> {
        self.parameters.check_filled()?;
        if self.trunk.img_in.weight.device() != tch::Device::Cpu {
            return Err(Error::Request("int8 weights are for the CPU; on CUDA quantise to fp8".into()));
        }
        self.linears().quantize_int8(Self::quantizes)
    }

    /// Does the same with fp8, on CUDA from SM 8.9 on. Weights whose sides are no multiples of 16 stay as they are.
    ///
    /// # Errors
    /// [`Error::Tch`] where memory runs out, [`Error::Request`] on a device without products of fp8.
    pub fn quantize_fp8(&self) -> Result<()> {
        self.parameters.check_filled()?;
        ops::cuda::check_fp8(self.trunk.img_in.weight.device())?;
        self.linears().quantize_fp8(Self::quantizes)
    }

    /// Returns whether quantising changes the parameter of this name: the weights of the blocks' linear layers, except those
    /// of the modulation.
    pub(crate) fn quantizes(name: &str) -> bool {
        let layer = ["attn.qkv", "attn.proj", "mlp.0", "mlp.2", "linear1", "linear2"];
        let Some(name) = name.strip_suffix(".weight").filter(|name| name.contains("_blocks.")) else {
            return false;
        };
        layer.iter().any(|layer| name.ends_with(layer))
    }

    /// Computes the modulation of every layer from the conditioning vector `[B, D]`.
    fn modulations(&self, vec: &Tensor) -> Modulations {
        Modulations {
            double: self.trunk.double_blocks.iter().map(|block| block.modulation(vec)).collect(),
            single: self.trunk.single_blocks.iter().map(|block| block.modulation(vec)).collect(),
            last: self.final_layer.modulation(vec),
        }
    }

    fn run_blocks(
        &self,
        input: &Flux1Input,
        modulations: &Modulations,
        pe: &Tensor,
        additions: &Additions,
        mut cache: Option<&mut CachedSteps>,
    ) -> Result<Tensor> {
        let Trunk { img_in, txt_in, double_blocks, single_blocks, .. } = &self.trunk;
        let (img_len, txt_len) = (input.img.size()[1], input.txt.size()[1]);
        let mut img = ops::linear(img_in, input.img, ops::Epilogue::default());
        let mut txt = ops::linear(txt_in, input.txt, ops::Epilogue::default());
        let mut before = cache.is_some().then(|| img.shallow_clone());
        if let (Some(cache), Some(block), Some(modulation)) =
            (&mut cache, double_blocks.first(), modulations.double.first())
            && let Some(img) = cache.after_input(&img, || block.modulated(&img, modulation))?
        {
            return Ok(self.final_layer.run(&img, &modulations.last));
        }
        let depth = double_blocks.len();
        for (i, (block, modulation)) in double_blocks.iter().zip(&modulations.double).enumerate() {
            numerics::check_cancelled(&img)?;
            let attend = |query: &Tensor| additions.attend(i, query);
            let hook = (!additions.image_prompts.is_empty()).then_some(&attend as &AttentionHook);
            (img, txt) =
                self.linears().run_block(i, || block.run_with_hook(&img, &txt, modulation, pe, hook))?;
            if let (0, Some(cache), Some(input)) = (i, &mut cache, &mut before) {
                if let Some(img) = cache.after_first_block(input, &img)? {
                    return Ok(self.final_layer.run(&img, &modulations.last));
                }
                if cache.begins_after_first_block() {
                    // The additions below are made in place.
                    *input = img.copy();
                }
            }
            additions.add_double(&mut img, i, depth)?;
        }

        let mut x = Tensor::cat(&[txt, img], 1);
        let depth = single_blocks.len();
        for (i, (block, modulation)) in single_blocks.iter().zip(&modulations.single).enumerate() {
            numerics::check_cancelled(&x)?;
            let from = if i + 1 == depth { txt_len } else { 0 };
            let place = double_blocks.len() + i;
            x = self.linears().run_block(place, || block.run(&x, modulation, pe, from))?;
            let mut img = x.narrow(1, x.size()[1] - img_len, img_len);
            additions.add_single(&mut img, i, depth)?;
        }
        let img = x.narrow(1, x.size()[1] - img_len, img_len);
        let velocity = self.final_layer.run(&img, &modulations.last);
        if let (Some(cache), Some(before)) = (cache, &before) {
            cache.keep(before, &img, &velocity)?;
        }
        Ok(velocity)
    }
}
