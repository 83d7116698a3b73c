//! A call of `generate` that is carried out: what would be drawn is said, or it is drawn and written.

use std::io::IsTerminal;
use std::ops::ControlFlow;
use std::path::Path;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context;
use serde_json::json;
use tch_flux::Error;
use tch_flux::generation::{Generated, Progress};
use tch_flux::numerics::{Numerics, Quantize};

use super::prepare::Prepared;
use super::{EditInput, Generate};
use crate::cache_report::CacheReport;
use crate::device::{device_name, kind_name};
use crate::dry_run::DryRun;
use crate::errors::PartialFailure;
use crate::interrupt::Interrupt;
use crate::memory::MemoryReport;
use crate::model_args::ModelArgs;
use crate::output::print_json;
use crate::progress::{GenerationProgress, Verbosity};
use crate::targets::{self, Input};
use crate::weights;
use crate::writer::{Records, SaveOptions, Writer, undrawn_lines};

impl Generate {
    /// Draws from text.
    pub(crate) fn run(self) -> anyhow::Result<ExitCode> {
        self.run_with(None)
    }

    /// Draws from text, or from the pictures of an edit.
    pub(crate) fn run_with(self, edit_input: Option<EditInput>) -> anyhow::Result<ExitCode> {
        self.parameters.check()?;
        let quality = self.quality()?;
        let bars = !self.is_silent() && std::io::stderr().is_terminal();
        let prepared = self.prepare(edit_input, Verbosity { bars, warnings: !self.quiet })?;
        if self.dry_run {
            return self.describe(&prepared);
        }
        self.draw(prepared, SaveOptions { quality, force: self.force }, bars)
    }

    /// Whether nothing is printed on the way.
    fn is_silent(&self) -> bool {
        self.json || self.quiet
    }

    /// Says what would be drawn.
    fn describe(&self, prepared: &Prepared) -> anyhow::Result<ExitCode> {
        let Prepared { pipeline, request, settings, model, weights, memory_report, .. } = prepared;
        let (kind, device) = (kind_name(pipeline.kind()), device_name(self.device));
        if self.json {
            print_json(&json!({
                "request": request, "model": model.model, "kind": kind, "files": prepared.files,
                "device": device, "weights": weights.iter().map(weights::to_json).collect::<Vec<_>>(),
                "loras": model.loras, "controls": prepared.controls, "pictured": prepared.ip_adapters,
                "redux": prepared.redux, "notes": prepared.notes(), "numerics": settings.numerics,
                "quantize": settings.quantize, "memory": memory_report, "grid": self.grid,
            }))?;
            return Ok(ExitCode::SUCCESS);
        }
        let numerics = if settings.numerics == Numerics::Fast { "fast" } else { "exact" };
        let quantized = match settings.quantize {
            Quantize::None => "",
            Quantize::Int8 => ", blocks in int8",
            Quantize::Fp8 => ", blocks in fp8",
        };
        let dry_run = DryRun {
            request,
            model: &model.model,
            arithmetic: format!("{kind}{quantized}, {numerics} numerics, on {device}"),
            weights,
            loras: &model.loras,
            inputs: other_inputs(&prepared.inputs),
            memory: pipeline.memory(request)?,
            files: &prepared.files,
            previews: prepared.previews.len(),
            grid: self.grid.as_deref(),
            strength: prepared.strength,
        };
        let mut lines = dry_run.lines();
        lines.extend(memory_report.iter().flat_map(MemoryReport::lines).map(|line| format!("  {line}")));
        lines.extend(prepared.notes().iter().map(|note| format!("  note: {note}")));
        lines.iter().filter(|_| !self.quiet).for_each(|line| println!("{line}"));
        Ok(ExitCode::SUCCESS)
    }

