//! What the pictures of requests must have in common to be computed together.

use super::conditions::ip_adapter::IpAdapterKey;
use super::{Control, IpAdapterImage, Request, Role};

/// Strength, role and mask of an edit, and the sizes of its references.
pub(super) type EditKey = (f64, Option<Role>, bool, Vec<(u32, u32)>);

/// ControlNet, strength, mode, start and end.
pub(super) type ControlKey = (usize, f64, Option<i64>, f64, f64);

impl Request {
    pub(super) fn edit_key(&self) -> Option<EditKey> {
        self.edit.as_ref().map(|edit| {
            let references = edit.images.iter().map(|image| edit.reference_size(image)).collect();
            (edit.strength, edit.role, edit.mask.is_some(), references)
        })
    }

    /// Returns how many pictures of Redux have tokens behind the text.
    pub(super) fn redux_key(&self) -> Option<usize> {
        self.redux.as_ref().map(|redux| redux.blocks())
    }

    pub(super) fn control_key(&self) -> Vec<ControlKey> {
        self.controls.iter().map(Control::shape).collect()
    }

    pub(super) fn ip_adapter_key(&self) -> Vec<IpAdapterKey> {
        self.pictured.iter().map(IpAdapterImage::shape).collect()
    }
}
