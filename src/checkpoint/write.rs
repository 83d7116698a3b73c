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
}

/// The files that tensors will be in.
#[derive(Debug)]
pub(crate) struct Plan {
    folder: PathBuf,
    shards: Vec<Vec<Planned>>,
    /// Of the shards, and of their index where they are several.
    names: Vec<String>,
    metadata: BTreeMap<String, String>,
    /// Files of the same name in another number of shards, of which a reader would not know which to take.
    stale: Vec<PathBuf>,
}

/// What writes the bytes of one tensor.
pub(crate) type Produce<'a> = dyn FnMut(&Planned, &mut PartFile) -> Result<()> + 'a;

impl Plan {
    pub(crate) fn new(
        target: Target,
        mut tensors: Vec<Planned>,
        metadata: BTreeMap<String, String>,
    ) -> Result<Self> {
        // The widest first, so that each begins at a multiple of its width.
        tensors.sort_by(|a, b| (b.dtype.bitsize(), &a.name).cmp(&(a.dtype.bitsize(), &b.name)));
        let Target { folder, stem, shard_size } = target;
        let shards = shards(tensors, shard_size);
        let name = |i: usize| match shards.len() {
            1 => format!("{stem}.safetensors"),
            n => format!("{stem}-{:05}-of-{n:05}.safetensors", i + 1),
        };
        let mut names: Vec<String> = (0..shards.len()).map(name).collect();
        names.extend((shards.len() > 1).then(|| index_name(&stem)));
        let mut stale = Vec::new();
        if folder.is_dir() {
            for entry in fs::read_dir(&folder).map_err(Error::io(&folder))? {
                let name = entry.map_err(Error::io(&folder))?.file_name().to_string_lossy().into_owned();
                if is_of(&stem, &name) && !names.contains(&name) {
                    stale.push(folder.join(name));
                }
            }
        }
        // The index first: without it, the shards are not a model any more.
        stale.sort_by_key(|path| !path.to_string_lossy().ends_with(".index.json"));
        Ok(Self { folder, shards, names, metadata, stale })
    }

    /// Where the files will stand.
    pub(crate) fn places(&self) -> impl Iterator<Item = PathBuf> {
        self.names.iter().map(|name| self.folder.join(name))
    }

    /// Files that have to go once the new ones stand.
    pub(crate) fn stale(&self) -> &[PathBuf] {
        &self.stale
    }

    /// The bytes of all tensors.
    pub(crate) fn bytes(&self) -> u64 {
        self.shards.iter().flatten().map(Planned::bytes).sum()
    }

    /// Writes the tensors and, where there are several files, their index, each under another name beside its place.
    ///
    /// # Errors
    /// [`Error::Io`] names the file; [`Error::File`] where another process writes it.
    pub(crate) fn write(&self, produce: &mut Produce) -> Result<Vec<PartFile>> {
        fs::create_dir_all(&self.folder).map_err(Error::io(&self.folder))?;
        let mut parts = Vec::new();
        for (shard, name) in self.shards.iter().zip(&self.names) {
            let mut part = PartFile::create(&self.folder, name)?;
            part.write(&header(shard, &self.metadata).map_err(Error::file(&part.place))?)?;
            for tensor in shard {
                let before = part.written;
                produce(tensor, &mut part)?;
                let (found, expected) = (part.written - before, tensor.bytes());
                if found != expected {
                    let reason = format!("{found} bytes were made of it, not {expected}");
                    let name = tensor.name.clone();
                    return Err(Error::file(&part.place)(FileProblem::Tensor { name, reason }));
                }
            }
            parts.push(part);
        }
        if let Some(name) = self.names.get(self.shards.len()) {
            let entries = self.shards.iter().zip(&self.names);
            let entries =
                entries.flat_map(|(shard, name)| shard.iter().map(move |t| (t.name.clone(), json!(name))));
            let weight_map: Map<String, Value> = entries.collect();
            let index = json!({ "metadata": { "total_size": self.bytes() }, "weight_map": weight_map });
            parts.push(json_file(&self.folder, name, &index)?);
        }
        Ok(parts)
    }
}

/// Moves whole files to their places and takes away what they stand in for. Whatever happened before, nothing
/// half-written bears a final name, and what a run that was killed left behind is overwritten by the next.
pub(crate) fn finish(parts: Vec<PartFile>, stale: &[PathBuf]) -> Result<Vec<PathBuf>> {
    for part in &parts {
        part.file.sync_all().map_err(Error::io(&part.place))?;
    }
    let places = parts.into_iter().map(PartFile::finish).collect::<Result<_>>()?;
    for path in stale {
        fs::remove_file(path).map_err(Error::io(path))?;
    }
    Ok(places)
}

fn index_name(stem: &str) -> String {
    format!("{stem}.safetensors.index.json")
}

/// Whether a file is this model, a shard of it, or its index.
fn is_of(stem: &str, name: &str) -> bool {
    let number = |text: &str| text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit());
    let is_shard = |rest: &str| {
        let numbers = rest.strip_prefix('-').and_then(|rest| rest.strip_suffix(".safetensors"));
        numbers.and_then(|n| n.split_once("-of-")).is_some_and(|(i, n)| number(i) && number(n))
    };
    match name.strip_prefix(stem) {
        Some(".safetensors" | ".safetensors.index.json") => true,
        Some(rest) => is_shard(rest),
        None => false,
    }
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
        loop {
            let options = File::options().write(true).create(true).truncate(false).open(&path);
            // Whoever reads the error knows the file by the name that it was to have.
            let file = options.map_err(Error::io(&place))?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    return Err(Error::file(&place)(FileProblem::BeingWritten));
                }
                // Some network file systems know no locks.
                Err(TryLockError::Error(e)) if e.kind() == io::ErrorKind::Unsupported => {}
                Err(TryLockError::Error(e)) => return Err(Error::io(&place)(e)),
            }
            // Whoever held the lock before may have moved the file to its place, which must not be touched.
            if is_at(&file, &path).map_err(Error::io(&place))? {
                file.set_len(0).map_err(Error::io(&place))?;
                return Ok(Self { path, place, file, written: 0, finished: false });
            }
        }
    }

    /// Writes on.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(Error::io(&self.place))?;
        self.written += bytes.len() as u64;
        Ok(())
    }

    fn finish(mut self) -> Result<PathBuf> {
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

/// Whether an open file is the one that now bears this name.
#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    use std::os::unix::fs::MetadataExt;
    let open = file.metadata()?;
    match fs::metadata(path) {
        Ok(named) => Ok((named.dev(), named.ino()) == (open.dev(), open.ino())),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

/// Elsewhere an open file cannot be moved.
#[cfg(not(unix))]
fn is_at(_file: &File, _path: &Path) -> io::Result<bool> {
    Ok(true)
}