    fn draw(&self, mut prepared: Prepared, options: SaveOptions, bars: bool) -> anyhow::Result<ExitCode> {
        if !self.is_silent() {
            prepared.weights.iter().for_each(|weights| eprintln!("{}", weights::describe(weights)));
            prepared.memory_report.iter().flat_map(MemoryReport::lines).for_each(|line| eprintln!("{line}"));
            prepared.remarks.iter().for_each(|remark| eprintln!("note: {remark}"));
            prepared.warnings.iter().for_each(|warning| eprintln!("warning: {warning}"));
        }
        targets::make_folders(&prepared.targets)?;
        let interrupt = Interrupt::listen(!self.is_silent()).context("signals")?;
        let started = Instant::now();
        let mut progress = GenerationProgress::new(bars);
        let Prepared { ref mut pipeline, ref request, .. } = prepared;
        let records = Records {
            model: &prepared.model,
            edit: prepared.edit.as_ref(),
            redux: prepared.redux.as_ref(),
            controls: &prepared.controls,
            ip_adapters: &prepared.ip_adapters,
        };
        let mut writer = Writer::new(records, request, prepared.files.clone(), options);
        let mut write_error = None;
        let generated = pipeline.generate_until(request, &interrupt.stop, &mut |event| {
            progress.show(&event);
            let written = match &event {
                Progress::Preview { image, step, picture } => writer.write_preview(*image, *step, picture),
                Progress::Picture { image, picture, .. } => writer.write(*image, picture).map(|written| {
                    if !self.is_silent() {
                        progress.above(|| {
                            written.warnings().iter().for_each(|warning| eprintln!("warning: {warning}"));
                            println!("{}", written.line());
                        });
                    }
                }),
                _ => Ok(()),
            };
            match written {
                Ok(()) => ControlFlow::Continue(()),
                Err(error) => {
                    write_error = Some(error);
                    ControlFlow::Break(())
                }
            }
        });
        progress.clear();
        let stopped = interrupt.status();
        let generated = match (write_error, generated) {
            (Some(error), _) => Err(error),
            (None, Err(Error::Cancelled)) if stopped.is_some() => Ok(Vec::new()),
            (None, generated) => generated.map_err(anyhow::Error::from),
        };
        let generated: Vec<Generated> = match generated {
            Ok(generated) => generated,
            Err(error) => {
                if !self.json {
                    undrawn_lines(&writer.undrawn()).iter().for_each(|line| eprintln!("{line}"));
                }
                let report = json!({ "images": writer.written(), "not_drawn": writer.undrawn() });
                return Err(PartialFailure { error, report }.into());
            }
        };
        let mut grid = None;
        if let Some(file) = self.grid.as_ref().filter(|_| !generated.is_empty()) {
            grid = Some(writer.write_grid(file, request, &generated)?);
        }
        let seconds = started.elapsed().as_secs_f64();
        let cache = match request.cache {
            Some(_) if stopped.is_none() => {
                let compare = self.compare_cache;
                Some(CacheReport::new(pipeline, request, &generated, seconds, compare)?)
            }
            _ => None,
        };
        let (mut memory_report, kind) = (prepared.memory_report.take(), kind_name(pipeline.kind()));
        memory_report.iter_mut().for_each(MemoryReport::measure);
        let (written, undrawn) = (writer.written(), writer.undrawn());
        let model = &prepared.model;
        if self.json {
            print_json(&json!({
                "images": written, "not_drawn": undrawn, "grid": grid, "model": model.model, "kind": kind,
                "seconds": seconds, "weights": prepared.weights.iter().map(weights::to_json).collect::<Vec<_>>(),
                "loras": model.loras, "controls": prepared.controls, "pictured": prepared.ip_adapters,
                "notes": prepared.remarks.iter().chain(&prepared.warnings).collect::<Vec<_>>(),
                "numerics": prepared.settings.numerics, "quantize": prepared.settings.quantize, "cache": cache,
                "memory": memory_report,
            }))?;
        } else {
            undrawn_lines(&undrawn).iter().for_each(|line| eprintln!("{line}"));
            if !self.quiet {
                grid.iter().for_each(|grid| println!("{}", grid.display()));
                cache.iter().for_each(|cache| println!("{cache}"));
                memory_report.iter().filter_map(MemoryReport::verdict).for_each(|line| println!("{line}"));
                let (pictures, model) = (count(written.len()), &model.model);
                println!("{pictures} in {seconds:.1} s with {model}, {kind}");
            }
        }
        Ok(stopped.unwrap_or(ExitCode::SUCCESS))
    }
}

/// Returns the files that are read beside the model and its LoRAs, with the names of their flags.
fn other_inputs(inputs: &[Input]) -> Vec<(&'static str, &Path)> {
    let is_other = |input: &&Input| input.flag != "--lora" && !ModelArgs::FLAGS.contains(&input.flag);
    inputs
        .iter()
        .filter(is_other)
        .map(|input| (input.flag.trim_start_matches('-'), input.path.as_path()))
        .collect()
}

fn count(pictures: usize) -> String {
    if pictures == 1 { "1 picture".into() } else { format!("{pictures} pictures") }
}
