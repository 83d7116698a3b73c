//! What the steps of a picture share, computed before the first of them.

use tch::Tensor;

use crate::error::{Error, Result};
use crate::layers::ModulationOut;
use crate::math;

/// The modulation of every layer that a conditioning vector `[B, D]` gives: tensors of `[B, 1, D]`.
#[derive(Debug)]
pub(super) struct Modulations {
    pub(super) double: Vec<[[ModulationOut; 2]; 2]>,
    pub(super) single: Vec<ModulationOut>,
    pub(super) last: [Tensor; 2],
}

impl Modulations {
    /// Joins the tensors of each place with `join`.
    pub(super) fn join(all: &[&Self], join: impl Fn(&[&Tensor]) -> Result<Tensor>) -> Result<Self> {
        let tensor = |place: &dyn Fn(&Self) -> &Tensor| {
            join(&all.iter().map(|modulations| place(modulations)).collect::<Vec<_>>())
        };
        let out = |place: &dyn Fn(&Self) -> &ModulationOut| {
            Ok::<_, Error>(ModulationOut {
                shift: tensor(&|all| &place(all).shift)?,
                scale: tensor(&|all| &place(all).scale)?,
                gate: tensor(&|all| &place(all).gate)?,
            })
        };
        let [first, ..] = all else { return Err(Error::Config("no steps were prepared".into())) };
        let stream = |i: usize, stream: usize| {
            Ok::<_, Error>([out(&|all| &all.double[i][stream][0])?, out(&|all| &all.double[i][stream][1])?])
        };
        let double = (0..first.double.len()).map(|i| Ok([stream(i, 0)?, stream(i, 1)?]));
        Ok(Self {
            double: double.collect::<Result<_>>()?,
            single: (0..first.single.len()).map(|i| out(&|all| &all.single[i])).collect::<Result<_>>()?,
            last: [tensor(&|all| &all.last[0])?, tensor(&|all| &all.last[1])?],
        })
    }
}

/// What the steps of a batch of pictures share: the modulation of every step and the rotations. See
/// [`Flux1::prepare_steps`](super::Flux1::prepare_steps).
#[derive(Debug)]
pub struct Steps {
    /// By step.
    modulations: Vec<Modulations>,
    /// The rotations of a single picture, which are the same for all.
    pe: Tensor,
}

impl Steps {
    pub(super) fn new(modulations: Vec<Modulations>, pe: Tensor) -> Self {
        Self { modulations, pe }
    }

    /// Concatenates the steps of several pictures along the batch. Each must have as many steps, prepared for the same
    /// positions.
    ///
    /// # Errors
    /// [`Error::Config`] where there are no pictures, or their steps differ in number.
    pub fn cat(all: &[&Self]) -> Result<Self> {
        let Some(first) = all.first() else { return Err(Error::Config("no steps were prepared".into())) };
        let len = first.modulations.len();
        if all.iter().any(|steps| steps.modulations.len() != len || steps.pe.size() != first.pe.size()) {
            return Err(Error::Config("the pictures' steps or positions are not as many".into()));
        }
        let step = |i: usize| {
            let modulations: Vec<_> = all.iter().map(|steps| &steps.modulations[i]).collect();
            Modulations::join(&modulations, |tensors| math::cat(tensors, 0))
        };
        Ok(Self { modulations: (0..len).map(step).collect::<Result<_>>()?, pe: first.pe.shallow_clone() })
    }

    /// Returns the modulation of a step, and the rotations.
    pub(super) fn step(&self, step: usize) -> Result<(&Modulations, &Tensor)> {
        match self.modulations.get(step) {
            Some(modulations) => Ok((modulations, &self.pe)),
            None => Err(Error::Config(format!(
                "step {step} was not prepared: there are {}",
                self.modulations.len()
            ))),
        }
    }
}
