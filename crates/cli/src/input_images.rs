//! Pictures from files, as they are to be seen, and what they were when they were read.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use anyhow::Context;
use sha2::{Digest, Sha256};
use tch_flux::image::{Decoded, Image, Mask, decode, within_bounds};

/// The checksums of all files that were read, by their names.
static CHECKSUMS: Mutex<BTreeMap<PathBuf, String>> = Mutex::new(BTreeMap::new());

/// Reads a PNG, JPEG or WebP.
pub(super) fn read(path: &Path) -> anyhow::Result<Image> {
    Ok(read_decoded(path)?.into_image())
}

/// Reads a PNG, JPEG or WebP whose light pixels are drawn anew.
pub(super) fn read_mask(path: &Path) -> anyhow::Result<Mask> {
    Ok(read_decoded(path)?.into_mask().map_err(|problem| problem.of_file(path))?)
}

/// Returns the checksums of all pictures that were read, by their files' names.
pub(super) fn checksums() -> BTreeMap<PathBuf, String> {
    CHECKSUMS.lock().map_or_else(|broken| broken.into_inner().clone(), |checksums| checksums.clone())
}

/// Returns the name of a file that cannot be read, and what would help where it is no file's name.
fn unreadable_name(path: &Path) -> String {
    let name = path.display().to_string();
    if ["http://", "https://"].iter().any(|start| name.starts_with(start)) {
        format!("{name}: this is an address: fetch the picture, and name its file")
    } else if let Some((kind, _)) = name.split_once(',').filter(|_| name.starts_with("data:")) {
        format!("{kind},…: this is a picture as text: decode it into a file, and name that")
    } else if name == "-" {
        format!("{name}: pictures are files; standard input is /dev/stdin")
    } else if path.is_dir() {
        format!("{name}: this is a folder: name a picture in it")
    } else {
        name
    }
}

fn read_decoded(path: &Path) -> anyhow::Result<Decoded> {
    let bytes = fs::read(path).with_context(|| unreadable_name(path))?;
    let sum: String = Sha256::digest(&bytes).iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    if let Ok(mut checksums) = CHECKSUMS.lock() {
        checksums.insert(path.to_path_buf(), sum);
    }
    Ok(decode(&bytes, &mut within_bounds).map_err(|problem| problem.of_file(path))?)
}
