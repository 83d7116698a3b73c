//! Safetensors files, written tensor by tensor and whole or not at all.

use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use ::safetensors::Dtype;
use serde_json::{Map, Value, json};

use super::safetensors::MAX_HEADER;
use crate::error::{Error, FileProblem, Result};

/// Where the numbers of a written file begin: a multiple of this, so that a mapped file's tensors lie as libtorch's
/// own do, and give its bits.
const ALIGNMENT: usize = 64;

/// A tensor to be written.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Planned {
    pub(crate) name: String,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<i64>,
}

impl Planned {
    pub(crate) fn bytes(&self) -> u64 {
        self.shape.iter().map(|&d| d as u64).product::<u64>() * self.dtype.bitsize() as u64 / 8
    }
}

/// Where tensors are to be written.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    /// The folder, which is made.
    pub(crate) folder: PathBuf,
    /// The file's name without `.safetensors`; shards count on from it.
    pub(crate) stem: String,
    /// The most bytes of tensors in a file; a single larger tensor still gets a file.
    pub(crate) shard_size: Option<u64>,
    /// Whether files of these names may be replaced.
    pub(crate) overwrite: bool,
}

/// Writes the tensors and, where there are several files, their index. `produce` writes one tensor's bytes.
///
/// Each file is written under another name beside its place, and moved there when all of them are whole: whatever
/// happens, nothing half-written bears a final name. What a run that was killed left behind is overwritten by the next.
///
/// # Errors
/// [`Error::Io`] names the file; [`Error::File`] where one stands there already or another process writes it.
pub(crate) fn write(
    target: &Target,
    mut tensors: Vec<Planned>,
    metadata: &BTreeMap<String, String>,
    produce: &mut dyn FnMut(&Planned, &mut PartFile) -> Result<()>,
) -> Result<Vec<PathBuf>> {
    // The widest first, so that each begins at a multiple of its width.
    tensors.sort_by(|a, b| (b.dtype.bitsize(), &a.name).cmp(&(a.dtype.bitsize(), &b.name)));
    let shards = shards(tensors, target.shard_size);
    let name = |i: usize| match shards.len() {
        1 => format!("{}.safetensors", target.stem),
        n => format!("{}-{:05}-of-{n:05}.safetensors", target.stem, i + 1),
    };
    let mut names: Vec<String> = (0..shards.len()).map(name).collect();
    let index = (shards.len() > 1).then(|| format!("{}.safetensors.index.json", target.stem));
    names.extend(index.clone());
    let folder = &target.folder;
    fs::create_dir_all(folder).map_err(Error::io(folder))?;
    let mut places = names.iter().map(|name| folder.join(name));
    if let Some(there) = places.find(|place| place.exists() && !target.overwrite) {
        return Err(Error::file(there)(FileProblem::Exists));
    }
    let mut parts = Vec::new();
    for (shard, name) in shards.iter().zip(&names) {
        let mut part = PartFile::create(folder, name)?;
        part.write(&header(shard, metadata).map_err(Error::file(&part.place))?)?;
        for tensor in shard {
            let before = part.written;
            produce(tensor, &mut part)?;
            let (found, expected) = (part.written - before, tensor.bytes());
            if found != expected {
                let reason = format!("{found} bytes were made of it, not {expected}");
                return Err(Error::file(&part.place)(FileProblem::Tensor {
                    name: tensor.name.clone(),
                    reason,
                }));
            }
        }
        parts.push(part);
    }
    if let Some(name) = index {
        let total: u64 = shards.iter().flatten().map(Planned::bytes).sum();
        let entries = shards.iter().zip(&names);
        let entries =
            entries.flat_map(|(shard, name)| shard.iter().map(move |t| (t.name.clone(), json!(name))));
        let weight_map: Map<String, Value> = entries.collect();
        parts.push(json_file(
            folder,
            &name,
            &json!({
                "metadata": { "total_size": total }, "weight_map": weight_map,
            }),
        )?);
    }
    parts.into_iter().map(PartFile::finish).collect()
}

