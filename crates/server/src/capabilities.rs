//! What a served model offers beside drawing from a prompt.

use std::path::Path;

use tch_flux::generation::params::{Group, Parameter};
use tch_flux::generation::provenance::{ControlRecord, IpAdapterRecord};
use tch_flux::generation::{Control, IpAdapterImage, Pipeline, Request, Role};

/// What a served model can do beside drawing from a prompt.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Capabilities {
    /// The only role that a picture can have, where the model's input channels leave no other: it then draws from nothing
    /// else.
    pub only_role: Option<Role>,
    /// Whether a depth model is loaded, which estimates depth maps.
    pub depth: bool,
    /// Whether Redux and its image encoder are loaded.
    pub redux: bool,
    /// The model's ControlNets, in the order of [`Pipeline::controlnets`].
    pub controlnets: Vec<NamedControlNet>,
    /// The model's IP-Adapters, in the order of [`Pipeline::ip_adapters`].
    pub ip_adapters: Vec<NamedIpAdapter>,
}

/// A ControlNet, by the name that requests use for it.
#[derive(Debug, Clone, PartialEq)]
pub struct NamedControlNet {
    /// The name. If several have the same one, requests mean the first.
    pub name: String,
    /// The number of modes of a union; `None` for a ControlNet of one kind.
    pub modes: Option<i64>,
}

/// An IP-Adapter, by the name that requests use for it.
#[derive(Debug, Clone, PartialEq)]
pub struct NamedIpAdapter {
    /// The name. If several have the same one, requests mean the first.
    pub name: String,
    /// The number of the transformer's double blocks, each of which may have its own scale.
    pub depth: usize,
}
impl Capabilities {
    /// Returns the capabilities of a pipeline. Its ControlNets and IP-Adapters are named after their files.
    pub fn from_pipeline(pipeline: &Pipeline, depth: bool) -> Self {
        let nets = pipeline.controlnets().zip(pipeline.controlnet_paths());
        let adapters = pipeline.ip_adapters().zip(pipeline.ip_adapter_paths());
        Self {
            // A pipeline without any role would not have opened.
            only_role: pipeline.only_role().ok().flatten(),
            depth,
            redux: pipeline.check_vision().is_ok(),
            controlnets: nets
                .map(|(params, path)| NamedControlNet { name: file_name(path), modes: params.num_mode })
                .collect(),
            ip_adapters: adapters
                .map(|(params, path)| NamedIpAdapter { name: file_name(path), depth: params.depth })
                .collect(),
        }
    }

    /// Whether a field of a request has any effect with this model.
    pub(crate) fn offers(&self, field: &Parameter) -> bool {
        let takes = |roles: &[Role]| self.only_role.is_none_or(|only| roles.contains(&only));
        match (field.group, field.key) {
            (Group::Redux, _) => self.redux,
            (Group::ControlNet, "control_mode") => self.controlnets.iter().any(|net| net.modes.is_some()),
            (Group::ControlNet, _) => !self.controlnets.is_empty(),
            (Group::IpAdapter, _) => !self.ip_adapters.is_empty(),
            (Group::Picture, "canny") => self.only_role == Some(Role::Control),
            (Group::Picture, "depth") => self.only_role == Some(Role::Control) && self.depth,
            (Group::Picture, "strength") => takes(&[Role::Init]),
            (Group::Picture, "mask") => takes(&[Role::Init, Role::Fill]),
            (Group::Picture, "keep_size") => takes(&[Role::Reference]),
            _ => true,
        }
    }

    /// Whether requests may bring pictures other than the one to edit.
    pub(crate) fn takes_condition_images(&self) -> bool {
        self.redux || !self.controlnets.is_empty() || !self.ip_adapters.is_empty()
    }

    /// Returns the provenance of a request's ControlNets, for the files of its pictures.
    pub(crate) fn control_records(&self, request: &Request) -> Vec<ControlRecord> {
        let record = |control: &Control| {
            Some(ControlRecord {
                controlnet: self.controlnets.get(control.net)?.name.clone().into(),
                image: None,
                strength: control.strength,
                mode: control.mode,
                start: control.start,
                end: control.end,
                canny: control.canny,
            })
        };
        request.controls.iter().filter_map(record).collect()
    }

    /// Returns the provenance of a request's IP-Adapters, for the files of its pictures.
    pub(crate) fn ip_adapter_records(&self, request: &Request) -> Vec<IpAdapterRecord> {
        let record = |input: &IpAdapterImage| {
            Some(IpAdapterRecord {
                ip_adapter: self.ip_adapters.get(input.adapter)?.name.clone().into(),
                image_encoder: None,
                images: Vec::new(),
                negative: Vec::new(),
                scales: input.scales.clone(),
            })
        };
        request.pictured.iter().filter_map(record).collect()
    }
}
/// Returns the name of a model's file, or of its folder where the file is called as every model's is.
fn file_name(path: &Path) -> String {
    let part = |part: Option<&std::ffi::OsStr>| part.map(|name| name.to_string_lossy().into_owned());
    let stem = if path.is_dir() { part(path.file_name()) } else { part(path.file_stem()) };
    let general = |name: &String| name.starts_with("diffusion_pytorch_model") || name.starts_with("model");
    let folder = || part(path.parent().and_then(Path::file_name));
    stem.clone().filter(|name| !general(name)).or_else(folder).or(stem).unwrap_or_default()
}
