//! `--dry-run`: what would be drawn, in words.

use std::path::{Path, PathBuf};

use tch_flux::generation::{LoraFile, Memory, Request, Weights};
use tch_flux::sampling::Schedule;

use super::bytes::human_bytes;

/// What would be drawn, with what, and where to.
pub(super) struct DryRun<'a> {
    pub(super) request: &'a Request,
    pub(super) model: &'a str,
    /// The arithmetic: `bf16, fast numerics, on cpu`.
    pub(super) arithmetic: String,
    pub(super) weights: &'a [Weights],
    pub(super) loras: &'a [LoraFile],
    /// Files that are read beside the weights, with what names them.
    pub(super) inputs: Vec<(&'static str, &'a Path)>,
    pub(super) memory: Memory,
    pub(super) files: &'a [PathBuf],
    /// How many previews each picture gets.
    pub(super) previews: usize,
    pub(super) grid: Option<&'a Path>,
    /// How much of a start is drawn anew.
    pub(super) strength: Option<f64>,
}

impl DryRun<'_> {
    pub(super) fn lines(&self) -> Vec<String> {
        let Self { request, model, arithmetic, memory, .. } = self;
        let images = request.prompts.len() * request.num_images;
        let pictures = if images == 1 { "1 picture".into() } else { format!("{images} pictures") };
        let (width, height) = (request.width, request.height);
        let mut lines = vec![format!("would draw {pictures} of {width}x{height} with {model}, {arithmetic}")];
        lines.extend(request.prompts.iter().map(|prompt| field("prompt", &format!("{prompt:?}"))));
        lines.extend(request.prompt_2.iter().map(|prompt| field("prompt for T5", &format!("{prompt:?}"))));
        lines.extend(request.negative_prompt.iter().map(|prompt| field("negative", &format!("{prompt:?}"))));
        lines.push(field("sampling", &self.sampling()));
        lines.push(field("seeds", &self.seeds()));
        for Weights { part, file, on_disk, in_memory, .. } in self.weights {
            let sum = |bytes: &std::collections::BTreeMap<String, u64>| human_bytes(bytes.values().sum());
            let types = on_disk.keys().cloned().collect::<Vec<_>>().join(" and ");
            let sizes = format!("{types}, {} on the disk, {} in memory", sum(on_disk), sum(in_memory));
            lines.push(field(part.label(), &format!("{} ({sizes})", file.display())));
        }
        for LoraFile { path, strength } in self.loras {
            lines.push(field("LoRA", &format!("{} at {strength}", path.display())));
        }
        for (name, path) in &self.inputs {
            lines.push(field(name, &path.display().to_string()));
        }
        let Memory { text, denoise, decode } = *memory;
        let [text, denoise, decode, peak] = [text, denoise, decode, memory.peak()].map(human_bytes);
        lines.push(field(
            "memory",
            &format!(
                "{peak} at most, beside mapped files (text {text}, drawing {denoise}, decoding {decode})"
            ),
        ));
        lines.extend(self.files.iter().map(|file| field("writes", &file.display().to_string())));
        if self.previews > 0 {
            lines.push(field("writes", &format!("{} previews beside each picture", self.previews)));
        }
        lines
            .extend(self.grid.map(|grid| field("writes", &format!("{} (all on one sheet)", grid.display()))));
        lines
    }

    fn sampling(&self) -> String {
        let request = self.request;
        let mut words = vec![
            format!("{} steps", request.steps.unwrap_or_default()),
            request.sampler.unwrap_or_default().title().to_string(),
        ];
        words.extend(request.schedule.as_ref().map(schedule));
        words.extend(request.guidance.map(|guidance| format!("guidance {guidance}")));
        words.extend(request.true_cfg_scale.map(|scale| format!("true guidance {scale}")));
        words.extend(self.strength.map(|strength| format!("strength {strength}")));
        words.extend(request.cache.map(|cache| format!("cache {}", listed(&cache))));
        words.extend(request.max_sequence_length.map(|tokens| format!("{tokens} tokens of text")));
        words.join(", ")
    }

    fn seeds(&self) -> String {
        let span = |first: u64, last: u64| match first == last {
            true => first.to_string(),
            false => format!("{first} to {last}"),
        };
        let last = self.request.num_images.saturating_sub(1);
        let ((first, variation), (end, varied)) = (self.request.seeds(0), self.request.seeds(last));
        let seeds = span(first, end);
        match variation.zip(varied) {
            Some((from, to)) => {
                format!("{seeds}, varied by {} with seeds {}", from.strength, span(from.seed, to.seed))
            }
            None => seeds,
        }
    }
}

/// Describes a schedule.
fn schedule(schedule: &Schedule) -> String {
    match schedule {
        Schedule::Linear => "schedule linear".into(),
        Schedule::Shifted { base, max } => format!("schedule shifted by {base} to {max}"),
        Schedule::Sigmas(times) => {
            let times: Vec<_> = times.iter().map(f64::to_string).collect();
            format!("times {}", times.join(", "))
        }
        Schedule::FlowMatch(settings) => {
            format!("schedule of flow matching ({})", listed(settings))
        }
    }
}

/// Returns the settings in one line, each with its value.
fn listed(value: &impl serde::Serialize) -> String {
    let text =
        serde_json::to_string(value).unwrap_or_default().replace(['{', '}', '"'], "").replace(':', " ");
    text.replace(',', ", ").replace('_', "-")
}

fn field(name: &str, text: &str) -> String {
    format!("  {name:<14} {text}")
}
