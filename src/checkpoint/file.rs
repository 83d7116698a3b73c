//! One weight file on the disk: opened, looked at, and read or mapped tensor by tensor.

use std::fs::{File, Metadata};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use memmap2::{Advice, MmapMut, MmapOptions, UncheckedAdvice};
use tch::{Device, Kind, Tensor};

use super::gguf;
use super::safetensors::{Entry, Header, MAX_HEADER};
use crate::config::other_format;
use crate::error::{Error, FileProblem, Result};
use crate::quant::{Code, Part, Source};
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

#[cfg(test)]
thread_local! {
    /// The files whose headers this thread has read, in order.
    pub(crate) static HEADERS_READ: std::cell::RefCell<Vec<PathBuf>> = const { std::cell::RefCell::new(Vec::new()) };
}

/// A safetensors or GGUF file.
#[derive(Debug)]
pub(crate) struct WeightFile {
    pub(crate) path: PathBuf,
    pub(crate) header: Arc<Header>,
    /// How many files the model is divided into, as a GGUF file says of itself; 1 of any other.
    pub(super) parts: usize,
    file: Arc<File>,
    /// What the file was when it was opened.
    metadata: Metadata,
    access: Access,
    /// Made when it is first needed: whoever reads the header alone maps nothing.
    mapping: OnceLock<Arc<Mapping>>,
}

/// A private mapping of a whole file. Neither moves nor shrinks; goes with the last tensor over it.
struct Mapping(MmapMut);

// SAFETY: a private mapping neither moves nor shrinks, and what is written to it reaches neither the file nor anybody else;
// that the file keeps its length is a condition of `Access::Map`.
unsafe impl Memory for Mapping {
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
        let (file, metadata) = open_regular(path)?;
        let (header, is_gguf) = read_header(&file, metadata.len(), path)?;
        #[cfg(test)]
        HEADERS_READ.with_borrow_mut(|read| read.push(path.to_path_buf()));
        let parts = header.metadata.get("split.count").filter(|_| is_gguf).and_then(|n| n.parse().ok());
        Ok(Self {
            path: path.to_path_buf(),
            header: Arc::new(header),
            parts: parts.unwrap_or(1),
            file: Arc::new(file),
            metadata,
            access,
            mapping: OnceLock::new(),
        })
    }

    /// The same open file with a mapping of its own, which goes with the last tensor over it.
    pub(super) fn unmapped(&self) -> Self {
        Self {
            path: self.path.clone(),
            header: self.header.clone(),
            parts: self.parts,
            file: self.file.clone(),
            metadata: self.metadata.clone(),
            access: self.access,
            mapping: OnceLock::new(),
        }
    }

    /// Whether the file that lies at the path now is the one that was opened, as it was then.
    pub(super) fn is_current(&self) -> bool {
        std::fs::metadata(&self.path).is_ok_and(|now| is_same(&now, &self.metadata))
    }

    /// The mapping of the file, where it is to be mapped.
    fn mapping(&self) -> Result<Option<&Arc<Mapping>>> {
        if self.access == Access::Read {
            return Ok(None);
        }
        if let Some(mapping) = self.mapping.get() {
            return Ok(Some(mapping));
        }
        // Where another thread was faster, this mapping goes again.
        let mapping = Arc::new(map(&self.file, &self.path)?);
        Ok(Some(self.mapping.get_or_init(|| mapping)))
    }

    /// Whether the tensor lies in the mapped file.
    pub(crate) fn holds(&self, tensor: &Tensor) -> bool {
        let on_cpu = tensor.device() == Device::Cpu;
        self.mapping.get().filter(|_| on_cpu).is_some_and(|mapping| {
            let (start, len) = mapping.bytes();
            (tensor.data_ptr() as usize).checked_sub(start as usize).is_some_and(|offset| offset < len)
        })
    }

    /// Says that some of the numbers of a tensor, of the `of` that it has, will be needed soon, where the file is mapped.
    pub(super) fn bring(&self, entry: &Entry, elements: &Range<usize>, of: usize) {
        if let Ok(Some(mapping)) = self.mapping() {
            let bytes = entry.bytes_of(elements, of);
            // An advice: without it they are read when they are used.
            let _ = mapping.0.advise_range(Advice::WillNeed, bytes.start, bytes.len());
        }
    }

    /// Lets the memory go in which some of the numbers of a tensor lie: they are read again when they are used. What was
    /// written to them is lost.
    pub(super) fn let_go(&self, entry: &Entry, elements: &Range<usize>, of: usize) {
        if let Some(mapping) = self.mapping.get() {
            let bytes = entry.bytes_of(elements, of);
            // SAFETY: the pages of this mapping are those of a file, so they come again with the bytes that they had; a model
            // whose weights lie elsewhere is not trained, and nothing else writes to them.
            let _ = unsafe {
                mapping.0.unchecked_advise_range(UncheckedAdvice::DontNeed, bytes.start, bytes.len())
            };
        }
    }

    /// A run of a tensor's numbers on the CPU, as `kind` and in this shape, which are the file's own: borrowed where the
    /// file is mapped and the place is aligned, else read.
    pub(crate) fn tensor(
        &self,
        entry: &Entry,
        elements: &Range<usize>,
        shape: &[i64],
        kind: Kind,
    ) -> Result<Tensor> {
        self.check_unchanged()?;
        let begin = entry.begin + (elements.start * kind.elt_size_in_bytes()) as u64;
        self.run(begin, shape, kind)
    }

    /// The bytes of a run of numbers, as they are stored, as a tensor of one axis.
    pub(crate) fn stored_bytes(&self, entry: &Entry, bytes: Range<usize>) -> Result<Tensor> {
        self.check_unchanged()?;
        self.run(entry.begin + bytes.start as u64, &[bytes.len() as i64], Kind::Uint8)
    }

    fn run(&self, begin: u64, shape: &[i64], kind: Kind) -> Result<Tensor> {
        if let Some(mapping) = self.mapping()?
            && let Some(tensor) = shim::borrow(mapping, begin as usize, shape, kind)
        {
            return Ok(tensor?);
        }
        let tensor = Tensor::f_empty(shape, (kind, Device::Cpu))?;
        // SAFETY: the tensor was made above, and nobody else has it.
        unsafe { shim::with_bytes(&tensor, |bytes| read_at(&self.file, bytes, begin)) }
            .map_err(Error::io(&self.path))?;
        Ok(tensor)
    }

    /// Fills `out` with the bytes of a tensor from its byte `at` on.
    pub(crate) fn read(&self, entry: &Entry, at: u64, out: &mut [u8]) -> Result<()> {
        self.check_unchanged()?;
        read_at(&self.file, out, entry.begin + at).map_err(Error::io(&self.path))
    }

    /// All bytes of a small tensor.
    pub(crate) fn bytes(&self, entry: &Entry) -> Result<Vec<u8>> {
        self.check_unchanged()?;
        let mut bytes = vec![0; (entry.end - entry.begin) as usize];
        read_at(&self.file, &mut bytes, entry.begin).map_err(Error::io(&self.path))?;
        Ok(bytes)
    }

    /// Numbers of a tensor, to be decoded: those in `elements`, counted over the `of` that it decodes to.
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

    /// [`Error::Changed`] where the file is no longer as long as when it was opened: reading past its end would kill
    /// the process.
    pub(crate) fn check_unchanged(&self) -> Result<()> {
        let now = self.file.metadata().map_err(Error::io(&self.path))?.len();
        let was = self.metadata.len();
        if now == was { Ok(()) } else { Err(Error::Changed { path: self.path.clone(), was, now }) }
    }
}

