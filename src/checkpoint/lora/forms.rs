//! From the keys of one module to the changes that they make: which form, which rank, which scale, by the header and the
//! alphas alone.

use std::fmt;

use safetensors::Dtype;

use super::metadata::Settings;
use super::names::{Group, Part};
use super::target::Holder;
use crate::checkpoint::Checkpoint;
use crate::error::{Error, FileProblem, Result};
use crate::quant::Encoding;

/// The form of a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Form {
    /// LoRA.
    LowRank,
    /// LoHa.
    Hadamard,
    /// LoKr.
    Kronecker,
    /// A whole difference.
    Full,
    /// A whole difference of the bias.
    Bias,
    /// A whole parameter.
    Replace,
}

/// One change to one module, known from the header.
#[derive(Debug, Clone, PartialEq)]
pub struct Patch {
    /// The module's name in the file.
    pub name: String,
    /// Where it goes, and which keys it is made of.
    pub group: Group,
    /// What it is.
    pub form: Form,
    /// Its rank, where it has one.
    pub rank: Option<i64>,
    /// Its alpha, where the file gives one.
    pub alpha: Option<f64>,
    /// What its product is multiplied by: 0 where the file switches it off with an alpha of 0.
    pub scale: f64,
    /// The shape of what it changes.
    pub shape: Vec<i64>,
}

/// Reads groups, each against the same file.
pub(super) struct Reader<'a> {
    pub checkpoint: &'a Checkpoint,
    pub settings: &'a Settings,
}

