//! What the keys of a LoRA file mean, whoever wrote it: prefix, module, and which of an update's matrices.

use std::collections::BTreeMap;
use std::fmt;

use super::modules::find;
use super::target::{Component, Holder, Target};

/// Whose way of naming a file follows. For display: nothing is decided by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[non_exhaustive]
pub enum Maker {
    /// kohya's sd-scripts.
    Kohya,
    /// diffusers and peft.
    Diffusers,
    /// fal's trainers.
    Fal,
    /// ai-toolkit.
    AiToolkit,
    /// ComfyUI.
    ComfyUi,
    /// OneTrainer.
    OneTrainer,
    /// SimpleTuner, through LyCORIS.
    SimpleTuner,
    /// XLabs.
    XLabs,
    /// Black Forest Labs.
    Official,
}

/// One of the tensors that make up a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// LoRA's first matrix.
    Down,
    /// LoRA's second matrix.
    Up,
    /// The bias of the second.
    UpBias,
    /// What the rank divides.
    Alpha,
    /// DoRA's lengths.
    Magnitude,
    /// A whole difference.
    Diff,
    /// A whole difference of the bias.
    DiffBias,
    /// A whole parameter.
    Set,
    /// The shape of the changed weight.
    Shape,
    /// `hada_w1_a` …, in LyCORIS's spelling.
    Hada(&'static str),
    /// `lokr_w1` …, in LyCORIS's spelling.
    Lokr(&'static str),
    /// The core between the two matrices of a convolution.
    Core,
}

/// The keys of one module, as one maker spells it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    /// Where they go.
    pub target: Target,
    /// The keys.
    pub parts: BTreeMap<Part, String>,
}

/// The keys of a file, sorted by what they mean.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Names {
    /// By the module's name in the file.
    pub groups: BTreeMap<String, Group>,
    /// Keys that mean nothing here.
    pub unknown: Vec<String>,
    /// Whose names most of them are.
    pub maker: Option<Maker>,
}

/// Sorts the keys of a LoRA file. Never fails: what is not understood is in [`Names::unknown`].
pub fn parse_names<'a>(names: impl IntoIterator<Item = &'a str>) -> Names {
    let mut sorted = Names::default();
    let mut makers: BTreeMap<Maker, usize> = BTreeMap::new();
    for name in names {
        let placed = split(name).and_then(|(module, part)| {
            let group = match sorted.groups.get_mut(module) {
                Some(group) => group,
                None => {
                    let (target, maker) = resolve(module, part, &name[module.len()..])?;
                    *makers.entry(maker).or_default() += 1;
                    let group = Group { target, parts: BTreeMap::new() };
                    sorted.groups.entry(module.to_string()).or_insert(group)
                }
            };
            let fits = part != Part::Set || group.target.holder == Holder::Norm;
            (fits && !group.parts.contains_key(&part)).then(|| group.parts.insert(part, name.to_string()))
        });
        if placed.is_none() {
            sorted.unknown.push(name.to_string());
        }
    }
    sorted.groups.retain(|_, group| !group.parts.is_empty());
    sorted.maker = makers.into_iter().max_by_key(|(_, count)| *count).map(|(maker, _)| maker);
    sorted
}

/// Whether a name is that of a part of a change, and of nothing else. Layers of some models are called `up` and `down`.
pub(in crate::checkpoint) fn is_change(name: &str) -> bool {
    split(name).is_some_and(|(module, part)| {
        let layer =
            matches!(&name[module.len()..], ".up.weight" | ".down.weight") && !module.contains("lora");
        !layer && !matches!(part, Part::Alpha | Part::Set | Part::Shape)
    })
}

/// The module's name in the file, and what the key holds of its change. A name without such an ending may be a whole
/// norm.
fn split(name: &str) -> Option<(&str, Part)> {
    let mut begin = 0;
    for component in name.split('.') {
        // A module's own name may begin as a marker does: `module.lora_unet_…`.
        if begin > 0
            && is_marker(component)
            && let Some(part) = part(&name[begin..])
        {
            return Some((&name[..begin - 1], part));
        }
        begin += component.len() + 1;
    }
    let module = name.strip_suffix(".scale").or_else(|| name.strip_suffix(".weight"))?;
    Some((module, Part::Set))
}