/// A file of JSON, whole but not yet in its place.
pub(crate) fn json_file(folder: &Path, name: &str, value: &Value) -> Result<PartFile> {
    let mut part = PartFile::create(folder, name)?;
    let mut text = format!("{value:#}");
    text.push('\n');
    part.write(text.as_bytes())?;
    Ok(part)
}

/// As many tensors to a file as fit it, in their order.
fn shards(tensors: Vec<Planned>, size: Option<u64>) -> Vec<Vec<Planned>> {
    let (mut shards, mut room) = (vec![Vec::new()], size.unwrap_or(u64::MAX));
    for tensor in tensors {
        let full = shards.last().is_some_and(|shard: &Vec<Planned>| !shard.is_empty());
        if full && tensor.bytes() > room {
            shards.push(Vec::new());
            room = size.unwrap_or(u64::MAX);
        }
        room = room.saturating_sub(tensor.bytes());
        if let Some(shard) = shards.last_mut() {
            shard.push(tensor);
        }
    }
    shards
}

/// The length and the JSON of a header, filled up with blanks so that the numbers begin at [`ALIGNMENT`].
fn header(
    tensors: &[Planned],
    metadata: &BTreeMap<String, String>,
) -> std::result::Result<Vec<u8>, FileProblem> {
    let (mut json, mut at) = (Map::new(), 0);
    if !metadata.is_empty() {
        json.insert("__metadata__".into(), json!(metadata));
    }
    for tensor in tensors {
        let end = at + tensor.bytes();
        let dtype = format!("{:?}", tensor.dtype);
        let entry = json!({ "dtype": dtype, "shape": tensor.shape, "data_offsets": [at, end] });
        json.insert(tensor.name.clone(), entry);
        at = end;
    }
    let mut text = Value::Object(json).to_string().into_bytes();
    let len = (8 + text.len()).next_multiple_of(ALIGNMENT) - 8;
    text.resize(len, b' ');
    if len as u64 > MAX_HEADER {
        return Err(FileProblem::HeaderTooLong { len: len as u64 });
    }
    Ok([&(len as u64).to_le_bytes()[..], &text].concat())
}

/// A file under another name beside its place, until it is whole. Dropped before, it is taken away.
#[derive(Debug)]
pub(crate) struct PartFile {
    path: PathBuf,
    place: PathBuf,
    file: File,
    written: u64,
    finished: bool,
}

impl PartFile {
    /// Begins `folder/name`; only one process at a time can.
    fn create(folder: &Path, name: &str) -> Result<Self> {
        let (path, place) = (folder.join(format!(".{name}.part")), folder.join(name));
        let options = File::options().write(true).create(true).truncate(false).open(&path);
        let file = options.map_err(Error::io(&path))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(Error::file(&place)(FileProblem::BeingWritten)),
            // Some network file systems know no locks.
            Err(TryLockError::Error(e)) if e.kind() == io::ErrorKind::Unsupported => {}
            Err(TryLockError::Error(e)) => return Err(Error::io(&path)(e)),
        }
        file.set_len(0).map_err(Error::io(&path))?;
        Ok(Self { path, place, file, written: 0, finished: false })
    }

    /// Writes on.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(Error::io(&self.path))?;
        self.written += bytes.len() as u64;
        Ok(())
    }

    /// Moves the file to its place, with all of its bytes on the disk.
    pub(crate) fn finish(mut self) -> Result<PathBuf> {
        self.file.sync_all().map_err(Error::io(&self.path))?;
        fs::rename(&self.path, &self.place).map_err(Error::io(&self.place))?;
        self.finished = true;
        Ok(self.place.clone())
    }
}

impl Drop for PartFile {
    fn drop(&mut self) {
        if !self.finished {
            // The error that led here is the one to tell.
            let _ = fs::remove_file(&self.path);
        }
    }
}
