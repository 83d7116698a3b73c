//! The bytes of a header, and how many of them may be believed.

use std::fmt;

use super::MAGIC;
use crate::checkpoint::safetensors::{MAX_HEADER, shorten};
use crate::error::FileProblem;

/// The fewest bytes of a key: the length of its name, its type, its value.
const LEAST_KEY: u64 = 8 + 4 + 1;
/// The fewest bytes of a tensor: the length of its name, how many axes, its type, its offset.
const LEAST_TENSOR: u64 = 8 + 4 + 4 + 8;

/// Why no header came out.
pub(super) enum Stop {
    /// It goes on behind the bytes that are there.
    Unread,
    Bad(FileProblem),
}

impl From<FileProblem> for Stop {
    fn from(problem: FileProblem) -> Self {
        Self::Bad(problem)
    }
}

/// What is being read, as messages name it.
#[derive(Clone, Copy)]
pub(super) enum Part<'a> {
    Start(&'static str),
    Key(u64),
    Value(&'a str),
    Name(u64),
    Tensor(&'a str),
}

impl fmt::Display for Part<'_> {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Self::Start(what) => f.write_str(what),
            Self::Key(i) => write!(f, "the key of metadata {i}"),
            Self::Value(key) => write!(f, "metadata \"{}\"", shorten(key)),
            Self::Name(i) => write!(f, "the name of tensor {i}"),
            Self::Tensor(name) => write!(f, "tensor \"{}\"", shorten(name)),
        }
    }
}

/// The header's bytes from `at` on. Whatever a length or a count asks for is compared with what is left of the file
/// before it is believed.
pub(super) struct Reader<'a> {
    pub(super) bytes: &'a [u8],
    pub(super) at: u64,
    pub(super) file_len: u64,
}

impl<'a> Reader<'a> {
    /// How many tensors and how many keys.
    pub(super) fn counts(&mut self) -> Result<(u64, u64), Stop> {
        let bad = |reason: String| Stop::Bad(FileProblem::Gguf { reason });
        if self.take(4, Part::Start("the mark"))? != MAGIC {
            return Err(bad("it does not begin with GGUF".into()));
        }
        let version = self.u32(Part::Start("the version"))?;
        match version {
            2 | 3 => {}
            1 => return Err(bad("it is of version 1, and 2 and 3 are read: convert the model anew".into())),
            _ if (1..=3).contains(&version.swap_bytes()) => {
                let mend = "turn it round with `gguf-convert-endian FILE little`";
                return Err(bad(format!("it is big-endian, and little-endian files are read: {mend}")));
            }
            _ => return Err(bad(format!("it is of version {version}, and 2 and 3 are read"))),
        }
        let tensors = self.u64(Part::Start("the number of tensors"))?;
        let keys = self.u64(Part::Start("the number of metadata"))?;
        self.expect(keys.checked_mul(LEAST_KEY), Part::Start("the metadata"))?;
        self.expect(tensors.checked_mul(LEAST_TENSOR), Part::Start("the list of tensors"))?;
        Ok((tensors, keys))
    }

    /// That so many bytes can still come; `None` is more than can be counted.
    pub(super) fn expect(&self, len: Option<u64>, part: Part) -> Result<(), FileProblem> {
        let len = len.unwrap_or(u64::MAX);
        let left = self.file_len.saturating_sub(self.at);
        if len > left {
            return Err(FileProblem::HeaderCut { what: part.to_string(), len, left });
        }
        if len > MAX_HEADER.saturating_sub(self.at) {
            let reason = format!("{part} would make the header longer than {MAX_HEADER} bytes");
            return Err(FileProblem::Gguf { reason });
        }
        Ok(())
    }

    pub(super) fn take(&mut self, len: u64, part: Part) -> Result<&'a [u8], Stop> {
        self.expect(Some(len), part)?;
        let end = self.at + len;
        let taken = self.bytes.get(self.at as usize..end as usize).ok_or(Stop::Unread)?;
        self.at = end;
        Ok(taken)
    }

    pub(super) fn array<const N: usize>(&mut self, part: Part) -> Result<[u8; N], Stop> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N as u64, part)?);
        Ok(array)
    }

    pub(super) fn u32(&mut self, part: Part) -> Result<u32, Stop> {
        self.array(part).map(u32::from_le_bytes)
    }

    pub(super) fn u64(&mut self, part: Part) -> Result<u64, Stop> {
        self.array(part).map(u64::from_le_bytes)
    }

    pub(super) fn text(&mut self, part: Part) -> Result<&'a str, Stop> {
        let len = self.u64(part)?;
        std::str::from_utf8(self.take(len, part)?).map_err(|e| {
            let reason = format!("{part} is not UTF-8 after {} bytes", e.valid_up_to());
            Stop::Bad(FileProblem::Gguf { reason })
        })
    }
}
