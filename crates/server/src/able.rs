//! What a served model can be asked beside a prompt, and whether a request asks for that: so that what cannot be drawn is
//! refused before it waits.

use std::path::Path;

use super::asked::{Asked, Mode};
use super::edits::MAX_IMAGES;
use super::fields::nearest;
use super::models::Model;
use super::pictures::Counts;
use super::problem::Problem;
use super::shape::shorten;
use tch_flux::generation::provenance::{ControlRecord, IpAdapterRecord};
use tch_flux::generation::{ControlPreprocess, Pipeline, Request, Role};
use tch_flux::models::flux1::MODES;

/// What a served model can be asked beside a prompt.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Abilities {
    /// What a picture must be to it, where its input channels leave one role alone: it then draws from nothing else.
    pub only_role: Option<Role>,
    /// Whether a depth model says how far away pixels are.
    pub depth: bool,
    /// Whether Redux looks at pictures.
    pub redux: bool,
    /// Its ControlNets, in the order of [`Pipeline::controlnets`].
    pub controlnets: Vec<NamedControlNet>,
    /// Its IP-Adapters, in the order of [`Pipeline::ip_adapters`].
    pub ip_adapters: Vec<NamedIpAdapter>,
}

/// A ControlNet by the name that requests have for it.
#[derive(Debug, Clone, PartialEq)]
pub struct NamedControlNet {
    /// Of several of one name the first is meant.
    pub name: String,
    /// Modes of a union.
    pub modes: Option<i64>,
}

/// An IP-Adapter by the name that requests have for it.
#[derive(Debug, Clone, PartialEq)]
pub struct NamedIpAdapter {
    /// Of several of one name the first is meant.
    pub name: String,
    /// The transformer's double blocks, each of which may have a strength of its own.
    pub depth: usize,
}

/// A picture that a ControlNet is to follow, apart from the picture.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Led {
    pub(super) net: usize,
    pub(super) strength: f64,
    pub(super) mode: Option<i64>,
    pub(super) start: f64,
    pub(super) end: f64,
}

/// What a request asks for beside its prompt, apart from its pictures.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Plan {
    /// Of an edit.
    pub(super) role: Option<Role>,
    /// One for each picture that a ControlNet follows.
    pub(super) led: Vec<Led>,
    /// The IP-Adapters, and the strengths of each. One has all pictures; of several, each has its own.
    pub(super) liked: Vec<(usize, Vec<f64>)>,
    /// Strength and multiple of the pooled text of each picture of Redux.
    pub(super) seen: Vec<(f64, f64)>,
}

impl Abilities {
    /// Those of a pipeline with what was put on it. ControlNets and IP-Adapters have the names of their files.
    pub fn of(pipeline: &Pipeline, depth: bool) -> Self {
        let nets = pipeline.controlnets().zip(pipeline.controlnet_paths());
        let adapters = pipeline.ip_adapters().zip(pipeline.ip_adapter_paths());
        Self {
            // A pipeline of no role at all is none that opens.
            only_role: pipeline.only_role().ok().flatten(),
            depth,
            redux: pipeline.check_vision().is_ok(),
            controlnets: nets
                .map(|(params, path)| NamedControlNet { name: name_of(path), modes: params.num_mode })
                .collect(),
            ip_adapters: adapters
                .map(|(params, path)| NamedIpAdapter { name: name_of(path), depth: params.depth })
                .collect(),
        }
    }

    /// Whether a request can have any use of this field.
    pub(super) fn offers(&self, field: &str) -> bool {
        let takes = |roles: &[Role]| self.only_role.is_none_or(|only| roles.contains(&only));
        match field {
            "redux_image"
            | "prompt_embeds_scale"
            | "pooled_prompt_embeds_scale"
            | "redux_mix"
            | "redux_without_text" => self.redux,
            "control_mode" => self.controlnets.iter().any(|net| net.modes.is_some()),
            "controlnet"
            | "control_image"
            | "controlnet_conditioning_scale"
            | "control_guidance_start"
            | "control_guidance_end"
            | "control_canny" => !self.controlnets.is_empty(),
            "ip_adapter" | "ip_adapter_image" | "negative_ip_adapter_image" | "ip_adapter_scale" => {
                !self.ip_adapters.is_empty()
            }
            "canny" => self.only_role == Some(Role::Control),
            "depth" => self.only_role == Some(Role::Control) && self.depth,
            "strength" => takes(&[Role::Start]),
            "mask" => takes(&[Role::Start, Role::Fill]),
            "keep_size" => takes(&[Role::Reference]),
            _ => true,
        }
    }

