//! What a picture is drawn from beside its prompt: pictures to begin with, to follow, and to look like. Each file has what is
//! asked for, and what becomes of it.

pub(super) mod control;
pub(super) mod depth;
pub(super) mod edit;
pub(super) mod edit_inputs;
pub(super) mod ip_adapter;
pub(super) mod redux;

use tch::Tensor;

/// What a picture is drawn from beside text.
#[derive(Debug, Default)]
pub struct Conditions {
    /// More channels of every patch `[B, Li, …]`: Fill's image and mask, Canny's edges, the depth.
    pub img_cond: Option<Tensor>,
    /// More patches along the sequence `[B, Lc, …]` with their positions `[B, Lc, 3]`: Kontext's reference.
    pub img_cond_seq: Option<(Tensor, Tensor)>,
}

/// From which changes of brightness on there may be an edge, and is one.
///
/// Source: `black-forest-labs/flux` at 802fb47, `src/flux/modules/image_embedders.py`, `CannyImageEncoder`.
const CANNY: (i32, i32) = (50, 200);
