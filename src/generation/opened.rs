//! The weight files of a pipeline, opened: each is opened, and its header read, once, whoever asks for it and however often
//! it is loaded.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::PartKind;
use crate::checkpoint::{Access, Checkpoint, Contained, Family};
use crate::error::{Error, FileProblem, Result};

/// The owner of every opened file. What it hands out shares the header and has a mapping of its own, so that the memory of
/// what was loaded goes with it. A file that was replaced or written to since is opened anew.
#[derive(Debug)]
pub(super) struct OpenedFiles {
    access: Access,
    /// The files as they are.
    files: RefCell<BTreeMap<PathBuf, Checkpoint>>,
    /// What was found in them, under the official names.
    parts: RefCell<BTreeMap<(PartKind, PathBuf), Checkpoint>>,
}

impl OpenedFiles {
    pub(super) fn new(access: Access) -> Self {
        Self { access, files: RefCell::default(), parts: RefCell::default() }
    }

    /// Returns a part under its official names, if the file holds one.
    ///
    /// # Errors
    /// [`FileProblem::OtherModel`] where the file holds another model, and as [`Checkpoint::open`].
    pub(super) fn part(&self, part: PartKind, path: &Path) -> Result<Checkpoint> {
        let key = (part, path.to_path_buf());
        if let Some(found) = self.parts.borrow().get(&key).filter(|found| found.is_current()) {
            return Ok(found.clone().unmapped());
        }
        let found = match part {
            PartKind::Autoencoder | PartKind::PreviewDecoder => self.autoencoder(path)?,
            PartKind::ClipVision => self.clip_vision(path)?,
            _ => self.only_model(part, path)?,
        };
        self.parts.borrow_mut().insert(key, found.clone());
        Ok(found.unmapped())
    }

    /// Returns a file as it is.
    fn file(&self, path: &Path) -> Result<Checkpoint> {
        if let Some(found) = self.files.borrow().get(path).filter(|found| found.is_current()) {
            return Ok(found.clone().unmapped());
        }
        let opened = Checkpoint::open(path, self.access)?;
        self.files.borrow_mut().insert(path.to_path_buf(), opened.clone());
        Ok(opened.unmapped())
    }

    /// Closes the files that were opened as this part, but for those at these paths.
    pub(super) fn keep_only(&self, part: PartKind, paths: &[PathBuf]) {
        let mut parts = self.parts.borrow_mut();
        parts.retain(|(other, path), _| *other != part || paths.contains(path));
        self.files.borrow_mut().retain(|path, _| parts.keys().any(|(_, other)| other == path));
    }

    fn only_model(&self, part: PartKind, path: &Path) -> Result<Checkpoint> {
        let checkpoint = self.file(path)?;
        let contained = checkpoint.contained();
        match contained.iter().find(|model| part.is(&model.family)) {
            Some(Contained { prefix, family }) => Ok(checkpoint.part(prefix, family)),
            None => Err(other_model(&checkpoint, part)),
        }
    }

    /// An autoencoder, full or tiny. Of a tiny one in two files, as its author has them, the second is looked for beside the
    /// first.
    fn autoencoder(&self, path: &Path) -> Result<Checkpoint> {
        let first = self.only_model(PartKind::Autoencoder, path)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let other_half = |half: &str, other: &str| {
            let is_half = first.names().all(|tensor| tensor.starts_with(half)) && name.contains(half);
            is_half.then(|| path.with_file_name(name.replace(half, other))).filter(|path| path.is_file())
        };
        match other_half("decoder", "encoder").or_else(|| other_half("encoder", "decoder")) {
            Some(second) => Ok(first.joined(self.only_model(PartKind::Autoencoder, &second)?)),
            None => Ok(first),
        }
    }

    /// CLIP's vision model, alone or in a file with its text model.
    fn clip_vision(&self, path: &Path) -> Result<Checkpoint> {
        let checkpoint = self.file(path)?;
        // In a whole CLIP, the text model is what is recognised.
        let classes = ["vision_model.embeddings.class_embedding", "visual.class_embedding"];
        let has_class =
            |prefix: &str| classes.iter().any(|name| checkpoint.shape(&format!("{prefix}{name}")).is_some());
        let prefixes = checkpoint.contained().into_iter().map(|model| model.prefix);
        match prefixes.chain([String::new()]).find(|prefix| has_class(prefix)) {
            Some(prefix) => Ok(checkpoint.part(&prefix, &Family::ClipVision)),
            None => Err(other_model(&checkpoint, PartKind::ClipVision)),
        }
    }
}

/// Whether an autoencoder is a tiny one.
pub(super) fn is_tiny(autoencoder: &Checkpoint) -> bool {
    ["encoder.layers.0.weight", "decoder.layers.0.weight"]
        .iter()
        .any(|name| autoencoder.shape(name).is_some())
}

/// The error for a file that holds another model than the part that is wanted: what it is, and what would work.
fn other_model(checkpoint: &Checkpoint, part: PartKind) -> Error {
    if let Err(packed) = checkpoint.check_readable() {
        return packed;
    }
    let mut looks_like = checkpoint.family().to_string();
    if checkpoint.family() == Family::AllInOne {
        let names: Vec<_> = checkpoint.contained().iter().map(|model| model.family.name()).collect();
        looks_like = format!("{looks_like}: {}", names.join(", "));
    }
    let (wanted, works) = part.wanted();
    // What a model of another family has for its counterpart is said with it.
    if !looks_like.contains(works.split(',').next().unwrap_or_default()) {
        looks_like = format!("{looks_like}; what works here: {works}");
    }
    let path = checkpoint.files().first().map(|path| path.to_path_buf()).unwrap_or_default();
    Error::file(path)(FileProblem::OtherModel { wanted, looks_like, part: checkpoint.family().part() })
}
