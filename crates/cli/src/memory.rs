//! How little memory a drawing shall take, as flags.

use clap::Args;
use clap::builder::TypedValueParser;
use serde::Serialize;
use tch_flux::generation::{Offload, Pipeline, Plan, Request};

use super::bytes::{human_bytes, parse_size};
use super::device::choice;
use super::peak_memory::peak_bytes;

#[derive(Args)]
pub(super) struct MemoryArgs {
    /// What is not in memory while it does not run; none changes a bit of the picture. [default: none]
    #[arg(long, value_parser = offload(), hide_short_help = true)]
    offload: Option<Offload>,
    /// Stay under this figure, such as 8GB, of the device's memory: what is done for it is planned and said.
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    max_memory: Option<u64>,
    /// Let that plan quantise the transformer, to int8 or on CUDA to fp8, where that saves reading its blocks anew in every
    /// step. It changes the picture.
    #[arg(long, requires = "max_memory", hide_short_help = true)]
    may_quantize: bool,
}

/// Parses `--offload`.
pub(super) fn offload() -> impl TypedValueParser<Value = Offload> {
    choice(Offload::CHOICES, Offload::named)
}

impl MemoryArgs {
    pub(super) fn offload(&self) -> Offload {
        self.offload.unwrap_or_default()
    }

    /// Plans for the request, where `--max-memory` is given.
    pub(super) fn fit(
        &self,
        pipeline: &mut Pipeline,
        request: &Request,
    ) -> Result<Option<MemoryReport>, tch_flux::Error> {
        let plan =
            self.max_memory.map(|limit| pipeline.fit(request, limit, self.may_quantize)).transpose()?;
        Ok(plan.map(MemoryReport::from))
    }
}

/// A plan, and what came of it.
#[derive(Serialize)]
pub(super) struct MemoryReport {
    limit: u64,
    expected: u64,
    steps: Vec<String>,
    quantized_fits: bool,
    /// The most that the process has had, where the system says it.
    pub(super) peak: Option<u64>,
}

impl From<Plan> for MemoryReport {
    fn from(plan: Plan) -> Self {
        let Plan { limit, expected, steps, quantized_fits } = plan;
        Self { limit, expected: expected.peak(), steps, quantized_fits, peak: None }
    }
}

impl MemoryReport {
    /// Returns what is going to be done, a line for each step.
    pub(super) fn lines(&self) -> Vec<String> {
        let Self { limit, expected, steps, .. } = self;
        let head = format!("memory: {} expected of {}", human_bytes(*expected), human_bytes(*limit));
        let steps = if steps.is_empty() { &["nothing is to be done for it".to_string()][..] } else { steps };
        let mut lines: Vec<_> =
            std::iter::once(head).chain(steps.iter().map(|step| format!("memory: {step}"))).collect();
        if self.quantized_fits {
            lines.push("memory: with --may-quantize the transformer would stay, quantised".into());
        }
        lines
    }

    /// Notes the peak after the drawing.
    pub(super) fn measure(&mut self) {
        self.peak = peak_bytes();
    }

    pub(super) fn verdict(&self) -> Option<String> {
        let peak = self.peak?;
        Some(format!("memory: {} at most, of {}", human_bytes(peak), human_bytes(self.limit)))
    }
}