    /// Whether there is anything that reads pictures beside an edit's own.
    pub(super) fn reads_pictures(&self) -> bool {
        self.redux || !self.controlnets.is_empty() || !self.ip_adapters.is_empty()
    }

    /// What the file of a picture says of its ControlNets.
    pub(super) fn followed(&self, request: &Request) -> Vec<ControlRecord> {
        let followed = |control: &tch_flux::generation::Control| {
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
        request.controls.iter().filter_map(followed).collect()
    }

    /// What it says of its IP-Adapters.
    pub(super) fn liked(&self, request: &Request) -> Vec<IpAdapterRecord> {
        let liked = |pictured: &tch_flux::generation::IpAdapterImage| {
            Some(IpAdapterRecord {
                ip_adapter: self.ip_adapters.get(pictured.adapter)?.name.clone().into(),
                image_encoder: None,
                images: Vec::new(),
                negative: Vec::new(),
                scales: pictured.scales.clone(),
            })
        };
        request.pictured.iter().filter_map(liked).collect()
    }
}

impl Model {
    /// What is asked for, where this model can be asked for it. `edits`: whether pictures are begun with.
    pub(super) fn plan(&self, asked: &Asked, counts: &Counts, edits: bool) -> Result<Plan, Problem> {
        let able = &self.able;
        let role = if edits { Some(self.role_of(asked, counts)?) } else { None };
        if let (false, Some(only)) = (edits, able.only_role) {
            let with = if only == Role::Fill { "a picture and a mask" } else { "a picture" };
            let text = format!("this model draws from {with}: send them to /v1/images/edits");
            return Err(Problem::invalid("missing_required_parameter", text).param("image"));
        }
        Ok(Plan {
            role,
            led: able.led(asked, counts)?,
            liked: able.likes(asked, counts)?,
            seen: able.looks(asked, counts)?,
        })
    }

    /// What the pictures of an edit are.
    fn role_of(&self, asked: &Asked, counts: &Counts) -> Result<Role, Problem> {
        let only = self.able.only_role;
        let role = asked.role.or(only).or(self.role).unwrap_or(Role::Start);
        let name = role_name(role);
        let fits = only.map_or(matches!(role, Role::Start | Role::Reference), |only| only == role);
        if !fits {
            let takes = only.map_or("`start` or `reference`".into(), |only| format!("`{}`", role_name(only)));
            return Err(Problem::value(
                "as",
                format!("as `{name}` this model takes no picture: it takes it as {takes}"),
            ));
        }
        let images = counts.of("image");
        let most = match role {
            Role::Reference if self.role == Some(Role::Reference) => self.images,
            Role::Reference => MAX_IMAGES,
            _ => 1,
        };
        if images == 0 {
            let text = "an edit begins with a picture: send one as `image`";
            return Err(Problem::invalid("missing_required_parameter", text).param("image"));
        }
        if images > most {
            let text = format!("this model takes at most {most} images as `{name}`");
            return Err(Problem::invalid("too_many_images", text).param("image"));
        }
        let mask = counts.of("mask") > 0;
        if role == Role::Fill && !mask {
            let text = "this model fills what a mask leaves transparent: send one as `mask`";
            return Err(Problem::invalid("missing_required_parameter", text).param("mask"));
        }
        if mask && matches!(role, Role::Reference | Role::Control) {
            let text = format!("mask: a picture as `{name}` has none, all is drawn anew; leave it out");
            return Err(Problem::value("mask", text));
        }
        if asked.keep_size && role != Role::Reference {
            let text = format!("keep_size is for a picture as `reference`, not as `{name}`");
            return Err(Problem::value("keep_size", text));
        }
        let follow = match asked.follow {
            ControlPreprocess::Picture => return Ok(role),
            ControlPreprocess::Canny => "canny",
            ControlPreprocess::Depth => "depth",
        };
        if role != Role::Control {
            let text =
                format!("{follow} is for models that follow a picture as `control`; this is as `{name}`");
            return Err(Problem::value(follow, text));
        }
        if asked.follow == ControlPreprocess::Depth && !self.able.depth {
            let text =
                "depth needs a depth model, and this server has none (--depth-model): send depths as `image`";
            return Err(Problem::value("depth", text));
        }
        Ok(role)
    }
}

impl Abilities {
    /// One for each picture that a ControlNet follows.
    fn led(&self, asked: &Asked, counts: &Counts) -> Result<Vec<Led>, Problem> {
        let control = &asked.control;
        let pictures = counts.of("control_image");
        if pictures == 0 {
            let said = [
                ("controlnet", !control.nets.is_empty()),
                ("control_mode", !control.modes.is_empty()),
                ("controlnet_conditioning_scale", !control.strengths.is_empty()),
                ("control_guidance_start", !control.starts.is_empty()),
                ("control_guidance_end", !control.ends.is_empty()),
                ("control_canny", control.canny),
            ];
            return needs_pictures(&said, "control_image").map(|()| Vec::new());
        }
        let names: Vec<&str> = self.controlnets.iter().map(|net| net.name.as_str()).collect();
        if names.is_empty() {
            let text = "control_image needs a ControlNet, and this server has none (--controlnet)";
            return Err(Problem::value("control_image", text));
        }
        let each = Each { of: "control_image", count: pictures };
        let nets = each.named("controlnet", &control.nets, &names)?;
        let strengths = each.pick("controlnet_conditioning_scale", &control.strengths)?;
        let starts = each.pick("control_guidance_start", &control.starts)?;
        let ends = each.pick("control_guidance_end", &control.ends)?;
        let modes = each.pick("control_mode", &control.modes)?;
        let led = |i: usize| {
            let net = nets[i];
            let (start, end) = (starts[i].unwrap_or(0.0), ends[i].unwrap_or(1.0));
            if start >= end {
                let text = format!("control_guidance_end {end} must be above control_guidance_start {start}");
                return Err(Problem::value("control_guidance_end", text));
            }
            let mode = modes[i].map(Mode::number);
            check_mode(&self.controlnets[net], mode)?;
            Ok(Led { net, strength: strengths[i].unwrap_or(1.0), mode, start, end })
        };
        (0..pictures).map(led).collect()
    }

