//! `bench step`: the transformer.

use std::process::ExitCode;

use clap::builder::TypedValueParser;
use clap::{Args, ValueEnum};
use serde_json::json;
use tch::{Device, Kind, Tensor};
use tch_flux::Error;
use tch_flux::family::ModelFamily;
use tch_flux::models::Model;
use tch_flux::models::flux1::{Flux1, Flux1Input, Flux1Options, Flux1Params};

use super::measure::Measure;
use super::random;
use crate::device::QuantizeArg;

#[derive(Args)]
pub(crate) struct Step {
    /// The sizes of the transformer, unless a flag says another.
    #[arg(long, default_value = "flux1-dev")]
    preset: Preset,
    /// Double blocks. [default: the preset's]
    #[arg(long, value_name = "BLOCKS", value_parser = clap::value_parser!(u16).range(0..=1000).map(usize::from))]
    depth: Option<usize>,
    /// Single blocks. [default: the preset's]
    #[arg(long, value_name = "BLOCKS", value_parser = clap::value_parser!(u16).range(0..=1000).map(usize::from))]
    single: Option<usize>,
    /// Width of the streams, a multiple of 128. [default: the preset's]
    #[arg(long, value_name = "WIDTH")]
    hidden_size: Option<i64>,
    /// Patches of the picture: 4096 for 1024 × 1024 pixels.
    #[arg(long, value_name = "TOKENS", default_value_t = 4096, value_parser = clap::value_parser!(i64).range(1..=1 << 20))]
    image_tokens: i64,
    /// Tokens of the prompt.
    #[arg(long, value_name = "TOKENS", default_value_t = 512, value_parser = clap::value_parser!(i64).range(1..=1 << 20))]
    text_tokens: i64,
    /// What the weights of the blocks become: int8 is for the CPU, fp8 for CUDA.
    #[arg(long, default_value = "none")]
    quantize: QuantizeArg,
    #[command(flatten)]
    measure: Measure,
}

#[derive(Clone, Copy, ValueEnum)]
enum Preset {
    Flux1Dev,
    Flux1Schnell,
}

/// The word for a value, as its flag takes it.
fn word(value: impl ValueEnum) -> String {
    value.to_possible_value().map(|value| value.get_name().to_string()).unwrap_or_default()
}

impl Step {
    fn params(&self) -> anyhow::Result<Flux1Params> {
        let preset = match self.preset {
            Preset::Flux1Dev => Flux1Params::DEV,
            Preset::Flux1Schnell => Flux1Params::SCHNELL,
        };
        let hidden_size = self.hidden_size.unwrap_or(preset.hidden_size);
        let head_dim = preset.hidden_size / preset.num_heads;
        if hidden_size < head_dim || hidden_size % head_dim != 0 {
            let text = format!("--hidden-size must be a multiple of {head_dim}, not {hidden_size}");
            return Err(Error::Request(text).into());
        }
        Ok(Flux1Params {
            hidden_size,
            num_heads: hidden_size / head_dim,
            depth: self.depth.unwrap_or(preset.depth),
            depth_single_blocks: self.single.unwrap_or(preset.depth_single_blocks),
            ..preset
        })
    }

    /// What a step of the sampling loop costs: what all steps share is computed before the loop, where the numerics
    /// allow it.
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let params = self.params()?;
        let device = self.measure.device();
        match (self.quantize, device) {
            (QuantizeArg::Fp8, Device::Cpu) => {
                return Err(
                    Error::Request("fp8 weights need CUDA; on the CPU quantise to int8".into()).into()
                );
            }
            (QuantizeArg::Int8, Device::Cuda(_)) => {
                return Err(
                    Error::Request("int8 weights are for the CPU; on CUDA quantise to fp8".into()).into()
                );
            }
            _ => {}
        }
        let (kind, passes) = (self.measure.kind(), self.measure.passes());
        let mut vs = self.measure.store();
        let model = Flux1::new(vs.root(), &params)?;
        random::fill(&mut vs)?;
        model.set_numerics(self.measure.numerics());
        model.quantize(self.quantize.into())?;

        let (li, lt) = (self.image_tokens, self.text_tokens);
        let side = (li as f64).sqrt().ceil() as i64;
        let times: Vec<f64> = (0..passes).map(|i| 1.0 - i as f64 / passes as f64).collect();
        let input = Flux1Input {
            img: &random::normal(&[1, li, params.in_channels], kind, &vs)?,
            img_ids: &ModelFamily::Flux1
                .latent()
                .image_ids(1, 2 * side, 2 * side)
                .narrow(1, 0, li)
                .to_device(device),
            txt: &random::normal(&[1, lt, params.context_in_dim], kind, &vs)?,
            txt_ids: &Tensor::zeros([1, lt, 3], (Kind::Float, device)),
            timesteps: &Tensor::ones([1], (kind, device)),
            y: &random::normal(&[1, params.vec_in_dim], kind, &vs)?,
            guidance: Some(&Tensor::full([1], 2.5, (kind, device))),
        };
        let measured = self.measure.run(
            random::bytes(&vs, Some(model.linears())),
            || model.prepare_steps(&input, &times),
            |steps, i| {
                let prepared = steps.as_ref().map(|steps| (steps, i));
                model.forward(&input, Flux1Options { prepared, ..Flux1Options::default() })
            },
        )?;

        let Flux1Params { depth, depth_single_blocks: single, hidden_size, .. } = params;
        let (preset, quantize) = (word(self.preset), word(self.quantize));
        let weights = match self.quantize {
            QuantizeArg::None => String::new(),
            _ => format!(", {quantize} weights"),
        };
        self.measure.report(
            &format!("{preset}, {depth} double and {single} single blocks of width {hidden_size}{weights}, {li} + {lt} tokens"),
            json!({
                "preset": preset, "depth": depth, "single": single, "hidden_size": hidden_size, "image_tokens": li,
                "text_tokens": lt, "quantize": quantize,
            }),
            &measured,
        )
    }
}
