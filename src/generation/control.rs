//! Pictures that ControlNets follow.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tch::{Kind, Tensor};

use super::edit::CANNY;
use super::resident::{self, Resident};
use super::{Pipeline, Request, Settings, Weights, configs};
use crate::checkpoint::{Access, Checkpoint, Family};
use crate::error::{Error, ParameterProblem, Result};
use crate::image::Image;
use crate::math;
use crate::models::Model;
use crate::models::flux1::{ControlNet, ControlNetParams, Flux1Input, Residuals};

/// A picture that a ControlNet follows.
#[derive(Debug, Clone, PartialEq)]
pub struct Control {
    /// Which of the pipeline's ControlNets: a place in what [`Pipeline::set_controlnets`] was given. Several pictures may
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
    /// ControlRecord by the first ControlNet, in full, in every step.
    pub fn new(image: Image) -> Self {
        Self { net: 0, image: Arc::new(image), strength: 1.0, mode: None, start: 0.0, end: 1.0, canny: false }
    }

    pub(super) fn check(&self) -> Result<()> {
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
    pub(super) fn shape(&self) -> (usize, f64, Option<i64>, f64, f64) {
        (self.net, self.strength, self.mode, self.start, self.end)
    }
}

/// A ControlNet that is put on.
#[derive(Debug)]
pub(super) struct Net {
    path: PathBuf,
    params: ControlNetParams,
    model: Option<Resident<ControlNet>>,
}

impl Net {
    /// Gives back the memory that its steps keep, and where it is asked, the model.
    pub(super) fn release(&mut self, model: bool) {
        self.model.iter().for_each(|resident| resident.model.release_workspace());
        if model {
            self.model = None;
        }
    }
}

impl Pipeline {
    /// Puts these ControlNets on, in place of those that were: a file, an index or a folder each, in diffusers' layout
    /// (InstantX', Shakker's) or in XLabs'. Headers are read; the weights are loaded when a request first asks for them,
    /// and stay.
    ///
    /// # Errors
    /// What is wrong with the files; [`Error::Config`] for one that is no ControlNet, or none of this transformer. The
    /// ControlNets from before then stay.
    pub fn set_controlnets(&mut self, paths: &[PathBuf]) -> Result<()> {
        let mut kept = std::mem::take(&mut self.controlnets);
        let opened = paths.iter().map(|path| self.open_net(path)).collect::<Result<Vec<_>>>();
        match opened {
            Ok(mut nets) => {
                for net in &mut nets {
                    // What is there already is not loaded again.
                    let before = kept.iter_mut().find(|kept| kept.path == net.path);
                    net.model = before.and_then(|before| before.model.take());
                }
                self.controlnets = nets;
                self.owned.take();
                Ok(())
            }
            Err(error) => {
                self.controlnets = kept;
                Err(error)
            }
        }
    }

    /// The sizes of the ControlNets.
    pub fn controlnets(&self) -> impl Iterator<Item = &ControlNetParams> {
        self.controlnets.iter().map(|net| &net.params)
    }

    /// Where the ControlNets lie, in the order of [`Pipeline::controlnets`].
    pub fn controlnet_paths(&self) -> impl Iterator<Item = &Path> {
        self.controlnets.iter().map(|net| net.path.as_path())
    }

    fn open_net(&self, path: &Path) -> Result<Net> {
        let checkpoint = open(path, self.settings.access)?;
        let params = configs::controlnet(path, &checkpoint)
            .and_then(|(params, _)| params.check_fits(&self.params).map(|()| params));
        let params = params.map_err(|error| match error {
            Error::Config(problem) => Error::Config(format!("{}: {problem}", path.display())),
            other => other,
        })?;
        Ok(Net { path: path.to_path_buf(), params, model: None })
    }

    /// Whether a request's pictures are for ControlNets that are there, with modes that they have.
    pub(super) fn check_controls(&self, request: &Request) -> Result<()> {
        for control in &request.controls {
            let Some(net) = self.controlnets.get(control.net) else {
                let count = self.controlnets.len();
                let text = format!("there is no ControlNet of number {}: {count} are put on", control.net);
                return Err(Error::Request(text));
            };
            net.params.check_mode(control.mode)?;
        }
        Ok(())
    }

    /// Whether the autoencoder encodes any of a request's pictures.
    pub(super) fn encodes(&self, request: &Request) -> bool {
        let hint = |net: &Net| net.params.conditioning_embedding_channels.is_some();
        let encodes = |i: usize| self.controlnets.get(i).is_some_and(|net| !hint(net));
        request.edit.is_some() || request.controls.iter().any(|control| encodes(control.net))
    }

