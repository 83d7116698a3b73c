//! The conditions that a request asks for beside its prompt, checked against what the model offers: what cannot be drawn
//! is refused before it waits in the queue.

use crate::api_error::{ApiError, nearest, shorten};
use crate::capabilities::{Capabilities, NamedControlNet};
use crate::model::Model;
use crate::request::GenerationRequest;
use crate::uploads::UploadCounts;
use tch_flux::generation::Role;
use tch_flux::generation::params::{EditSettings, MAX_IMAGES, Values};
use tch_flux::models::flux1::MODES;

/// The settings of one ControlNet for one picture, without the picture.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ControlNetInput {
    /// The ControlNet's place in [`Capabilities::controlnets`].
    pub(crate) net: usize,
    pub(crate) strength: f64,
    pub(crate) mode: Option<i64>,
    pub(crate) start: f64,
    pub(crate) end: f64,
}

/// The settings of one IP-Adapter, without its pictures.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct IpAdapterInput {
    /// The IP-Adapter's place in [`Capabilities::ip_adapters`].
    pub(crate) adapter: usize,
    /// One scale for all double blocks, or one for each.
    pub(crate) scales: Vec<f64>,
}

/// The settings of one picture of Redux, without the picture.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct ReduxInput {
    pub(crate) strength: f64,
    /// The factor of the pooled text.
    pub(crate) pooled: f64,
}

/// The conditions of a request, without their pictures.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Conditioning {
    /// The role of an edit's pictures; `None` where the request is no edit.
    pub(crate) role: Option<Role>,
    /// One for each `control_image`.
    pub(crate) controlnets: Vec<ControlNetInput>,
    /// A single one has all pictures; if there are several, each has its own.
    pub(crate) ip_adapters: Vec<IpAdapterInput>,
    /// One for each `redux_image`.
    pub(crate) redux: Vec<ReduxInput>,
}

impl Model {
    /// Returns the conditions of a request, if this model can draw them. `edits`: whether the request is an edit.
    pub(crate) fn conditioning(
        &self,
        request: &GenerationRequest,
        counts: &UploadCounts,
        edits: bool,
    ) -> Result<Conditioning, ApiError> {
        let capabilities = &self.capabilities;
        let role = if edits { Some(self.edit_role(request, counts)?) } else { None };
        if let (false, Some(only)) = (edits, capabilities.only_role) {
            let with = if only == Role::Fill { "a picture and a mask" } else { "a picture" };
            let text = format!("this model draws from {with}: send them to /v1/images/edits");
            return Err(ApiError::invalid("missing_required_parameter", text).param("image"));
        }
        Ok(Conditioning {
            role,
            controlnets: capabilities.controlnet_inputs(request, counts)?,
            ip_adapters: capabilities.ip_adapter_inputs(request, counts)?,
            redux: capabilities.redux_inputs(request, counts)?,
        })
    }

    /// Returns the role of an edit's pictures.
    fn edit_role(&self, request: &GenerationRequest, counts: &UploadCounts) -> Result<Role, ApiError> {
        let only = self.capabilities.only_role;
        let EditSettings { role, .. } = request.values.edit(EditSettings::default());
        let role = role.or(only).or(self.role).unwrap_or(Role::Init);
        let name = role.name();
        let fits = only.map_or(matches!(role, Role::Init | Role::Reference), |only| only == role);
        if !fits {
            let takes = only.map_or("`start` or `reference`".into(), |only| format!("`{}`", only.name()));
            return Err(ApiError::value(
                "as",
                format!("as `{name}` this model takes no picture: it takes it as {takes}"),
            ));
        }
        let images = counts.get("image");
        let most = match role {
            Role::Reference if self.role == Some(Role::Reference) => self.images,
            Role::Reference => MAX_IMAGES,
            _ => 1,
        };
        if images == 0 {
            let text = "an edit begins with a picture: send one as `image`";
            return Err(ApiError::invalid("missing_required_parameter", text).param("image"));
        }
        if images > most {
            let text = format!("this model takes at most {most} images as `{name}`");
            return Err(ApiError::invalid("too_many_images", text).param("image"));
        }
        let mask = counts.get("mask") > 0;
        if role == Role::Fill && !mask {
            let text = "this model fills what a mask leaves transparent: send one as `mask`";
            return Err(ApiError::invalid("missing_required_parameter", text).param("mask"));
        }
        if mask && matches!(role, Role::Reference | Role::Control) {
            let text = format!("mask: a picture as `{name}` has none, all is drawn anew; leave it out");
            return Err(ApiError::value("mask", text));
        }
        request.values.check_role(role)?;
        if request.values.boolean("depth") == Some(true) && !self.capabilities.depth {
            let text =
                "depth needs a depth model, and this server has none (--depth-model): send depths as `image`";
            return Err(ApiError::value("depth", text));
        }
        Ok(role)
    }
}
impl Capabilities {
    /// Returns the settings for each picture of a ControlNet.
    fn controlnet_inputs(
        &self,
        request: &GenerationRequest,
        counts: &UploadCounts,
    ) -> Result<Vec<ControlNetInput>, ApiError> {
        let values = &request.values;
        let pictures = counts.get("control_image");
        if pictures == 0 {
            return Ok(Vec::new());
        }
        let names: Vec<&str> = self.controlnets.iter().map(|net| net.name.as_str()).collect();
        if names.is_empty() {
            let text = "control_image needs a ControlNet, and this server has none (--controlnet)";
            return Err(ApiError::value("control_image", text));
        }
        let nets = places("controlnet", &values.texts("controlnet"), &names, "control_image", pictures)?;
        let numbers = |key| Values::per_picture(key, &values.numbers(key), "control_image", pictures);
        let (strengths, starts, ends) =
            (numbers("control_strength")?, numbers("control_start")?, numbers("control_end")?);
        let modes = Values::per_picture("control_mode", &values.modes(), "control_image", pictures)?;
        let input = |i: usize| {
            let net = nets[i];
            check_mode(&self.controlnets[net], modes[i])?;
            let (start, end) = (starts[i].unwrap_or(0.0), ends[i].unwrap_or(1.0));
            Ok(ControlNetInput { net, strength: strengths[i].unwrap_or(1.0), mode: modes[i], start, end })
        };
        (0..pictures).map(input).collect()
    }

