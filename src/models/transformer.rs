//! The transformer of any family, and what all of them are called with.
//!
//! This is where the families' models meet: a further family is one more variant of each type here.

use serde::Serialize;
use tch::Tensor;
use tch::nn::Path;

use super::Model;
use super::flux1::{Additions, CachedSteps, Flux1, Flux1Input, Flux1Options, Flux1Params, Steps};
use crate::config::ConfigFile;
use crate::error::{Error, Result};
use crate::family::ModelFamily;
use crate::nn::Parameters;
use crate::numerics::Quantize;

/// The sizes of a transformer of any family.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum TransformerParams {
    /// Those of FLUX.1.
    Flux1(Flux1Params),
}

/// The transformer of any family: noisy patches and a text to the velocity of every patch.
#[derive(Debug)]
pub enum Transformer {
    /// That of FLUX.1.
    Flux1(Box<Flux1>),
}

/// What the steps of a batch of pictures share: see [`Transformer::prepare_steps`].
#[derive(Debug)]
pub enum TransformerSteps {
    /// Those of FLUX.1.
    Flux1(Steps),
}

/// The inputs of one step, in the official names.
#[derive(Debug, Clone, Copy)]
pub struct TransformerInput<'a> {
    /// Noisy patches `[B, Li, in_channels]`.
    pub img: &'a Tensor,
    /// Their positions `[B, Li, axes]`, f32.
    pub img_ids: &'a Tensor,
    /// Text states `[B, Lt, context_in_dim]`.
    pub txt: &'a Tensor,
    /// Their positions `[B, Lt, axes]`, f32.
    pub txt_ids: &'a Tensor,
    /// Times `[B]`, from 1 for noise to 0 for the picture.
    pub timesteps: &'a Tensor,
    /// Pooled text `[B, …]`, for families that read one.
    pub y: Option<&'a Tensor>,
    /// Guidance strengths `[B]`; only a distilled model reads them.
    pub guidance: Option<&'a Tensor>,
}

/// How [`Transformer::forward`] computes a step. By default it computes the whole step from its input alone.
#[derive(Debug, Default)]
pub struct TransformerOptions<'a> {
    /// The steps that [`Transformer::prepare_steps`] has prepared, and the index of this step among them.
    pub prepared: Option<(&'a TransformerSteps, usize)>,
    /// What other models add between the blocks.
    pub additions: Additions<'a>,
    /// What earlier steps have left, with which a part of this step may be skipped.
    pub cache: Option<&'a mut CachedSteps>,
}

impl TransformerParams {
    /// The sizes of published models, by their names.
    pub const PRESETS: [(&'static str, Self); 2] =
        [("flux1-dev", Self::Flux1(Flux1Params::DEV)), ("flux1-schnell", Self::Flux1(Flux1Params::SCHNELL))];

    /// Returns these sizes with so many double and single blocks, and with streams of another width, whose heads are as wide.
    ///
    /// # Errors
    /// [`Error::Request`] for a width that is no multiple of a head's.
    pub fn resized(self, depth: usize, depth_single_blocks: usize, hidden_size: i64) -> Result<Self> {
        match self {
            Self::Flux1(params) => {
                let head_dim = params.hidden_size / params.num_heads;
                if hidden_size < head_dim || hidden_size % head_dim != 0 {
                    return Err(Error::Request(format!(
                        "the width of the streams must be a multiple of {head_dim}, not {hidden_size}"
                    )));
                }
                let num_heads = hidden_size / head_dim;
                Ok(Self::Flux1(Flux1Params { hidden_size, num_heads, depth, depth_single_blocks, ..params }))
            }
        }
    }

    /// Returns how many double and single blocks there are.
    pub fn blocks(&self) -> (usize, usize) {
        match self {
            Self::Flux1(params) => (params.depth, params.depth_single_blocks),
        }
    }

    /// Reads every size from the tensors' shapes, by their official names; `shape` gives `None` for a name that the file does
    /// not hold.
    ///
    /// # Errors
    /// [`Error::Config`] names the first tensor that is missing or has a shape that no model of the family has, or says that
    /// the family is not built.
    pub fn from_shapes(family: ModelFamily, shape: impl Fn(&str) -> Option<Vec<i64>>) -> Result<Self> {
        match family {
            ModelFamily::Flux1 => Ok(Self::Flux1(Flux1Params::from_shapes(shape)?)),
            other => Err(Error::Config(format!("no transformer of {other} is built here"))),
        }
    }

    /// Takes from diffusers' `config.json` what no shape says; its sizes must agree with those of the weights. Returns warnings
    /// about settings that are not obeyed, too.
    ///
    /// # Errors
    /// [`Error::File`] with the key of what disagrees, is of another type, or is not built here.
    pub(crate) fn with_config(self, config: &ConfigFile) -> Result<(Self, Vec<String>)> {
        match self {
            Self::Flux1(params) => {
                let (params, warnings) = params.with_config(config)?;
                Ok((Self::Flux1(params), warnings))
            }
        }
    }

    /// Returns these sizes with at least so many channels of a patch.
    pub fn widened(self, in_channels: i64) -> Self {
        match self {
            Self::Flux1(params) => {
                Self::Flux1(Flux1Params { in_channels: params.in_channels.max(in_channels), ..params })
            }
        }
    }

    /// Returns the family.
    pub fn family(&self) -> ModelFamily {
        match self {
            Self::Flux1(_) => ModelFamily::Flux1,
        }
    }

    /// Returns the sizes of FLUX.1, whose ControlNets, IP-Adapters and Redux are for it alone.
    ///
    /// # Errors
    /// [`Error::Config`] for a transformer of another family.
    pub fn flux1(&self) -> Result<&Flux1Params> {
        match self {
            Self::Flux1(params) => Ok(params),
        }
    }

    /// Returns the channels of a patch, conditions included.
    pub fn in_channels(&self) -> i64 {
        match self {
            Self::Flux1(params) => params.in_channels,
        }
    }

    /// Returns the channels of a predicted patch.
    pub fn out_channels(&self) -> i64 {
        match self {
            Self::Flux1(params) => params.out_channels,
        }
    }

    /// Returns the width of the streams.
    pub fn hidden_size(&self) -> i64 {
        match self {
            Self::Flux1(params) => params.hidden_size,
        }
    }

    /// Returns the width of the text states.
    pub fn context_in_dim(&self) -> i64 {
        match self {
            Self::Flux1(params) => params.context_in_dim,
        }
    }

    /// Returns the width of the pooled text, where the model reads one.
    pub fn vec_in_dim(&self) -> Option<i64> {
        match self {
            Self::Flux1(params) => Some(params.vec_in_dim),
        }
    }

    /// Returns whether the model is distilled for guidance, and so takes its strength as an input.
    pub fn guidance_embed(&self) -> bool {
        match self {
            Self::Flux1(params) => params.guidance_embed,
        }
    }

    /// Returns the name of the variant as far as the sizes tell it, and `unknown` where they are those of none.
    pub fn variant(&self) -> &'static str {
        let variant = self.family().variant(self.in_channels(), self.out_channels(), self.guidance_embed());
        variant.map_or("unknown", |variant| variant.name)
    }
}

impl Model for Transformer {
    fn parameters(&self) -> &Parameters {
        match self {
            Self::Flux1(model) => model.parameters(),
        }
    }
}

impl Transformer {
    /// Declares every parameter under its official name.
    ///
    /// # Errors
    /// [`Error::Config`] for sizes that do not fit each other.
    pub fn new(vs: Path, params: &TransformerParams) -> Result<Self> {
        match params {
            TransformerParams::Flux1(params) => Ok(Self::Flux1(Box::new(Flux1::new(vs, params)?))),
        }
    }

