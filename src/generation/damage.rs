//! Why a result is not finite: the weight that is not, looked for in the files of all parts.

use std::path::PathBuf;

use tch::Kind;

use super::loader::Loader;
use super::models::{Models, OpenPart};
use super::{Generated, PartKind};
use crate::checkpoint::Checkpoint;
use crate::error::{Error, FileProblem, Result};

/// A file, and which of its weights is not finite.
type Damage = (PathBuf, FileProblem);

/// The outcomes, with an error that names the file and the tensor in place of one that only says that a result holds NaN or
/// infinity. Other errors, and those that no weight is to blame for, stay as they are.
pub(super) fn with_causes(
    loader: &Loader,
    models: &Models,
    outcomes: Result<Vec<Result<Vec<Generated>>>>,
) -> Result<Vec<Result<Vec<Generated>>>> {
    let mut damage = None;
    // The weights are read once, however many results are not finite.
    let mut cause = |error: Error| {
        let Error::NotFinite { what, .. } = error else { return error };
        match damage.get_or_insert_with(|| find_damage(loader, models)) {
            Ok(Some((path, problem))) => Error::file(path)(problem.clone()),
            Ok(None) => {
                let hint =
                    "all weights are finite, so the kind is too narrow for them: compute in bf16 or f32";
                Error::NotFinite { what, hint }
            }
            Err(_) => error,
        }
    };
    let outcomes = outcomes.map_err(&mut cause)?;
    Ok(outcomes.into_iter().map(|outcome| outcome.map_err(&mut cause)).collect())
}

/// The first weight that is not finite: the small files first, and the transformer last.
fn find_damage(loader: &Loader, models: &Models) -> Result<Option<Damage>> {
    let mut parts: Vec<(Checkpoint, Kind)> = Vec::new();
    for path in &models.loras.files {
        parts.push((Checkpoint::open(path, loader.settings.access)?, loader.kind));
    }
    let mut opened = models.open_parts(loader)?;
    opened.sort_by_key(|opened| match opened.part {
        PartKind::Autoencoder | PartKind::PreviewDecoder => 0,
        PartKind::Clip => 1,
        PartKind::T5 => 3,
        PartKind::Transformer => 4,
        _ => 2,
    });
    parts.extend(opened.into_iter().map(|OpenPart { checkpoint, kind, .. }| (checkpoint, kind)));
    for (part, kind) in parts {
        if let Some(damage) = part.find_not_finite(kind)? {
            return Ok(Some(damage));
        }
    }
    Ok(None)
}
