//! Changes to a model's weights that run beside them: LoRA and its relatives.
//!
//! Nothing here knows files. A [`Term`] is one change to one layer, with its strength. A linear layer computes its own
//! product and [`LoraBranch`] adds those of its terms, so the weight itself is never touched, however it is stored: without
//! the terms the bits are those from before. [`merged`] is for those who do want one weight, and for the parameters
//! that are no matrix of a linear layer.

mod branch;
mod rows;

use std::ops::Range;

use tch::{Device, Kind, Tensor};

pub use branch::LoraBranch;

use crate::error::Result;

/// What is done to a parameter: mostly, what is added to a linear layer's weight `[out, in]`.
#[derive(Debug)]
pub enum Change {
    /// LoRA: `up · down`, and a bias of the second product where it has one, as in the official control LoRAs.
    LowRank {
        /// `[rank, in]`.
        down: Tensor,
        /// `[out, rank]`.
        up: Tensor,
        /// `[out]`.
        bias: Option<Tensor>,
    },
    /// LoHa: two products `[out, rank] · [rank, in]`, multiplied number by number.
    Hadamard {
        /// `hada_w1_a` and `hada_w1_b`.
        w1: [Tensor; 2],
        /// `hada_w2_a` and `hada_w2_b`.
        w2: [Tensor; 2],
    },
    /// LoKr: the Kronecker product of two matrices.
    Kronecker {
        /// `[a, b]`.
        w1: Factor,
        /// `[out / a, in / b]`.
        w2: Factor,
    },
    /// The difference itself, in the parameter's shape.
    Full(Tensor),
    /// The difference of a linear layer's bias, `[out]`.
    Bias(Tensor),
    /// New values for the whole parameter, whatever the strength. Of several the last stands. Not for linear layers.
    Replace(Tensor),
}

/// A matrix, whole or as a product of two.
#[derive(Debug)]
pub enum Factor {
    /// The matrix.
    Whole(Tensor),
    /// `[m, rank]` and `[rank, n]`.
    Product([Tensor; 2]),
}

/// A change as it was trained.
#[derive(Debug)]
pub struct Update {
    /// What is done.
    pub change: Change,
    /// What it is multiplied by: `alpha / rank` where the maker gives an alpha, else 1.
    pub scale: f64,
    /// DoRA: the lengths that the rows of the changed weight are to have, `[out]` or `[out, 1]`, or its columns,
    /// `[1, in]`. Only with a change of the weight, and one without a bias.
    pub magnitude: Option<Tensor>,
}

/// An update of one layer, or of some of its rows, at a strength.
#[derive(Debug)]
pub struct Term {
    /// What is done.
    pub update: Update,
    /// The output rows that it is done to; `None` for all of them.
    pub rows: Option<Range<i64>>,
    /// How much of it: 1 as it was trained, 0 nothing, below 0 the opposite.
    pub strength: f64,
}

/// What an update adds to the weight at full strength, in f32; with DoRA, before the lengths are set. A zero where it
/// adds nothing to a weight.
///
/// # Errors
/// [`Error::Tch`](crate::Error::Tch) where its matrices do not fit each other.
pub fn delta(update: &Update) -> Result<Tensor> {
    delta_in(update, Kind::Float)
}

fn delta_in(update: &Update, kind: Kind) -> Result<Tensor> {
    let delta = match &update.change {
        Change::LowRank { down, up, .. } => up.f_to_kind(kind)?.f_matmul(&down.f_to_kind(kind)?)?,
        Change::Hadamard { w1, w2 } => product(w1, kind)?.f_mul(&product(w2, kind)?)?,
        Change::Kronecker { w1, w2 } => w1.matrix(kind)?.f_kron(&w2.matrix(kind)?.f_contiguous()?)?,
        Change::Full(delta) => delta.f_to_kind(kind)?,
        Change::Bias(other) | Change::Replace(other) => Tensor::f_zeros([1], (kind, other.device()))?,
    };
    Ok(delta.f_mul_scalar(update.scale)?)
}

fn product([a, b]: &[Tensor; 2], kind: Kind) -> Result<Tensor> {
    Ok(a.f_to_kind(kind)?.f_matmul(&b.f_to_kind(kind)?)?)
}

impl Factor {
    fn matrix(&self, kind: Kind) -> Result<Tensor> {
        match self {
            Self::Whole(matrix) => Ok(matrix.f_to_kind(kind)?),
            Self::Product(pair) => product(pair, kind),
        }
    }
}

/// The parameter with its terms, each added to what the parameter was before any of them, so that their order does not
/// matter. Computed in f32 (an f64 parameter in f64) and cast back once.
///
/// With DoRA the weight moves by `strength` of the way to `magnitude · (W + ΔW) / ‖W + ΔW‖`.
///
/// # Errors
/// [`Error::Tch`](crate::Error::Tch) where a term does not fit.
pub fn merged(parameter: &Tensor, terms: &[Term]) -> Result<Tensor> {
    let _no_grad = tch::no_grad_guard();
    let kind = if parameter.kind() == Kind::Double { Kind::Double } else { Kind::Float };
    let base = parameter.f_to_kind(kind)?;
    let mut sum = parameter.f_to_dtype(kind, false, true)?;
    for term in terms {
        if let Change::Replace(values) = &term.update.change {
            sum.f_copy_(&values.f_view_as(&sum)?)?;
        }
    }
    for term in terms.iter().filter(|term| term.changes_weight()) {
        let delta = delta_in(&term.update, kind)?.f_to_device(parameter.device())?;
        let part = term.rows_of(&base, 0)?;
        let change = match &term.update.magnitude {
            None => delta,
            Some(magnitude) => {
                let changed = part.f_add(&delta)?;
                changed.f_mul(&stretch(magnitude, &changed)?)?.f_sub(&part)?
            }
        };
        let _ = term.rows_of(&sum, 0)?.f_add_(&change.f_mul_scalar(term.strength)?)?;
    }
    Ok(sum.f_to_kind(parameter.kind())?)
}

