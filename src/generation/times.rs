//! The times that a picture is drawn at.

use super::Request;
use crate::error::{Error, Result};
use crate::sampling::Schedule;

/// The times of the steps, and their end.
pub(super) struct Times {
    /// How much of the picture is noise.
    pub(super) sigmas: Vec<f64>,
    /// What the model is told of that.
    pub(super) timesteps: Vec<f64>,
}

impl Times {
    /// The times of a complete request for a picture of so many tokens, from a step on, counted from 0.
    ///
    /// # Errors
    /// [`Error::Request`] where the schedule gives no times for so many steps.
    pub(super) fn new(request: &Request, tokens: i64, first_step: usize) -> Result<Self> {
        let steps = request.steps.unwrap_or(1);
        let schedule = request.schedule.as_ref().unwrap_or(&Schedule::Linear);
        let mut sigmas = schedule.times(steps, tokens);
        if let Some(sigma) = sigmas.iter().find(|sigma| !sigma.is_finite()) {
            return Err(Error::Request(format!(
                "the schedule {schedule:?} has a time of {sigma} in {steps} steps"
            )));
        }
        sigmas.drain(..first_step);
        Ok(Self { timesteps: schedule.timesteps(&sigmas), sigmas })
    }

    pub(super) fn steps(&self) -> usize {
        self.sigmas.len().saturating_sub(1)
    }
}