impl Source for WeightFile {
    fn read(&self, at: u64, out: &mut [u8]) -> Result<()> {
        read_at(&self.file, out, at).map_err(Error::io(&self.path))
    }
}

/// Opens what is a file and nothing else: opening a pipe would wait for ever, and a device has no end.
fn open_regular(path: &Path) -> Result<(File, Metadata)> {
    let problem = Error::file(path);
    let metadata = std::fs::metadata(path).map_err(|error| match std::fs::read_link(path) {
        Ok(target) if error.kind() == io::ErrorKind::NotFound => {
            Error::file(path)(FileProblem::DeadLink { target })
        }
        _ => Error::io(path)(error),
    })?;
    if metadata.is_dir() {
        return Err(problem(FileProblem::Directory));
    }
    if !metadata.is_file() {
        return Err(problem(FileProblem::NotAFile));
    }
    let file = File::open(path).map_err(Error::io(path))?;
    let metadata = file.metadata().map_err(Error::io(path))?;
    Ok((file, metadata))
}

/// Whether two looks at a file found the same one, unchanged.
fn is_same(now: &Metadata, then: &Metadata) -> bool {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        if (now.dev(), now.ino()) != (then.dev(), then.ino()) {
            return false;
        }
    }
    now.len() == then.len() && now.modified().ok() == then.modified().ok()
}

/// The text of an index, which is as small as a header and as much a file as the weights.
pub(crate) fn read_index(path: &Path) -> Result<String> {
    let (file, metadata) = open_regular(path)?;
    let len = metadata.len();
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

/// The header, and whether it is that of a GGUF file.
fn read_header(file: &File, len: u64, path: &Path) -> Result<(Header, bool)> {
    let mut start = [0; 64];
    let known = start.len().min(len as usize);
    read_at(file, &mut start[..known], 0).map_err(Error::io(path))?;
    if start.starts_with(gguf::MAGIC) {
        return Ok((read_gguf_header(file, len, path)?, true));
    }
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
    Ok((Header::parse(&json, len).map_err(Error::file(path))?, false))
}

/// Nothing says beforehand how long the header of a GGUF file is: mostly some kilobytes, with a tokenizer in it many
/// times that.
fn read_gguf_header(file: &File, len: u64, path: &Path) -> Result<Header> {
    let mut known = 1 << 18;
    loop {
        let mut start = vec![0; len.min(MAX_HEADER).min(known) as usize];
        read_at(file, &mut start, 0).map_err(Error::io(path))?;
        if let Some(header) = Header::parse_gguf(&start, len).map_err(Error::file(path))? {
            return Ok(header);
        }
        known *= 4;
    }
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
