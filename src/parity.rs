//! Parity cases: weights, inputs and outputs of a reference implementation in one file, and the run that compares.
//!
//! A case is a safetensors file whose metadata holds `format` (`parity-case/1`), `module` (what was run), `params` (its
//! arguments, JSON), `reference` and `machine` (JSON), and whose tensors are `w.<state_dict name>`, `in.<argument>` and
//! `out.<result>`. An argument that was `None` has no tensor.

mod control;
mod params;
mod walk;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tch::nn::{Module, VarStore};
use tch::{Device, Kind, Tensor};

use params::{
    AttentionParams, BlockParams, ConvParams, DenoiseParams, DiffusersAutoencoderParams, DiffusersParams,
    DimParams, EmbedParams, LastParams, LoraParams, MlpParams, ModulationParams, NoiseParams, RopeParams,
    ScheduleParams, SizeParams, TimestepParams, WrapperParams,
};

use crate::autoencoder::{
    AttnBlock, AutoEncoder, AutoEncoderParams, ResnetBlock, TinyAutoEncoder, TinyAutoEncoderParams,
};
use crate::checkpoint::lora::{Lora, Model};
use crate::checkpoint::{Access, Checkpoint, LoadOptions};
use crate::error::{Error, Result};
use crate::flux1::{Additions, Flux1, Flux1Input, Flux1Params};
use crate::image::Image;
use crate::layers::{
    DoubleStreamBlock, EmbedNd, LastLayer, LinearLora, MlpEmbedder, Modulation, QkNorm, RmsNorm,
    SelfAttention, SingleStreamBlock, timestep_embedding,
};
use crate::math::{apply_rope, attention, rope};
use crate::nn::Parameters;
use crate::ops::{self, Numerics};
use crate::pipeline::{Conditions, denoise};
use crate::sampling::{Prepared, get_noise, get_schedule, prepare, unpack};
use crate::shim;
use crate::text::{ClipConfig, ClipText, T5Config, T5Encoder};
use crate::vision::dpt::{pixel_values, resize_bicubic};
use crate::vision::{
    ClipVision, ClipVisionConfig, DepthAnything, DepthConfig, Dinov2, Dinov2Config, ReduxConfig,
    ReduxImageEncoder, SiglipConfig, SiglipVision,
};

/// The machine that made a case, or this one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Version of torch.
    pub torch: String,
    /// Threads of an operation.
    pub threads: i32,
    /// Instruction set of libtorch's kernels.
    pub cpu_capability: String,
    /// Whether the CPU multiplies in bf16.
    pub avx512_bf16: bool,
    /// Who made the CPU, as it says itself: MKL takes other ways on others' CPUs. Cases from before this was written down
    /// were made on AMD's.
    #[serde(default = "amd")]
    pub cpu_vendor: String,
}

fn amd() -> String {
    "AuthenticAMD".into()
}

/// What an x86 CPU says of its maker, and else the architecture.
fn cpu_vendor() -> String {
    #[cfg(target_arch = "x86_64")]
    {
        let leaf = std::arch::x86_64::__cpuid(0);
        let bytes = [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes).concat();
        String::from_utf8_lossy(&bytes).into_owned()
    }
    #[cfg(not(target_arch = "x86_64"))]
    std::env::consts::ARCH.into()
}

impl Machine {
    /// This machine, with libtorch's present settings.
    pub fn here() -> Self {
        #[cfg(target_arch = "x86_64")]
        let avx512_bf16 = std::arch::is_x86_feature_detected!("avx512bf16");
        #[cfg(not(target_arch = "x86_64"))]
        let avx512_bf16 = false;
        Self {
            torch: shim::torch_version(),
            threads: tch::get_num_threads(),
            cpu_capability: shim::cpu_capability(),
            avx512_bf16,
            cpu_vendor: cpu_vendor(),
        }
    }

    /// Whether the same bits are to be expected: same torch, CPU and threads.
    pub fn gives_the_bits_of(&self, other: &Machine) -> bool {
        let version = |m: &Machine| m.torch.split('+').next().map(str::to_string);
        let rest = |m: &Machine| (m.threads, m.cpu_capability.clone(), m.avx512_bf16, m.cpu_vendor.clone());
        version(self) == version(other) && rest(self) == rest(other)
    }
}