/// What DoRA multiplies the rows, `[out, 1]`, or the columns, `[1, in]`, of the changed weight by: the length that each
/// is to have over the one that it has; 1 where it has none.
fn stretch(magnitude: &Tensor, changed: &Tensor) -> Result<Tensor> {
    let size = magnitude.size();
    let columns = size.len() == 2 && size[0] == 1 && changed.size()[0] != 1;
    let (axis, shape) = if columns { (0, [1, -1]) } else { (1, [-1, 1]) };
    let lengths = changed.f_norm_scalaropt_dim(2, [axis].as_slice(), true)?;
    let magnitude = magnitude.f_to_device(changed.device())?.f_to_kind(changed.kind())?;
    let stretch = magnitude.f_view(shape)?.f_div(&lengths)?;
    Ok(stretch.f_where_scalarother(&lengths.f_ne(0)?, 1)?)
}

/// A linear layer's bias with what the terms add to its output whatever the input: `diff_b`, and the bias of `lora_B`.
/// In the kind of the bias; where there was none, in f32, and `None` where the terms bring none either.
///
/// # Errors
/// [`Error::Tch`](crate::Error::Tch) where a term does not fit.
pub fn merged_bias(bias: Option<&Tensor>, out_features: i64, terms: &[Term]) -> Result<Option<Tensor>> {
    let _no_grad = tch::no_grad_guard();
    let mut sum = bias.map(|bias| bias.f_to_kind(Kind::Float)).transpose()?;
    for term in terms {
        let (Change::Bias(added) | Change::LowRank { bias: Some(added), .. }) = &term.update.change else {
            continue;
        };
        let device = sum.as_ref().map_or(added.device(), Tensor::device);
        let whole = Tensor::f_zeros([out_features], (Kind::Float, device))?;
        let added = added.f_to_device(device)?.f_to_kind(Kind::Float)?;
        term.rows_of(&whole, 0)?.f_copy_(&added.f_mul_scalar(term.update.scale * term.strength)?)?;
        sum = Some(sum.map_or(Ok(whole.shallow_clone()), |sum| sum.f_add(&whole))?);
    }
    let kind = bias.map_or(Kind::Float, Tensor::kind);
    Ok(sum.map(|sum| sum.f_to_kind(kind)).transpose()?)
}

/// The weight with columns of zeros after its own: what it was for the first inputs, nothing for the new ones. The
/// official control LoRAs grow `img_in` from 64 inputs to 128, those of the picture and those of the control picture.
///
/// # Errors
/// [`Error::Tch`](crate::Error::Tch) where it is no matrix.
pub fn grown_columns(weight: &Tensor, columns: i64) -> Result<Tensor> {
    let have = weight.size().last().copied().unwrap_or(columns);
    Ok(weight.f_constant_pad_nd([0, (columns - have).max(0)])?)
}

impl Term {
    /// The shape of what it changes: of a weight, or of a bias.
    pub(crate) fn size(&self) -> Vec<i64> {
        let product = |[a, b]: [&Tensor; 2]| match (&a.size()[..], &b.size()[..]) {
            (&[m, rank], &[other, n]) if rank == other => vec![m, n],
            _ => Vec::new(),
        };
        let factor = |factor: &Factor| match factor {
            Factor::Whole(matrix) => matrix.size(),
            Factor::Product([a, b]) => product([a, b]),
        };
        match &self.update.change {
            Change::LowRank { down, up, .. } => product([up, down]),
            Change::Hadamard { w1: [a, b], .. } => product([a, b]),
            Change::Kronecker { w1, w2 } => {
                factor(w1).iter().zip(factor(w2)).map(|(one, other)| one.saturating_mul(other)).collect()
            }
            Change::Full(tensor) | Change::Bias(tensor) | Change::Replace(tensor) => tensor.size(),
        }
    }

    /// Whether it can be run beside a linear layer whose weight has this shape.
    pub(crate) fn fits(&self, weight: &[i64]) -> bool {
        let &[out, columns] = weight else { return false };
        let rows = self.rows.clone().unwrap_or(0..out);
        let len = rows.end - rows.start;
        let size = match self.update.change {
            Change::Bias(_) => vec![len],
            _ => vec![len, columns],
        };
        rows.start >= 0 && rows.end <= out && self.size() == size
    }

    fn changes_weight(&self) -> bool {
        !matches!(self.update.change, Change::Bias(_) | Change::Replace(_))
    }

    /// The rows that this term changes, a view, along the axis of the outputs.
    fn rows_of(&self, tensor: &Tensor, axis: i64) -> Result<Tensor> {
        Ok(match &self.rows {
            Some(rows) => tensor.f_narrow(axis, rows.start, rows.end - rows.start)?,
            None => tensor.shallow_clone(),
        })
    }
}

/// On the device that a layer runs on and in its kind.
fn moved(tensor: &Tensor, device: Device, kind: Kind) -> Result<Tensor> {
    Ok(tensor.f_to_device(device)?.f_to_kind(kind)?)
}
