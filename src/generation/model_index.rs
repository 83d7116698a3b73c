//! What a folder's `model_index.json` says of the whole.

use std::path::Path;

use crate::config::ConfigFile;
use crate::error::Result;
use crate::family::ModelFamily;

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
    /// [`Error::File`](crate::Error::File) where it is of a family that nothing is drawn with.
    pub(super) fn read(path: &Path) -> Result<Self> {
        let config = ConfigFile::read(path)?;
        let class = config.text_or_second("_class_name")?;
        let mut index = Self::default();
        if let Some(class) = class {
            let of_family = |prefix: &str| {
                let rest = class.strip_prefix(prefix);
                rest.is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_digit()))
            };
            let drawing = ModelFamily::drawings().find(|(_, drawing)| of_family(drawing.pipeline_prefix));
            let Some((_, drawing)) = drawing.filter(|_| !class.starts_with("FluxPriorRedux")) else {
                let families: Vec<_> = ModelFamily::drawings().map(|(family, _)| family.row().name).collect();
                let families = families.join(" or ");
                let reason = format!("is {class:?}: this folder is of another model than {families}");
                return Err(config.wrong("_class_name", reason));
            };
            if !drawing.pipelines.contains(&class) {
                let (path, usual) = (path.display(), drawing.pipeline_prefix);
                index
                    .warnings
                    .push(format!("{path}: {class} is not known: it is drawn as {usual}Pipeline does"));
            }
            index.class = Some(class.to_string());
        }
        index.scheduler =
            config.texts("scheduler")?.and_then(|pair| pair.get(1).map(|class| class.to_string()));
        Ok(index)
    }
}
