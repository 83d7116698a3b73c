//! Pictures that ControlNets follow.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tch::Tensor;

use super::CANNY;
use crate::checkpoint::Checkpoint;
use crate::error::{Error, ParameterProblem, Result};
use crate::generation::autoencoder::Autoencoder;
use crate::generation::loader::Loader;
use crate::generation::resident::Resident;
use crate::generation::{PartKind, configs};
use crate::image::Image;
use crate::math;
use crate::models::Model;
use crate::models::flux1::{ControlNet, ControlNetParams, Residuals};
use crate::models::{TransformerInput, TransformerParams};

/// A picture that a ControlNet follows.
#[derive(Debug, Clone, PartialEq)]
pub struct Control {
    /// Which of the pipeline's ControlNets: a place in what [`Pipeline::set_controlnets`](crate::generation::Pipeline::set_controlnets) was given. Several pictures may
    /// be for one.
    pub net: usize,
    /// Of any size; it is resized to the request's.
    pub image: Arc<Image>,
    /// How much of what the ControlNet says is added; diffusers' `controlnet_conditioning_scale`.
    pub strength: f64,
    /// What the picture is to a union ControlNet, and only to one: a number, see [`MODES`](crate::models::flux1::MODES).
    pub mode: Option<i64>,
    /// The share of the steps after which it begins.
    pub start: f64,
    /// The share of the steps after which it ends.
    pub end: f64,
    /// The ControlNet follows the picture's edges, as OpenCV's Canny finds them, not the picture itself.
    pub canny: bool,
}

impl Control {
    /// Controlled by the first ControlNet, in full, in every step.
    pub fn new(image: Image) -> Self {
        Self { net: 0, image: Arc::new(image), strength: 1.0, mode: None, start: 0.0, end: 1.0, canny: false }
    }

    pub(in crate::generation) fn check(&self) -> Result<()> {
        let wrong = |text: String| Err(Error::Request(text));
        if !self.strength.is_finite() {
            return wrong("a ControlNet's strength must be a finite number".into());
        }
        if !(0.0 <= self.start && self.start < self.end && self.end <= 1.0) {
            let text = "{control_end} {} must be above {control_start} {}, and both within 0 and 1";
            return Err(ParameterProblem::new("control_end", text, &[&self.end, &self.start]).into());
        }
        Ok(())
    }

    /// Whether it counts in a step, from 0, of so many.
    ///
    /// Source: diffusers 0.42.1, `pipelines/flux/pipeline_flux_controlnet.py`, `controlnet_keep`.
    fn counts_in(&self, step: usize, steps: usize) -> bool {
        let share = |step: usize| step as f64 / steps as f64;
        share(step) >= self.start && share(step + 1) <= self.end
    }

    /// What must be alike of pictures that are computed together.
    pub(in crate::generation) fn shape(&self) -> (usize, f64, Option<i64>, f64, f64) {
        (self.net, self.strength, self.mode, self.start, self.end)
    }
}

/// A ControlNet, and its model where it is loaded.
#[derive(Debug)]
struct Net {
    path: PathBuf,
    params: ControlNetParams,
    model: Option<Resident<ControlNet>>,
}

/// The ControlNets of a pipeline.
#[derive(Debug, Default)]
pub(in crate::generation) struct ControlNets {
    nets: Vec<Net>,
}

impl ControlNets {
    /// Opens these ControlNets in place of those that were there. What is loaded already is not loaded again.
    ///
    /// # Errors
    /// What is wrong with the files; [`Error::Config`] for one that is no ControlNet, or none of this transformer. Those from
    /// before then stay.
    pub(in crate::generation) fn set(
        &mut self,
        loader: &Loader,
        paths: &[PathBuf],
        transformer: &TransformerParams,
    ) -> Result<()> {
        let open = |path: &PathBuf| {
            let checkpoint = loader.open_part(PartKind::ControlNet, path)?;
            let params = configs::controlnet(path, &checkpoint)
                .and_then(|(params, _)| params.check_fits(transformer.flux1()?).map(|()| params));
            let params = params.map_err(|error| match error {
                Error::Config(problem) => Error::Config(format!("{}: {problem}", path.display())),
                other => other,
            })?;
            Ok(Net { path: path.clone(), params, model: None })
        };
        let mut nets = paths.iter().map(open).collect::<Result<Vec<_>>>()?;
        for net in &mut nets {
            let before = self.nets.iter_mut().find(|before| before.path == net.path);
            net.model = before.and_then(|before| before.model.take());
        }
        self.nets = nets;
        loader.keep_only(PartKind::ControlNet, paths);
        Ok(())
    }

    /// The sizes of the ControlNets.
    pub(in crate::generation) fn params(&self) -> impl Iterator<Item = &ControlNetParams> {
        self.nets.iter().map(|net| &net.params)
    }

    /// Where the ControlNets lie.
    pub(in crate::generation) fn paths(&self) -> impl Iterator<Item = &Path> {
        self.nets.iter().map(|net| net.path.as_path())
    }

    /// Their files.
    pub(in crate::generation) fn open(&self, loader: &Loader) -> Result<Vec<Checkpoint>> {
        self.paths().map(|path| loader.open_part(PartKind::ControlNet, path)).collect()
    }

    /// Whether all of them are in memory.
    pub(in crate::generation) fn are_loaded(&self) -> bool {
        self.nets.iter().all(|net| net.model.is_some())
    }

