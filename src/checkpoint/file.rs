//! One weight file on the disk: opened, looked at, and read or mapped tensor by tensor.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use memmap2::{MmapMut, MmapOptions};
use tch::{Device, Kind, Tensor};

use super::safetensors::{Entry, Header, MAX_HEADER};
use crate::error::{Error, FileProblem, Result};
use crate::quant::{self, Code, Part, Source};
use crate::shim::{self, Memory};

/// How the bytes of a file come into memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Access {
    /// The file is mapped: nothing is read before it is used, and on the CPU the tensors lie in the mapping. The file
    /// must stay as it is while they live; a private mapping keeps what is written to them off the file. Models that
    /// were filled from one [`Checkpoint`](super::Checkpoint) share it: read instead, to train one of them.
    #[default]
    Map,
    /// Every tensor is read into memory of its own. For files on a network, or that may change.
    Read,
}

/// A safetensors file.
#[derive(Debug)]
pub(crate) struct WeightFile {
    pub(crate) path: PathBuf,
    pub(crate) header: Header,
    file: File,
    len: u64,
    mapping: Option<Arc<Mapping>>,
}

/// A private mapping of a whole file. Neither moves nor shrinks; goes with the last tensor over it.
struct Mapping(MmapMut);

impl Memory for Mapping {
    fn bytes(&self) -> (*mut u8, usize) {
        (self.0.as_ptr().cast_mut(), self.0.len())
    }
}

impl std::fmt::Debug for Mapping {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        write!(f, "Mapping({} bytes)", self.0.len())
    }
}

impl WeightFile {
    /// Opens the file and reads its header, and nothing else of it.
    pub(crate) fn open(path: &Path, access: Access) -> Result<Self> {
        let (file, len) = open_regular(path)?;
        let header = read_header(&file, len, path)?;
        let mapping = match access {
            Access::Map => Some(Arc::new(map(&file, path)?)),
            Access::Read => None,
        };
        Ok(Self { path: path.to_path_buf(), header, file, len, mapping })
    }

    /// Whether the tensor lies in the mapped file.
    pub(crate) fn holds(&self, tensor: &Tensor) -> bool {
        let on_cpu = tensor.device() == Device::Cpu;
        self.mapping.as_ref().filter(|_| on_cpu).is_some_and(|mapping| {
            let (start, len) = mapping.bytes();
            (tensor.data_ptr() as usize).checked_sub(start as usize).is_some_and(|offset| offset < len)
        })
    }

    /// One tensor on the CPU in the kind of the file: borrowed where the file is mapped and the place is aligned, else
    /// read.
    pub(crate) fn tensor(&self, entry: &Entry) -> Result<Tensor> {
        let kind = entry.encoding.kind().ok_or_else(|| {
            let reason = format!("libtorch has no kind for {}", entry.encoding);
            Error::file(&self.path)(FileProblem::Tensor { name: entry.name.clone(), reason })
        })?;
        self.check_unchanged()?;
        if let Some(mapping) = &self.mapping
            && let Some(tensor) = shim::borrow(mapping, entry.begin as usize, &entry.shape, kind)
        {
            return Ok(tensor?);
        }
        self.read(entry, kind)
    }

    /// Numbers of a tensor, to be decoded: those in `elements`, counted over the `of` that it decodes to.
    #[allow(dead_code)] // Until the loader decodes what it reads.
    pub(crate) fn part<'a>(
        &'a self,
        entry: &Entry,
        code: &'a Code,
        of: usize,
        elements: Range<usize>,
    ) -> Result<Part<'a>> {
        Part::new(self, entry.begin..entry.end, code, of, elements).map_err(|reason| {
            Error::file(&self.path)(FileProblem::Tensor { name: entry.name.clone(), reason })
        })
    }

    /// A whole tensor of the shape `shape`, decoded to `kind`, on the CPU.
    #[allow(dead_code)] // Until the loader decodes what it reads.
    pub(crate) fn decode(&self, entry: &Entry, code: &Code, shape: &[i64], kind: Kind) -> Result<Tensor> {
        self.check_unchanged()?;
        let count = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(usize::try_from(d).ok()?));
        // No tensor has as many numbers as stand for a shape that overflows.
        let count = count.unwrap_or(usize::MAX);
        quant::decode(self.part(entry, code, count, 0..count)?, shape, kind)
    }

    fn read(&self, entry: &Entry, kind: Kind) -> Result<Tensor> {
        let tensor = Tensor::f_empty(&entry.shape, (kind, Device::Cpu))?;
        shim::with_bytes(&tensor, |bytes| read_at(&self.file, bytes, entry.begin))
            .map_err(Error::io(&self.path))?;
        Ok(tensor)
    }

    /// [`Error::Changed`] where the file is no longer as long as when it was opened: reading past its end would kill
    /// the process.
    pub(crate) fn check_unchanged(&self) -> Result<()> {
        let now = self.file.metadata().map_err(Error::io(&self.path))?.len();
        if now == self.len {
            return Ok(());
        }
        Err(Error::Changed { path: self.path.clone(), was: self.len, now })
    }
}

impl Source for WeightFile {
    fn read(&self, at: u64, out: &mut [u8]) -> Result<()> {
        read_at(&self.file, out, at).map_err(Error::io(&self.path))
    }
}

/// Opens what is a file and nothing else: opening a pipe would wait for ever, and a device has no end.
fn open_regular(path: &Path) -> Result<(File, u64)> {
    let problem = Error::file(path);
    let metadata = std::fs::metadata(path).map_err(Error::io(path))?;
    if metadata.is_dir() {
        return Err(problem(FileProblem::Directory));
    }
    if !metadata.is_file() {
        return Err(problem(FileProblem::NotAFile));
    }
    let file = File::open(path).map_err(Error::io(path))?;
    let len = file.metadata().map_err(Error::io(path))?.len();
    Ok((file, len))
}