/// Whether the module's name ends before this component.
fn is_marker(component: &str) -> bool {
    const WORDS: [&str; 11] = [
        "lora",
        "down",
        "up",
        "alpha",
        "dora_scale",
        "diff",
        "diff_b",
        "w_norm",
        "b_norm",
        "set_weight",
        "reshape_weight",
    ];
    WORDS.contains(&component) || ["lora_", "hada_", "lokr_"].iter().any(|s| component.starts_with(s))
}

/// What stands behind the module's name. peft puts the adapter's name, mostly `default`, among it.
fn part(ending: &str) -> Option<Part> {
    const LYCORIS: [(&str, Part); 14] = [
        ("hada_w1_a", Part::Hada("w1_a")),
        ("hada_w1_b", Part::Hada("w1_b")),
        ("hada_w2_a", Part::Hada("w2_a")),
        ("hada_w2_b", Part::Hada("w2_b")),
        ("hada_t1", Part::Core),
        ("hada_t2", Part::Core),
        ("lokr_w1", Part::Lokr("w1")),
        ("lokr_w1_a", Part::Lokr("w1_a")),
        ("lokr_w1_b", Part::Lokr("w1_b")),
        ("lokr_w2", Part::Lokr("w2")),
        ("lokr_w2_a", Part::Lokr("w2_a")),
        ("lokr_w2_b", Part::Lokr("w2_b")),
        ("lokr_t1", Part::Core),
        ("lokr_t2", Part::Core),
    ];
    let components: Vec<&str> = ending.splitn(4, '.').collect();
    Some(match components[..] {
        ["lora_A" | "lora_down"] | ["lora_A" | "lora_down", "weight"] | ["lora_A", _, "weight"] => Part::Down,
        ["lora_B" | "lora_up"] | ["lora_B" | "lora_up", "weight"] | ["lora_B", _, "weight"] => Part::Up,
        ["lora" | "lora_linear_layer", "down", "weight"] | ["down", "weight"] => Part::Down,
        ["lora" | "lora_linear_layer", "up", "weight"] | ["up", "weight"] => Part::Up,
        ["lora_B" | "lora_up", "bias"] | ["lora_B", _, "bias"] => Part::UpBias,
        ["lora_mid", "weight"] => Part::Core,
        ["alpha"] => Part::Alpha,
        ["dora_scale"] | ["lora_magnitude_vector"] => Part::Magnitude,
        ["lora_magnitude_vector", _] | ["lora_magnitude_vector", _, "weight"] => Part::Magnitude,
        ["diff" | "w_norm"] => Part::Diff,
        ["diff_b" | "b_norm"] => Part::DiffBias,
        ["set_weight"] => Part::Set,
        ["reshape_weight"] => Part::Shape,
        [first] | [first, _] => LYCORIS.iter().find(|(name, _)| *name == first)?.1,
        _ => return None,
    })
}

/// A module's name without what stands before it, the model that this says, and the prefix that says it.
fn strip(module: &str) -> (&str, Option<Component>, &'static str) {
    let (mut rest, mut model, mut prefix) = (module, None, "");
    // Wrappers may stand one inside the other: `base_model.model.transformer.`.
    for _ in 0..8 {
        let fits =
            |(p, of): &&(&str, Option<Component>)| rest.starts_with(p) && (of.is_none() || model.is_none());
        let Some((found, of)) = PREFIXES.iter().find(fits) else { break };
        rest = &rest[found.len()..];
        model = model.or(*of);
        prefix = if of.is_some() || prefix.is_empty() { found } else { prefix };
    }
    (rest, model, prefix)
}

/// A module's name as the model itself has it, for what peft says about it.
pub(super) fn without_prefixes(module: &str) -> &str {
    strip(module).0
}

