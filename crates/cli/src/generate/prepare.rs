//! A call of `generate` from its flags to all that drawing needs; every error that can be told beforehand is told here.

use std::path::PathBuf;
use std::sync::Arc;

use tch::{Device, Kind};
use tch_flux::Error;
use tch_flux::generation::provenance::{
    ControlRecord, EditRecord, IpAdapterRecord, ModelRecord, Provenance, ReduxRecord,
};
use tch_flux::generation::{Pipeline, Request, Role, Settings, Weights};
use tch_flux::numerics::{Numerics, Quantize};
use tch_flux::ops::{cpu, cuda};

use super::Generate;
use super::edit_input::{EditInput, resize_notes, size_like};
use crate::device::{access, device_name, kind_name, parse_kind};
use crate::memory::MemoryReport;
use crate::model_args::default_size;
use crate::progress::Verbosity;
use crate::targets::{Input, Target};
use crate::{cache, controlnet, from_image, ip_adapter, redux};

/// All that drawing needs, checked.
pub(super) struct Prepared {
    pub(super) pipeline: Pipeline,
    pub(super) request: Request,
    pub(super) settings: Settings,
    pub(super) model: ModelRecord,
    pub(super) edit: Option<EditRecord>,
    pub(super) redux: Option<ReduxRecord>,
    pub(super) controls: Vec<ControlRecord>,
    pub(super) ip_adapters: Vec<IpAdapterRecord>,
    pub(super) weights: Vec<Weights>,
    pub(super) memory_report: Option<MemoryReport>,
    /// The files that are read.
    pub(super) inputs: Vec<Input>,
    /// The files of the pictures.
    pub(super) files: Vec<PathBuf>,
    /// All files that are written.
    pub(super) targets: Vec<Target>,
    /// The steps after which a preview is written.
    pub(super) previews: Vec<usize>,
    /// How much of an initial picture is drawn anew.
    pub(super) strength: Option<f64>,
    /// What is worth knowing, such as pictures that are read in another size.
    pub(super) remarks: Vec<String>,
    /// What may not be as its user expects.
    pub(super) warnings: Vec<String>,
}

impl Prepared {
    /// Returns all remarks and warnings.
    pub(super) fn notes(&self) -> Vec<&String> {
        self.remarks.iter().chain(&self.warnings).collect()
    }
}

impl Generate {
    /// Prepares a drawing from text, or from the pictures of an edit.
    pub(super) fn prepare(
        &self,
        edit_input: Option<EditInput>,
        verbosity: Verbosity,
    ) -> anyhow::Result<Prepared> {
        let provenance = self.provenance()?;
        if let (Some(Provenance { edit: Some(_), .. }), None) = (&provenance, &edit_input) {
            let text = "that picture was begun with another one: repeat it with `tch-flux edit --from-image`";
            return Err(Error::Request(text.into()).into());
        }
        self.threads.set();
        let mut request = self.request(provenance.as_ref())?;
        let inputs = self.inputs(edit_input.as_ref(), provenance.as_ref());
        // Before anything is fetched or opened; previews are known, and checked, once the model is.
        self.targets(&request, &[], &inputs)?;
        request.edit = edit_input.as_ref().map(EditInput::read).transpose()?.map(Arc::new);
        let mut parts = self.redux.parts(self.model.parts(verbosity)?, verbosity)?;
        let side = default_size(&parts.autoencoder);
        if provenance.is_none() {
            (request.width, request.height) = self.size((side, side));
        }
        if request.sampler.is_some() && request.schedule.is_some() {
            // Nothing is left for it to say, whatever it asks for.
            parts.scheduler = None;
        }
        let before = provenance.as_ref().and_then(|provenance| provenance.redux.clone());
        let redux = self.redux.record(&self.parameters.values, before);
        request.redux = redux.as_ref().map(redux::read_images).transpose()?.map(Arc::new);
        let settings = self.settings(provenance.as_ref())?;
        let mut pipeline = Pipeline::open(parts.clone(), settings)?;
        let before = provenance.as_ref().map(|provenance| provenance.means.loras.clone()).unwrap_or_default();
        let loras = if self.lora.is_empty() { before } else { self.lora.clone() };
        let mut warnings = pipeline.set_loras(&loras)?;
        let before = provenance.as_ref().map(|provenance| provenance.controls.clone()).unwrap_or_default();
        let controls = self.control.records(&self.parameters, before)?;
        request.controls = controlnet::load(&mut pipeline, &controls)?;
        let before = provenance.as_ref().map(|provenance| provenance.pictured.clone()).unwrap_or_default();
        let ip_adapters = self.ip_adapter.records(&self.parameters, before)?;
        request.pictured = ip_adapter::load(&mut pipeline, &ip_adapters)?;
        let (mut remarks, mut strength) = (Vec::new(), None);
        if let (Some(edit), Some(input)) = (request.edit.clone(), &edit_input) {
            let role = pipeline.role(&edit)?;
            strength = (role == Role::Init).then_some(edit.strength);
            input.values.check_role(role).map_err(Error::from)?;
            let repeated =
                provenance.as_ref().map(|provenance| (provenance.request.width, provenance.request.height));
            let max_pixels = if input.record.pad.is_some() { i64::MAX } else { 2 * side.pow(2) };
            let (width, height) = repeated.unwrap_or_else(|| size_like(&edit, role, max_pixels));
            (request.width, request.height) = self.size((width, height));
            remarks = resize_notes(&edit, role, &input.record.images, (request.width, request.height));
        }
        request.check()?;
        self.check_sizes(&request)?;
        warnings.extend(self.device_warnings(&pipeline));
        let request = pipeline.complete(&request);
        if self.parameters.values.contains("guidance") && request.guidance.is_none() {
            warnings.push("this model was not distilled for guidance: --guidance changes nothing".into());
        }
        if self.parameters.values.contains("negative_prompt")
            && request.true_cfg_scale.is_some_and(|scale| scale <= 1.0)
        {
            warnings.push("with a true guidance of 1 or less the negative prompt changes nothing".into());
        }
        let memory_report = self.memory.fit(&mut pipeline, &request)?;
        let settings = *pipeline.settings();
        let weights = pipeline.weights()?;
        warnings.extend(pipeline.warnings()?);
        let model = ModelRecord { loras, ..ModelRecord::of(&pipeline, &parts) };
        let previews = pipeline.preview_steps(&request)?;
        let (files, targets) = self.targets(&request, &previews, &inputs)?;
        if let (Some(picture), Some(provenance)) = (&self.from_image, &provenance) {
            warnings.extend(from_image::changed(picture, provenance, &model));
        }
        if self.dry_run {
            // Otherwise each picture says its own.
            warnings.extend(request.prompt_warnings());
        }
        Ok(Prepared {
            pipeline,
            request,
            settings,
            model,
            edit: edit_input.map(|input| input.record),
            redux,
            controls,
            ip_adapters,
            weights,
            memory_report,
            inputs,
            files,
            targets,
            previews,
            strength,
            remarks,
            warnings,
        })
    }

