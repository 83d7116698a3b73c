//! FLUX.1: the transformer, its parameters and its variants.
//!
//! Source: `black-forest-labs/flux` at 802fb47, `src/flux/model.py` and the `configs` of `src/flux/util.py`.

mod additions;
mod cache;
mod controlnet;
mod ip_adapter;
mod trunk;

use serde::{Deserialize, Serialize};
use tch::Tensor;
use tch::nn::Path;

pub use cache::{CachedSteps, StepCache};

use crate::config::ConfigFile;
use crate::error::{Error, Result};
use crate::layers::{AttentionHook, LastLayer, ModulationOut};
use crate::math;
use crate::nn::{Block, Linears, Parameters, check_sizes};
use crate::numerics::{self, Numerics, Quantize};
use crate::ops;

pub use additions::{Additions, Residuals};
pub use controlnet::{ControlNet, ControlNetParams, MODES};
pub use ip_adapter::{ImagePrompt, IpAdapter, IpAdapterParams};
use trunk::Trunk;

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
    /// Shares of the head width for the three axes of a position.
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
    /// FLUX.1 Kontext dev: a reference image follows along the sequence.
    pub const KONTEXT_DEV: Self = Self::DEV;
    /// FLUX.1 Fill dev: 64 channels, 64 of the masked image, 256 of the mask.
    pub const FILL_DEV: Self = Self { in_channels: 384, ..Self::DEV };
    /// FLUX.1 Canny dev: 64 channels and 64 of the edges.
    pub const CANNY_DEV: Self = Self { in_channels: 128, ..Self::DEV };
    /// FLUX.1 Depth dev: 64 channels and 64 of the depth.
    pub const DEPTH_DEV: Self = Self { in_channels: 128, ..Self::DEV };

    /// Reads every size from the tensors' shapes, by their official names; `shape` gives `None` for a name that the
    /// file does not hold. Blocks are counted. The axes are shared as in the official model, 1 : 3.5 : 3.5, and
    /// `theta` is the official one, since no tensor says them.
    ///
    /// # Errors
    /// [`Error::Config`] names the first tensor that is missing or has a shape that no FLUX.1 has.
    pub fn from_shapes(shape: impl Fn(&str) -> Option<Vec<i64>>) -> Result<Self> {
        Self::of_trunk(&shape, "transformer", Some("final_layer.linear.weight"))
    }

    /// The same of a model whose last layer has this name; one without draws as many channels as it reads.
    fn of_trunk(
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
        let blocks = |prefix: &str, of: &str| {
            (0..).take_while(|i| shape(&format!("{prefix}.{i}.{of}")).is_some()).count()
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

    /// The axes that diffusers' `config.json` says, and the sizes of the weights, with which it must agree. The second is
    /// what it says that is not obeyed, in words.
    ///
    /// # Errors
    /// [`Error::File`] with the key of what disagrees, is of another type, or is not built here.
    pub(crate) fn with_config(self, config: &ConfigFile) -> Result<(Self, Vec<String>)> {
        config.check_class(&["FluxTransformer2DModel"])?;
        let patch_size = config.int("patch_size")?.unwrap_or(1);
        // Without `out_channels` diffusers takes as many as come in.
        let out_channels = match config.int("out_channels")? {
            None if patch_size != 1 => config.int("in_channels")?,
            said => said,
        };
        if let Some(said) = out_channels {
            // A patch of `patch_size` a side is drawn from as many numbers as the last layer makes.
            config.agree(
                "out_channels",
                said.saturating_mul(patch_size.saturating_mul(patch_size)),
                self.out_channels,
            )?;
        }
        let params = self.with_trunk_config(config)?;
        let unknown = config.unknown_keys(&TRUNK_KEYS);
        let warnings = if unknown.is_empty() { Vec::new() } else { vec![config.unknown(&unknown)] };
        Ok((params, warnings))
    }

    /// What the settings of a transformer and of its ControlNets have in common.
    fn with_trunk_config(self, config: &ConfigFile) -> Result<Self> {
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
            if let Some(said) = config.int(key)? {
                config.agree(key, said, found)?;
            }
        }
        if let Some(said) = config.flag("guidance_embeds")? {
            config.agree("guidance_embeds", said, self.guidance_embed)?;
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

    /// What the input channels say of the variant: `dev` or `schnell`, `Fill`, `Canny or Depth`.
    pub fn variant(&self) -> &'static str {
        match (self.in_channels == self.out_channels, self.guidance_embed) {
            (true, true) => "dev",
            (true, false) => "schnell",
            (false, _) if self.in_channels == 6 * self.out_channels => "Fill",
            (false, _) if self.in_channels == 2 * self.out_channels => "Canny or Depth",
            (false, _) => "unknown",
        }
    }
}

/// What the settings of a transformer in diffusers' folder are called.
const TRUNK_KEYS: [&str; 11] = [
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
    /// Times `[B]`, 1 for noise and 0 for the picture.
    pub timesteps: &'a Tensor,
    /// Pooled text `[B, vec_in_dim]`.
    pub y: &'a Tensor,
    /// Guidance strengths `[B]`; only a distilled model reads them.
    pub guidance: Option<&'a Tensor>,
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

/// What the conditioning vector makes of every block.
#[derive(Debug)]
struct Modulations {
    double: Vec<[[ModulationOut; 2]; 2]>,
    single: Vec<ModulationOut>,
    last: [Tensor; 2],
}

impl Modulations {
    /// `vec` `[B, D]`: tensors of `[B, 1, D]`.
    fn of(model: &Flux1, vec: &Tensor) -> Self {
        Self {
            double: model.trunk.double_blocks.iter().map(|block| block.modulation(vec)).collect(),
            single: model.trunk.single_blocks.iter().map(|block| block.modulation(vec)).collect(),
            last: model.final_layer.modulation(vec),
        }
    }

    /// One tensor of each place.
    fn join(all: &[&Self], join: impl Fn(&[&Tensor]) -> Result<Tensor>) -> Result<Self> {
        let tensor = |of: &dyn Fn(&Self) -> &Tensor| join(&all.iter().map(|one| of(one)).collect::<Vec<_>>());
        let out = |of: &dyn Fn(&Self) -> &ModulationOut| {
            Ok::<_, Error>(ModulationOut {
                shift: tensor(&|one| &of(one).shift)?,
                scale: tensor(&|one| &of(one).scale)?,
                gate: tensor(&|one| &of(one).gate)?,
            })
        };
        let [first, ..] = all else { return Err(Error::Config("no steps were prepared".into())) };
        let stream = |i: usize, stream: usize| {
            Ok::<_, Error>([out(&|one| &one.double[i][stream][0])?, out(&|one| &one.double[i][stream][1])?])
        };
        let double = (0..first.double.len()).map(|i| Ok([stream(i, 0)?, stream(i, 1)?]));
        Ok(Self {
            double: double.collect::<Result<_>>()?,
            single: (0..first.single.len()).map(|i| out(&|one| &one.single[i])).collect::<Result<_>>()?,
            last: [tensor(&|one| &one.last[0])?, tensor(&|one| &one.last[1])?],
        })
    }
}

/// What the steps of some pictures share: the modulation of every step and the rotations. See [`Flux1::prepare_steps`].
#[derive(Debug)]
pub struct Steps {
    /// Tensors of `[B, 1, D]`.
    steps: Vec<Modulations>,
    /// Of one picture: all are alike.
    pe: Tensor,
}

impl Steps {
    /// Those of several pictures, side by side along the batch: as many steps of each, prepared for the same positions.
    ///
    /// # Errors
    /// [`Error::Config`] where there are none, or not as many of each.
    pub fn together(all: &[&Self]) -> Result<Self> {
        let Some(first) = all.first() else { return Err(Error::Config("no steps were prepared".into())) };
        let len = first.steps.len();
        if all.iter().any(|one| one.steps.len() != len || one.pe.size() != first.pe.size()) {
            return Err(Error::Config("the pictures' steps or positions are not as many".into()));
        }
        let step = |i: usize| {
            let modulations: Vec<_> = all.iter().map(|one| &one.steps[i]).collect();
            Modulations::join(&modulations, |tensors| math::cat(tensors, 0))
        };
        Ok(Self { steps: (0..len).map(step).collect::<Result<_>>()?, pe: first.pe.shallow_clone() })
    }
}

impl Flux1 {
    /// Declares every parameter under its official name.
    ///
    /// # Errors
    /// [`Error::Config`] where the heads do not divide the hidden size, or the axes do not sum to the head width.
    pub fn new(vs: Path, params: &Flux1Params) -> Result<Self> {
        check_sizes(&[("out_channels", params.out_channels)])?;
        let (mut model, mut parameters) = Parameters::of(&vs, || {
            Ok(Self {
                trunk: Trunk::new(&vs, params)?,
                final_layer: LastLayer::new(&vs / "final_layer", params.hidden_size, 1, params.out_channels),
                parameters: Parameters::default(),
            })
        })?;
        // Modulations are computed before the blocks run.
        let block = |of: &str, i: usize, aside: &[&str]| {
            let block = &vs / of;
            let name = block.path(&i.to_string());
            Block { aside: aside.iter().map(|layer| format!("{name}.{layer}")).collect(), layers: vec![name] }
        };
        let double = (0..params.depth).map(|i| block("double_blocks", i, &["img_mod", "txt_mod"]));
        let single = (0..params.depth_single_blocks).map(|i| block("single_blocks", i, &["modulation"]));
        parameters.set_blocks(double.chain(single).collect());
        model.parameters = parameters;
        Ok(model)
    }

    /// The linear layers, where quantised weights are kept and LoRAs are put on.
    pub fn linears(&self) -> &Linears {
        self.parameters.linears()
    }

    /// The sizes that the model was built with.
    pub fn params(&self) -> &Flux1Params {
        &self.trunk.params
    }

    /// The velocity of every patch: `[B, Li, out_channels]`.
    ///
    /// # Errors
    /// [`Error::Shape`] and [`Error::Kind`] where an input does not fit the model or the others, [`Error::MissingGuidance`],
    /// [`Error::Unfilled`] before a checkpoint was loaded, [`Error::Cancelled`] within [`numerics::with_cancel`].
    pub fn forward(&self, input: &Flux1Input) -> Result<Tensor> {
        self.forward_with(input, None, &Additions::default())
    }

    /// [`Flux1::forward`], with what other models add between the blocks. `prepared` is one of the steps that were
    /// prepared: then `input.timesteps`, `guidance`, `y` and the positions are not read again.
    ///
    /// # Errors
    /// As [`Flux1::forward`], [`Error::Shape`] for an addition that does not fit, and [`Error::Config`] for a step that was
    /// not prepared.
    pub fn forward_with(
        &self,
        input: &Flux1Input,
        prepared: Option<(&Steps, usize)>,
        additions: &Additions,
    ) -> Result<Tensor> {
        self.call(input, prepared, additions, None)
    }

    /// [`Flux1::forward_with`], of which a part may be skipped.
    ///
    /// # Errors
    /// Its own.
    pub fn forward_cached(
        &self,
        input: &Flux1Input,
        prepared: Option<(&Steps, usize)>,
        additions: &Additions,
        cached: &mut CachedSteps,
    ) -> Result<Tensor> {
        self.call(input, prepared, additions, Some(cached))
    }

    /// What all steps of a picture share, computed once: `timesteps` are those of every step, the other inputs those of
    /// each. `None` where the exact numerics want every step on its own: a product of many rows has other last bits than
    /// one of a single row.
    ///
    /// # Errors
    /// As [`Flux1::forward`].
    pub fn prepare_steps(&self, input: &Flux1Input, timesteps: &[f64]) -> Result<Option<Steps>> {
        let _ops = self.parameters.ops().enter();
        if timesteps.is_empty()
            || input.img.size().first() != Some(&1)
            || !numerics::is_fast([input.img, input.y])
        {
            return Ok(None);
        }
        self.check(input)?;
        // In the kind of the patches, as the loop hands them over one by one.
        let times = Tensor::f_from_slice(timesteps)?.f_to_kind(input.timesteps.kind())?;
        let times = times.f_to_device(input.img.device())?;
        let vec = self.trunk.vec(&times, input.guidance, input.y)?;
        let all = Modulations::of(self, &vec);
        let step = |i| Modulations::join(&[&all], |all| Ok(all[0].f_narrow(0, i, 1)?));
        let steps = (0..timesteps.len() as i64).map(step).collect::<Result<_>>()?;
        Ok(Some(Steps { steps, pe: self.trunk.pe(input.txt_ids, input.img_ids) }))
    }

    /// [`Flux1::forward`] of one of the steps that were prepared: `input.timesteps`, `guidance`, `y` and the positions
    /// are not read again.
    ///
    /// # Errors
    /// As [`Flux1::forward`], and [`Error::Config`] for a step that was not prepared.
    pub fn forward_step(&self, input: &Flux1Input, steps: &Steps, step: usize) -> Result<Tensor> {
        self.forward_with(input, Some((steps, step)), &Additions::default())
    }

    /// Chooses between the official bits and speed. Without it the model does as [`numerics::with_numerics`] around it says,
    /// and else is exact.
    pub fn set_numerics(&self, numerics: Numerics) {
        self.parameters.ops().set(numerics);
    }

    /// Gives back the memory that fast steps keep for the next one.
    pub fn release_workspace(&self) {
        self.parameters.ops().release();
    }

    /// [`Flux1::quantize_int8`] or [`Flux1::quantize_fp8`], as is asked.
    ///
    /// # Errors
    /// Theirs.
    pub fn quantize(&self, quantize: Quantize) -> Result<()> {
        match quantize {
            Quantize::None => Ok(()),
            Quantize::Int8 => self.quantize_int8(),
            Quantize::Fp8 => self.quantize_fp8(),
        }
    }

    /// Makes int8 of the weights of the blocks' linear layers, with a scale for each row; the numbers before are let go.
    /// Products of them are of int8, too, each token's activations with a scale of their own. What is small, or sensitive
    /// (the embedders, the modulation, the last layer) stays as it is. On the CPU, in [`Numerics::Fast`]; the exact form
    /// computes with the numbers that the int8 stand for.
    ///
    /// # Errors
    /// [`Error::Tch`] where the memory is not to be had, [`Error::Request`] on another device.
    pub fn quantize_int8(&self) -> Result<()> {
        self.parameters.check()?;
        if self.trunk.img_in.weight.device() != tch::Device::Cpu {
            return Err(Error::Request("int8 weights are for the CPU; on CUDA quantise to fp8".into()));
        }
        self.linears().quantize_int8(Self::quantizes)
    }

    /// The same with fp8, on CUDA from SM 8.9 on. Weights whose sides are no multiples of 16 stay as they are.
    ///
    /// # Errors
    /// [`Error::Tch`] where the memory is not to be had, [`Error::Request`] on a device without products of fp8.
    pub fn quantize_fp8(&self) -> Result<()> {
        self.parameters.check()?;
        ops::cuda::check_fp8(self.trunk.img_in.weight.device())?;
        self.linears().quantize_fp8(Self::quantizes)
    }

    /// Whether quantising changes the parameter of this name: the weights of the blocks' linear layers, but for the
    /// modulation's.
    pub(crate) fn quantizes(name: &str) -> bool {
        let layer = ["attn.qkv", "attn.proj", "mlp.0", "mlp.2", "linear1", "linear2"];
        let Some(name) = name.strip_suffix(".weight").filter(|name| name.contains("_blocks.")) else {
            return false;
        };
        layer.iter().any(|layer| name.ends_with(layer))
    }

    fn call(
        &self,
        input: &Flux1Input,
        prepared: Option<(&Steps, usize)>,
        additions: &Additions,
        mut cached: Option<&mut CachedSteps>,
    ) -> Result<Tensor> {
        self.check(input)?;
        additions.check(input, &self.trunk.params)?;
        let _ops = self.parameters.ops().enter();
        if let Some(velocity) = cached.as_mut().map(|cached| cached.predicted()).transpose()?.flatten() {
            return Ok(velocity.f_to_kind(input.img.kind())?);
        }
        if let Some((steps, step)) = prepared {
            let modulations = steps.steps.get(step).ok_or_else(|| {
                Error::Config(format!("step {step} was not prepared: there are {}", steps.steps.len()))
            })?;
            return self.run(input, modulations, &steps.pe, additions, cached);
        }
        let vec = self.trunk.vec(input.timesteps, input.guidance, input.y)?;
        let pe = self.trunk.pe(input.txt_ids, input.img_ids);
        self.run(input, &Modulations::of(self, &vec), &pe, additions, cached)
    }

    fn run(
        &self,
        input: &Flux1Input,
        modulations: &Modulations,
        pe: &Tensor,
        additions: &Additions,
        mut cached: Option<&mut CachedSteps>,
    ) -> Result<Tensor> {
        let Trunk { img_in, txt_in, double_blocks, single_blocks, .. } = &self.trunk;
        let (img_len, txt_len) = (input.img.size()[1], input.txt.size()[1]);
        let mut img = ops::linear(img_in, input.img, ops::Epilogue::default());
        let mut txt = ops::linear(txt_in, input.txt, ops::Epilogue::default());
        let mut before = cached.is_some().then(|| img.shallow_clone());
        if let (Some(cached), Some(block), Some(modulation)) =
            (&mut cached, double_blocks.first(), modulations.double.first())
            && let Some(img) = cached.after_input(&img, || block.modulated(&img, modulation))?
        {
            return Ok(self.final_layer.run(&img, &modulations.last));
        }
        let depth = double_blocks.len();
        for (i, (block, modulation)) in double_blocks.iter().zip(&modulations.double).enumerate() {
            numerics::check_cancelled(&img)?;
            let attend = |query: &Tensor| additions.attend(i, query);
            let beside = (!additions.image_prompts.is_empty()).then_some(&attend as &AttentionHook);
            (img, txt) =
                self.linears().in_block(i, || block.run_with_hook(&img, &txt, modulation, pe, beside))?;
            if let (0, Some(cached), Some(input)) = (i, &mut cached, &mut before) {
                if let Some(img) = cached.after_first_block(input, &img)? {
                    return Ok(self.final_layer.run(&img, &modulations.last));
                }
                if cached.begins_after_first_block() {
                    // A copy: what is added below is added in place.
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
            x = self.linears().in_block(place, || block.run(&x, modulation, pe, from))?;
            let mut img = x.narrow(1, x.size()[1] - img_len, img_len);
            additions.add_single(&mut img, i, depth)?;
        }
        let img = x.narrow(1, x.size()[1] - img_len, img_len);
        let velocity = self.final_layer.run(&img, &modulations.last);
        if let (Some(cached), Some(before)) = (cached, &before) {
            cached.keep(before, &img, &velocity)?;
        }
        Ok(velocity)
    }

    fn check(&self, input: &Flux1Input) -> Result<()> {
        self.parameters.check()?;
        self.trunk.check(input)
    }
}