impl Reader<'_> {
    /// The changes that a group makes: to the weight, to the bias, or both.
    pub fn patches(&self, name: &str, group: &Group) -> Result<Vec<Patch>> {
        for (part, key) in &group.parts {
            self.check_numbers(*part, key)?;
        }
        if let Some(key) = group.parts.get(&Part::Core) {
            let reason = "is the core of a convolution's change; FLUX's layers are linear".into();
            return Err(self.problem(key, reason));
        }
        let bias = group.parts.get(&Part::DiffBias).map(|key| self.bias(name, group, key)).transpose()?;
        let weight = self.weight(name, group)?;
        let others = group.parts.iter().find(|(part, _)| **part != Part::DiffBias);
        match others {
            Some((_, key)) if weight.is_none() => {
                Err(self.problem(key, "belongs to a change of which nothing else is in the file".into()))
            }
            _ => Ok(weight.into_iter().chain(bias).collect()),
        }
    }

    fn bias(&self, name: &str, group: &Group, key: &str) -> Result<Patch> {
        let shape = self.shape(key);
        if shape.len() != 1 {
            return Err(self.problem(key, format!("its shape is {shape:?}, but a bias is a vector")));
        }
        Ok(self.plain(name, group, Form::Bias, shape))
    }

    /// A patch without rank and scale.
    fn plain(&self, name: &str, group: &Group, form: Form, shape: Vec<i64>) -> Patch {
        let (name, group) = (name.to_string(), group.clone());
        Patch { name, group, form, rank: None, alpha: None, scale: 1.0, shape }
    }

    fn weight(&self, name: &str, group: &Group) -> Result<Option<Patch>> {
        let first = |fits: fn(&Part) -> bool| group.parts.iter().find(|(part, _)| fits(part));
        let forms = [
            (Form::LowRank, first(|p| matches!(p, Part::Down | Part::Up | Part::UpBias))),
            (Form::Hadamard, first(|p| matches!(p, Part::Hada(_)))),
            (Form::Kronecker, first(|p| matches!(p, Part::Lokr(_)))),
            (Form::Full, first(|p| *p == Part::Diff)),
            (Form::Replace, first(|p| *p == Part::Set)),
        ];
        let mut found = forms.iter().filter_map(|(form, key)| Some((*form, *key.as_ref()?)));
        let Some((form, (_, key))) = found.next() else { return Ok(None) };
        if let Some((_, (_, other))) = found.next() {
            return Err(self.problem(other, format!("is a second change of the same weight, besides {key}")));
        }
        let matrices = Matrices { reader: self, group, key };
        let (shape, rank) = match form {
            Form::LowRank => matrices.low_rank()?,
            Form::Hadamard => matrices.hadamard()?,
            Form::Kronecker => matrices.kronecker()?,
            Form::Full | Form::Replace | Form::Bias => (self.shape(key), None),
        };
        let whole = matches!(form, Form::Full | Form::Replace);
        if group.target.holder == Holder::Linear && shape.len() != 2 {
            return Err(
                self.problem(key, format!("its shape is {shape:?}, but a linear layer's is a matrix"))
            );
        }
        if group.target.holder != Holder::Linear && !whole {
            return Err(self.problem(key, "is part of a matrix for a module that is no linear layer".into()));
        }
        self.check_magnitude(group, &shape, whole)?;
        self.check_shape(group, &shape)?;
        let mut patch = self.plain(name, group, form, shape);
        if !whole {
            patch.rank = rank;
            patch.alpha = self.alpha(group)?.filter(|_| rank.is_some());
            patch.scale = match (patch.alpha, rank) {
                (Some(alpha), Some(rank)) => alpha / rank as f64,
                // An alpha beside two whole matrices of LoKr counts for nothing.
                _ if group.parts.contains_key(&Part::Alpha) => 1.0,
                _ => self.settings.scale(group.target.model, name, rank),
            };
            if let (Some(alpha), false) = (patch.alpha, patch.scale.is_finite()) {
                let reason = format!("an alpha of {alpha} scales nothing: it must be a finite number");
                return Err(self.problem(group.parts.get(&Part::Alpha).map_or(key, |k| k), reason));
            }
        }
        Ok(Some(patch))
    }

    fn alpha(&self, group: &Group) -> Result<Option<f64>> {
        let Some(key) = group.parts.get(&Part::Alpha) else { return Ok(None) };
        let shape = self.shape(key);
        if shape.iter().any(|size| *size != 1) {
            return Err(self.problem(key, format!("its shape is {shape:?}, but an alpha is one number")));
        }
        Ok(Some(f64::try_from(self.checkpoint.tensor(key)?.f_view([1])?)?))
    }

    fn check_magnitude(&self, group: &Group, shape: &[i64], whole: bool) -> Result<()> {
        let Some(key) = group.parts.get(&Part::Magnitude) else { return Ok(()) };
        let found = self.shape(key);
        let fits = match (&found[..], shape) {
            ([n] | [n, 1], [rows, _]) => n == rows,
            ([1, n], [_, columns]) => n == columns,
            _ => false,
        };
        if whole || group.parts.contains_key(&Part::UpBias) {
            return Err(self.problem(key, "DoRA is known for LoRA, LoHa and LoKr without a bias".into()));
        }
        if !fits {
            let reason =
                format!("its shape is {found:?}, which are not the lengths of the rows of {shape:?}");
            return Err(self.problem(key, reason));
        }
        Ok(())
    }

    /// ComfyUI says the shape once more where a weight grows.
    fn check_shape(&self, group: &Group, shape: &[i64]) -> Result<()> {
        let Some(key) = group.parts.get(&Part::Shape) else { return Ok(()) };
        let said: Vec<i64> =
            Vec::try_from(self.checkpoint.tensor(key)?.f_view([-1])?.f_to_kind(tch::Kind::Int64)?)?;
        if said != shape {
            return Err(self.problem(key, format!("it says {said:?}, but the change is {shape:?}")));
        }
        Ok(())
    }

    fn check_numbers(&self, part: Part, key: &str) -> Result<()> {
        let Some(Encoding::Plain(dtype)) = self.encoding(key) else {
            return Err(self.problem(key, "is in blocks; a LoRA's numbers are plain floats".into()));
        };
        let float = matches!(
            dtype,
            Dtype::F8_E4M3 | Dtype::F8_E5M2 | Dtype::F16 | Dtype::BF16 | Dtype::F32 | Dtype::F64
        );
        let whole = matches!(dtype, Dtype::I8 | Dtype::U8 | Dtype::I16 | Dtype::I32 | Dtype::I64);
        if float || (whole && matches!(part, Part::Alpha | Part::Shape)) {
            return Ok(());
        }
        Err(self.problem(key, format!("is {dtype:?}; a LoRA's numbers are fp8, F16, BF16, F32 or F64")))
    }

    fn encoding(&self, key: &str) -> Option<Encoding> {
        let part = self.checkpoint.tensors.get(key)?.parts.first()?;
        Some(self.checkpoint.entry(part).encoding)
    }

    fn shape(&self, key: &str) -> Vec<i64> {
        self.checkpoint.shape(key).unwrap_or_default()
    }

    fn problem(&self, key: &str, reason: String) -> Error {
        let path = self.checkpoint.files().first().map(|p| p.to_path_buf()).unwrap_or_default();
        Error::file(path)(FileProblem::Tensor { name: key.to_string(), reason })
    }
}

