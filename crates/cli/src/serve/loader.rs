//! From a server's settings to its model: opened for each device, and drawn with once.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use tch::Device;
use tch_flux::engine::{self, Engine};
use tch_flux::generation::{LoraFile, Parts, Pipeline, Role, Settings};
use tch_flux::ops::cuda;
use tch_flux_server::{Capabilities, Model};
use tracing::warn;

use super::addons::{self, Addons};
use crate::cache;
use crate::model_args::{ModelArgs, default_size};
use crate::progress::Verbosity;
use crate::redux::ReduxModelArgs;

/// What a server loads, and how.
pub(super) struct ModelLoader {
    pub(super) model: ModelArgs,
    pub(super) redux: ReduxModelArgs,
    pub(super) addons: Addons,
    pub(super) name: Option<String>,
    pub(super) aliases: Option<Vec<String>>,
    pub(super) devices: Vec<Device>,
    pub(super) loras: Vec<LoraFile>,
    pub(super) settings: Settings,
    pub(super) queue: usize,
}

impl ModelLoader {
    /// Opens the model for each device and draws once with each, so that nothing is left to be loaded.
    pub(super) fn load(self, cancelled: &AtomicBool) -> anyhow::Result<(Engine, Model)> {
        cuda::set_cache(cache::kernels());
        let verbosity = Verbosity { bars: false, warnings: true };
        let parts = self.redux.parts(self.model.parts(verbosity)?, verbosity)?;
        let open = |device: &Device| -> anyhow::Result<Pipeline> {
            let settings = Settings { device: *device, ..self.settings };
            let mut pipeline = Pipeline::open(parts.clone(), settings)?;
            for left_out in pipeline.set_loras(&self.loras)? {
                warn!(target: "tch_flux::serve", "{left_out}");
            }
            self.addons.load(&mut pipeline)?;
            pipeline.check_previews()?;
            pipeline.warnings()?.iter().for_each(|warning| warn!(target: "tch_flux::serve", "{warning}"));
            if parts.redux.is_some() || parts.image_encoder.is_some() {
                pipeline.check_vision()?;
            }
            let capabilities = Capabilities::from_pipeline(&pipeline, parts.depth.is_some());
            pipeline.generate(&addons::warm_up_request(&capabilities), &mut |_| {
                if cancelled.load(Ordering::Relaxed) {
                    ControlFlow::Break(())
                } else {
                    ControlFlow::Continue(())
                }
            })?;
            Ok(pipeline)
        };
        let pipelines = self.devices.iter().map(open).collect::<anyhow::Result<Vec<_>>>()?;
        let side = default_size(&parts.autoencoder);
        let mut model = Model::from_pipeline(&pipelines[0], &parts, self.model_name(&parts), side);
        model.devices = self.devices.clone();
        // By their names alone: where they lie is the server's own business.
        model.record.loras = self
            .loras
            .iter()
            .map(|lora| LoraFile { path: lora.path.file_name().unwrap_or_default().into(), ..*lora })
            .collect();
        self.addons.set_names(&mut model.capabilities)?;
        if model.capabilities.depth && model.capabilities.only_role != Some(Role::Control) {
            warn!(target: "tch_flux::serve", "the depth model is of no use: this model follows no pictures");
        }
        if let Some(aliases) = self.aliases {
            model.aliases = aliases;
        }
        Ok((Engine::start(pipelines, engine::Options { queue: self.queue })?, model))
    }

    /// Returns the name that clients ask for: the hub's, the folder's, or the file's.
    fn model_name(&self, parts: &Parts) -> String {
        let stem = |path: &PathBuf| path.file_stem().map(|name| name.to_string_lossy().into_owned());
        let name = match (&self.name, &self.model.model) {
            (Some(name), _) => Some(name.clone()),
            (None, Some(model)) if model.is_file() => stem(model),
            (None, Some(model)) if model.is_dir() => model
                .canonicalize()
                .ok()
                .and_then(|folder| Some(folder.file_name()?.to_string_lossy().into_owned())),
            (None, Some(model)) => {
                Some(model.to_string_lossy().split('@').next().unwrap_or_default().to_string())
            }
            (None, None) if self.model.transformer.is_none() => Some("tiny".into()),
            (None, None) => None,
        };
        name.or_else(|| stem(&parts.transformer)).unwrap_or_else(|| "flux".into())
    }
}
