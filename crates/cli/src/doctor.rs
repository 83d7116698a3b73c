//! `doctor`: which libtorch runs, what it can reach, and what is wrong with it.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use serde::Serialize;
use tch::{Cuda, Kind, Tensor};
use tch_flux::ops::cpu;
use tch_flux::ops::cuda::{self, Arithmetic};
use tch_flux::parity::Machine;

use super::output::print_json;

#[derive(Args)]
pub(super) struct Doctor {
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// What there is to say.
#[derive(Serialize)]
struct Findings {
    tch_flux: &'static str,
    #[serde(flatten)]
    machine: Machine,
    /// The folder that the linker was given.
    built_with: Option<&'static str>,
    /// The libraries of libtorch that this process holds.
    linked: Vec<PathBuf>,
    /// The version that stands beside the libraries that run.
    running: Option<String>,
    /// What the fast numerics compute with on the CPU.
    cpu_kernels: cpu::Arithmetic,
    cuda_devices: i64,
    cudnn: bool,
    /// What each of the devices computes with; of a first one, where there is none, for what it says of NVRTC and the driver.
    cuda: Vec<Arithmetic>,
    problems: Vec<String>,
}

impl Doctor {
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        let found = Findings::gather();
        if self.json {
            print_json(&found)?;
        } else {
            found.print();
        }
        Ok(if found.problems.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
    }
}

impl Findings {
    fn gather() -> Self {
        cuda::set_cache(super::cache::kernels());
        let built_with = option_env!("TCH_FLUX_LIBTORCH_LIB");
        let linked = linked_libraries();
        let machine = Machine::here();
        let running = linked.first().and_then(|lib| version_beside(lib));
        let mut problems = Vec::new();
        let holds = |name: &str| linked.iter().any(|lib| lib.to_string_lossy().contains(name));
        let folder = linked.first().and_then(|lib| lib.parent());
        if let Some(folder) = folder
            && folder.join("libtorch_cuda.so").exists()
            && !holds("libtorch_cuda")
        {
            problems.push(
                "libtorch_cuda.so is there, but the linker dropped it: link with -Wl,--no-as-needed -ltorch \
                 (examples/embed/build.rs does)"
                    .into(),
            );
        }
        if holds("libtorch_cuda") && Cuda::device_count() == 0 && Path::new("/proc/driver/nvidia").exists() {
            problems.push(
                "an NVIDIA driver is loaded, but CUDA sees no device: is the driver too old for it?".into(),
            );
        }
        if let (Some(built), Some(folder)) = (built_with, folder)
            && Path::new(built).canonicalize().ok() != folder.canonicalize().ok()
        {
            let (built, folder) = (built, folder.display());
            problems.push(format!("built with {built}, but {folder} runs: is LD_LIBRARY_PATH set?"));
        }
        if let Some(running) = &running
            && running.split('+').next() != machine.torch.split('+').next()
        {
            problems.push(format!("built with libtorch {}, but {running} runs", machine.torch));
        }
        let four = Tensor::ones([2, 2], (Kind::Float, tch::Device::Cpu)).f_sum(Kind::Float);
        if four.and_then(f64::try_from).ok() != Some(4.0) {
            problems.push("libtorch cannot add on the CPU".into());
        }
        Self {
            tch_flux: env!("CARGO_PKG_VERSION"),
            machine,
            built_with,
            linked,
            running,
            cpu_kernels: cpu::arithmetic(),
            cuda_devices: Cuda::device_count(),
            cudnn: Cuda::cudnn_is_available(),
            cuda: (0..Cuda::device_count().max(1) as usize).map(cuda::arithmetic).collect(),
            problems,
        }
    }

    fn print(&self) {
        let Machine { torch, threads, cpu_capability, avx512_bf16, cpu_vendor } = &self.machine;
        println!("tch-flux {}", self.tch_flux);
        let running = self.running.as_deref().unwrap_or("of an unknown version");
        println!("libtorch {torch} to build with, {running} that runs");
        println!("built with {}", self.built_with.unwrap_or("an unknown folder"));
        self.linked.iter().for_each(|lib| println!("linked {}", lib.display()));
        let bf16 = if *avx512_bf16 { "with" } else { "without" };
        println!("cpu: {cpu_vendor}, {cpu_capability}, {threads} threads, {bf16} bf16 instructions");
        let cpu::Arithmetic { instructions, bf16_products, int8_products } = self.cpu_kernels;
        let bf16 = if bf16_products { "as such" } else { "as f32" };
        let int8 = if int8_products { "four at a time" } else { "as int16" };
        println!("cpu, fast numerics: {instructions}; bf16 is multiplied {bf16}, int8 {int8}");
        println!("cuda: {} devices, cuDNN {}", self.cuda_devices, if self.cudnn { "yes" } else { "no" });
        for (i, Arithmetic { capability, nvrtc, fp8_products, problem }) in self.cuda.iter().enumerate() {
            let sm =
                capability.as_deref().map_or("no device".into(), |capability| format!("SM {capability}"));
            let nvrtc = nvrtc.as_deref().unwrap_or("not found");
            let fp8 = if *fp8_products { "with" } else { "without" };
            let kernels = match problem {
                None => "kernels compiled".into(),
                Some(problem) => format!("no kernels of our own ({problem})"),
            };
            println!("cuda:{i}: {sm}, {fp8} fp8 products, NVRTC {nvrtc}, {kernels}");
        }
        self.problems.iter().for_each(|problem| println!("problem: {problem}"));
        if self.problems.is_empty() {
            println!("nothing is wrong");
        }
    }
}

/// Returns the libraries of libtorch in this process, where the system lists them.
fn linked_libraries() -> Vec<PathBuf> {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let mut libraries: Vec<PathBuf> = maps
        .lines()
        .filter_map(|line| line.find('/').map(|at| PathBuf::from(&line[at..])))
        .filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with("libtorch") || name.starts_with("libc10")
        })
        .collect();
    libraries.sort();
    libraries.dedup();
    libraries
}

/// Returns the version that a Python package or a libtorch archive writes beside its libraries.
fn version_beside(library: &Path) -> Option<String> {
    let root = library.parent()?.parent()?;
    if let Ok(text) = std::fs::read_to_string(root.join("build-version")) {
        return Some(text.trim().to_string());
    }
    let text = std::fs::read_to_string(root.join("version.py")).ok()?;
    let line = text.lines().find(|line| line.starts_with("__version__"))?;
    Some(line.split(['\'', '"']).nth(1)?.to_string())
}
