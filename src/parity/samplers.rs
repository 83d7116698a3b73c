//! Samplers, along velocities that need no model.

use tch::Tensor;

use super::Case;
use super::params::SamplerParams;
use crate::error::{Error, Result};
use crate::family::ModelFamily;
use crate::sampling::Solver;

impl Case {
    /// Along tanh(W x + t b).
    pub(super) fn walk(&self) -> Result<Tensor> {
        let p: SamplerParams = self.params()?;
        let weights = self.weights()?;
        let mut img = self.input("img")?;
        let weight =
            |name| Ok::<_, Error>(weights.tensor(name)?.f_to_device(self.device)?.f_to_kind(img.kind())?);
        let (weight, bias) = (weight("weight")?, weight("bias")?);
        let latent = ModelFamily::Flux1.latent();
        let times = Vec::<f64>::try_from(self.input("times")?)?;
        let more = latent
            .pack(&latent.get_more_noise(times.len() as i64, p.height, p.width, p.seed)?)?
            .f_to_device(self.device)?;
        let mut velocity = |img: &Tensor, t_vec: &Tensor, _: usize| {
            let along = img.f_matmul(&weight.f_tr()?)?;
            Ok(along.f_add(&t_vec.f_reshape([-1, 1, 1])?.f_mul(&bias)?)?.f_tanh()?)
        };
        let mut solver = Solver::new(p.sampler, &times);
        for step in 0..solver.steps() {
            img = solver.step(&img, step, &mut velocity, &|| Ok(more.f_narrow(0, step as i64, 1)?))?.img;
        }
        Ok(img)
    }
}
