//! `parity`: our outputs against a reference implementation's.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context;
use clap::Args;
use serde_json::json;
use tch_flux::parity::{Accuracy, Case};

use super::{NumericsArg, print_json};

#[derive(Args)]
pub(super) struct Parity {
    /// Demand that every bit is equal.
    #[arg(long)]
    exact: bool,
    /// With `fast`, measure both numerics against the same module in f64: fast must have at most 1.1 times the error of
    /// exact.
    #[arg(long, value_enum, default_value_t = NumericsArg::Exact, conflicts_with = "exact")]
    numerics: NumericsArg,
    /// Print a line of JSON for each output.
    #[arg(long)]
    json: bool,
    /// Cases, or folders of them.
    #[arg(required = true, value_name = "FILE|DIR")]
    paths: Vec<PathBuf>,
}

impl Parity {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let (mut passed, mut failed, mut skipped) = (0, 0, 0);
        for path in cases(&self.paths)? {
            let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
            if let NumericsArg::Fast = self.numerics {
                let outcome = Case::open(&path).and_then(|case| Ok((case.accuracy()?, case.module)));
                let counts = self.report_accuracy(&name, outcome)?;
                (passed, failed, skipped) = (passed + counts[0], failed + counts[1], skipped + counts[2]);
                continue;
            }
            let outcome = Case::open(&path).and_then(|case| Ok((case.run()?, case.module)));
            match outcome {
                Ok((Some(comparisons), _)) => {
                    for c in comparisons {
                        let passes = c.passes(self.exact);
                        if passes {
                            passed += 1
                        } else {
                            failed += 1
                        };
                        let verdict = if passes { "pass" } else { "FAIL" };
                        if self.json {
                            print_json(&json!({
                                "case": name, "output": c.output, "max_abs": c.max_abs, "relative_l2": c.relative_l2,
                                "equal_bits": c.equal_bits, "problem": c.problem, "verdict": verdict.to_lowercase(),
                            }))?;
                        } else {
                            let problem = c.problem.map(|p| format!(" ({p})")).unwrap_or_default();
                            println!(
                                "{name} {} max_abs {:.3e} relative_l2 {:.3e} equal_bits {:.2}% {verdict}{problem}",
                                c.output,
                                c.max_abs,
                                c.relative_l2,
                                100.0 * c.equal_bits
                            );
                        }
                    }
                }
                Ok((None, module)) => {
                    skipped += 1;
                    if self.json {
                        print_json(&json!({ "case": name, "module": module, "verdict": "skip" }))?;
                    } else {
                        println!("{name} skip (module {module} is not known)");
                    }
                }
                Err(error) => {
                    failed += 1;
                    if self.json {
                        let problem = error.to_string();
                        print_json(&json!({ "case": name, "problem": problem, "verdict": "fail" }))?;
                    } else {
                        println!("{name} FAIL ({error})");
                    }
                }
            }
        }
        println!("{passed} passed, {failed} failed, {skipped} skipped");
        // An empty folder is no proof.
        Ok(if failed == 0 && passed + skipped > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

impl Parity {
    /// Prints a case in fast numerics, and counts what passed, failed and was skipped.
    fn report_accuracy(
        &self,
        name: &str,
        outcome: tch_flux::Result<(Option<Vec<Accuracy>>, String)>,
    ) -> anyhow::Result<[usize; 3]> {
        let (accuracies, module) = match outcome {
            Ok(outcome) => outcome,
            Err(error) => {
                if self.json {
                    let problem = error.to_string();
                    print_json(&json!({ "case": name, "problem": problem, "verdict": "fail" }))?;
                } else {
                    println!("{name} FAIL ({error})");
                }
                return Ok([0, 1, 0]);
            }
        };
        let Some(accuracies) = accuracies else {
            if self.json {
                print_json(&json!({ "case": name, "module": module, "verdict": "skip" }))?;
            } else {
                println!("{name} skip (module {module} is not known)");
            }
            return Ok([0, 0, 1]);
        };
        let mut counts = [0, 0, 0];
        for accuracy in accuracies {
            let passes = accuracy.passes();
            counts[usize::from(!passes)] += 1;
            let Accuracy { output, exact, fast } = accuracy;
            let verdict = if passes { "pass" } else { "FAIL" };
            let ratio = if exact > 0.0 { Some(fast / exact) } else { None };
            if self.json {
                print_json(&json!({
                    "case": name, "output": output, "numerics": "fast", "error_exact": exact, "error_fast": fast,
                    "ratio": ratio, "verdict": verdict.to_lowercase(),
                }))?;
            } else {
                let ratio = ratio.map_or("-".into(), |ratio| format!("{ratio:.3}"));
                println!("{name} {output} fast {fast:.3e} exact {exact:.3e} ratio {ratio} {verdict}");
            }
        }
        Ok(counts)
    }
}

/// The files, and the safetensors files of the folders, sorted.
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