/// Where a module of the file lies, and whose spelling that is.
fn resolve(module: &str, part: Part, ending: &str) -> Option<(Target, Maker)> {
    let (rest, model, prefix) = strip(module);
    let norm = |rest: &str| find(model, rest.strip_suffix(".scale")?).filter(|t| t.holder == Holder::Norm);
    let target =
        find(model, rest).or_else(|| norm(rest).filter(|_| matches!(part, Part::Diff | Part::Set)))?;
    let official = target.module == rest;
    let maker = match prefix {
        _ if module.contains(".processor.") => Maker::XLabs,
        "lora_transformer_" => Maker::OneTrainer,
        "lycoris_" => Maker::SimpleTuner,
        "base_model.model." if official => Maker::Fal,
        "diffusion_model." if ending.starts_with(".lora_A") || ending.starts_with(".lora_B") => {
            Maker::AiToolkit
        }
        "" if official => Maker::Official,
        _ if prefix.starts_with("lora_") => Maker::Kohya,
        _ if prefix.contains("diffusion_model.") || prefix.starts_with("text_encoders.") => Maker::ComfyUi,
        _ => Maker::Diffusers,
    };
    Some((target, maker))
}

/// What may stand before a module's name, and whose module it then is.
const PREFIXES: [(&str, Option<Component>); 36] = [
    ("module.", None),
    ("_orig_mod.", None),
    ("_orig_mod_", None),
    ("state_dict.", None),
    ("base_model.model.", None),
    ("model.diffusion_model.", Some(Component::Transformer)),
    ("diffusion_model.", Some(Component::Transformer)),
    ("transformer.", Some(Component::Transformer)),
    ("unet.", Some(Component::Transformer)),
    ("pipe.dit.", Some(Component::Transformer)),
    ("dit.", Some(Component::Transformer)),
    ("flux.", Some(Component::Transformer)),
    ("denoiser.", Some(Component::Transformer)),
    ("lora_unet.", Some(Component::Transformer)),
    ("lora_transformer.", Some(Component::Transformer)),
    ("lora_unet_", Some(Component::Transformer)),
    ("lora_transformer_", Some(Component::Transformer)),
    ("lycoris_", Some(Component::Transformer)),
    ("text_encoders.clip_l.transformer.", Some(Component::Clip)),
    ("text_encoders.clip_l.", Some(Component::Clip)),
    ("clip_l.transformer.", Some(Component::Clip)),
    ("clip_l.", Some(Component::Clip)),
    ("text_encoder.", Some(Component::Clip)),
    ("lora_te_", Some(Component::Clip)),
    ("lora_te1_", Some(Component::Clip)),
    ("text_encoders.t5xxl.transformer.", Some(Component::T5)),
    ("text_encoders.t5xxl.", Some(Component::T5)),
    ("t5xxl.transformer.", Some(Component::T5)),
    ("t5xxl.", Some(Component::T5)),
    ("t5.", Some(Component::T5)),
    ("text_encoder_2.", Some(Component::T5)),
    // kohya counts SDXL's second CLIP, OneTrainer does not.
    ("lora_te2_", Some(Component::T5)),
    ("lora_te3_", Some(Component::T5)),
    ("text_encoders.transformer.", None),
    ("model.", None),
    ("net.", None),
];

impl fmt::Display for Part {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Down => f.write_str("lora_down (lora_A)"),
            Self::Up => f.write_str("lora_up (lora_B)"),
            Self::UpBias => f.write_str("lora_B.bias"),
            Self::Alpha => f.write_str("alpha"),
            Self::Magnitude => f.write_str("dora_scale"),
            Self::Diff => f.write_str("diff"),
            Self::DiffBias => f.write_str("diff_b"),
            Self::Set => f.write_str("set_weight"),
            Self::Shape => f.write_str("reshape_weight"),
            Self::Hada(name) => write!(f, "hada_{name}"),
            Self::Lokr(name) => write!(f, "lokr_{name}"),
            Self::Core => f.write_str("lora_mid"),
        }
    }
}

impl fmt::Display for Maker {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::Kohya => "kohya",
            Self::Diffusers => "diffusers / peft",
            Self::Fal => "fal",
            Self::AiToolkit => "ai-toolkit",
            Self::ComfyUi => "ComfyUI",
            Self::OneTrainer => "OneTrainer",
            Self::SimpleTuner => "SimpleTuner (LyCORIS)",
            Self::XLabs => "XLabs",
            Self::Official => "Black Forest Labs",
        })
    }
}