    /// Loads the ControlNets that these pictures are for.
    pub(super) fn load_controlnets<'a>(&mut self, controls: impl Iterator<Item = &'a Control>) -> Result<()> {
        for control in controls {
            if let Some(net) = self.controlnets.get_mut(control.net)
                && net.model.is_none()
            {
                net.model = Some(load(&net.path, &self.settings, self.kind, &net.params)?);
            }
        }
        Ok(())
    }

    /// A request's pictures as its ControlNets read them, `[1, L, D]` each.
    pub(super) fn embedded_controls(&self, request: &Request) -> Result<Vec<Tensor>> {
        let (width, height) = (request.width as u32, request.height as u32);
        let embedded = |control: &Control| {
            let net = self.net(control)?;
            let image = control.image.resize(width, height);
            let image = if control.canny { image.canny(CANNY.0, CANNY.1) } else { image };
            let pixels = image.to_tensor()?;
            let cond = match net.params().conditioning_embedding_channels {
                Some(_) => pixels.f_to_device(self.settings.device)?.f_to_kind(self.kind)?,
                None => self.patches(&self.encode_picture(&pixels)?)?,
            };
            net.embed(&cond)
        };
        request.controls.iter().map(embedded).collect()
    }

    fn net(&self, control: &Control) -> Result<&ControlNet> {
        let net = self.controlnets.get(control.net).and_then(|net| net.model.as_ref());
        let net = net.ok_or_else(|| Error::Config("a ControlNet is not loaded".into()))?;
        net.checkpoint.check_unchanged()?;
        Ok(&net.model)
    }

    /// The files of the ControlNets.
    pub(super) fn open_controlnets(&self) -> Result<Vec<Checkpoint>> {
        self.controlnets.iter().map(|net| open(&net.path, self.settings.access)).collect()
    }

    /// What becomes of the ControlNets' weights.
    pub(super) fn control_weights(&self) -> Result<Vec<Weights>> {
        let keep = self.settings.keep_quantized;
        let weights = |net: &Checkpoint| Weights::of("ControlNet", net, self.kind, self.kind, keep);
        Ok(self.open_controlnets()?.iter().map(weights).collect())
    }

    /// Which of the ControlNets are in memory.
    pub(super) fn resident_controlnets(&self) -> impl Iterator<Item = bool> {
        self.controlnets.iter().map(|net| net.model.is_some())
    }
}

/// What ControlNets are told in the steps of pictures that are computed together.
pub(super) struct ControlNetInput<'a> {
    nets: Vec<(&'a ControlNet, &'a Control, Tensor)>,
    steps: usize,
}

impl<'a> ControlNetInput<'a> {
    /// `controls`: the pictures of one request; `embedded`: of each of them, those of all requests.
    pub(super) fn new(
        pipeline: &'a Pipeline,
        controls: &'a [Control],
        embedded: &[Vec<&Tensor>],
        steps: usize,
    ) -> Result<Self> {
        let nets = controls
            .iter()
            .zip(embedded)
            .map(|(control, embedded)| Ok((pipeline.net(control)?, control, math::cat(embedded, 0)?)));
        Ok(Self { nets: nets.collect::<Result<_>>()?, steps })
    }

    /// What is added in a step, counted from 0. diffusers' pipeline reads the prompt alone here, and adds the same to the
    /// negative prompt's velocity.
    ///
    /// Source: diffusers 0.42.1, `pipelines/flux/pipeline_flux_controlnet.py` lines 1066–1134.
    pub(super) fn residuals(&self, input: &Flux1Input, step: usize) -> Result<Vec<Residuals>> {
        let mut all = Vec::new();
        for (net, control, embedded) in &self.nets {
            if control.counts_in(step, self.steps) {
                all.push(net.forward(input, embedded, control.mode, control.strength)?);
            }
        }
        Residuals::sum(all)
    }

    /// Whether any picture is followed in a step.
    pub(super) fn counts_in(&self, step: usize) -> bool {
        self.nets.iter().any(|(_, control, _)| control.counts_in(step, self.steps))
    }
}

fn open(path: &Path, access: Access) -> Result<Checkpoint> {
    resident::open(path, access, resident::CONTROLNET, |f| matches!(f, Family::ControlNet { .. }))
}

fn load(
    path: &Path,
    settings: &Settings,
    kind: Kind,
    params: &ControlNetParams,
) -> Result<Resident<ControlNet>> {
    let checkpoint = open(path, settings.access)?;
    Resident::load(settings, kind, checkpoint, |vs| ControlNet::new(vs, params))
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