/// The matrices of one change, against each other.
struct Matrices<'a> {
    reader: &'a Reader<'a>,
    group: &'a Group,
    /// One of its keys, for messages.
    key: &'a str,
}

/// The shape of what a change changes, and its rank.
type Size = (Vec<i64>, Option<i64>);

impl Matrices<'_> {
    fn low_rank(&self) -> Result<Size> {
        let size = self.product(Part::Up, Part::Down)?;
        if let Some(key) = self.group.parts.get(&Part::UpBias) {
            let shape = self.reader.shape(key);
            if shape != size.0[..1] {
                let reason = format!("its shape is {shape:?}, but {} rows are changed", size.0[0]);
                return Err(self.reader.problem(key, reason));
            }
        }
        Ok(size)
    }

    fn hadamard(&self) -> Result<Size> {
        let first = self.product(Part::Hada("w1_a"), Part::Hada("w1_b"))?;
        let second = self.product(Part::Hada("w2_a"), Part::Hada("w2_b"))?;
        if first.0 != second.0 {
            let reason = format!("one of its products is {:?}, the other {:?}", first.0, second.0);
            return Err(self.reader.problem(self.key, reason));
        }
        Ok(first)
    }

    /// The rank is that of the second factor where both are products, as in ComfyUI and diffusers.
    fn kronecker(&self) -> Result<Size> {
        let (first, rank1) = self.factor("w1", "w1_a", "w1_b")?;
        let (second, rank2) = self.factor("w2", "w2_a", "w2_b")?;
        let times = |axis: usize| first[axis].checked_mul(second[axis]);
        let (Some(rows), Some(columns)) = (times(0), times(1)) else {
            return Err(self.reader.problem(self.key, format!("{first:?} times {second:?} overflows")));
        };
        Ok((vec![rows, columns], rank2.or(rank1)))
    }

    /// A matrix, whole or as a product.
    fn factor(&self, whole: &'static str, a: &'static str, b: &'static str) -> Result<Size> {
        let (whole, a, b) = (Part::Lokr(whole), Part::Lokr(a), Part::Lokr(b));
        let product = [a, b].iter().find_map(|p| self.group.parts.get(p));
        match (self.group.parts.get(&whole), product) {
            (Some(_), None) => Ok((self.matrix(whole)?.to_vec(), None)),
            (Some(key), Some(other)) => Err(self.reader.problem(other, format!("is there besides {key}"))),
            (None, _) => self.product(a, b),
        }
    }

    /// The shape of `[m, rank] · [rank, n]`.
    fn product(&self, a: Part, b: Part) -> Result<Size> {
        let ([m, rank], [other, n]) = (self.matrix(a)?, self.matrix(b)?);
        if rank != other {
            let reason = format!("[{m}, {rank}] and [{other}, {n}] do not multiply: their ranks differ");
            return Err(self.reader.problem(&self.group.parts[&a], reason));
        }
        Ok((vec![m, n], Some(rank)))
    }

    fn matrix(&self, part: Part) -> Result<[i64; 2]> {
        let Some(key) = self.group.parts.get(&part) else {
            return Err(self.reader.problem(self.key, format!("its counterpart {part} is not in the file")));
        };
        match self.reader.shape(key)[..] {
            [rows, columns] if rows > 0 && columns > 0 => Ok([rows, columns]),
            ref shape => {
                Err(self.reader.problem(key, format!("its shape is {shape:?}, but it must be a matrix")))
            }
        }
    }
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::LowRank => "LoRA",
            Self::Hadamard => "LoHa",
            Self::Kronecker => "LoKr",
            Self::Full => "whole differences",
            Self::Bias => "differences of biases",
            Self::Replace => "whole norms",
        })
    }
}