/// How one output compares with the reference's.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// The output's name.
    pub output: String,
    /// Largest absolute difference.
    pub max_abs: f64,
    /// L2 norm of the difference over that of the reference.
    pub relative_l2: f64,
    /// Share of the values whose bits are equal.
    pub equal_bits: f64,
    /// What cannot be measured away: another shape or kind, NaN.
    pub problem: Option<String>,
    /// The largest relative L2 difference that passes without exactness.
    pub tolerance: f64,
}

impl Comparison {
    /// The verdict: every bit equal, or the difference within the tolerance.
    pub fn passes(&self, exact: bool) -> bool {
        let close = if exact { self.equal_bits == 1.0 } else { self.relative_l2 <= self.tolerance };
        self.problem.is_none() && close
    }

    /// `device` is where ours was computed. On CUDA cuDNN convolves f32 in TF32 unless it is told otherwise, which the
    /// official code does not.
    fn of(output: &str, ours: &Tensor, theirs: &Tensor, device: Device) -> Result<Self> {
        let tolerance = match (theirs.kind(), device) {
            (Kind::BFloat16 | Kind::Half, Device::Cpu) => 1e-2,
            (Kind::BFloat16 | Kind::Half, _) => 2e-2,
            (_, Device::Cpu) => 1e-5,
            _ => 1e-3,
        };
        let mut comparison = Self {
            output: output.to_string(),
            max_abs: f64::NAN,
            relative_l2: f64::NAN,
            equal_bits: 0.0,
            problem: None,
            tolerance,
        };
        if ours.size() != theirs.size() || ours.kind() != theirs.kind() {
            let form = |t: &Tensor| format!("{:?} {:?}", t.kind(), t.size());
            comparison.problem = Some(format!("{} instead of {}", form(ours), form(theirs)));
            return Ok(comparison);
        }
        if ours.numel() == 0 {
            return Ok(Self { max_abs: 0.0, relative_l2: 0.0, equal_bits: 1.0, ..comparison });
        }
        let difference = ours.to_kind(Kind::Double) - theirs.to_kind(Kind::Double);
        comparison.equal_bits =
            f64::try_from(bits(ours).eq_tensor(&bits(theirs)).to_kind(Kind::Double).mean(None))?;
        comparison.max_abs = f64::try_from(difference.abs().max())?;
        comparison.relative_l2 = Self::distance(ours, theirs)?;
        if !comparison.relative_l2.is_finite() {
            comparison.problem = Some("NaN or infinity".into());
        }
        Ok(comparison)
    }

    /// The L2 norm of the difference over that of the reference.
    fn distance(ours: &Tensor, theirs: &Tensor) -> Result<f64> {
        let theirs = theirs.f_to_kind(Kind::Double)?;
        let distance = f64::try_from(ours.f_to_kind(Kind::Double)?.f_sub(&theirs)?.f_norm()?)?;
        Ok(if distance == 0.0 { 0.0 } else { distance / f64::try_from(theirs.f_norm()?)? })
    }
}

/// The numbers' bits as integers.
fn bits(x: &Tensor) -> Tensor {
    let kind = match x.kind().elt_size_in_bytes() {
        1 => Kind::Int8,
        2 => Kind::Int16,
        4 => Kind::Int,
        _ => Kind::Int64,
    };
    x.contiguous().view_dtype(kind)
}

/// One case, opened.
#[derive(Debug)]
pub struct Case {
    /// The file.
    pub path: PathBuf,
    /// What was run.
    pub module: String,
    /// What ran it.
    pub reference: String,
    /// Where.
    pub machine: Option<Machine>,
    params: Value,
    tensors: Checkpoint,
    device: Device,
    /// Whether weights and inputs become f64, as the yardstick of the fast numerics has them.
    in_f64: Cell<bool>,
    /// Which draw of weights near the case's own is run; 0 for these themselves.
    draw: Cell<u64>,
}

