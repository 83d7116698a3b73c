//! The conditions that a request asks for beside its prompt, checked against what the model offers: what cannot be drawn
//! is refused before it waits in the queue.

use crate::api_error::{ApiError, nearest, shorten};
use crate::capabilities::{Capabilities, NamedControlNet};
use crate::model::Model;
use crate::options::MAX_IMAGES;
use crate::request::fields::role_name;
use crate::request::{ControlMode, GenerationRequest};
use crate::uploads::UploadCounts;
use tch_flux::generation::{ControlPreprocess, Role};
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
        let role = request.role.or(only).or(self.role).unwrap_or(Role::Start);
        let name = role_name(role);
        let fits = only.map_or(matches!(role, Role::Start | Role::Reference), |only| only == role);
        if !fits {
            let takes = only.map_or("`start` or `reference`".into(), |only| format!("`{}`", role_name(only)));
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
        if request.keep_size && role != Role::Reference {
            let text = format!("keep_size is for a picture as `reference`, not as `{name}`");
            return Err(ApiError::value("keep_size", text));
        }
        let preprocess = match request.preprocess {
            ControlPreprocess::Picture => return Ok(role),
            ControlPreprocess::Canny => "canny",
            ControlPreprocess::Depth => "depth",
        };
        if role != Role::Control {
            let text =
                format!("{preprocess} is for models that follow a picture as `control`; this is as `{name}`");
            return Err(ApiError::value(preprocess, text));
        }
        if request.preprocess == ControlPreprocess::Depth && !self.capabilities.depth {
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
        let control = &request.control;
        let pictures = counts.get("control_image");
        if pictures == 0 {
            let dependent = [
                ("controlnet", !control.nets.is_empty()),
                ("control_mode", !control.modes.is_empty()),
                ("controlnet_conditioning_scale", !control.strengths.is_empty()),
                ("control_guidance_start", !control.starts.is_empty()),
                ("control_guidance_end", !control.ends.is_empty()),
                ("control_canny", control.canny),
            ];
            return check_has_pictures(&dependent, "control_image").map(|()| Vec::new());
        }
        let names: Vec<&str> = self.controlnets.iter().map(|net| net.name.as_str()).collect();
        if names.is_empty() {
            let text = "control_image needs a ControlNet, and this server has none (--controlnet)";
            return Err(ApiError::value("control_image", text));
        }
        let per_image = PerImage { images: "control_image", count: pictures };
        let nets = per_image.places("controlnet", &control.nets, &names)?;
        let strengths = per_image.pick("controlnet_conditioning_scale", &control.strengths)?;
        let starts = per_image.pick("control_guidance_start", &control.starts)?;
        let ends = per_image.pick("control_guidance_end", &control.ends)?;
        let modes = per_image.pick("control_mode", &control.modes)?;
        let input = |i: usize| {
            let net = nets[i];
            let (start, end) = (starts[i].unwrap_or(0.0), ends[i].unwrap_or(1.0));
            if start >= end {
                let text = format!("control_guidance_end {end} must be above control_guidance_start {start}");
                return Err(ApiError::value("control_guidance_end", text));
            }
            let mode = modes[i].map(ControlMode::number);
            check_mode(&self.controlnets[net], mode)?;
            Ok(ControlNetInput { net, strength: strengths[i].unwrap_or(1.0), mode, start, end })
        };
        (0..pictures).map(input).collect()
    }

    /// Returns the settings of each IP-Adapter that is used.
    fn ip_adapter_inputs(
        &self,
        request: &GenerationRequest,
        counts: &UploadCounts,
    ) -> Result<Vec<IpAdapterInput>, ApiError> {
        let fields = &request.ip_adapter;
        let (pictures, negative) = (counts.get("ip_adapter_image"), counts.get("negative_ip_adapter_image"));
        if pictures == 0 {
            let dependent = [
                ("ip_adapter", !fields.adapters.is_empty()),
                ("negative_ip_adapter_image", negative > 0),
                ("ip_adapter_scale", !fields.scales.is_empty()),
            ];
            return check_has_pictures(&dependent, "ip_adapter_image").map(|()| Vec::new());
        }
        let names: Vec<&str> = self.ip_adapters.iter().map(|adapter| adapter.name.as_str()).collect();
        if names.is_empty() {
            let text = "ip_adapter_image needs an IP-Adapter, and this server has none (--ip-adapter)";
            return Err(ApiError::value("ip_adapter_image", text));
        }
        if negative > 0 && !request.uses_true_cfg() {
            let text = "negative_ip_adapter_image is for a negative_prompt with a true_cfg_scale above 1";
            return Err(ApiError::value("negative_ip_adapter_image", text));
        }
        let adapters = match fields.adapters.len() {
            0 | 1 => PerImage { images: "ip_adapter_image", count: 1 }.places(
                "ip_adapter",
                &fields.adapters,
                &names,
            )?,
            _ => PerImage { images: "ip_adapter_image", count: pictures }.places(
                "ip_adapter",
                &fields.adapters,
                &names,
            )?,
        };
        let count = adapters.len();
        if fields.scales.len() > 1 && fields.scales.len() != count {
            let text = format!(
                "ip_adapter_scale has {} lists for {count} IP-Adapters: one for all, or one for each",
                fields.scales.len()
            );
            return Err(ApiError::value("ip_adapter_scale", text));
        }
        let input = |(i, adapter): (usize, usize)| {
            let scales = fields.scales.get(if fields.scales.len() == 1 { 0 } else { i });
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
        let fields = &request.redux;
        let pictures = counts.get("redux_image");
        if pictures == 0 {
            let dependent = [
                ("prompt_embeds_scale", !fields.strengths.is_empty()),
                ("pooled_prompt_embeds_scale", !fields.pooled.is_empty()),
                ("redux_mix", fields.mix.is_some()),
                ("redux_without_text", fields.without_text),
            ];
            return check_has_pictures(&dependent, "redux_image").map(|()| Vec::new());
        }
        if !self.redux {
            let text = "redux_image needs Redux, and this server has none (--redux-model, --image-encoder)";
            return Err(ApiError::value("redux_image", text));
        }
        let per_image = PerImage { images: "redux_image", count: pictures };
        let strengths = per_image.pick("prompt_embeds_scale", &fields.strengths)?;
        let pooled = per_image.pick("pooled_prompt_embeds_scale", &fields.pooled)?;
        let input = |(strength, pooled): (Option<f64>, Option<f64>)| ReduxInput {
            strength: strength.unwrap_or(1.0),
            pooled: pooled.unwrap_or(1.0),
        };
        Ok(strengths.into_iter().zip(pooled).map(input).collect())
    }
}

/// Reads fields that have one value for all pictures of a field, or one for each.
struct PerImage {
    /// The name of the pictures' field.
    images: &'static str,
    count: usize,
}

impl PerImage {
    /// Returns the value of each picture: the one for all, its own, or none.
    fn pick<T: Copy>(&self, name: &'static str, values: &[T]) -> Result<Vec<Option<T>>, ApiError> {
        if values.len() > 1 && values.len() != self.count {
            let Self { images, count } = self;
            let text = format!(
                "{name} has {} values for {count} {images}: one for all, or one for each",
                values.len()
            );
            return Err(ApiError::value(name, text));
        }
        Ok((0..self.count).map(|i| values.get(if values.len() == 1 { 0 } else { i }).copied()).collect())
    }

    /// Returns the place of each picture's name in `all`. Without names, `all` must have one entry, which is meant.
    fn places(&self, field: &'static str, names: &[String], all: &[&str]) -> Result<Vec<usize>, ApiError> {
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
        self.pick(field, &names)?.into_iter().map(place).collect()
    }
}

/// Refuses fields that are about pictures where no picture came.
fn check_has_pictures(fields: &[(&'static str, bool)], pictures: &str) -> Result<(), ApiError> {
    match fields.iter().find(|(_, is_given)| *is_given) {
        Some((name, _)) => {
            Err(ApiError::value(name, format!("{name} is about pictures: send one as `{pictures}`")))
        }
        None => Ok(()),
    }
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
