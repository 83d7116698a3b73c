//! From the kernels' source to what a device runs, and the files that keep it.

use std::ffi::{CString, c_char, c_int};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use super::library::{Nvrtc, Program, nvrtc};

/// All kernels, one program.
const SOURCE: &str = concat!(
    include_str!("common.cuh"),
    include_str!("norms.cu"),
    include_str!("heads.cu"),
    include_str!("fp8.cu")
);

/// What is compiled for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Target {
    /// Machine code of this compute capability, such as 90.
    Cubin(c_int),
    /// The driver's own language, which later capabilities can run, too.
    Ptx(c_int),
}

impl Target {
    /// Machine code where this NVRTC knows the device; else PTX of the newest that it knows and the device can run.
    pub(super) fn of(nvrtc: &Nvrtc, capability: c_int) -> Result<Self, String> {
        let mut count = 0;
        // SAFETY: writes a number, then as many numbers as that into room for them.
        let known = unsafe {
            nvrtc.check("the architectures", (nvrtc.nvrtcGetNumSupportedArchs)(&raw mut count))?;
            let mut known = vec![0; count.max(0) as usize];
            nvrtc.check("the architectures", (nvrtc.nvrtcGetSupportedArchs)(known.as_mut_ptr()))?;
            known
        };
        if known.contains(&capability) {
            return Ok(Self::Cubin(capability));
        }
        let newest = known.into_iter().filter(|&known| known < capability).max();
        newest.map(Self::Ptx).ok_or_else(|| format!("NVRTC: it does not know SM {capability}"))
    }

    fn option(self) -> String {
        match self {
            Self::Cubin(capability) => format!("--gpu-architecture=sm_{capability}"),
            Self::Ptx(capability) => format!("--gpu-architecture=compute_{capability}"),
        }
    }
}

/// A program that is destroyed in the end.
struct Compilation<'a>(&'a Nvrtc, Program);

impl Drop for Compilation<'_> {
    fn drop(&mut self) {
        // SAFETY: a program of this library's, destroyed once.
        unsafe { (self.0.nvrtcDestroyProgram)(&raw mut self.1) };
    }
}

/// The kernels for a target, from the folder where they were kept or compiled now and kept there. A folder that cannot
/// be written is no error, and a file that is damaged is made again.
pub(super) fn kernels(target: Target, cache: Option<&Path>) -> Result<Vec<u8>, String> {
    let nvrtc = nvrtc()?;
    let file = cache.map(|folder| folder.join(file_name(nvrtc, target)));
    if let Some(kept) = file.as_deref().and_then(read) {
        return Ok(kept);
    }
    let binary = compile(nvrtc, target)?;
    if let Some(file) = file {
        // What is not kept is compiled again the next time.
        let _ = write(&file, &binary);
    }
    Ok(binary)
}

fn compile(nvrtc: &Nvrtc, target: Target) -> Result<Vec<u8>, String> {
    let text = |text: &str| CString::new(text).map_err(|error| error.to_string());
    let (source, name) = (text(SOURCE)?, text("tch-flux.cu")?);
    let options = [text(&target.option())?, text("--std=c++17")?];
    let options: Vec<*const c_char> = options.iter().map(|option| option.as_ptr()).collect();
    let mut program = std::ptr::null_mut();
    // SAFETY: texts that end with a zero and live through the calls; NVRTC writes as many bytes as it said before.
    unsafe {
        let none = std::ptr::null();
        let created =
            (nvrtc.nvrtcCreateProgram)(&raw mut program, source.as_ptr(), name.as_ptr(), 0, none, none);
        nvrtc.check("a program", created)?;
        let program = Compilation(nvrtc, program);
        let compiled = (nvrtc.nvrtcCompileProgram)(program.1, options.len() as c_int, options.as_ptr());
        if let Err(problem) = nvrtc.check("compiling", compiled) {
            let log = bytes(nvrtc, program.1, nvrtc.nvrtcGetProgramLogSize, nvrtc.nvrtcGetProgramLog)?;
            return Err(format!(
                "{problem}: {}",
                String::from_utf8_lossy(&log).trim_end_matches(['\0', '\n'])
            ));
        }
        match target {
            Target::Cubin(_) => bytes(nvrtc, program.1, nvrtc.nvrtcGetCUBINSize, nvrtc.nvrtcGetCUBIN),
            Target::Ptx(_) => bytes(nvrtc, program.1, nvrtc.nvrtcGetPTXSize, nvrtc.nvrtcGetPTX),
        }
    }
}

/// What one of NVRTC's pairs of functions gives.
///
/// # Safety
/// `program` is a live program of `nvrtc`, and the functions are its.
unsafe fn bytes(
    nvrtc: &Nvrtc,
    program: Program,
    size: unsafe extern "C" fn(Program, *mut usize) -> c_int,
    get: unsafe extern "C" fn(Program, *mut c_char) -> c_int,
) -> Result<Vec<u8>, String> {
    let mut len = 0;
    // SAFETY: the second function writes the bytes that the first one counts.
    unsafe {
        nvrtc.check("the result's size", size(program, &raw mut len))?;
        let mut bytes = vec![0u8; len];
        nvrtc.check("the result", get(program, bytes.as_mut_ptr().cast()))?;
        Ok(bytes)
    }
}

/// Whatever changes the result is in the name.
pub(super) fn file_name(nvrtc: &Nvrtc, target: Target) -> String {
    let (major, minor) = nvrtc.version();
    let key = format!("{SOURCE}\0{}\0{major}.{minor}", target.option());
    format!("kernels-{:016x}.bin", hash(key.as_bytes()))
}

/// The first bytes of a file of ours; the number of bytes that follow and their hash come next.
const MAGIC: &[u8; 8] = b"tchflux1";

/// What a file keeps, if it is whole.
fn read(file: &Path) -> Option<Vec<u8>> {
    let bytes = std::fs::read(file).ok()?;
    let (head, body) = bytes.split_at_checked(24)?;
    (head == header(body)).then(|| body.to_vec())
}

fn header(body: &[u8]) -> Vec<u8> {
    [&MAGIC[..], &(body.len() as u64).to_le_bytes(), &hash(body).to_le_bytes()].concat()
}

/// Under another name first, so that nobody ever sees half a file.
fn write(file: &Path, body: &[u8]) -> std::io::Result<()> {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder)?;
    }
    let part =
        file.with_extension(format!("{}-{}.part", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed)));
    let written =
        std::fs::write(&part, [&header(body)[..], body].concat()).and_then(|()| std::fs::rename(&part, file));
    if written.is_err() {
        let _ = std::fs::remove_file(&part);
    }
    written
}

/// FNV-1a, which finds what is damaged; it need not withstand anybody.
pub(super) fn hash(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
}