    /// The IP-Adapters that are asked for, and their strengths.
    fn likes(&self, asked: &Asked, counts: &Counts) -> Result<Vec<(usize, Vec<f64>)>, Problem> {
        let like = &asked.like;
        let (pictures, negative) = (counts.of("ip_adapter_image"), counts.of("negative_ip_adapter_image"));
        if pictures == 0 {
            let said = [
                ("ip_adapter", !like.adapters.is_empty()),
                ("negative_ip_adapter_image", negative > 0),
                ("ip_adapter_scale", !like.scales.is_empty()),
            ];
            return needs_pictures(&said, "ip_adapter_image").map(|()| Vec::new());
        }
        let names: Vec<&str> = self.ip_adapters.iter().map(|adapter| adapter.name.as_str()).collect();
        if names.is_empty() {
            let text = "ip_adapter_image needs an IP-Adapter, and this server has none (--ip-adapter)";
            return Err(Problem::value("ip_adapter_image", text));
        }
        if negative > 0 && !asked.is_led_away() {
            let text = "negative_ip_adapter_image is for a negative_prompt with a true_cfg_scale above 1";
            return Err(Problem::value("negative_ip_adapter_image", text));
        }
        let adapters = match like.adapters.len() {
            0 | 1 => Each { of: "ip_adapter_image", count: 1 }.named("ip_adapter", &like.adapters, &names)?,
            _ => Each { of: "ip_adapter_image", count: pictures }.named(
                "ip_adapter",
                &like.adapters,
                &names,
            )?,
        };
        let count = adapters.len();
        if like.scales.len() > 1 && like.scales.len() != count {
            let text = format!(
                "ip_adapter_scale has {} lists for {count} IP-Adapters: one for all, or one for each",
                like.scales.len()
            );
            return Err(Problem::value("ip_adapter_scale", text));
        }
        let liked = |(i, adapter): (usize, usize)| {
            let scales = like.scales.get(if like.scales.len() == 1 { 0 } else { i });
            let (scales, depth) =
                (scales.cloned().unwrap_or_else(|| vec![1.0]), self.ip_adapters[adapter].depth);
            if scales.len() != 1 && scales.len() != depth {
                let text = format!(
                    "ip_adapter_scale must be one number for all {depth} double blocks, or one for each, not {}",
                    scales.len()
                );
                return Err(Problem::value("ip_adapter_scale", text));
            }
            Ok((adapter, scales))
        };
        adapters.into_iter().enumerate().map(liked).collect()
    }

