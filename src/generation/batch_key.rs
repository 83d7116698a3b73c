//! Which pictures can be computed together.

use super::ip_adapter::IpAdapterKey;
use super::{Control, IpAdapterImage, Request, Role};
use crate::models::flux1::StepCache;
use crate::sampling::{Sampler, Schedule};

/// What pictures that are computed together have in common.
#[derive(Debug, PartialEq)]
pub(super) struct BatchKey {
    size: (i64, i64),
    steps: Option<usize>,
    sampler: Option<Sampler>,
    schedule: Option<Schedule>,
    cache: Option<StepCache>,
    text: Option<usize>,
    true_cfg_scale: Option<f64>,
    /// Pictures of Redux whose tokens stand behind the text.
    redux: Option<usize>,
    edit: Option<EditKey>,
    controls: Vec<(usize, f64, Option<i64>, f64, f64)>,
    pictured: Vec<IpAdapterKey>,
}

/// The same of the pictures that they begin with.
#[derive(Debug, PartialEq)]
struct EditKey {
    strength: f64,
    role: Option<Role>,
    mask: bool,
    references: Vec<(u32, u32)>,
}

impl BatchKey {
    pub(super) fn of(request: &Request) -> Self {
        Self {
            size: (request.width, request.height),
            steps: request.steps,
            sampler: request.sampler,
            schedule: request.schedule.clone(),
            cache: request.cache,
            text: request.max_sequence_length,
            true_cfg_scale: request.scale(),
            redux: request.redux.as_ref().map(|redux| redux.blocks()),
            edit: request.edit.as_ref().map(|edit| EditKey {
                strength: edit.strength,
                role: edit.role,
                mask: edit.mask.is_some(),
                references: edit.images.iter().map(|image| edit.reference_size(image)).collect(),
            }),
            controls: request.controls.iter().map(Control::shape).collect(),
            pictured: request.pictured.iter().map(IpAdapterImage::shape).collect(),
        }
    }
}
