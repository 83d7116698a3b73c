//! Decoding on all cores: many tensors in one go, straight from where their bytes are to where their numbers belong.

use std::ops::Range;

use tch::{Device, Kind, Tensor};

use super::Code;
use crate::error::{Error, Result};
use crate::numerics::par_for;
use crate::shim;

/// Bytes of numbers that one thread fills at a time: a huge page, so that no two threads wait for the same one.
const TASK: usize = 2 << 20;
/// Stored bytes that are read at a time. They and their numbers stay in a core's own cache.
const READ: usize = 128 << 10;

/// Where stored bytes are: a file, or memory.
pub(crate) trait Source: Sync {
    /// Fills `out` with the bytes from `at` on.
    fn read(&self, at: u64, out: &mut [u8]) -> Result<()>;

    /// The bytes themselves, where they are in memory.
    fn bytes(&self, _at: u64, _len: usize) -> Option<&[u8]> {
        None
    }
}

impl Source for &[u8] {
    fn read(&self, at: u64, out: &mut [u8]) -> Result<()> {
        match self.bytes(at, out.len()) {
            Some(bytes) => out.copy_from_slice(bytes),
            None => return Err(Error::Config(format!("no {} bytes at {at}", out.len()))),
        }
        Ok(())
    }

    fn bytes(&self, at: u64, len: usize) -> Option<&[u8]> {
        let begin = usize::try_from(at).ok()?;
        self.get(begin..begin.checked_add(len)?)
    }
}

/// Some of a stored tensor's numbers.
pub(crate) struct Part<'a> {
    source: &'a dyn Source,
    /// The first byte.
    at: u64,
    code: &'a Code,
    elements: Range<usize>,
}

impl<'a> Part<'a> {
    /// The numbers `elements` of a tensor that has `of` of them, stored in `bytes` of `source`.
    ///
    /// # Errors
    /// Why the recipe does not fit the tensor, or the range does not begin and end between two blocks.
    pub(crate) fn new(
        source: &'a dyn Source,
        bytes: Range<u64>,
        code: &'a Code,
        of: usize,
        elements: Range<usize>,
    ) -> std::result::Result<Self, String> {
        let len = usize::try_from(bytes.end.saturating_sub(bytes.start)).unwrap_or(usize::MAX);
        code.check(of, len)?;
        let (unit, _) = code.unit();
        let between_blocks = |at: usize| at == of || (at < of && at.is_multiple_of(unit));
        if elements.start > elements.end || !between_blocks(elements.start) || !between_blocks(elements.end) {
            return Err(format!("the numbers {elements:?} of {of} are no whole blocks of {unit}"));
        }
        let at = bytes.start + code.bytes(elements.start) as u64;
        Ok(Self { source, at, code, elements })
    }
}

/// A tensor to be filled.
pub(crate) struct Job<'a> {
    /// Dense, on the CPU, f64, f32, bf16 or f16.
    pub(crate) out: &'a Tensor,
    /// What it is filled with, one after the other.
    pub(crate) parts: Vec<Part<'a>>,
}

/// Fills all of the tensors, on all cores.
///
/// # Errors
/// The first that a source gives; then the tensors hold anything. [`Error::Shape`] where the parts of a tensor are not
/// as many numbers as it has, [`Error::Kind`] for a tensor that cannot be filled.
///
/// # Safety
/// Nobody else reads or writes the tensors' memory during the call.
pub(crate) unsafe fn decode_all(jobs: &[Job]) -> Result<()> {
    for Job { out, parts } in jobs {
        let (kind, device) = (out.kind(), out.device());
        let float = matches!(kind, Kind::Double | Kind::Float | Kind::BFloat16 | Kind::Half);
        if !float || device != Device::Cpu {
            let expected = (Kind::Float, Device::Cpu);
            return Err(Error::Kind { what: "out", expected, found: (kind, device) });
        }
        if !out.is_contiguous() {
            let expected = "dense".to_string();
            return Err(Error::Shape { what: "out", expected, found: out.size() });
        }
        let count: usize = parts.iter().map(|part| part.elements.len()).sum();
        if count != out.numel() {
            let expected = format!("as many numbers as its parts, {count}");
            return Err(Error::Shape { what: "out", expected, found: out.size() });
        }
    }
    let outs: Vec<&Tensor> = jobs.iter().map(|job| job.out).collect();
    let fill = |outs: Vec<&mut [u8]>| {
        let bytes = outs.iter().map(|out| out.len()).sum();
        let tasks: Vec<Task> = jobs.iter().zip(outs).flat_map(|(job, out)| tasks(job, out)).collect();
        par_for(tasks.into_iter(), bytes, Task::run)
    };
    // SAFETY: the caller keeps everybody else away from the tensors.
    let filled = unsafe { shim::with_all_bytes(&outs, fill) };
    filled.ok_or_else(|| Error::Config("two tensors to be filled lie in the same memory".into()))?
}

/// What one thread does at a time.
struct Task<'a> {
    source: &'a dyn Source,
    at: u64,
    code: &'a Code,
    first: usize,
    to: Kind,
    out: &'a mut [u8],
}

/// Cuts a tensor at the borders of huge pages.
fn tasks<'a>(job: &'a Job, mut out: &'a mut [u8]) -> Vec<Task<'a>> {
    let to = job.out.kind();
    let width = to.elt_size_in_bytes();
    let mut tasks = Vec::new();
    for Part { source, at, code, elements } in &job.parts {
        let unit = code.unit().0;
        let mut done = 0;
        while done < elements.len() {
            let to_border = TASK - out.as_ptr() as usize % TASK;
            let whole = (to_border / width).next_multiple_of(unit);
            let (piece, rest) = out.split_at_mut(whole.min(elements.len() - done) * width);
            let (at, first) = (at + code.bytes(done) as u64, elements.start + done);
            done += piece.len() / width;
            tasks.push(Task { source: *source, at, code, first, to, out: piece });
            out = rest;
        }
    }
    tasks
}

impl Task<'_> {
    fn run(self, buffer: &mut Vec<u8>) -> Result<()> {
        let Self { source, mut at, code, mut first, to, out } = self;
        // The first write to a huge page makes Linux clear it, towards the byte that was written. Forwards is three times
        // as fast as backwards.
        if let Some(last) = out.last_mut() {
            *std::hint::black_box(last) = 0;
        }
        if *code == Code::Plain(to) {
            return source.read(at, out);
        }
        let (unit, stored) = code.unit();
        let elements = READ / stored * unit;
        for out in out.chunks_mut(elements * to.elt_size_in_bytes()) {
            let count = out.len() / to.elt_size_in_bytes();
            let len = code.bytes(count);
            let src = match source.bytes(at, len) {
                Some(bytes) => bytes,
                None => {
                    buffer.resize(len.max(buffer.len()), 0);
                    source.read(at, &mut buffer[..len])?;
                    &buffer[..len]
                }
            };
            code.decode(src, first, to, out);
            (at, first) = (at + len as u64, first + count);
        }
        Ok(())
    }
}
