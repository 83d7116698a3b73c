//! Why a result is not finite: the weight that is not, looked for in the files of all parts.

use std::path::PathBuf;

use tch::Kind;

use super::{Generated, Pipeline, PreviewBy, resident};
use crate::checkpoint::Checkpoint;
use crate::error::{Error, FileProblem, Result};

/// A file, and which of its weights is not finite.
type Damage = (PathBuf, FileProblem);

impl Pipeline {
    /// The outcomes, with an error that names the file and the tensor in place of one that only says that a result holds
    /// NaN or infinity. Other errors, and those that no weight is to blame for, stay as they are.
    pub(super) fn with_causes(
        &self,
        outcomes: Result<Vec<Result<Vec<Generated>>>>,
    ) -> Result<Vec<Result<Vec<Generated>>>> {
        let mut damage = None;
        // The weights are read once, however many results are not finite.
        let mut cause = |error: Error| {
            let Error::NotFinite { what, .. } = error else { return error };
            match damage.get_or_insert_with(|| self.find_damage()) {
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
    fn find_damage(&self) -> Result<Option<Damage>> {
        let access = self.settings.access;
        let (kind, text) = (self.kind, self.text_kind());
        let mut parts: Vec<(Checkpoint, Kind)> = Vec::new();
        for path in &self.lora_files {
            parts.push((Checkpoint::open(path, access)?, kind));
        }
        let mut autoencoders = vec![self.parts.open_autoencoder(access)?];
        if let Some(PreviewBy::Decoder(path)) = &self.parts.preview {
            autoencoders.push(resident::open_autoencoder(path, access)?);
        }
        parts.extend(
            autoencoders.into_iter().map(|part| (self.autoencoder_kind(&part), part)).map(|(k, p)| (p, k)),
        );
        parts.push((self.parts.open_clip(access)?, text));
        parts.extend(self.open_controlnets()?.into_iter().map(|part| (part, kind)));
        parts.extend(self.open_ip_adapters()?.into_iter().map(|part| (part, kind)));
        parts.extend(self.open_ip_image_encoder()?.map(|part| (part, text)));
        if self.parts.redux.is_some() {
            parts.push((self.parts.open_redux(access)?, text));
            parts.push((self.parts.open_image_encoder(access)?, text));
        }
        if let Some(path) = &self.parts.depth {
            parts.push((resident::open_depth(path, access)?, Kind::Float));
        }
        parts.push((self.parts.open_t5(access)?, text));
        parts.push((self.parts.open_transformer(access)?.0, kind));
        for (part, kind) in parts {
            if let Some(damage) = part.find_not_finite(kind)? {
                return Ok(Some(damage));
            }
        }
        Ok(None)
    }
}
