//! How far away the pixels of a picture are.

use tch::Tensor;

use crate::error::{Error, Result};
use crate::generation::loader::Loader;
use crate::generation::resident::Resident;
use crate::image::Image;
use crate::models::vision::DepthAnything;

/// The depth model of a pipeline, where it has one.
#[derive(Debug, Default)]
pub(in crate::generation) struct DepthModel {
    model: Option<Resident<DepthAnything>>,
}

impl DepthModel {
    pub(in crate::generation) fn load(&mut self, loader: &Loader) -> Result<()> {
        self.model = loader.parts.depth.as_deref().map(|path| loader.load_depth(path)).transpose()?;
        Ok(())
    }

    pub(in crate::generation) fn release(&mut self) {
        self.model = None;
    }

    /// The depths of a picture, `[1, 3, H, W]` in −1..1.
    pub(in crate::generation) fn depths(&self, image: &Image) -> Result<Tensor> {
        let Some(depth) = &self.model else {
            return Err(Error::Config("the depth model is not loaded".into()));
        };
        let depths = depth.model()?.map(image)?;
        if !bool::try_from(depths.isfinite().all())? {
            let hint = "the depth model's file is damaged";
            return Err(Error::NotFinite { what: "the depths", hint });
        }
        Ok(depths)
    }
}
