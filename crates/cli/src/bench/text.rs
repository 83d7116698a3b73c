//! `bench text`: the text encoders.

use std::process::ExitCode;

use clap::builder::TypedValueParser;
use clap::{Args, ValueEnum};
use serde_json::json;
use tch::{Kind, Tensor};
use tch_flux::Error;
use tch_flux::models::Model;
use tch_flux::models::text::{ClipConfig, ClipText, T5Config, T5Encoder};

use super::measure::Measure;
use super::random;

#[derive(Clone, Copy, ValueEnum)]
enum Encoder {
    /// Of T5-XXL's width.
    T5,
    /// Of CLIP-L's.
    Clip,
}

#[derive(Args)]
pub(crate) struct Text {
    /// Which encoder.
    #[arg(long, value_enum, default_value_t = Encoder::T5)]
    encoder: Encoder,
    /// Its layers. [default: T5 24, CLIP 12]
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1000).map(usize::from))]
    layers: Option<usize>,
    /// Tokens of the prompt, padding included. [default: T5 512, CLIP 77, which is its most]
    #[arg(long, value_parser = clap::value_parser!(i64).range(1..=1 << 16))]
    tokens: Option<i64>,
    #[command(flatten)]
    measure: Measure,
}

impl Text {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        match self.encoder {
            Encoder::T5 => self.t5(),
            Encoder::Clip => self.clip(),
        }
    }

    fn t5(self) -> anyhow::Result<ExitCode> {
        let Self { layers, tokens, measure, .. } = self;
        let (layers, tokens) = (layers.unwrap_or(24), tokens.unwrap_or(512));
        let config = T5Config { num_layers: layers, ..T5Config::xxl() };
        let mut vs = measure.store();
        let model = T5Encoder::new(vs.root(), &config)?;
        random::fill(&mut vs)?;
        model.set_numerics(measure.numerics());

        let ids = Tensor::f_randint(config.vocab_size, [1, tokens], (Kind::Int64, vs.device()))?;
        let weights = random::bytes(&vs, Some(model.linears()));
        let measured = measure.run(weights, || Ok(()), |(), _| model.forward(&ids))?;
        measure.report(
            &format!("T5-XXL, {layers} layers, {tokens} tokens"),
            json!({ "encoder": "t5", "layers": layers, "tokens": tokens }),
            &measured,
        )
    }

    fn clip(self) -> anyhow::Result<ExitCode> {
        let Self { layers, tokens, measure, .. } = self;
        let config = ClipConfig { num_hidden_layers: layers.unwrap_or(12), ..ClipConfig::large() };
        let (layers, most) = (config.num_hidden_layers, config.max_position_embeddings);
        let tokens = tokens.unwrap_or(most);
        if tokens > most {
            return Err(Error::Request(format!("CLIP reads {most} tokens at most, not {tokens}")).into());
        }
        let mut vs = measure.store();
        let model = ClipText::new(vs.root(), &config)?;
        random::fill(&mut vs)?;
        model.set_numerics(measure.numerics());

        let ids = Tensor::f_randint(config.vocab_size, [1, tokens], (Kind::Int64, vs.device()))?;
        let weights = random::bytes(&vs, Some(model.linears()));
        let measured =
            measure.run(weights, || Ok(()), |(), _| model.forward(&ids).map(|out| out.last_hidden_state))?;
        measure.report(
            &format!("CLIP-L, {layers} layers, {tokens} tokens"),
            json!({ "encoder": "clip", "layers": layers, "tokens": tokens }),
            &measured,
        )
    }
}