    /// Whether pictures are for ControlNets that are there, with modes that they have.
    pub(in crate::generation) fn check(&self, controls: &[Control]) -> Result<()> {
        for control in controls {
            let Some(net) = self.nets.get(control.net) else {
                let count = self.nets.len();
                let text = format!("there is no ControlNet of number {}: {count} are put on", control.net);
                return Err(Error::Request(text));
            };
            net.params.check_mode(control.mode)?;
        }
        Ok(())
    }

    /// Whether the autoencoder encodes the picture of this one.
    pub(in crate::generation) fn needs_latent(&self, control: &Control) -> bool {
        let net = self.nets.get(control.net);
        net.is_some_and(|net| net.params.conditioning_embedding_channels.is_none())
    }

    /// Loads the ControlNets that these pictures are for.
    pub(in crate::generation) fn load<'a>(
        &mut self,
        loader: &Loader,
        controls: impl Iterator<Item = &'a Control>,
    ) -> Result<()> {
        for control in controls {
            if let Some(net) = self.nets.get_mut(control.net)
                && net.model.is_none()
            {
                let checkpoint = loader.open_part(PartKind::ControlNet, &net.path)?;
                let build = |vs: tch::nn::Path| ControlNet::new(vs, &net.params);
                net.model = Some(loader.load(loader.kind, checkpoint, build)?);
            }
        }
        Ok(())
    }

    /// Gives back the memory that steps keep.
    pub(in crate::generation) fn release_workspace(&self) {
        self.nets.iter().filter_map(|net| net.model.as_ref()).for_each(|net| net.model.release_workspace());
    }

    /// Lets go of the models.
    pub(in crate::generation) fn release(&mut self) {
        self.release_workspace();
        self.nets.iter_mut().for_each(|net| net.model = None);
    }

    /// Pictures as the ControlNets read them at this width and height, `[1, L, D]` each.
    pub(in crate::generation) fn embed(
        &self,
        loader: &Loader,
        autoencoder: &Autoencoder,
        controls: &[Control],
        (width, height): (u32, u32),
    ) -> Result<Vec<Tensor>> {
        let embed = |control: &Control| {
            let net = self.net(control)?;
            let image = control.image.resize(width, height);
            let image = if control.canny { image.canny(CANNY.0, CANNY.1) } else { image };
            let pixels = image.to_tensor()?;
            let cond = match net.params().conditioning_embedding_channels {
                Some(_) => pixels.f_to_device(loader.settings.device)?.f_to_kind(loader.kind)?,
                None => autoencoder.encode_patches(loader, &pixels)?,
            };
            net.embed(&cond)
        };
        controls.iter().map(embed).collect()
    }

    fn net(&self, control: &Control) -> Result<&ControlNet> {
        let net = self.nets.get(control.net).and_then(|net| net.model.as_ref());
        net.ok_or_else(|| Error::Config("a ControlNet is not loaded".into()))?.model()
    }
}

/// What ControlNets are told in the steps of pictures that are computed together.
pub(in crate::generation) struct ControlNetInput<'a> {
    nets: Vec<(&'a ControlNet, &'a Control, Tensor)>,
    steps: usize,
}

impl<'a> ControlNetInput<'a> {
    /// `controls`: the pictures of one request; `embedded`: of each of them, those of all requests.
    pub(in crate::generation) fn new(
        controlnets: &'a ControlNets,
        controls: &'a [Control],
        embedded: &[Vec<&Tensor>],
        steps: usize,
    ) -> Result<Self> {
        let nets = controls
            .iter()
            .zip(embedded)
            .map(|(control, embedded)| Ok((controlnets.net(control)?, control, math::cat(embedded, 0)?)));
        Ok(Self { nets: nets.collect::<Result<_>>()?, steps })
    }

    /// What is added in a step, counted from 0. diffusers' pipeline reads the prompt alone here, and adds the same to the
    /// negative prompt's velocity.
    ///
    /// Source: diffusers 0.42.1, `pipelines/flux/pipeline_flux_controlnet.py` lines 1066–1134.
    pub(in crate::generation) fn residuals(
        &self,
        input: &TransformerInput,
        step: usize,
    ) -> Result<Vec<Residuals>> {
        let (input, mut all) = (input.flux1()?, Vec::new());
        for (net, control, embedded) in &self.nets {
            if control.counts_in(step, self.steps) {
                all.push(net.forward(&input, embedded, control.mode, control.strength)?);
            }
        }
        Residuals::sum(all)
    }

    /// Whether any picture is followed in a step.
    pub(in crate::generation) fn counts_in(&self, step: usize) -> bool {
        self.nets.iter().any(|(_, control, _)| control.counts_in(step, self.steps))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_in_the_steps_that_diffusers_keeps() {
        let image = Image { width: 1, height: 1, rgb: vec![0; 3] };
        let control = Control { start: 0.25, end: 0.8, ..Control::new(image) };
        let kept: Vec<usize> = (0..8).filter(|&step| control.counts_in(step, 8)).collect();
        // 1.0 - float(i / 8 < 0.25 or (i + 1) / 8 > 0.8)
        assert_eq!(kept, [2, 3, 4, 5]);
        assert!(control.check().is_ok());
        assert!(Control { start: 0.8, ..control.clone() }.check().is_err());
        assert!(Control { end: f64::NAN, ..control }.check().is_err());
    }
}
