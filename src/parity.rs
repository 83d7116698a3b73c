//! Parity cases: weights, inputs and outputs of a reference implementation in one file, and the run that compares.
//!
//! A case is a safetensors file whose metadata holds `format` (`parity-case/1`), `module` (what was run), `params` (its
//! arguments, JSON), `reference` and `machine` (JSON), and whose tensors are `w.<state_dict name>`, `in.<argument>` and
//! `out.<result>`. An argument that was `None` has no tensor.

mod compare;
mod control;
mod layers;
mod models;
mod modules;
mod params;
mod samplers;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_json::Value;
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};

pub use compare::{Accuracy, Comparison, Machine};
pub use modules::{MODULES, Module};

use crate::checkpoint::{Access, Checkpoint, LoadOptions};
use crate::error::{Error, Result};
use crate::numerics::{self, Numerics};
use crate::shim;

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
    /// module is none of [`MODULES`].
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
        let Some(fast) = numerics::with_numerics(Numerics::Fast, || self.compute())? else { return Ok(None) };
        self.in_f64.set(true);
        let reference = numerics::with_reference_f64(|| self.compute());
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
        let outputs = catch_unwind(AssertUnwindSafe(|| match self.layer()? {
            Some(outputs) => Ok(Some(outputs)),
            None => self.model(),
        }))
        .unwrap_or_else(|_| Err(self.lacks("inputs that fit the module: libtorch refused them")));
        tch::set_num_threads(threads);
        let on_the_cpu = |(name, output): (String, Tensor)| Ok((name, output.f_to_device(Device::Cpu)?));
        outputs?.map(|all| all.into_iter().map(on_the_cpu).collect()).transpose()
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

/// One output, under the name that a case of one output has.
fn output(x: Tensor) -> Result<Option<BTreeMap<String, Tensor>>> {
    named([("output", x)])
}

fn named<'a>(pairs: impl IntoIterator<Item = (&'a str, Tensor)>) -> Result<Option<BTreeMap<String, Tensor>>> {
    Ok(Some(pairs.into_iter().map(|(name, x)| (name.to_string(), x)).collect()))
}
