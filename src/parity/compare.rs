//! Two results of one computation, and whether they are the same.

use serde::{Deserialize, Serialize};
use tch::{Device, Kind, Tensor};

use crate::error::Result;
use crate::shim;

/// The machine that made a case, or this one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Machine {
    /// Version of torch.
    pub torch: String,
    /// Threads of an operation.
    pub threads: i32,
    /// Instruction set of libtorch's kernels.
    pub cpu_capability: String,
    /// Whether the CPU multiplies in bf16.
    pub avx512_bf16: bool,
    /// Who made the CPU, as it says itself: MKL takes other ways on others' CPUs. Cases from before this was written down
    /// were made on AMD's.
    #[serde(default = "amd")]
    pub cpu_vendor: String,
}

fn amd() -> String {
    "AuthenticAMD".into()
}

/// What an x86 CPU says of its maker, and else the architecture.
fn cpu_vendor() -> String {
    #[cfg(target_arch = "x86_64")]
    {
        let leaf = std::arch::x86_64::__cpuid(0);
        let bytes = [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes).concat();
        String::from_utf8_lossy(&bytes).into_owned()
    }
    #[cfg(not(target_arch = "x86_64"))]
    std::env::consts::ARCH.into()
}

impl Machine {
    /// This machine, with libtorch's present settings.
    pub fn here() -> Self {
        #[cfg(target_arch = "x86_64")]
        let avx512_bf16 = std::arch::is_x86_feature_detected!("avx512bf16");
        #[cfg(not(target_arch = "x86_64"))]
        let avx512_bf16 = false;
        Self {
            torch: shim::torch_version(),
            threads: tch::get_num_threads(),
            cpu_capability: shim::cpu_capability(),
            avx512_bf16,
            cpu_vendor: cpu_vendor(),
        }
    }

    /// Whether the same bits are to be expected: same torch, CPU and threads.
    pub fn gives_the_bits_of(&self, other: &Machine) -> bool {
        let version = |m: &Machine| m.torch.split('+').next().map(str::to_string);
        let rest = |m: &Machine| (m.threads, m.cpu_capability.clone(), m.avx512_bf16, m.cpu_vendor.clone());
        version(self) == version(other) && rest(self) == rest(other)
    }
}

/// How one output compares with the reference's.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// The output's name.
    pub output: String,
    /// Largest absolute difference.
    pub max_abs: f64,
    /// L2 norm of the difference over that of the reference.
    pub relative_l2: f64,
    /// Share of the values whose bits are equal.
    pub equal_bits: f64,
    /// What cannot be measured away: another shape or kind, NaN.
    pub problem: Option<String>,
    /// The largest relative L2 difference that passes without exactness.
    pub tolerance: f64,
}

impl Comparison {
    /// The verdict: every bit equal, or the difference within the tolerance.
    pub fn passes(&self, exact: bool) -> bool {
        let close = if exact { self.equal_bits == 1.0 } else { self.relative_l2 <= self.tolerance };
        self.problem.is_none() && close
    }

    /// `device` is where ours was computed. On CUDA cuDNN convolves f32 in TF32 unless it is told otherwise, which the
    /// official code does not.
    pub(super) fn of(output: &str, ours: &Tensor, theirs: &Tensor, device: Device) -> Result<Self> {
        let tolerance = match (theirs.kind(), device) {
            (Kind::BFloat16 | Kind::Half, Device::Cpu) => 1e-2,
            (Kind::BFloat16 | Kind::Half, _) => 2e-2,
            (_, Device::Cpu) => 1e-5,
            _ => 1e-3,
        };
        let mut comparison = Self {
            output: output.to_string(),
            max_abs: f64::NAN,
            relative_l2: f64::NAN,
            equal_bits: 0.0,
            problem: None,
            tolerance,
        };
        if ours.size() != theirs.size() || ours.kind() != theirs.kind() {
            let form = |t: &Tensor| format!("{:?} {:?}", t.kind(), t.size());
            comparison.problem = Some(format!("{} instead of {}", form(ours), form(theirs)));
            return Ok(comparison);
        }
        if ours.numel() == 0 {
            return Ok(Self { max_abs: 0.0, relative_l2: 0.0, equal_bits: 1.0, ..comparison });
        }
        let difference = ours.to_kind(Kind::Double) - theirs.to_kind(Kind::Double);
        comparison.equal_bits =
            f64::try_from(bits(ours).eq_tensor(&bits(theirs)).to_kind(Kind::Double).mean(None))?;
        comparison.max_abs = f64::try_from(difference.abs().max())?;
        comparison.relative_l2 = Self::distance(ours, theirs)?;
        if !comparison.relative_l2.is_finite() {
            comparison.problem = Some("NaN or infinity".into());
        }
        Ok(comparison)
    }

    /// The L2 norm of the difference over that of the reference.
    pub(super) fn distance(ours: &Tensor, theirs: &Tensor) -> Result<f64> {
        let theirs = theirs.f_to_kind(Kind::Double)?;
        let distance = f64::try_from(ours.f_to_kind(Kind::Double)?.f_sub(&theirs)?.f_norm()?)?;
        Ok(if distance == 0.0 { 0.0 } else { distance / f64::try_from(theirs.f_norm()?)? })
    }
}

/// The numbers' bits as integers.
fn bits(x: &Tensor) -> Tensor {
    let kind = match x.kind().elt_size_in_bytes() {
        1 => Kind::Int8,
        2 => Kind::Int16,
        4 => Kind::Int,
        _ => Kind::Int64,
    };
    x.contiguous().view_dtype(kind)
}

/// The fast numerics beside the exact ones, both measured against the same module in f64.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Accuracy {
    /// The output's name.
    pub output: String,
    /// Relative L2 error of the exact numerics.
    pub exact: f64,
    /// The same of the fast ones.
    pub fast: f64,
}

impl Accuracy {
    /// The largest error that the fast numerics may have, over that of the exact ones.
    pub const BOUND: f64 = 1.1;
    /// How many draws of weights are measured, the case's own among them.
    pub const DRAWS: u64 = 8;

    /// Whether the fast numerics keep to it.
    pub fn passes(&self) -> bool {
        self.fast <= Self::BOUND * self.exact
    }
}
