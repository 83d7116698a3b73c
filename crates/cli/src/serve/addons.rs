//! The ControlNets and IP-Adapters of a server, and the picture that loads all of them.

use std::path::{Path, PathBuf};

use anyhow::bail;
use tch_flux::generation::{
    Control, ControlPreprocess, Edit, IpAdapterImage, Pipeline, Redux, Request, Role,
};
use tch_flux::image::{Image, Mask};
use tch_flux::sampling::Schedule;
use tch_flux_server::Capabilities;

use super::config::Serve;

/// The side of the picture that is drawn so that every weight is there before the first client.
const SIDE: u32 = 64;

/// Files of ControlNets and IP-Adapters, with the names that clients have for them.
#[derive(Debug, Clone, Default)]
pub(super) struct Addons {
    controlnets: Vec<NamedFile>,
    ip_adapters: Vec<NamedFile>,
    image_encoder: Option<PathBuf>,
}

/// `NAME=PATH`, or `PATH`, which has a name in it.
#[derive(Debug, Clone, PartialEq)]
struct NamedFile {
    name: Option<String>,
    path: PathBuf,
}

impl NamedFile {
    fn parse(text: &String) -> Self {
        match text.split_once('=') {
            Some((name, path)) if !name.is_empty() && !Path::new(text).exists() => {
                Self { name: Some(name.into()), path: path.into() }
            }
            _ => Self { name: None, path: text.into() },
        }
    }
}

impl Addons {
    pub(super) fn new(serve: &Serve) -> Self {
        let named = |texts: &Option<Vec<String>>| texts.iter().flatten().map(NamedFile::parse).collect();
        Self {
            controlnets: named(&serve.controlnet),
            ip_adapters: named(&serve.ip_adapter),
            image_encoder: serve.ip_image_encoder.clone(),
        }
    }

    /// Returns the files, each with its setting.
    pub(super) fn files(&self) -> impl Iterator<Item = (&'static str, &Path)> {
        let nets = self.controlnets.iter().map(|net| ("controlnet", net.path.as_path()));
        let adapters = self.ip_adapters.iter().map(|adapter| ("ip-adapter", adapter.path.as_path()));
        let encoder = self.image_encoder.iter().map(|path| ("ip-image-encoder", path.as_path()));
        nets.chain(adapters).chain(encoder)
    }

    pub(super) fn load(&self, pipeline: &mut Pipeline) -> tch_flux::Result<()> {
        let paths = |all: &[NamedFile]| all.iter().map(|file| file.path.clone()).collect::<Vec<_>>();
        pipeline.set_controlnets(&paths(&self.controlnets))?;
        pipeline.set_ip_adapters(&paths(&self.ip_adapters), self.image_encoder.as_deref())
    }

    /// Gives each ControlNet and IP-Adapter the name that was chosen for it.
    pub(super) fn set_names(&self, capabilities: &mut Capabilities) -> anyhow::Result<()> {
        let nets = capabilities.controlnets.iter_mut().map(|net| &mut net.name);
        assign_names(&self.controlnets, nets, "controlnet")?;
        let adapters = capabilities.ip_adapters.iter_mut().map(|adapter| &mut adapter.name);
        assign_names(&self.ip_adapters, adapters, "ip-adapter")
    }
}

fn assign_names<'a>(
    chosen: &[NamedFile],
    names: impl Iterator<Item = &'a mut String>,
    flag: &str,
) -> anyhow::Result<()> {
    let mut taken: Vec<&String> = Vec::new();
    for (NamedFile { name, path }, current) in chosen.iter().zip(names) {
        if let Some(name) = name {
            current.clone_from(name);
        }
        if taken.contains(&&*current) {
            bail!(
                "{flag}: two are called {current:?}; {flag} NAME={} gives this one another name",
                path.display()
            );
        }
        taken.push(current);
    }
    Ok(())
}

/// Returns a request of one small picture, for which all is loaded that requests may ask for.
pub(super) fn warm_up_request(capabilities: &Capabilities) -> Request {
    let (side, pixels) = (SIDE, (SIDE * SIDE) as usize);
    let grey = || Image { width: side, height: side, rgb: vec![128; 3 * pixels] };
    // Of one step: not every schedule that a model's folder may have has so few.
    let mut request = Request::new("", side.into(), side.into()).steps(1).schedule(Schedule::Linear);
    if let Some(role) = capabilities.only_role {
        let mask = Mask { width: side, height: side, chosen: vec![255; pixels] };
        let follow = if capabilities.depth && role == Role::Control {
            ControlPreprocess::Depth
        } else {
            ControlPreprocess::Picture
        };
        request = request.edit(Edit {
            mask: (role == Role::Fill).then_some(mask),
            follow,
            ..Edit::new(vec![grey()])
        });
    }
    if capabilities.redux {
        request = request.redux(Redux::new(vec![grey()]));
    }
    for (net, named) in capabilities.controlnets.iter().enumerate() {
        request = request.control(Control { net, mode: named.modes.map(|_| 0), ..Control::new(grey()) });
    }
    for adapter in 0..capabilities.ip_adapters.len() {
        request = request.pictured(IpAdapterImage { adapter, ..IpAdapterImage::new(grey()) });
    }
    request
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_the_name_before_the_equals_sign() {
        let parsed = |text: &str| {
            let NamedFile { name, path } = NamedFile::parse(&text.to_string());
            (name, path.to_string_lossy().into_owned())
        };
        assert_eq!(parsed("pose=a/b.safetensors"), (Some("pose".into()), "a/b.safetensors".into()));
        assert_eq!(parsed("a/b.safetensors"), (None, "a/b.safetensors".into()));
        assert_eq!(parsed("=a"), (None, "=a".into()));
    }
}
