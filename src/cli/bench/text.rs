//! `bench text`: T5's encoder.

use std::process::ExitCode;

use clap::Args;
use clap::builder::TypedValueParser;
use serde_json::json;
use tch::{Kind, Tensor};
use tch_flux::text::{T5Config, T5Encoder};

use super::measure::Measure;
use super::random;

#[derive(Args)]
pub(in crate::cli) struct Text {
    /// Layers of T5-XXL's width.
    #[arg(long, default_value_t = 24, value_parser = clap::value_parser!(u16).range(1..=1000).map(usize::from))]
    layers: usize,
    /// Tokens of the prompt, padding included.
    #[arg(long, default_value_t = 512, value_parser = clap::value_parser!(i64).range(1..=1 << 16))]
    tokens: i64,
    #[command(flatten)]
    measure: Measure,
}

impl Text {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let Self { layers, tokens, measure } = self;
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
            json!({ "layers": layers, "tokens": tokens }),
            &measured,
        )
    }
}
