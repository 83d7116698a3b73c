//! LoRA files of every maker: what their keys mean, whether they fit a model, and the terms that they make.
//!
//! Every key is accounted for. [`Lora::open`] fails where keys contradict each other, [`Lora::place`] where one of them
//! has no place in the models.

mod forms;
mod made_for;
mod metadata;
mod modules;
mod names;
mod place;
mod target;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::{Path, PathBuf};

pub use forms::{Form, Patch};
pub(super) use names::is_change;
pub use names::{Group, Maker, Names, Part, parse_names};
pub use place::{Placed, Terms};
pub use target::{Component, Holder, Slot, Target};

use super::{Access, Checkpoint};
use crate::error::{Error, FileProblem, Result};
use forms::Reader;
use metadata::Settings;

/// A LoRA file, known by its header. Its matrices stay in the file until they are placed.
#[derive(Debug)]
pub struct Lora {
    /// The file.
    pub path: PathBuf,
    /// Whose names it bears.
    pub maker: Option<Maker>,
    /// What it changes, by model and official name of the module.
    pub targets: BTreeMap<(Component, String), Vec<Patch>>,
    /// Keys whose meaning is not known.
    pub unknown: Vec<String>,
    /// Modules that change what another module of the file changes: this one, which is left out, and the other.
    pub twice: Vec<(String, String)>,
    checkpoint: Checkpoint,
}

impl Lora {
    /// Opens a safetensors file, or a folder that holds one: reads the header, the alphas, and the settings that peft
    /// keeps beside them.
    ///
    /// # Errors
    /// As [`Checkpoint::open`]; [`Error::File`] with [`FileProblem::NotALora`], with [`FileProblem::Tensor`] for keys
    /// that contradict each other, with [`FileProblem::Settings`].
    pub fn open(path: impl AsRef<Path>, access: Access) -> Result<Self> {
        Self::from_checkpoint(Checkpoint::open(path, access)?)
    }

    /// The same of a file that is open.
    ///
    /// # Errors
    /// As [`Lora::open`].
    pub fn from_checkpoint(checkpoint: Checkpoint) -> Result<Self> {
        checkpoint.check_readable()?;
        let path = checkpoint.files().first().map(|p| p.to_path_buf()).unwrap_or_default();
        let Names { groups, unknown, maker } = parse_names(checkpoint.names());
        if !checkpoint.names().any(is_change) {
            let family = checkpoint.family();
            let (looks_like, part) = (family.to_string(), family.part());
            return Err(Error::file(path)(FileProblem::NotALora { looks_like, part }));
        }
        let settings = Settings::read(&checkpoint)?;
        let reader = Reader { checkpoint: &checkpoint, settings: &settings };
        let mut targets: BTreeMap<(Component, String), Vec<Patch>> = BTreeMap::new();
        let mut twice = Vec::new();
        for (name, group) in &groups {
            let target = &group.target;
            for patch in reader.patches(name, group)? {
                let others = targets.entry((target.model, target.module.clone())).or_default();
                match others.iter().find(|other| patch.collides(other)) {
                    Some(other) => twice.push((patch.name, other.name.clone())),
                    None => others.push(patch),
                }
            }
        }
        Ok(Self { path, maker, targets, unknown, twice, checkpoint })
    }

    /// How many inputs the transformer's `img_in` needs for this LoRA, where it changes that layer. The official control
    /// LoRAs need twice as many as the model has: see [`grown_columns`](crate::lora::grown_columns).
    pub fn img_in_columns(&self) -> Option<i64> {
        let patches = self.targets.get(&(Component::Transformer, place::IMG_IN.to_string()))?;
        patches.iter().filter_map(|patch| patch.shape.get(1).copied()).max()
    }

    /// How many modules of a model it changes.
    pub fn modules(&self, model: Component) -> usize {
        self.targets.keys().filter(|(of, _)| *of == model).count()
    }

    /// The family of models that it was made for, where its keys tell that it is not FLUX.1: `Stable Diffusion XL`.
    pub fn made_for(&self) -> Option<&'static str> {
        made_for::made_for(&|| self.checkpoint.names().map(|name| (name, self.checkpoint.shape(name))))
    }

    /// All its changes.
    pub fn patches(&self) -> impl Iterator<Item = &Patch> {
        self.targets.values().flatten()
    }
}

impl Patch {
    /// Whether both change the same numbers.
    fn collides(&self, other: &Self) -> bool {
        let biases = [self, other].map(|patch| patch.form == Form::Bias);
        biases[0] == biases[1] && self.group.target.slot.overlaps(other.group.target.slot)
    }
}

impl fmt::Display for Lora {
    /// `kohya: modules changed: 304 of transformer, 72 of CLIP; LoRA; rank 16; alpha 8`.
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let maker = self.maker.map_or("an unknown maker".into(), |maker| maker.to_string());
        let models = [Component::Transformer, Component::Clip, Component::T5];
        let counts = models.map(|model| (self.modules(model), model));
        let counts = counts.iter().filter(|(n, _)| *n > 0).map(|(n, model)| format!("{n} of {model}"));
        write!(f, "{maker}: modules changed: {}", counts.collect::<Vec<_>>().join(", "))?;
        let words = |words: BTreeSet<String>| words.into_iter().collect::<Vec<_>>().join(", ");
        write!(f, "; {}", words(self.patches().map(|p| p.form.to_string()).collect()))?;
        let dora = self.patches().any(|p| p.group.parts.contains_key(&Part::Magnitude));
        f.write_str(if dora { " with DoRA" } else { "" })?;
        let ranks: BTreeSet<i64> = self.patches().filter_map(|p| p.rank).collect();
        let alphas = words(self.patches().filter_map(|p| Some(p.alpha?.to_string())).collect());
        if !ranks.is_empty() {
            let ranks: Vec<_> = ranks.iter().map(i64::to_string).collect();
            write!(f, "; rank {}", ranks.join(", "))?;
        }
        if alphas.is_empty() { Ok(()) } else { write!(f, "; alpha {alphas}") }
    }
}
