//! What a folder's `model_index.json` says of the whole.

use std::path::Path;

use crate::config::ConfigFile;
use crate::error::Result;

/// What a folder's `model_index.json` says of the whole.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct ModelIndex {
    /// The class of its pipeline.
    pub(super) class: Option<String>,
    /// The class of its scheduler.
    pub(super) scheduler: Option<String>,
    pub(super) warnings: Vec<String>,
}

impl ModelIndex {
    /// # Errors
    /// [`Error::File`](crate::Error::File) where it is another model's than FLUX.1's.
    pub(super) fn read(path: &Path) -> Result<Self> {
        const KNOWN: [&str; 12] = [
            "FluxControlImg2ImgPipeline",
            "FluxControlInpaintPipeline",
            "FluxControlNetImg2ImgPipeline",
            "FluxControlNetInpaintPipeline",
            "FluxControlNetPipeline",
            "FluxControlPipeline",
            "FluxFillPipeline",
            "FluxImg2ImgPipeline",
            "FluxInpaintPipeline",
            "FluxKontextInpaintPipeline",
            "FluxKontextPipeline",
            "FluxPipeline",
        ];
        let config = ConfigFile::read(path)?;
        let class = config.text_or_second("_class_name")?;
        let mut index = Self::default();
        if let Some(class) = class {
            let first = class
                .strip_prefix("Flux")
                .is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_digit()));
            if !first || class.starts_with("FluxPriorRedux") {
                let reason = format!("is {class:?}: this folder is of another model than FLUX.1");
                return Err(config.wrong("_class_name", reason));
            }
            if !KNOWN.contains(&class) {
                let path = path.display();
                index
                    .warnings
                    .push(format!("{path}: {class} is not known: it is drawn as FluxPipeline does"));
            }
            index.class = Some(class.to_string());
        }
        index.scheduler =
            config.texts("scheduler")?.and_then(|pair| pair.get(1).map(|class| class.to_string()));
        Ok(index)
    }
}
