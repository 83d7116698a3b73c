//! The parts of a pipeline in memory: opened under their official names, built, filled, changed by LoRAs.

use std::path::{Path, PathBuf};

use tch::Kind;
use tch::nn::VarStore;

use super::{Parts, Settings};
use crate::autoencoder::{AutoEncoder, AutoEncoderParams};
use crate::checkpoint::lora::Terms;
use crate::checkpoint::{Access, Checkpoint, Contained, Family, LoadOptions};
use crate::error::{Error, Result};
use crate::flux1::{Flux1, Flux1Params};
use crate::nn::Linears;
use crate::ops::Numerics;
use crate::text::{ClipConfig, ClipText, T5Config, T5Encoder};

impl Parts {
    /// The transformer's file under the official names, and what was taken from the base.
    pub(super) fn open_transformer(&self, access: Access) -> Result<(Checkpoint, Vec<String>)> {
        let open = |path| open(path, access, "FLUX.1 transformer", |f| matches!(f, Family::Flux1 { .. }));
        let transformer = open(&self.transformer)?;
        match &self.base {
            Some(base) => Ok(transformer.filled_from(open(base)?)),
            None => Ok((transformer, Vec::new())),
        }
    }

    pub(super) fn open_autoencoder(&self, access: Access) -> Result<Checkpoint> {
        let is_one = |family: &Family| matches!(family, Family::AutoEncoder { .. });
        open(&self.autoencoder, access, "FLUX.1 autoencoder", is_one)
    }

    pub(super) fn open_clip(&self, access: Access) -> Result<Checkpoint> {
        open(&self.clip, access, "CLIP text model", |f| *f == Family::Clip)
    }

    pub(super) fn open_t5(&self, access: Access) -> Result<Checkpoint> {
        open(&self.t5, access, "T5 encoder", |f| matches!(f, Family::T5 { .. }))
    }

    pub(super) fn load_transformer(
        &self,
        settings: &Settings,
        kind: Kind,
        params: &Flux1Params,
    ) -> Result<Resident<Flux1>> {
        let (checkpoint, _) = self.open_transformer(settings.access)?;
        let checkpoint = checkpoint.widened("img_in.weight", params.in_channels);
        Resident::fill(
            settings,
            kind,
            checkpoint,
            |vs| Flux1::new(vs.root(), params),
            Some(Flux1::linears),
            Flux1::set_numerics,
        )
    }

    pub(super) fn load_clip(&self, settings: &Settings, kind: Kind) -> Result<Resident<ClipText>> {
        let checkpoint = self.open_clip(settings.access)?;
        let config = match config_beside(&self.clip) {
            Some(path) => ClipConfig::read(path)?,
            None => ClipConfig::from_shapes(|name| checkpoint.shape(name))?,
        };
        let build = |vs: &VarStore| ClipText::new(vs.root(), &config);
        Resident::fill(settings, kind, checkpoint, build, Some(ClipText::linears), ClipText::set_numerics)
    }

    pub(super) fn load_t5(&self, settings: &Settings, kind: Kind) -> Result<Resident<T5Encoder>> {
        let checkpoint = self.open_t5(settings.access)?;
        let config = match config_beside(&self.t5) {
            Some(path) => T5Config::read(path)?,
            None => T5Config::from_shapes(|name| checkpoint.shape(name))?,
        };
        let build = |vs: &VarStore| T5Encoder::new(vs.root(), &config);
        Resident::fill(settings, kind, checkpoint, build, Some(T5Encoder::linears), T5Encoder::set_numerics)
    }
}

pub(super) fn load_autoencoder(
    settings: &Settings,
    kind: Kind,
    checkpoint: Checkpoint,
) -> Result<Resident<AutoEncoder>> {
    let params = AutoEncoderParams::from_shapes(|name| checkpoint.shape(name))?;
    Resident::fill(
        settings,
        kind,
        checkpoint,
        |vs| AutoEncoder::new(vs.root(), &params),
        None,
        AutoEncoder::set_numerics,
    )
}

/// Opens a part under its official names, if the file holds one.
pub(super) fn open(
    path: &Path,
    access: Access,
    part: &str,
    is_one: impl Fn(&Family) -> bool,
) -> Result<Checkpoint> {
    let checkpoint = Checkpoint::open(path, access)?;
    let contained = checkpoint.contained();
    match contained.iter().find(|model| is_one(&model.family)) {
        Some(Contained { prefix, family }) => Ok(checkpoint.part(prefix, family)),
        None => Err(Error::Config(format!("{}: no {part}: {}", path.display(), checkpoint.family()))),
    }
}

/// A model that is loaded, with what it lies on.
#[derive(Debug)]
pub(super) struct Resident<M> {
    pub(super) model: M,
    pub(super) kind: Kind,
    pub(super) checkpoint: Checkpoint,
    vs: VarStore,
    linears: Option<fn(&M) -> &Linears>,
}

impl<M> Resident<M> {
    /// Builds a model and fills it, without gradients. Where it has linear layers, they may be kept quantised.
    pub(super) fn fill(
        settings: &Settings,
        kind: Kind,
        checkpoint: Checkpoint,
        build: impl FnOnce(&VarStore) -> Result<M>,
        linears: Option<fn(&M) -> &Linears>,
        set_numerics: fn(&M, Numerics),
    ) -> Result<Self> {
        let mut vs = VarStore::new(settings.device);
        let model = build(&vs)?;
        let keep_quantized = linears.filter(|_| settings.keep_quantized).map(|linears| linears(&model));
        checkpoint.load(&vs, LoadOptions { kind: Some(kind), keep_quantized })?;
        vs.freeze();
        set_numerics(&model, settings.numerics);
        Ok(Self { model, kind, checkpoint, vs, linears })
    }

    /// Puts LoRAs on the model, in place of those that were on it.
    pub(super) fn adapt(self, terms: &Terms) -> Result<Self> {
        if let Some(linears) = self.linears {
            terms.put_on(&self.vs, linears(&self.model))?;
        }
        Ok(self)
    }
}

/// The `config.json` in a folder of weights, or beside a file of them.
pub(super) fn config_beside(weights: &Path) -> Option<PathBuf> {
    let folder = if weights.is_dir() { weights } else { weights.parent()? };
    Some(folder.join("config.json")).filter(|path| path.is_file())
}
