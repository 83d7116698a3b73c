//! What the folder of a model says of the whole.

use std::path::Path;

use super::model_index::ModelIndex;
use super::{Parts, Role};
use crate::checkpoint::Checkpoint;
use crate::config::ConfigFile;
use crate::error::Result;
use crate::family::ModelFamily;
use crate::models::TransformerParams;
use crate::sampling::Scheduler;

/// What the folder of a model says of the whole: how it is walked, and what pictures are to it.
#[derive(Debug, Clone, Default)]
pub(super) struct Folder {
    /// `None`: as the official code walks.
    pub(super) scheduler: Option<Scheduler>,
    pub(super) role: Option<Role>,
    pub(super) warnings: Vec<String>,
}

impl Folder {
    /// That of the parts; `params` are the transformer's.
    pub(super) fn of(parts: &Parts, params: &TransformerParams) -> Result<Self> {
        let index = parts.model_index.as_deref().map(ModelIndex::read).transpose()?.unwrap_or_default();
        // Which models read references only the class of their pipeline tells.
        let reads_references = index.class.is_some_and(|class| {
            ModelFamily::drawings().any(|(_, drawing)| class.starts_with(drawing.references.pipeline_prefix))
        });
        let role = reads_references.then_some(Role::Reference);
        let mut folder = Self { scheduler: None, role, warnings: index.warnings };
        let Some(path) = &parts.scheduler else { return Ok(folder) };
        if let Some(other) = other_variant(path, parts, params)? {
            let (path, file, family) = (path.display(), parts.transformer.display(), params.family());
            folder.warnings.push(format!(
                "{path} is not obeyed: it is for a {family} {other}, and {file} is a {}, which is walked as the official \
                 code does",
                params.variant()
            ));
            return Ok(folder);
        }
        let config = ConfigFile::read(path)?;
        let mut scheduler = Scheduler::from_config(&config)?;
        folder.warnings.append(&mut scheduler.warnings);
        if let (Some(named), Some(class)) = (&index.scheduler, config.text("_class_name")?)
            && named != class
        {
            let path = path.display();
            folder.warnings.push(format!(
                "{path} is of {class}, though model_index.json names {named}: {class} is taken"
            ));
        }
        folder.scheduler = Some(scheduler);
        Ok(folder)
    }
}

/// The variant that a scheduler is for, where the transformer is not of its folder and is of another one: schnell's times
/// are not dev's.
fn other_variant(
    scheduler: &Path,
    parts: &Parts,
    params: &TransformerParams,
) -> Result<Option<&'static str>> {
    let model = scheduler.parent().and_then(Path::parent).unwrap_or(Path::new(""));
    if parts.transformer.starts_with(model) && model != Path::new("") {
        return Ok(None);
    }
    let config = model.join("transformer/config.json");
    let guided = match config.is_file() {
        true => ConfigFile::read(&config)?.flag("guidance_embeds")?.unwrap_or(false),
        false => match Parts::transformer_in(model) {
            Some(own) => Checkpoint::open(own, crate::checkpoint::Access::Map)?.names().any(is_guidance),
            None => return Ok(None),
        },
    };
    if guided == params.guidance_embed() {
        return Ok(None);
    }
    Ok(Some(params.family().text_variant(guided)?.name))
}

/// Whether only a model that was distilled for guidance has a tensor of this name, in any layout.
fn is_guidance(name: &str) -> bool {
    name.contains("guidance_in.") || name.contains("guidance_embedder.")
}