/// The fast numerics beside the exact ones, both measured against the same module in f64.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Accuracy {
    /// The output's name.
    pub output: String,
    /// Relative L2 error of the exact numerics.
    pub exact: f64,
    /// The same of the fast ones.
    pub fast: f64,
}

impl Accuracy {
    /// The largest error that the fast numerics may have, over that of the exact ones.
    pub const BOUND: f64 = 1.1;
    /// How many draws of weights are measured, the case's own among them.
    pub const DRAWS: u64 = 8;

    /// Whether the fast numerics keep to it.
    pub fn passes(&self) -> bool {
        self.fast <= Self::BOUND * self.exact
    }
}

impl Case {
    /// Reads a case's header.
    ///
    /// # Errors
    /// As [`Checkpoint::open`], and [`Error::Case`] where the metadata is not a case's.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref().to_path_buf();
        let tensors = Checkpoint::open(&path, Access::Read)?;
        let metadata = tensors.headers().first().map(|h| h.metadata.clone()).unwrap_or_default();
        let entry = |key: &str| {
            metadata
                .get(key)
                .cloned()
                .ok_or_else(|| Error::Case(format!("{}: no {key} in its metadata", path.display())))
        };
        let format = entry("format")?;
        if format != "parity-case/1" {
            return Err(Error::Case(format!(
                "{}: its format is {format:?}, not \"parity-case/1\"",
                path.display()
            )));
        }
        let json = |text: &str| {
            serde_json::from_str(text).map_err(|e| Error::Case(format!("{}: {e}", path.display())))
        };
        Ok(Self {
            module: entry("module")?,
            reference: metadata.get("reference").cloned().unwrap_or_default(),
            machine: metadata.get("machine").and_then(|text| serde_json::from_str(text).ok()),
            params: json(&entry("params")?)?,
            tensors,
            path,
            device: Device::Cpu,
            in_f64: Cell::new(false),
            draw: Cell::new(0),
        })
    }

    /// Runs on this device from now on; without it, on the CPU.
    pub fn on(self, device: Device) -> Self {
        Self { device, ..self }
    }

    /// The file's name without its ending.
    pub fn name(&self) -> String {
        self.path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
    }

    /// Runs the module with as many threads as the case was made with, and compares every output. `None` where the
    /// module is not known here.
    ///
    /// # Errors
    /// [`Error::Case`] where an argument or a result is missing, and what the module itself returns.
    pub fn run(&self) -> Result<Option<Vec<Comparison>>> {
        let Some(outputs) = self.compute()? else { return Ok(None) };
        let wanted = self.tensors.names().filter_map(|n| n.strip_prefix("out."));
        let compared = wanted.map(|name| {
            let ours = outputs
                .get(name)
                .ok_or_else(|| self.lacks(&format!("out.{name}, which is not computed here")))?;
            let theirs = self.tensors.tensor(&format!("out.{name}"))?;
            let mut comparison = Comparison::of(name, ours, &theirs, self.device)?;
            // A loop of steps adds up what one of them differs by: the official code's own result for one of the cases
            // is 3.1e-5 apart between an AMD and an Intel CPU.
            if self.module == "flux.sampling.denoise" && theirs.kind() == Kind::Float {
                comparison.tolerance = comparison.tolerance.max(5e-5);
            }
            Ok(comparison)
        });
        Ok(Some(compared.collect::<Result<_>>()?))
    }

    /// Runs the module in fast and in exact numerics and in f64, and says how far the first two are from the last: the
    /// root mean square over [`Accuracy::DRAWS`] draws of weights near the case's own, since the error of one small case
    /// is chance as much as anything. `None` where the module is not known here.
    ///
    /// # Errors
    /// As [`Case::run`].
    pub fn accuracy(&self) -> Result<Option<Vec<Accuracy>>> {
        let mut sums: BTreeMap<String, [f64; 2]> = BTreeMap::new();
        for draw in 0..Accuracy::DRAWS {
            self.draw.set(draw);
            let errors = self.errors();
            self.draw.set(0);
            let Some(errors) = errors? else { return Ok(None) };
            for (name, [exact, fast]) in errors {
                let sum = sums.entry(name).or_default();
                *sum = [sum[0] + exact * exact, sum[1] + fast * fast];
            }
        }
        let mean = |sum: f64| (sum / Accuracy::DRAWS as f64).sqrt();
        let accuracy = |(output, [exact, fast]): (String, [f64; 2])| Accuracy {
            output,
            exact: mean(exact),
            fast: mean(fast),
        };
        Ok(Some(sums.into_iter().map(accuracy).collect()))
    }

    /// The relative L2 errors of one draw, exact and fast.
    fn errors(&self) -> Result<Option<BTreeMap<String, [f64; 2]>>> {
        let Some(exact) = self.compute()? else { return Ok(None) };
        let Some(fast) = ops::with_numerics(Numerics::Fast, || self.compute())? else { return Ok(None) };
        self.in_f64.set(true);
        let reference = ops::wide(|| self.compute());
        self.in_f64.set(false);
        let Some(reference) = reference? else { return Ok(None) };
        let measured = reference.iter().map(|(name, reference)| {
            let error = |of: &BTreeMap<String, Tensor>| {
                let ours = of.get(name).ok_or_else(|| self.lacks(&format!("out.{name}")))?;
                Comparison::distance(ours, reference)
            };
            Ok((name.clone(), [error(&exact)?, error(&fast)?]))
        });
        Ok(Some(measured.collect::<Result<_>>()?))
    }

    fn compute(&self) -> Result<Option<BTreeMap<String, Tensor>>> {
        let _no_grad = tch::no_grad_guard();
        let threads = tch::get_num_threads();
        if let Some(machine) = self.machine.as_ref().filter(|m| (1..=1024).contains(&m.threads)) {
            tch::set_num_threads(machine.threads);
        }
        // A layer is called with whatever the file holds, and libtorch's operators panic on what does not fit.
        let outputs = catch_unwind(AssertUnwindSafe(|| self.outputs()))
            .unwrap_or_else(|_| Err(self.lacks("inputs that fit the module: libtorch refused them")));
        tch::set_num_threads(threads);
        let on_the_cpu = |(name, output): (String, Tensor)| Ok((name, output.f_to_device(Device::Cpu)?));
        outputs?.map(|all| all.into_iter().map(on_the_cpu).collect()).transpose()
    }

    fn outputs(&self) -> Result<Option<BTreeMap<String, Tensor>>> {
        let output = |x: Tensor| Ok(Some(BTreeMap::from([("output".to_string(), x)])));
        let named = |pairs: Vec<(&str, Tensor)>| {
            Ok(Some(pairs.into_iter().map(|(n, t)| (n.to_string(), t)).collect::<BTreeMap<_, _>>()))
        };
        let input = |name: &str| self.input(name);
        match self.module.as_str() {
            "flux.math.rope" => {
                let p: RopeParams = self.params()?;
                output(rope(&input("pos")?, p.dim, p.theta)?)
            }
            "flux.math.apply_rope" => {
                let (q, k) = apply_rope(&input("xq")?, &input("xk")?, &input("freqs_cis")?);
                named(vec![("q", q), ("k", k)])
            }
            "flux.math.attention" => {
                output(attention(&input("q")?, &input("k")?, &input("v")?, &input("pe")?))
            }
            "flux.modules.layers.EmbedND" => {
                let p: EmbedParams = self.params()?;
                output(EmbedNd::new(p.dim, p.theta, &p.axes_dim)?.forward(&input("ids")?))
            }
            "flux.modules.layers.timestep_embedding" => {
                let p: TimestepParams = self.params()?;
                output(timestep_embedding(&input("t")?, p.dim, p.max_period, p.time_factor))
            }
            "flux.modules.layers.MLPEmbedder" => {
                let p: MlpParams = self.params()?;
                let vs = self.store();
                let layer = MlpEmbedder::new(vs.root(), p.in_dim, p.hidden_dim);
                self.load(&vs)?;
                output(layer.forward(&input("x")?))
            }
            "flux.modules.layers.RMSNorm" => {
                let p: DimParams = self.params()?;
                let vs = self.store();
                let layer = RmsNorm::new(vs.root(), p.dim);
                self.load(&vs)?;
                output(layer.forward(&input("x")?))
            }
            "flux.modules.layers.QKNorm" => {
                let p: DimParams = self.params()?;
                let vs = self.store();
                let layer = QkNorm::new(vs.root(), p.dim);
                self.load(&vs)?;
                let (q, k) = layer.forward(&input("q")?, &input("k")?, &input("v")?);
                named(vec![("q", q), ("k", k)])
            }
            "flux.modules.layers.SelfAttention" => {
                let p: AttentionParams = self.params()?;
                let vs = self.store();
                let layer = SelfAttention::new(vs.root(), p.dim, p.num_heads, p.qkv_bias)?;
                self.load(&vs)?;
                output(layer.forward(&input("x")?, &input("pe")?))
            }
            "flux.modules.layers.Modulation" => {
                let p: ModulationParams = self.params()?;
                if p.double { self.modulation::<2>(p.dim) } else { self.modulation::<1>(p.dim) }.map(Some)
            }
            "flux.modules.layers.DoubleStreamBlock" => {
                let p: BlockParams = self.params()?;
                let vs = self.store();
                let layer =
                    DoubleStreamBlock::new(vs.root(), p.hidden_size, p.num_heads, p.mlp_ratio, p.qkv_bias)?;
                self.load(&vs)?;
                let (img, txt) = layer.forward(&input("img")?, &input("txt")?, &input("vec")?, &input("pe")?);
                named(vec![("img", img), ("txt", txt)])
            }
            "flux.modules.layers.SingleStreamBlock" => {
                let p: BlockParams = self.params()?;
                let vs = self.store();
                let layer = SingleStreamBlock::new(vs.root(), p.hidden_size, p.num_heads, p.mlp_ratio)?;
                self.load(&vs)?;
                output(layer.forward(&input("x")?, &input("vec")?, &input("pe")?))
            }
            "flux.modules.layers.LastLayer" => {
                let p: LastParams = self.params()?;
                let vs = self.store();
                let layer = LastLayer::new(vs.root(), p.hidden_size, p.patch_size, p.out_channels);
                self.load(&vs)?;
                output(layer.forward(&input("x")?, &input("vec")?))
            }
            "flux.modules.lora.LinearLora" => {
                let p: LoraParams = self.params()?;
                let vs = self.store();
                let (i, o) = (p.in_features, p.out_features);
                let layer = LinearLora::new(vs.root(), i, o, p.bias, p.rank, p.lora_bias, p.scale);
                self.load(&vs)?;
                output(layer.forward(&self.any_input(&["input", "x"])?))
            }
            "flux.model.Flux" => output(self.flux(&self.params()?)?),
            "flux.model.FluxLoraWrapper" => output(self.flux_lora(&self.params()?)?),
            "diffusers.FluxTransformer2DModel" => {
                let p: DiffusersParams = self.params()?;
                output(self.flux(&p.official())?)
            }
            "diffusers.FluxControlNetModel" => self.controlnet().map(Some),
            "diffusers.FluxIPAdapterAttnProcessor" => output(self.ip_adapters()?),
            "flux.modules.autoencoder.AttnBlock" => {
                let p: ConvParams = self.params()?;
                let vs = self.store();
                let layer = AttnBlock::new(vs.root(), p.in_channels);
                self.load(&vs)?;
                output(layer.forward(&input("x")?))
            }
            "flux.modules.autoencoder.ResnetBlock" => {
                let p: ConvParams = self.params()?;
                let vs = self.store();
                let layer =
                    ResnetBlock::new(vs.root(), p.in_channels, p.out_channels.unwrap_or(p.in_channels));
                self.load(&vs)?;
                output(layer.forward(&input("x")?))
            }
            "flux.modules.autoencoder.AutoEncoder" => {
                self.autoencoder(&self.params()?, self.weights()?).map(Some)
            }
            "diffusers.AutoencoderKL" => {
                let weights = self.weights()?.official();
                let p: DiffusersAutoencoderParams = self.params()?;
                let sizes = AutoEncoderParams::from_shapes(|name| weights.shape(name))?;
                let (scale_factor, shift_factor) = (p.scaling_factor, p.shift_factor);
                self.autoencoder(&AutoEncoderParams { scale_factor, shift_factor, ..sizes }, weights)
                    .map(Some)
            }
            "diffusers.AutoencoderTiny" => self.tiny_autoencoder().map(Some),
            "flux.sampling.get_noise" => {
                let p: NoiseParams = self.params()?;
                let kind = p.kind()?;
                output(get_noise(p.num_samples, p.height, p.width, kind, p.seed, p.rule())?)
            }
            "flux.sampling.get_schedule" => {
                let p: ScheduleParams = self.params()?;
                let (base, max) = (p.base_shift, p.max_shift);
                let schedule = get_schedule(p.num_steps, p.image_seq_len, base, max, p.shift);
                output(Tensor::from_slice(&schedule))
            }
            "flux.sampling.prepare" => {
                let p = prepare(&input("img")?, &input("txt")?, &input("vec")?)?;
                let Prepared { img, img_ids, txt, txt_ids, vec } = p;
                named(vec![
                    ("img", img),
                    ("img_ids", img_ids),
                    ("txt", txt),
                    ("txt_ids", txt_ids),
                    ("vec", vec),
                ])
            }
            "flux.sampling.unpack" => {
                let p: SizeParams = self.params()?;
                output(unpack(&input("x")?, p.height, p.width)?)
            }
            "flux.sampling.denoise" => output(self.denoise()?),
            "diffusers.schedulers" => output(self.walk()?),
            "transformers.T5EncoderModel" => {
                let vs = self.store();
                let model = T5Encoder::new(vs.root(), &self.params::<T5Config>()?)?;
                self.load(&vs)?;
                named(vec![("last_hidden_state", model.forward(&input("input_ids")?)?)])
            }
            "transformers.CLIPTextModel" => {
                let vs = self.store();
                let model = ClipText::new(vs.root(), &self.params::<ClipConfig>()?)?;
                self.load(&vs)?;
                let out = model.forward(&input("input_ids")?)?;
                let (state, pooled) = (out.last_hidden_state, out.pooler_output);
                named(vec![("last_hidden_state", state), ("pooler_output", pooled)])
            }
            "transformers.CLIPVisionModelWithProjection" => {
                let vs = self.store();
                let model = ClipVision::new(vs.root(), &self.params::<ClipVisionConfig>()?)?;
                self.load(&vs)?;
                named(vec![("image_embeds", model.forward(&input("pixel_values")?)?)])
            }
            "transformers.SiglipVisionModel" => {
                let vs = self.store();
                let model = SiglipVision::new(vs.root(), &self.params::<SiglipConfig>()?)?;
                self.load(&vs)?;
                named(vec![("last_hidden_state", model.forward(&input("pixel_values")?)?)])
            }
            "diffusers.ReduxImageEncoder" => {
                let vs = self.store();
                let model = ReduxImageEncoder::new(vs.root(), &self.params::<ReduxConfig>()?)?;
                self.load(&vs)?;
                named(vec![("image_embeds", model.forward(&input("x")?)?)])
            }
            "transformers.Dinov2Backbone" => {
                let vs = self.store();
                let config: Dinov2Config = self.params()?;
                let (model, parameters) = Parameters::of(|| Dinov2::new(vs.root(), &config))?;
                self.load(&vs)?;
                parameters.check()?;
                let _ops = parameters.ops().enter();
                let states = model.forward(&input("pixel_values")?)?;
                Ok(Some(states.into_iter().enumerate().map(|(i, x)| (i.to_string(), x)).collect()))
            }
            "transformers.DepthAnythingForDepthEstimation" => {
                let vs = self.store();
                let model = DepthAnything::new(vs.root(), &self.params::<DepthConfig>()?)?;
                self.load(&vs)?;
                named(vec![("predicted_depth", model.forward(&input("pixel_values")?)?)])
            }
            "transformers.DPTImageProcessorPil" => output(pixel_values(&self.picture("picture")?)?),
            "torch.nn.functional.interpolate" => {
                let p: SizeParams = self.params()?;
                output(resize_bicubic(&input("x")?, [p.height, p.width])?)
            }
            _ => Ok(None),
        }
    }

    /// Bytes `[H, W, 3]`.
    fn picture(&self, name: &str) -> Result<Image> {
        let x = self.input(name)?.f_to_device(Device::Cpu)?;
        let [height, width, 3] = x.size()[..] else {
            return Err(self.lacks(&format!("in.{name} of the shape [H, W, 3]")));
        };
        let rgb = Vec::try_from(x.f_to_kind(Kind::Uint8)?.f_reshape([-1])?)?;
        Ok(Image { width: width as u32, height: height as u32, rgb })
    }

    fn modulation<const N: usize>(&self, dim: i64) -> Result<BTreeMap<String, Tensor>> {
        let vs = self.store();
        let layer = Modulation::<N>::new(vs.root(), dim);
        self.load(&vs)?;
        let parts = layer.forward(&self.input("vec")?).into_iter().enumerate().flat_map(|(i, out)| {
            [("shift", out.shift), ("scale", out.scale), ("gate", out.gate)]
                .map(|(n, t)| (format!("{i}.{n}"), t))
        });
        Ok(parts.collect())
    }

    fn flux(&self, params: &Flux1Params) -> Result<Tensor> {
        let vs = self.store();
        let model = Flux1::new(vs.root(), params)?;
        self.load(&vs)?;
        let residuals = self.residuals()?;
        self.run_flux(&model, &Additions { residuals: &residuals, ..Additions::default() })
    }

    /// The official code keeps its LoRA in the model; ours lie under `w.lora.`, as its files have them.
    fn flux_lora(&self, params: &WrapperParams) -> Result<Tensor> {
        let (vs, all) = (self.store(), self.weights()?);
        let model = Flux1::new(vs.root(), &params.flux)?;
        let of_the_lora: Vec<String> =
            all.names().filter(|name| name.starts_with("lora.")).map(str::to_string).collect();
        all.without(&of_the_lora).official().load(&vs, LoadOptions::default())?;
        self.drawn(&vs)?;
        let lora = Lora::from_checkpoint(self.weights()?.under("lora."))?;
        let shapes = vs.variables();
        let shape = |_: Model, name: &str| Some(shapes.get(name)?.size());
        lora.place(&shape, params.lora_scale, false)?.transformer.put_on(&vs, model.linears())?;
        self.run_flux(&model, &Additions::default())
    }

    fn run_flux(&self, model: &Flux1, additions: &Additions) -> Result<Tensor> {
        let guidance = self.optional("guidance")?;
        let input = Flux1Input {
            img: &self.input("img")?,
            img_ids: &self.input("img_ids")?,
            txt: &self.input("txt")?,
            txt_ids: &self.input("txt_ids")?,
            timesteps: &self.input("timesteps")?,
            y: &self.input("y")?,
            guidance: guidance.as_ref(),
        };
        model.forward_with(&input, None, additions)
    }

    fn autoencoder(
        &self,
        params: &AutoEncoderParams,
        weights: Checkpoint,
    ) -> Result<BTreeMap<String, Tensor>> {
        let vs = self.store();
        let model = AutoEncoder::new(vs.root(), params)?;
        weights.load(&vs, LoadOptions::default())?;
        self.drawn(&vs)?;
        let mut outputs = BTreeMap::new();
        if let Some(x) = self.optional("x")? {
            outputs.insert("encode".to_string(), model.encode(&x)?);
        }
        if let Some(z) = self.optional("z")? {
            outputs.insert("decode".to_string(), model.decode(&z)?);
        }
        Ok(outputs)
    }

    fn tiny_autoencoder(&self) -> Result<BTreeMap<String, Tensor>> {
        let (vs, weights) = (self.store(), self.weights()?.official());
        let p: DiffusersAutoencoderParams = self.params()?;
        let sizes = TinyAutoEncoderParams::from_shapes(|name| weights.shape(name))?;
        let (scaling_factor, shift_factor) = (p.scaling_factor, p.shift_factor);
        let model = TinyAutoEncoder::new(
            vs.root(),
            &TinyAutoEncoderParams { scaling_factor, shift_factor, ..sizes },
        )?;
        weights.load(&vs, LoadOptions::default())?;
        self.drawn(&vs)?;
        let (x, z) = (self.input("x")?, self.input("z")?);
        Ok(BTreeMap::from([
            ("encode".to_string(), model.encode(&x)?),
            ("decode".to_string(), model.decode(&z)?),
        ]))
    }

    fn denoise(&self) -> Result<Tensor> {
        let p: DenoiseParams = self.params()?;
        let vs = self.store();
        let model = Flux1::new(vs.root(), &self.params()?)?;
        self.load(&vs)?;
        let prepared = Prepared {
            img: self.input("img")?,
            img_ids: self.input("img_ids")?,
            txt: self.input("txt")?,
            txt_ids: self.input("txt_ids")?,
            vec: self.input("vec")?,
        };
        let timesteps: Vec<f64> = Vec::try_from(self.input("timesteps")?)?;
        let conditions = Conditions {
            img_cond: self.optional("img_cond")?,
            img_cond_seq: self.optional("img_cond_seq")?.zip(self.optional("img_cond_seq_ids")?),
        };
        denoise(&model, &prepared, &timesteps, p.guidance, &conditions, &mut |_, _| Ok(()))
    }

    fn store(&self) -> VarStore {
        VarStore::new(self.device)
    }

    fn weights(&self) -> Result<Checkpoint> {
        Ok(Checkpoint::open(&self.path, Access::Read)?.under("w."))
    }

    fn load(&self, vs: &VarStore) -> Result<()> {
        self.weights()?.official().load(vs, LoadOptions::default())?;
        self.drawn(vs)
    }

    /// The weights of the present draw, in their own kind or in f64: each number a hundredth off or so.
    fn drawn(&self, vs: &VarStore) -> Result<()> {
        let mut variables: Vec<_> = vs.variables().into_iter().collect();
        variables.sort_by(|(a, _), (b, _)| a.cmp(b));
        for (i, (_, mut variable)) in variables.into_iter().enumerate() {
            let mut value = variable.f_detach()?;
            if self.draw.get() > 0 {
                let noise = shim::randn(&value.size(), self.draw.get() * 100_000 + i as u64)?;
                let noise = noise.f_to_device(self.device)?;
                let near = value.f_to_kind(Kind::Float)? * (noise * 0.01 + 1.0);
                value = near.f_to_kind(variable.kind())?;
            }
            if self.in_f64.get() {
                value = value.f_to_kind(Kind::Double)?;
            }
            variable.f_set_data(&value)?;
        }
        Ok(())
    }

    fn input(&self, name: &str) -> Result<Tensor> {
        self.optional(name)?.ok_or_else(|| self.lacks(&format!("in.{name}")))
    }

    fn any_input(&self, names: &[&str]) -> Result<Tensor> {
        let found = names.iter().find(|n| self.tensors.shape(&format!("in.{n}")).is_some());
        self.input(found.unwrap_or(&names[0]))
    }

    fn optional(&self, name: &str) -> Result<Option<Tensor>> {
        let name = format!("in.{name}");
        let tensor = self.tensors.shape(&name).map(|_| self.tensors.tensor(&name)).transpose()?;
        let tensor = tensor.map(|tensor| tensor.f_to_device(self.device)).transpose()?;
        Ok(match tensor {
            Some(tensor) if self.in_f64.get() && tensor.is_floating_point() => {
                Some(tensor.f_to_kind(Kind::Double)?)
            }
            tensor => tensor,
        })
    }

    fn params<T: DeserializeOwned>(&self) -> Result<T> {
        serde_json::from_value(self.params.clone())
            .map_err(|e| Error::Case(format!("{}: params: {e}", self.path.display())))
    }

    fn lacks(&self, what: &str) -> Error {
        Error::Case(format!("{}: it lacks {what}", self.path.display()))
    }
}
