//! Where a change goes.

use std::fmt;

/// The model of a pipeline that a change belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Component {
    /// FLUX itself.
    Transformer,
    /// The CLIP text model.
    Clip,
    /// The T5 encoder.
    T5,
}

impl fmt::Display for Component {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str(match self {
            Self::Transformer => "transformer",
            Self::Clip => "CLIP",
            Self::T5 => "T5",
        })
    }
}

/// Where a change goes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Target {
    /// The model.
    pub model: Component,
    /// The module's official name: `double_blocks.0.img_attn.qkv`.
    pub module: String,
    /// Which of its output rows.
    pub slot: Slot,
    /// What kind of module it is.
    pub holder: Holder,
}

/// Which output rows of an official module another layout's module is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Slot {
    /// All of them.
    Whole,
    /// The queries' of a joined projection: as many as the module has inputs.
    Q,
    /// The keys'.
    K,
    /// The values'.
    V,
    /// All three.
    Qkv,
    /// Those behind the three: the MLP's.
    Rest,
    /// All of them, the second half first.
    Swapped,
}

impl Slot {
    /// Whether two slots of one module have rows in common.
    pub(super) fn overlaps(self, other: Self) -> bool {
        let joined = |a, b| a == Slot::Qkv && matches!(b, Slot::Q | Slot::K | Slot::V);
        let whole = |a| matches!(a, Slot::Whole | Slot::Swapped);
        self == other || whole(self) || whole(other) || joined(self, other) || joined(other, self)
    }
}

/// What kind of module it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Holder {
    /// A linear layer: `weight` and perhaps `bias`.
    Linear,
    /// A root mean square norm of the transformer: `scale`.
    Norm,
    /// Another module with `weight` and perhaps `bias`: an embedding, or a norm of a text encoder.
    Other,
}
