//! `bench step`: the transformer.

use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use clap::builder::TypedValueParser;
use serde_json::json;
use tch::{Device, Tensor};
use tch_flux::Error;
use tch_flux::models::{Model, Transformer, TransformerInput, TransformerOptions, TransformerParams};
use tch_flux::numerics::Quantize;

use super::measure::Measure;
use super::random;
use crate::device::quantize;

#[derive(Args)]
pub(crate) struct Step {
    /// The sizes of the transformer, unless a flag says another.
    #[arg(long, default_value = "flux1-dev", value_parser = TransformerParams::PRESETS.map(|(name, _)| name))]
    preset: String,
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
    #[arg(long, value_parser = quantize(), default_value_t = Quantize::None)]
    quantize: Quantize,
    #[command(flatten)]
    measure: Measure,
}

impl Step {
    fn params(&self) -> anyhow::Result<TransformerParams> {
        let mut presets = TransformerParams::PRESETS.into_iter();
        let preset = presets.find(|(name, _)| *name == self.preset).context("no such preset")?.1;
        let (depth, single) = preset.blocks();
        let hidden_size = self.hidden_size.unwrap_or(preset.hidden_size());
        Ok(preset.resized(self.depth.unwrap_or(depth), self.single.unwrap_or(single), hidden_size)?)
    }

    /// What a step of the sampling loop costs: what all steps share is computed before the loop, where the numerics
    /// allow it.
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let params = self.params()?;
        let device = self.measure.device();
        match (self.quantize, device) {
            (Quantize::Fp8, Device::Cpu) => {
                return Err(
                    Error::Request("fp8 weights need CUDA; on the CPU quantise to int8".into()).into()
                );
            }
            (Quantize::Int8, Device::Cuda(_)) => {
                return Err(
                    Error::Request("int8 weights are for the CPU; on CUDA quantise to fp8".into()).into()
                );
            }
            _ => {}
        }
        let (kind, passes) = (self.measure.kind(), self.measure.passes());
        let mut vs = self.measure.store();
        let model = Transformer::new(vs.root(), &params)?;
        random::fill(&mut vs)?;
        model.set_numerics(self.measure.numerics());
        model.quantize(self.quantize)?;

        let (li, lt) = (self.image_tokens, self.text_tokens);
        let side = (li as f64).sqrt().ceil() as i64;
        let latent = params.family().latent();
        let times: Vec<f64> = (0..passes).map(|i| 1.0 - i as f64 / passes as f64).collect();
        let y = params.vec_in_dim().map(|width| random::normal(&[1, width], kind, &vs)).transpose()?;
        let input = TransformerInput {
            img: &random::normal(&[1, li, params.in_channels()], kind, &vs)?,
            img_ids: &latent.image_ids(1, 2 * side, 2 * side).narrow(1, 0, li).to_device(device),
            txt: &random::normal(&[1, lt, params.context_in_dim()], kind, &vs)?,
            txt_ids: &latent.text_ids(1, lt, device)?,
            timesteps: &Tensor::ones([1], (kind, device)),
            y: y.as_ref(),
            guidance: Some(&Tensor::full([1], 2.5, (kind, device))),
        };
        let measured = self.measure.run(
            random::bytes(&vs, Some(model.linears())),
            || model.prepare_steps(&input, &times),
            |steps, i| {
                let prepared = steps.as_ref().map(|steps| (steps, i));
                model.forward(&input, TransformerOptions { prepared, ..TransformerOptions::default() })
            },
        )?;

        let ((depth, single), hidden_size) = (params.blocks(), params.hidden_size());
        let (preset, quantize) = (self.preset, self.quantize.name());
        let weights = match self.quantize {
            Quantize::None => String::new(),
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
