//! What the passes through every model have in common: their flags, the clock, the memory, the report.

use std::process::ExitCode;
use std::time::Instant;

use clap::Args;
use clap::builder::TypedValueParser;
use serde::Serialize;
use serde_json::Value;
use tch::nn::VarStore;
use tch::{Device, Kind, Tensor};
use tch_flux::numerics::Numerics;
use tch_flux::ops::cpu;
use tch_flux::parity::Machine;

use crate::bytes::human_bytes;
use crate::device::{KindArg, ThreadsArg, kind_name, numerics, parse_device};
use crate::output::print_json;
use crate::peak_memory::{forget_peak, peak_bytes};

#[derive(Args)]
pub(super) struct Measure {
    /// The kind of the weights and of the arithmetic.
    #[arg(long, default_value = "bf16")]
    kind: KindArg,
    /// cpu, cuda, cuda:N or mps.
    #[arg(long, default_value = "cpu", value_parser = parse_device)]
    device: Device,
    /// exact: the bits of the official code. fast: no less accurate, as fast as the device can.
    #[arg(long, value_parser = numerics(), default_value_t = Numerics::Fast)]
    numerics: Numerics,
    /// Passes that count.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=1000).map(usize::from))]
    repeat: usize,
    /// Passes before those, which do not count.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(0..=1000).map(usize::from))]
    warmup: usize,
    #[command(flatten)]
    threads: ThreadsArg,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// What was measured, and where.
#[derive(Serialize)]
pub(super) struct Measured {
    median_s: f64,
    min_s: f64,
    max_s: f64,
    /// Every pass that counts, in order.
    seconds: Vec<f64>,
    /// What all passes share, computed once before the first.
    prepare_s: f64,
    /// The most memory that the process ever held, where the system says it.
    peak_bytes: Option<u64>,
    weight_bytes: u64,
    /// The most that the passes and what they share held beyond what the process held before them; on the CPU, where
    /// the system says it.
    beyond_weights_bytes: Option<u64>,
    kind: String,
    numerics: Numerics,
    device: String,
    threads: i32,
    /// The instructions that the kernels for the CPU use.
    instructions: &'static str,
    bf16_products: bool,
    int8_products: bool,
    torch: String,
}

impl Measure {
    pub(super) fn kind(&self) -> Kind {
        self.kind.into()
    }

    pub(super) fn device(&self) -> Device {
        self.device
    }

    pub(super) fn numerics(&self) -> Numerics {
        self.numerics
    }

    /// Returns the number of all passes, those that do not count included.
    pub(super) fn passes(&self) -> usize {
        self.warmup + self.repeat
    }

    /// Returns a store for the weights, and sets the number of threads.
    pub(super) fn store(&self) -> VarStore {
        self.threads.set();
        let mut vs = VarStore::new(self.device);
        vs.set_kind(self.kind());
        vs
    }

    /// Runs `prepare` once and `pass` with what it gave and the number of each pass, counted from 0.
    pub(super) fn run<P>(
        &self,
        weight_bytes: u64,
        prepare: impl FnOnce() -> tch_flux::Result<P>,
        pass: impl Fn(&P, usize) -> tch_flux::Result<Tensor>,
    ) -> anyhow::Result<Measured> {
        let _no_grad = tch::no_grad_guard();
        // The start of libtorch's threads and of the device is not the model's.
        let ones = Tensor::f_ones([64, 64], (self.kind(), self.device))?;
        let _ = ones.f_matmul(&ones)?;
        synchronize(self.device);

        let peak_before = peak_bytes();
        let held = forget_peak();
        let started = Instant::now();
        let prepared = prepare()?;
        synchronize(self.device);
        let prepare_s = started.elapsed().as_secs_f64();
        let mut seconds = Vec::with_capacity(self.passes());
        for i in 0..self.passes() {
            let started = Instant::now();
            let out = pass(&prepared, i)?;
            synchronize(self.device);
            seconds.push(started.elapsed().as_secs_f64());
            drop(out);
        }
        seconds.drain(..self.warmup);
        let peak = peak_bytes();

        let mut sorted = seconds.clone();
        sorted.sort_by(f64::total_cmp);
        let (last, machine, arithmetic) = (sorted.len() - 1, Machine::here(), cpu::arithmetic());
        Ok(Measured {
            median_s: (sorted[last / 2] + sorted[last.div_ceil(2)]) / 2.0,
            min_s: sorted[0],
            max_s: sorted[last],
            seconds,
            prepare_s,
            peak_bytes: peak_before.max(peak),
            weight_bytes,
            beyond_weights_bytes: held
                .zip(peak)
                .filter(|_| self.device == Device::Cpu)
                .map(|(held, peak)| peak.saturating_sub(held)),
            kind: kind_name(self.kind()),
            numerics: self.numerics(),
            device: match self.device {
                Device::Cuda(index) => format!("cuda:{index}"),
                other => format!("{other:?}").to_lowercase(),
            },
            threads: machine.threads,
            instructions: arithmetic.instructions,
            bf16_products: arithmetic.bf16_products,
            int8_products: arithmetic.int8_products,
            torch: machine.torch,
        })
    }

    /// Prints what was measured: as JSON with the fields of `setting`, or as lines under `title`.
    pub(super) fn report(
        &self,
        title: &str,
        setting: Value,
        measured: &Measured,
    ) -> anyhow::Result<ExitCode> {
        if self.json {
            let mut all = serde_json::to_value(measured)?;
            if let (Some(all), Value::Object(setting)) = (all.as_object_mut(), setting) {
                all.extend(setting);
            }
            print_json(&all)?;
        } else {
            println!("{title}\n{measured}");
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl std::fmt::Display for Measured {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let Self { median_s, min_s, max_s, seconds, kind, device, threads, .. } = self;
        let (numerics, instructions) = match self.numerics {
            Numerics::Fast => ("fast", self.instructions),
            Numerics::Exact => ("exact", "libtorch's instructions"),
        };
        let threads = if *threads == 1 { "1 thread".into() } else { format!("{threads} threads") };
        match device.as_str() {
            "cpu" => writeln!(f, "{kind}, {numerics}, on the CPU: {threads}, {instructions}")?,
            _ => writeln!(f, "{kind}, {numerics}, on {device}")?,
        }
        if (device.as_str(), numerics, kind.as_str()) == ("cpu", "fast", "bf16") && !self.bf16_products {
            writeln!(f, "bf16 numbers, multiplied as f32: this CPU has no bf16 products")?;
        }
        match seconds.len() {
            1 => writeln!(f, "{median_s:.4} s")?,
            n => writeln!(
                f,
                "{median_s:.4} s, the median of {n}, which lie between {min_s:.4} and {max_s:.4} s"
            )?,
        }
        write!(f, "weights {}", human_bytes(self.weight_bytes))?;
        if let Some(beyond) = self.beyond_weights_bytes {
            write!(f, ", {} beyond them", human_bytes(beyond))?;
        }
        match self.peak_bytes {
            Some(peak) => write!(f, ", peak memory of the process {}", human_bytes(peak)),
            None => write!(f, ", peak memory unknown on this system"),
        }
    }
}

/// Waits until a device has done all that it was told to.
pub(super) fn synchronize(device: Device) {
    if let Device::Cuda(index) = device {
        tch::Cuda::synchronize(index as i64);
    }
}
