//! The terms of one linear layer, run beside its weight.

use std::ops::Range;

use tch::{Device, Kind, Tensor};

use super::{Change, Factor, Term, Update, delta, moved, stretch};
use crate::error::{Error, Result};
use crate::math::linear;

/// The terms of one linear layer, ready to run: on its device and in its kind.
#[derive(Debug)]
pub struct LoraBranch {
    parts: Vec<Part>,
}

#[derive(Debug)]
struct Part {
    action: Action,
    rows: Option<Range<i64>>,
    strength: f64,
    stretch: Option<Stretch>,
}

/// What a term computes from the layer's input.
#[derive(Debug)]
enum Action {
    LowRank {
        down: Tensor,
        up: Tensor,
        bias: Option<Tensor>,
        scale: f64,
    },
    /// In f32. Their product is as large as the layer's weight, so it is made anew in every run.
    Hadamard {
        w1: [Tensor; 2],
        w2: [Tensor; 2],
        scale: f64,
    },
    Kronecker {
        w1: Tensor,
        w2: Tensor,
        scale: f64,
    },
    Full {
        weight: Tensor,
        scale: f64,
    },
    Bias(Tensor),
}

/// DoRA's factor for each row or column, and how far it is from 1.
#[derive(Debug)]
struct Stretch {
    factor: Tensor,
    excess: Tensor,
    of_columns: bool,
}

impl LoraBranch {
    /// `weight` gives the layer's weight, `[out, in]` in any float kind; it is asked for DoRA alone.
    ///
    /// # Errors
    /// What `weight` returns, and [`Error::Tch`](crate::Error::Tch) where a term does not fit.
    pub fn new(
        terms: &[Term],
        weight: &dyn Fn() -> Result<Tensor>,
        device: Device,
        kind: Kind,
    ) -> Result<Self> {
        let _no_grad = tch::no_grad_guard();
        let ready = |term: &Term| {
            let Some(action) = Action::new(&term.update, device, kind)? else { return Ok(None) };
            let stretch = match &term.update.magnitude {
                None => None,
                Some(magnitude) => {
                    let part = moved(&term.rows_of(&weight()?, 0)?, device, Kind::Float)?;
                    let changed = part.f_add(&delta(&term.update)?.f_to_device(device)?)?;
                    let factor = stretch(magnitude, &changed)?;
                    Some(Stretch {
                        of_columns: factor.size()[0] == 1 && part.size()[0] != 1,
                        excess: factor.f_sub_scalar(1)?.f_view([-1])?.f_to_kind(kind)?,
                        factor: factor.f_view([-1])?.f_to_kind(kind)?,
                    })
                }
            };
            Ok(Some(Part { action, rows: term.rows.clone(), strength: term.strength, stretch }))
        };
        let parts = terms.iter().filter_map(|term| ready(term).transpose()).collect::<Result<_>>()?;
        Ok(Self { parts })
    }

    /// Whether there is nothing to run.
    pub fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// `y`, the layer's output for `x`, with what the terms add: `y + up(down(x)) · scale`, as the official
    /// `LinearLora` computes it. May change `y` in place. `product` multiplies by the layer's weight, without its bias;
    /// it is asked for DoRA alone, whose terms change what the weight itself contributes.
    pub fn forward(&self, x: &Tensor, y: Tensor, product: &dyn Fn(&Tensor) -> Tensor) -> Tensor {
        self.parts.iter().fold(y, |y, part| {
            let added = part.forward(x, product);
            match &part.rows {
                None => y + added,
                Some(rows) => {
                    let _ = narrow(&y, rows).g_add_(&added);
                    y
                }
            }
        })
    }
}

impl Part {
    fn forward(&self, x: &Tensor, product: &dyn Fn(&Tensor) -> Tensor) -> Tensor {
        let base = |x: &Tensor| match &self.rows {
            Some(rows) => narrow(&product(x), rows),
            None => product(x),
        };
        match &self.stretch {
            None => self.action.forward(x, self.strength),
            Some(Stretch { factor, excess, of_columns: false }) => {
                base(x) * excess * self.strength + self.action.forward(x, self.strength) * factor
            }
            Some(Stretch { factor, excess, of_columns: true }) => {
                base(&(x * excess)) * self.strength + self.action.forward(&(x * factor), self.strength)
            }
        }
    }
}

impl Action {
    /// `None` for what changes nothing that a linear layer runs.
    fn new(update: &Update, device: Device, kind: Kind) -> Result<Option<Self>> {
        let moved = |tensor: &Tensor| super::moved(tensor, device, kind);
        let factor = |factor: &Factor| moved(&factor.matrix(Kind::Float)?);
        let single = |tensor: &Tensor| super::moved(tensor, device, Kind::Float);
        let both = |[a, b]: &[Tensor; 2]| Ok::<_, Error>([single(a)?, single(b)?]);
        let scale = update.scale;
        Ok(Some(match &update.change {
            Change::LowRank { down, up, bias } => Self::LowRank {
                down: moved(down)?,
                up: moved(up)?,
                bias: bias.as_ref().map(moved).transpose()?,
                scale,
            },
            Change::Hadamard { w1, w2 } => Self::Hadamard { w1: both(w1)?, w2: both(w2)?, scale },
            Change::Kronecker { w1, w2 } => Self::Kronecker { w1: factor(w1)?, w2: factor(w2)?, scale },
            Change::Full(weight) => Self::Full { weight: moved(weight)?, scale },
            Change::Bias(bias) => Self::Bias(moved(&bias.f_mul_scalar(scale)?)?),
            Change::Replace(_) => return Ok(None),
        }))
    }

    fn forward(&self, x: &Tensor, strength: f64) -> Tensor {
        match self {
            Self::LowRank { down, up, bias, scale } => {
                linear(&linear(x, down, None), up, bias.as_ref()) * (scale * strength)
            }
            Self::Hadamard { w1: [w1_a, w1_b], w2: [w2_a, w2_b], scale } => {
                let weight = w1_a.matmul(w1_b) * w2_a.matmul(w2_b);
                linear(x, &weight.to_kind(x.kind()), None) * (scale * strength)
            }
            Self::Kronecker { w1, w2, scale } => kronecker(x, w1, w2) * (scale * strength),
            Self::Full { weight, scale } => linear(x, weight, None) * (scale * strength),
            Self::Bias(bias) => bias * strength,
        }
    }
}

/// `x · (w1 ⊗ w2)ᵀ` without the large matrix.
fn kronecker(x: &Tensor, w1: &Tensor, w2: &Tensor) -> Tensor {
    let mut size = x.size();
    let width = size.pop().unwrap_or(0);
    let columns = w1.size()[1];
    let grid = x.reshape([-1, columns, width / columns]); // [tokens, b, d]
    let out = w1.matmul(&grid.matmul(&w2.tr())); // [tokens, a, c]
    size.push(w1.size()[0] * w2.size()[0]);
    out.reshape(&size[..])
}

fn narrow(y: &Tensor, rows: &Range<i64>) -> Tensor {
    y.narrow(-1, rows.start, rows.end - rows.start)
}