    /// Returns the settings of each IP-Adapter that is used.
    fn ip_adapter_inputs(
        &self,
        request: &GenerationRequest,
        counts: &UploadCounts,
    ) -> Result<Vec<IpAdapterInput>, ApiError> {
        let values = &request.values;
        let (pictures, negative) = (counts.get("ip_adapter_image"), counts.get("negative_ip_adapter_image"));
        if pictures == 0 {
            return Ok(Vec::new());
        }
        let names: Vec<&str> = self.ip_adapters.iter().map(|adapter| adapter.name.as_str()).collect();
        if names.is_empty() {
            let text = "ip_adapter_image needs an IP-Adapter, and this server has none (--ip-adapter)";
            return Err(ApiError::value("ip_adapter_image", text));
        }
        if negative > 0 && !request.generation.has_true_guidance() {
            let text = "negative_ip_adapter_image is for a negative_prompt with a true_cfg_scale above 1";
            return Err(ApiError::value("negative_ip_adapter_image", text));
        }
        let adapters = values.texts("ip_adapter");
        let count = if adapters.len() > 1 { pictures } else { 1 };
        let adapters = places("ip_adapter", &adapters, &names, "ip_adapter_image", count)?;
        let (scales, count) = (values.scales(), adapters.len());
        if scales.len() > 1 && scales.len() != count {
            let text = format!(
                "ip_adapter_scale has {} lists for {count} IP-Adapters: one for all, or one for each",
                scales.len()
            );
            return Err(ApiError::value("ip_adapter_scale", text));
        }
        let input = |(i, adapter): (usize, usize)| {
            let scales = scales.get(if scales.len() == 1 { 0 } else { i });
            let (scales, depth) =
                (scales.cloned().unwrap_or_else(|| vec![1.0]), self.ip_adapters[adapter].depth);
            if scales.len() != 1 && scales.len() != depth {
                let text = format!(
                    "ip_adapter_scale must be one number for all {depth} double blocks, or one for each, not {}",
                    scales.len()
                );
                return Err(ApiError::value("ip_adapter_scale", text));
            }
            Ok(IpAdapterInput { adapter, scales })
        };
        adapters.into_iter().enumerate().map(input).collect()
    }

    /// Returns the settings for each picture of Redux.
    fn redux_inputs(
        &self,
        request: &GenerationRequest,
        counts: &UploadCounts,
    ) -> Result<Vec<ReduxInput>, ApiError> {
        let values = &request.values;
        let pictures = counts.get("redux_image");
        if pictures == 0 {
            return Ok(Vec::new());
        }
        if !self.redux {
            let text = "redux_image needs Redux, and this server has none (--redux-model, --image-encoder)";
            return Err(ApiError::value("redux_image", text));
        }
        let numbers = |key| Values::per_picture(key, &values.numbers(key), "redux_image", pictures);
        let (strengths, pooled) = (numbers("prompt_embeds_scale")?, numbers("pooled_prompt_embeds_scale")?);
        let input = |(strength, pooled): (Option<f64>, Option<f64>)| ReduxInput {
            strength: strength.unwrap_or(1.0),
            pooled: pooled.unwrap_or(1.0),
        };
        Ok(strengths.into_iter().zip(pooled).map(input).collect())
    }
}

/// Returns the place of each picture's name in `all`. Without names, `all` must have one entry, which is meant.
fn places(
    field: &'static str,
    names: &[String],
    all: &[&str],
    pictures: &'static str,
    count: usize,
) -> Result<Vec<usize>, ApiError> {
    let list = || all.join(", ");
    let place = |name: Option<&String>| match name {
        None if all.len() == 1 => Ok(0),
        None => Err(ApiError::value(field, format!("{field} must be one of {}", list()))),
        Some(name) => all.iter().position(|other| other == name).ok_or_else(|| {
            let near = nearest(name, all.iter().copied());
            let hint = near.map_or(String::new(), |near| format!("; is `{near}` meant?"));
            let name = shorten(name);
            ApiError::value(field, format!("{field} must be one of {}, not `{name}`{hint}", list()))
        }),
    };
    let names: Vec<&String> = names.iter().collect();
    Values::per_picture(field, &names, pictures, count)?.into_iter().map(place).collect()
}

fn check_mode(net: &NamedControlNet, mode: Option<i64>) -> Result<(), ApiError> {
    let wrong = |text: String| Err(ApiError::value("control_mode", text));
    let name = &net.name;
    match (net.modes, mode) {
        (None, Some(_)) => wrong(format!("control_mode is for unions, and `{name}` is none: leave it out")),
        (Some(modes), None) => wrong(format!(
            "control_mode must say what the picture is to the union `{name}`: 0 to {}, or one of {}",
            modes - 1,
            MODES.join(", ")
        )),
        (Some(modes), Some(mode)) if !(0..modes).contains(&mode) => {
            wrong(format!("control_mode must be from 0 to {} for `{name}`, not {mode}", modes - 1))
        }
        _ => Ok(()),
    }
}