    /// Strength and multiple of the pooled text of each picture of Redux.
    fn looks(&self, asked: &Asked, counts: &Counts) -> Result<Vec<(f64, f64)>, Problem> {
        let look = &asked.look;
        let pictures = counts.of("redux_image");
        if pictures == 0 {
            let said = [
                ("prompt_embeds_scale", !look.strengths.is_empty()),
                ("pooled_prompt_embeds_scale", !look.pooled.is_empty()),
                ("redux_mix", look.mix.is_some()),
                ("redux_without_text", look.without_text),
            ];
            return needs_pictures(&said, "redux_image").map(|()| Vec::new());
        }
        if !self.redux {
            let text = "redux_image needs Redux, and this server has none (--redux-model, --image-encoder)";
            return Err(Problem::value("redux_image", text));
        }
        let each = Each { of: "redux_image", count: pictures };
        let strengths = each.pick("prompt_embeds_scale", &look.strengths)?;
        let pooled = each.pick("pooled_prompt_embeds_scale", &look.pooled)?;
        let number = |x: Option<f64>| x.unwrap_or(1.0);
        Ok(strengths.into_iter().zip(pooled).map(|(s, p)| (number(s), number(p))).collect())
    }
}

/// Values for each of some pictures.
struct Each {
    /// The field of the pictures.
    of: &'static str,
    count: usize,
}

impl Each {
    /// The one for all, that of each, or none.
    fn pick<T: Copy>(&self, name: &'static str, values: &[T]) -> Result<Vec<Option<T>>, Problem> {
        if values.len() > 1 && values.len() != self.count {
            let Self { of, count } = self;
            let text =
                format!("{name} has {} values for {count} {of}: one for all, or one for each", values.len());
            return Err(Problem::value(name, text));
        }
        Ok((0..self.count).map(|i| values.get(if values.len() == 1 { 0 } else { i }).copied()).collect())
    }

    /// The places of these names; without any, the only one that there is.
    fn named(&self, field: &'static str, names: &[String], all: &[&str]) -> Result<Vec<usize>, Problem> {
        let list = || all.join(", ");
        let place = |name: Option<&String>| match name {
            None if all.len() == 1 => Ok(0),
            None => Err(Problem::value(field, format!("{field} must be one of {}", list()))),
            Some(name) => all.iter().position(|other| other == name).ok_or_else(|| {
                let near = nearest(name, all.iter().copied());
                let hint = near.map_or(String::new(), |near| format!("; is `{near}` meant?"));
                let name = shorten(name);
                Problem::value(field, format!("{field} must be one of {}, not `{name}`{hint}", list()))
            }),
        };
        let names: Vec<&String> = names.iter().collect();
        self.pick(field, &names)?.into_iter().map(place).collect()
    }
}

/// Whether the fields that are said have the pictures that they are about.
fn needs_pictures(said: &[(&'static str, bool)], pictures: &str) -> Result<(), Problem> {
    match said.iter().find(|(_, said)| *said) {
        Some((name, _)) => {
            Err(Problem::value(name, format!("{name} is about pictures: send one as `{pictures}`")))
        }
        None => Ok(()),
    }
}

fn check_mode(net: &NamedControlNet, mode: Option<i64>) -> Result<(), Problem> {
    let wrong = |text: String| Err(Problem::value("control_mode", text));
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

/// The word for a role, as requests have it.
pub(super) fn role_name(role: Role) -> &'static str {
    ROLES[match role {
        Role::Start => 0,
        Role::Reference => 1,
        Role::Fill => 2,
        Role::Control => 3,
    }]
}

/// All of them.
pub(super) const ROLES: [&str; 4] = ["start", "reference", "fill", "control"];

/// The name of a file's model: the file's, or where that is every model's, the folder's.
fn name_of(path: &Path) -> String {
    let part = |part: Option<&std::ffi::OsStr>| part.map(|name| name.to_string_lossy().into_owned());
    let own = if path.is_dir() { part(path.file_name()) } else { part(path.file_stem()) };
    let general = |name: &String| name.starts_with("diffusion_pytorch_model") || name.starts_with("model");
    let folder = || part(path.parent().and_then(Path::file_name));
    own.clone().filter(|name| !general(name)).or_else(folder).or(own).unwrap_or_default()
}