/// The text of an index, which is as small as a header and as much a file as the weights.
pub(crate) fn read_index(path: &Path) -> Result<String> {
    let (file, len) = open_regular(path)?;
    if len > MAX_HEADER {
        let reason = format!("{len} bytes are more than an index has");
        return Err(Error::file(path)(FileProblem::Index { reason }));
    }
    let mut text = vec![0; len as usize];
    read_at(&file, &mut text, 0).map_err(Error::io(path))?;
    String::from_utf8(text).map_err(|e| {
        let reason = format!("it is not UTF-8 after {} bytes", e.utf8_error().valid_up_to());
        Error::file(path)(FileProblem::Index { reason })
    })
}

fn read_header(file: &File, len: u64, path: &Path) -> Result<Header> {
    let mut start = [0; 64];
    let known = start.len().min(len as usize);
    read_at(file, &mut start[..known], 0).map_err(Error::io(path))?;
    if let Some(kind) = other_format(&start[..known]) {
        return Err(Error::file(path)(FileProblem::OtherFormat { kind }));
    }
    if len < 8 {
        return Err(Error::file(path)(FileProblem::TooShort { len }));
    }
    let mut first = [0; 8];
    first.copy_from_slice(&start[..8]);
    let header_len = Header::length(first, len).map_err(Error::file(path))?;
    let mut json = vec![0; header_len as usize];
    read_at(file, &mut json, 8).map_err(Error::io(path))?;
    Header::parse(&json, len).map_err(Error::file(path))
}

/// What a file is instead, by its first bytes. A header begins with `{` after its length, which may itself look like
/// another format's mark.
fn other_format(start: &[u8]) -> Option<&'static str> {
    if start.get(8) == Some(&b'{') {
        return None;
    }
    let text = start.trim_ascii_start().to_ascii_lowercase();
    let known: [(&[u8], &'static str); 7] = [
        (
            b"version https://git-lfs",
            "a git-LFS pointer: the weights themselves were not fetched; run `git lfs pull`",
        ),
        (b"<!doctype html", "a web page: the download needs a login or another address"),
        (b"<html", "a web page: the download needs a login or another address"),
        (b"gguf", "a GGUF file"),
        (
            b"pk\x03\x04",
            "a zip file, perhaps a pickle of PyTorch, which can run code when it is read; convert it to safetensors",
        ),
        (b"\x80\x02", "a pickle of Python, which can run code when it is read; convert it to safetensors"),
        (b"\x80\x04", "a pickle of Python, which can run code when it is read; convert it to safetensors"),
    ];
    known.iter().find(|(magic, _)| text.starts_with(magic)).map(|(_, kind)| *kind)
}

fn map(file: &File, path: &Path) -> Result<Mapping> {
    // Private, so that training or a careless in-place operation never reaches the file; without a reservation of
    // swap, since few pages are ever written.
    // SAFETY: whoever maps a file is told, in `Access::Map`, that it must stay as it is; before each use of the mapping
    // its length is compared with the file's.
    unsafe { MmapOptions::new().no_reserve_swap().map_copy(file) }.map(Mapping).map_err(Error::io(path))
}

#[cfg(unix)]
fn read_at(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, bytes, offset)
}

#[cfg(not(unix))]
fn read_at(mut file: &File, bytes: &mut [u8], offset: u64) -> io::Result<()> {
    use std::io::{Read, Seek, SeekFrom};
    file.seek(SeekFrom::Start(offset))?;
    file.read_exact(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers of f16 that need several threads, in two tensors; one is shorter than the file says by the end.
    #[test]
    fn a_tensor_is_decoded_and_an_error_names_the_file() {
        let (count, path) = (3_000_000, tempfile::NamedTempFile::new().unwrap());
        let header = format!(
            r#"{{"w":{{"dtype":"F16","shape":[3,{}],"data_offsets":[0,{}]}}}}"#,
            count / 3,
            count * 2
        );
        let numbers = (0..count).flat_map(|i| (i as u16).to_le_bytes());
        let bytes: Vec<u8> =
            (header.len() as u64).to_le_bytes().into_iter().chain(header.bytes()).chain(numbers).collect();
        std::fs::write(&path, bytes).unwrap();
        let file = WeightFile::open(path.path(), Access::Read).unwrap();
        let entry = &file.header.entries["w"];
        let code = Code::of(entry.encoding).unwrap();

        let shape = [3, count as i64 / 3];
        let theirs = file.tensor(entry).unwrap().to_kind(Kind::BFloat16);
        let ours = file.decode(entry, &code, &shape, Kind::BFloat16).unwrap();
        assert_eq!((ours.size(), ours.kind()), (shape.to_vec(), Kind::BFloat16));
        assert!(ours.isclose(&theirs, 0.0, 0.0, true).all().int64_value(&[]) == 1);

        let wrong = file.decode(entry, &code, &[3, 5], Kind::Float).unwrap_err();
        assert!(matches!(wrong, Error::File { problem: FileProblem::Tensor { .. }, .. }), "{wrong}");
        assert!(file.decode(entry, &code, &[i64::MAX, i64::MAX], Kind::Float).is_err());
        let part = file.part(entry, &code, count, 0..count).unwrap();
        path.as_file().set_len(1000).unwrap();
        let changed = file.decode(entry, &code, &shape, Kind::Float).unwrap_err();
        assert!(matches!(changed, Error::Changed { .. }), "{changed}");
        let cut = quant::decode(part, &shape, Kind::Float).unwrap_err();
        assert!(matches!(&cut, Error::Io { path: p, .. } if p == path.path()), "{cut}");
    }
}