    /// Returns the size that the flags ask for; what they do not say is as given.
    fn size(&self, (width, height): (i64, i64)) -> (i64, i64) {
        let side = |key| self.parameters.values.integer(key).map(|side| side as i64);
        (side("width").unwrap_or(width), side("height").unwrap_or(height))
    }

    /// Returns the settings that the flags ask for, and without them those that a picture was drawn with.
    fn settings(&self, provenance: Option<&Provenance>) -> anyhow::Result<Settings> {
        let before = provenance.map(|provenance| &provenance.means);
        let kind = match (self.kind, before) {
            (Some(kind), _) => Some(kind.into()),
            (None, Some(before)) => parse_kind(&before.kind)?,
            (None, None) => None,
        };
        let (numerics, quantize) =
            before.map_or((Numerics::Fast, Quantize::None), |before| (before.numerics, before.quantize));
        Ok(Settings {
            device: self.device,
            kind,
            numerics: self.numerics.unwrap_or(numerics),
            quantize: self.quantize.unwrap_or(quantize),
            access: access(self.no_mmap),
            keep_text_encoders: self.keep_text_encoders,
            keep_quantized: self.keep_quantized,
            offload: self.memory.offload(),
            allow_partial_lora: self.allow_partial_lora,
            vae_tile: self.vae_tile.or_else(|| before?.vae_tile),
        })
    }

    /// Returns a warning for each thing that the device cannot do as it was asked.
    fn device_warnings(&self, pipeline: &Pipeline) -> Vec<String> {
        let mut warnings = Vec::new();
        warnings.extend(pipeline.lacking().map(|lacking| {
            let (lacking, kind) = (kind_name(lacking), kind_name(pipeline.kind()));
            format!("{} does not compute in {lacking}: {kind} is taken", device_name(self.device))
        }));
        if pipeline.settings().numerics == Numerics::Fast
            && self.device == Device::Cpu
            && pipeline.kind() == Kind::BFloat16
            && !cpu::arithmetic().bf16_products
        {
            warnings.push("this CPU has no products of bf16: these numbers are multiplied as f32".into());
        }
        cuda::set_cache(cache::kernels());
        if let Device::Cuda(index) = self.device
            && let Some(problem) = cuda::arithmetic(index).problem
        {
            warnings.push(format!("libtorch's operations run in place of kernels of our own: {problem}"));
        }
        warnings
    }
}
