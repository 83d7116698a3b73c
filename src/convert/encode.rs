//! The bytes of each tensor of a written file.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::PathBuf;

use safetensors::Dtype;
use tch::{Kind, Tensor};

use super::merge::{Merges, Pieces};
use crate::checkpoint::Checkpoint;
use crate::checkpoint::write::{PartFile, Planned};
use crate::error::{Error, FileProblem, Result};
use crate::quant::Encoding;
use crate::shim;

/// The greatest number of e4m3.
const GREATEST_FP8: f64 = 448.0;

/// A tensor to be written, and what it is made of.
pub(super) struct Recipe {
    pub(super) planned: Planned,
    pub(super) content: Content,
}

/// What a tensor is made of. Unless said otherwise, of the tensor of the same name.
pub(super) enum Content {
    /// Its bytes.
    Copied,
    /// Its numbers.
    Decoded,
    /// Its numbers with LoRAs merged into them.
    Merged(Pieces),
    /// Its numbers over their scale, merged or not.
    Scaled(Option<Pieces>),
    /// The scale of another tensor.
    ScaleOf(String, Option<Pieces>),
    /// These.
    Bytes(Vec<u8>),
    /// What this makes, on the CPU.
    Made(Box<dyn Fn() -> Result<Tensor>>),
}

impl Recipe {
    pub(super) fn bytes(planned: Planned, bytes: Vec<u8>) -> Self {
        Self { planned, content: Content::Bytes(bytes) }
    }

    /// The scale of the weight `name`.
    pub(super) fn scale_of(name: &str, pieces: Option<Pieces>) -> Self {
        let layer = name.strip_suffix(".weight").unwrap_or(name);
        let planned = Planned { name: format!("{layer}.scale_weight"), dtype: Dtype::F32, shape: vec![] };
        Self { planned, content: Content::ScaleOf(name.to_string(), pieces) }
    }
}

/// Makes the bytes.
pub(super) struct Encoder {
    /// The input, for messages.
    path: PathBuf,
    merges: Option<Merges>,
    /// Scales are written before what they scale.
    scales: RefCell<BTreeMap<String, f32>>,
}

impl Encoder {
    pub(super) fn new(path: PathBuf, merges: Option<Merges>) -> Self {
        Self { path, merges, scales: RefCell::default() }
    }

    /// Writes a tensor of a checkpoint, and tells `report` of the bytes.
    pub(super) fn write(
        &self,
        checkpoint: &Checkpoint,
        recipe: &Recipe,
        part: &mut PartFile,
        report: &mut dyn FnMut(u64) -> Result<()>,
    ) -> Result<()> {
        let Planned { name, dtype, .. } = &recipe.planned;
        let mut out = |bytes: &[u8]| {
            part.write(bytes)?;
            report(bytes.len() as u64)
        };
        let out_tensor = |numbers: &Tensor, out: &mut dyn FnMut(&[u8]) -> Result<()>| {
            let cast = self.cast(name, numbers, *dtype)?;
            // SAFETY: nobody writes to the tensor until `out` has written its bytes.
            out(unsafe { shim::bytes(&cast) })
        };
        match &recipe.content {
            Content::Copied => checkpoint.copy(name, &mut out),
            Content::Bytes(bytes) => out(bytes),
            Content::Made(make) => out_tensor(&make()?, &mut out),
            Content::Decoded => {
                let kind = decoded(*dtype);
                checkpoint.decode(name, kind, &mut |numbers| out_tensor(numbers, &mut out))
            }
            Content::Merged(pieces) => {
                self.numbers(checkpoint, name, Some(pieces), &mut |numbers| out_tensor(numbers, &mut out))
            }
            Content::ScaleOf(name, pieces) => {
                out(&self.scale(checkpoint, name, pieces.as_ref())?.to_le_bytes())
            }
            Content::Scaled(pieces) => {
                let scale = f64::from(self.scale(checkpoint, name, pieces.as_ref())?);
                self.numbers(checkpoint, name, pieces.as_ref(), &mut |numbers| {
                    let scaled = numbers.f_div_scalar(scale)?.f_clamp(-GREATEST_FP8, GREATEST_FP8)?;
                    out_tensor(&scaled, &mut out)
                })
            }
        }
    }

    /// The numbers of a tensor in f32, some at a time.
    fn numbers(
        &self,
        checkpoint: &Checkpoint,
        name: &str,
        pieces: Option<&Pieces>,
        out: &mut dyn FnMut(&Tensor) -> Result<()>,
    ) -> Result<()> {
        match (pieces, &self.merges) {
            (Some(pieces), Some(merges)) => merges.numbers(pieces, out),
            _ => checkpoint.decode(name, Kind::Float, out),
        }
    }

    /// What makes the greatest number of a tensor that of e4m3.
    fn scale(&self, checkpoint: &Checkpoint, name: &str, pieces: Option<&Pieces>) -> Result<f32> {
        if let Some(scale) = self.scales.borrow().get(name) {
            return Ok(*scale);
        }
        let mut greatest = 0f64;
        self.numbers(checkpoint, name, pieces, &mut |numbers| {
            let of_these = greatest_of(numbers)?;
            // A NaN is greater than nothing.
            if !of_these.is_finite() {
                return Err(
                    self.problem(name, "it holds NaN or infinity, which no scale can make fp8".into())
                );
            }
            greatest = greatest.max(of_these);
            Ok(())
        })?;
        let scale = (greatest / GREATEST_FP8) as f32;
        let scale = if scale > 0.0 { scale } else { 1.0 };
        self.scales.borrow_mut().insert(name.to_string(), scale);
        Ok(scale)
    }

    /// Numbers as the type that is written; an error where it does not hold one of them.
    fn cast(&self, name: &str, numbers: &Tensor, dtype: Dtype) -> Result<Tensor> {
        let kind = Encoding::Plain(dtype).kind().unwrap_or(Kind::Float);
        match dtype {
            Dtype::F16 => {
                let cast = numbers.f_to_kind(kind)?;
                if greatest_of(&cast)?.is_infinite() {
                    let reason = "it holds a number beyond 65504, the greatest of F16: take bf16 or f32";
                    return Err(self.problem(name, reason.into()));
                }
                Ok(cast.f_contiguous()?)
            }
            Dtype::F8_E4M3 => {
                let greatest = greatest_of(numbers)?;
                if greatest > GREATEST_FP8 {
                    let reason =
                        format!("it holds {greatest}, beyond 448, the greatest of fp8: take fp8-scaled");
                    return Err(self.problem(name, reason));
                }
                Ok(numbers.f_to_kind(kind)?.f_contiguous()?)
            }
            _ => Ok(numbers.f_to_kind(kind)?.f_contiguous()?),
        }
    }

    fn problem(&self, name: &str, reason: String) -> Error {
        Error::file(&self.path)(FileProblem::Tensor { name: name.to_string(), reason })
    }
}

/// The kind to decode to for a type: itself where decoding makes it.
fn decoded(dtype: Dtype) -> Kind {
    match dtype {
        Dtype::F64 => Kind::Double,
        Dtype::BF16 => Kind::BFloat16,
        Dtype::F16 => Kind::Half,
        _ => Kind::Float,
    }
}

/// The greatest size of numbers: NaN where one is NaN, 0 where there are none.
fn greatest_of(numbers: &Tensor) -> Result<f64> {
    if numbers.numel() == 0 {
        return Ok(0.0);
    }
    Ok(f64::try_from(numbers.f_abs()?.f_max()?)?)
}
