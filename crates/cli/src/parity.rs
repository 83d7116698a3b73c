//! `parity`: our outputs against a reference implementation's.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use serde_json::json;
use tch::Device;
use tch_flux::numerics::Numerics;
use tch_flux::parity::{Accuracy, Case, Comparison, MODULES, Module};

use super::device::{ThreadsArg, numerics, parse_device};
use super::output::print_json;

#[derive(Args)]
pub(super) struct Parity {
    /// Demand that every bit is equal.
    #[arg(long)]
    exact: bool,
    /// With `fast`, measure both numerics against the same module in f64: fast must have at most 1.1 times the error of
    /// exact.
    #[arg(long, value_parser = numerics(), default_value_t = Numerics::Exact, conflicts_with = "exact")]
    numerics: Numerics,
    /// cpu, cuda, cuda:N or mps.
    #[arg(long, default_value = "cpu", value_parser = parse_device)]
    device: Device,
    #[command(flatten)]
    threads: ThreadsArg,
    /// Skip cases of modules that are not known here, which otherwise fail.
    #[arg(long)]
    allow_unknown: bool,
    /// List the modules that are known, with the params of their cases.
    #[arg(long, conflicts_with = "paths")]
    modules: bool,
    /// Print a line of JSON for each output, and one with the counts.
    #[arg(long)]
    json: bool,
    /// Cases, or folders of them.
    #[arg(required_unless_present = "modules", value_name = "FILE|DIR")]
    paths: Vec<PathBuf>,
}

/// The result of an output, as text and as JSON.
struct Line {
    passes: bool,
    json: serde_json::Value,
    text: String,
}

fn verdict(passes: bool) -> &'static str {
    if passes { "pass" } else { "FAIL" }
}

impl Parity {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        if self.modules {
            MODULES.iter().try_for_each(|module| self.say(&json!(module), &module_line(module)))?;
            return Ok(ExitCode::SUCCESS);
        }
        self.threads.set();
        let (mut passed, mut failed, mut skipped) = (0, 0, 0);
        for path in cases(&self.paths)? {
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            let case = Case::open(&path).map(|case| case.on(self.device));
            let lines = match case.and_then(|case| Ok((self.lines(&name, &case)?, case.module))) {
                Ok((Some(lines), _)) => lines,
                Ok((None, module)) if !self.allow_unknown => {
                    let problem = format!(
                        "module {module} is not known: --modules lists those that are, --allow-unknown skips others"
                    );
                    let json =
                        json!({ "case": name, "module": module, "problem": problem, "verdict": "fail" });
                    vec![Line { passes: false, json, text: format!("{name} FAIL ({problem})") }]
                }
                Ok((None, module)) => {
                    skipped += 1;
                    let json = json!({ "case": name, "module": module, "verdict": "skip" });
                    self.say(&json, &format!("{name} skip (module {module} is not known)"))?;
                    continue;
                }
                Err(error) => {
                    let json = json!({ "case": name, "problem": error.to_string(), "verdict": "fail" });
                    vec![Line { passes: false, json, text: format!("{name} FAIL ({error})") }]
                }
            };
            for Line { passes, json, text } in lines {
                *(if passes { &mut passed } else { &mut failed }) += 1;
                self.say(&json, &text)?;
            }
        }
        let counts = json!({ "passed": passed, "failed": failed, "skipped": skipped });
        self.say(&counts, &format!("{passed} passed, {failed} failed, {skipped} skipped"))?;
        // An empty folder is no proof.
        Ok(if failed == 0 && passed + skipped > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }

    fn say(&self, json: &serde_json::Value, text: &str) -> anyhow::Result<()> {
        if self.json {
            return print_json(json);
        }
        println!("{text}");
        Ok(())
    }

    /// Returns a line for each output; `None` for a module that is not known.
    fn lines(&self, name: &str, case: &Case) -> tch_flux::Result<Option<Vec<Line>>> {
        if self.numerics == Numerics::Fast {
            let accuracies = case.accuracy()?;
            return Ok(accuracies.map(|all| all.into_iter().map(|a| accuracy_line(name, a)).collect()));
        }
        let comparisons = case.run()?;
        let line = |c| comparison_line(name, c, self.exact);
        Ok(comparisons.map(|all| all.into_iter().map(line).collect()))
    }
}

/// Returns a module's name and its params, in brackets those that may be left out.
fn module_line(module: &Module) -> String {
    let Module { name, params, optional } = module;
    let optional = optional.iter().map(|name| format!("[{name}]"));
    let params = params.iter().map(|name| name.to_string()).chain(optional).collect::<Vec<_>>().join(", ");
    if params.is_empty() { (*name).into() } else { format!("{name}: {params}") }
}

/// Returns how near an output is to the reference's.
fn comparison_line(name: &str, c: Comparison, exact: bool) -> Line {
    let passes = c.passes(exact);
    let verdict = verdict(passes);
    let problem = c.problem.as_ref().map(|problem| format!(" ({problem})")).unwrap_or_default();
    let (output, percent) = (&c.output, 100.0 * c.equal_bits);
    Line {
        passes,
        text: format!(
            "{name} {output} max_abs {:.3e} relative_l2 {:.3e} equal_bits {percent:.2}% {verdict}{problem}",
            c.max_abs, c.relative_l2
        ),
        json: json!({
            "case": name, "output": output, "max_abs": c.max_abs, "relative_l2": c.relative_l2,
            "equal_bits": c.equal_bits, "problem": c.problem, "verdict": verdict.to_lowercase(),
        }),
    }
}

/// Returns the errors of both numerics.
fn accuracy_line(name: &str, accuracy: Accuracy) -> Line {
    let passes = accuracy.passes();
    let verdict = verdict(passes);
    let Accuracy { output, exact, fast } = accuracy;
    let ratio = if exact > 0.0 { Some(fast / exact) } else { None };
    let shown = ratio.map_or("-".into(), |ratio| format!("{ratio:.3}"));
    Line {
        passes,
        text: format!("{name} {output} fast {fast:.3e} exact {exact:.3e} ratio {shown} {verdict}"),
        json: json!({
            "case": name, "output": output, "numerics": "fast", "error_exact": exact, "error_fast": fast,
            "ratio": ratio, "verdict": verdict.to_lowercase(),
        }),
    }
}

/// Returns the files, and the safetensors files of the folders, sorted.
fn cases(paths: &[PathBuf]) -> anyhow::Result<Vec<PathBuf>> {
    let mut cases = Vec::new();
    for path in paths {
        if !path.is_dir() {
            cases.push(path.clone());
            continue;
        }
        let mut inside = Vec::new();
        for entry in Path::read_dir(path).with_context(|| path.display().to_string())? {
            let file = entry.with_context(|| path.display().to_string())?.path();
            if file.extension().is_some_and(|e| e == "safetensors") {
                inside.push(file);
            }
        }
        inside.sort();
        cases.extend(inside);
    }
    Ok(cases)
}