    /// Returns the velocity of every patch: `[B, Li, out_channels]`.
    ///
    /// # Errors
    /// As [`Flux1::forward`]; [`Error::MissingPooledText`] without the pooled text that the family reads.
    pub fn forward(&self, input: &TransformerInput, options: TransformerOptions) -> Result<Tensor> {
        let TransformerOptions { prepared, additions, cache } = options;
        match self {
            Self::Flux1(model) => {
                let prepared = prepared.map(|(TransformerSteps::Flux1(steps), step)| (steps, step));
                model.forward(&input.flux1()?, Flux1Options { prepared, additions, cache })
            }
        }
    }

    /// Computes once what all steps of a picture share: `timesteps` are those of every step, and the other inputs are the
    /// same in each. Returns `None` where each step is computed on its own.
    ///
    /// # Errors
    /// As [`Transformer::forward`].
    pub fn prepare_steps(
        &self,
        input: &TransformerInput,
        timesteps: &[f64],
    ) -> Result<Option<TransformerSteps>> {
        match self {
            Self::Flux1(model) => {
                Ok(model.prepare_steps(&input.flux1()?, timesteps)?.map(TransformerSteps::Flux1))
            }
        }
    }

    /// Quantises the weights of the blocks' linear layers.
    ///
    /// # Errors
    /// As [`Flux1::quantize`].
    pub fn quantize(&self, quantize: Quantize) -> Result<()> {
        match self {
            Self::Flux1(model) => model.quantize(quantize),
        }
    }

    /// Returns whether quantising a transformer of the family changes the parameter of this name.
    pub(crate) fn quantizes(family: ModelFamily, name: &str) -> bool {
        family == ModelFamily::Flux1 && Flux1::quantizes(name)
    }
}

impl TransformerSteps {
    /// Concatenates the steps of several pictures along the batch. Each must have as many steps, prepared for the same
    /// positions.
    ///
    /// # Errors
    /// [`Error::Config`] where there are no pictures, or their steps differ in number.
    pub fn cat(all: &[&Self]) -> Result<Self> {
        let flux1: Vec<&Steps> = all.iter().map(|Self::Flux1(steps)| steps).collect();
        Ok(Self::Flux1(Steps::cat(&flux1)?))
    }
}

impl<'a> TransformerInput<'a> {
    /// Returns the inputs of FLUX.1.
    ///
    /// # Errors
    /// [`Error::MissingPooledText`] without pooled text.
    pub fn flux1(&self) -> Result<Flux1Input<'a>> {
        let Self { img, img_ids, txt, txt_ids, timesteps, y, guidance } = *self;
        let y = y.ok_or(Error::MissingPooledText)?;
        Ok(Flux1Input { img, img_ids, txt, txt_ids, timesteps, y, guidance })
    }
}
