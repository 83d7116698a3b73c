//! NVRTC and CUDA's driver, found and opened when they are first needed: no toolkit is needed to build, and a machine
//! without them is no error.

use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use libloading::Library;

/// A function's answer; 0 is success.
type Code = c_int;
/// Of `nvrtc.h`.
pub(super) type Program = *mut c_void;

/// A set of functions of one library, each under its own name.
macro_rules! functions {
    ($(#[$doc:meta])* $set:ident { $($name:ident($($arg:ty),*) -> $result:ty;)* }) => {
        $(#[$doc])*
        #[expect(non_snake_case, reason = "the library's names")]
        pub(super) struct $set {
            $(pub(super) $name: unsafe extern "C" fn($($arg),*) -> $result,)*
        }

        impl $set {
            fn of(library: &'static Library) -> Result<Self, String> {
                // SAFETY: the types are those of the library's header, and the library is never closed.
                unsafe {
                    Ok(Self {
                        $($name: *library
                            .get(concat!(stringify!($name), "\0").as_bytes())
                            .map_err(|error| error.to_string())?,)*
                    })
                }
            }
        }
    };
}

functions! {
    /// What is used of NVRTC.
    Nvrtc {
        nvrtcVersion(*mut c_int, *mut c_int) -> Code;
        nvrtcGetErrorString(Code) -> *const c_char;
        nvrtcGetNumSupportedArchs(*mut c_int) -> Code;
        nvrtcGetSupportedArchs(*mut c_int) -> Code;
        nvrtcCreateProgram(*mut Program, *const c_char, *const c_char, c_int, *const *const c_char, *const *const c_char) -> Code;
        nvrtcDestroyProgram(*mut Program) -> Code;
        nvrtcCompileProgram(Program, c_int, *const *const c_char) -> Code;
        nvrtcGetProgramLogSize(Program, *mut usize) -> Code;
        nvrtcGetProgramLog(Program, *mut c_char) -> Code;
        nvrtcGetCUBINSize(Program, *mut usize) -> Code;
        nvrtcGetCUBIN(Program, *mut c_char) -> Code;
        nvrtcGetPTXSize(Program, *mut usize) -> Code;
        nvrtcGetPTX(Program, *mut c_char) -> Code;
    }
}

functions! {
    /// What is used of the driver.
    Driver {
        cuInit(c_uint) -> Code;
        cuGetErrorString(Code, *mut *const c_char) -> Code;
        cuDeviceGet(*mut c_int, c_int) -> Code;
        cuDeviceGetAttribute(*mut c_int, c_int, c_int) -> Code;
        cuDevicePrimaryCtxRetain(*mut *mut c_void, c_int) -> Code;
        cuCtxPushCurrent_v2(*mut c_void) -> Code;
        cuCtxPopCurrent_v2(*mut *mut c_void) -> Code;
        cuModuleLoadData(*mut *mut c_void, *const c_void) -> Code;
        cuModuleGetFunction(*mut *mut c_void, *mut c_void, *const c_char) -> Code;
        cuLaunchKernel(*mut c_void, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, c_uint, *mut c_void, *mut *mut c_void, *mut *mut c_void) -> Code;
    }
}

/// Opens the first of these that can be opened, or says what is wrong with the first. It stays open: kernels and functions point into it.
fn open(names: &[PathBuf]) -> Result<&'static Library, String> {
    let mut problem = None;
    for name in names {
        for builtins in builtins_beside(name) {
            // NVRTC asks for them by name alone, and so finds them where they are open already.
            // SAFETY: as below.
            std::mem::forget(unsafe { Library::new(builtins) });
        }
        // SAFETY: NVIDIA's libraries, which run nothing of ours when they are opened.
        match unsafe { Library::new(name) } {
            Ok(library) => return Ok(Box::leak(Box::new(library))),
            Err(error) => problem = problem.or(Some(error.to_string())),
        }
    }
    Err(problem.unwrap_or_else(|| "nothing to look for".into()))
}

/// NVRTC, or why there is none.
pub(super) fn nvrtc() -> Result<&'static Nvrtc, &'static str> {
    static NVRTC: OnceLock<Result<Nvrtc, String>> = OnceLock::new();
    let found = NVRTC.get_or_init(|| {
        let names = nvrtc_names(libtorch_folder().as_deref());
        open(&names).and_then(Nvrtc::of).map_err(|problem| format!("NVRTC: {problem}"))
    });
    found.as_ref().map_err(String::as_str)
}

/// The driver, ready for use, or why there is none.
pub(super) fn driver() -> Result<&'static Driver, &'static str> {
    static DRIVER: OnceLock<Result<Driver, String>> = OnceLock::new();
    let found = DRIVER.get_or_init(|| {
        let names = ["libcuda.so.1", "libcuda.so", "nvcuda.dll"].map(PathBuf::from);
        let driver =
            open(&names).and_then(Driver::of).map_err(|problem| format!("CUDA's driver: {problem}"))?;
        // SAFETY: the first call that the driver wants.
        driver.check("cuInit", unsafe { (driver.cuInit)(0) })?;
        Ok(driver)
    });
    found.as_ref().map_err(String::as_str)
}

impl Driver {
    pub(super) fn check(&self, what: &str, code: Code) -> Result<(), String> {
        if code == 0 {
            return Ok(());
        }
        let mut text = std::ptr::null();
        // SAFETY: writes a pointer to a constant text, or leaves it null.
        unsafe { (self.cuGetErrorString)(code, &raw mut text) };
        Err(format!("CUDA's driver: {what}: {}", constant(text)))
    }
}

impl Nvrtc {
    pub(super) fn check(&self, what: &str, code: Code) -> Result<(), String> {
        if code == 0 {
            return Ok(());
        }
        // SAFETY: a constant text for every code.
        Err(format!("NVRTC: {what}: {}", constant(unsafe { (self.nvrtcGetErrorString)(code) })))
    }

    pub(super) fn version(&self) -> (c_int, c_int) {
        let (mut major, mut minor) = (0, 0);
        // SAFETY: writes two numbers.
        unsafe { (self.nvrtcVersion)(&raw mut major, &raw mut minor) };
        (major, minor)
    }
}

/// A text that the library keeps.
fn constant(text: *const c_char) -> String {
    if text.is_null() {
        return "unknown error".into();
    }
    // SAFETY: NVIDIA's error texts are constants that end with a zero.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}

/// libtorch's current stream on a device. Without the function, the default stream: tch never leaves it.
pub(super) fn current_stream(device: usize) -> *mut c_void {
    type CurrentStream = unsafe extern "C" fn(i32, *mut *mut c_void) -> i32;
    static FUNCTION: OnceLock<Option<CurrentStream>> = OnceLock::new();
    let function = FUNCTION.get_or_init(own_symbol);
    let mut stream = std::ptr::null_mut();
    if let Some(function) = function {
        // SAFETY: `torch/csrc/inductor/aoti_torch/c/shim.h` declares it so; it writes a pointer, or fails and writes none.
        unsafe { function(device as i32, &raw mut stream) };
    }
    stream
}

/// A function of libtorch_cuda, which this process may hold.
#[cfg(unix)]
fn own_symbol<F: Copy>() -> Option<F> {
    // SAFETY: the caller gives the type that libtorch's header has.
    unsafe {
        libloading::os::unix::Library::this()
            .get::<F>(b"aoti_torch_get_current_cuda_stream\0")
            .ok()
            .map(|f| *f)
    }
}

#[cfg(not(unix))]
fn own_symbol<F: Copy>() -> Option<F> {
    None
}

/// Where torch brings NVRTC: beside its own libraries, or in the packages beside its own; then the system's names.
fn nvrtc_names(libtorch: Option<&Path>) -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> = libtorch.iter().map(|folder| folder.to_path_buf()).collect();
    if let Some(packages) = libtorch.and_then(|folder| folder.parent()?.parent()) {
        let mut beside: Vec<PathBuf> =
            entries(&packages.join("nvidia")).map(|path| path.join("lib")).collect();
        // The newest first.
        beside.sort_by(|a, b| b.cmp(a));
        folders.extend(beside);
    }
    let mut names = Vec::new();
    for folder in folders {
        let mut here: Vec<PathBuf> = entries(&folder).filter(|path| is_nvrtc(path)).collect();
        here.sort();
        names.extend(here);
    }
    let system = ["libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so"];
    names.extend(system.map(PathBuf::from));
    names
}

/// `libnvrtc.so.13`, or `libnvrtc-0123abcd.so.12` of libtorch's archives, and not what NVRTC itself opens.
fn is_nvrtc(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.starts_with("libnvrtc")
        && name.contains(".so")
        && !name.contains("builtins")
        && !name.contains("alt")
}

/// What NVRTC opens as it compiles, where it lies in a folder that the system does not search.
fn builtins_beside(name: &Path) -> Vec<PathBuf> {
    let folder = name.parent().filter(|folder| !folder.as_os_str().is_empty() && is_nvrtc(name));
    let is_one = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        name.starts_with("libnvrtc-builtins") && !name.contains("alt")
    };
    folder.map(|folder| entries(folder).filter(is_one).collect()).unwrap_or_default()
}

fn entries(folder: &Path) -> impl Iterator<Item = PathBuf> {
    std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path())
}

/// The folder of the libtorch that runs, where the system says it; else of the one that the linker was given.
fn libtorch_folder() -> Option<PathBuf> {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let running = maps
        .lines()
        .filter_map(|line| line.find('/').map(|at| Path::new(&line[at..])))
        .find(|path| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("libtorch")))
        .and_then(Path::parent);
    running.map(Path::to_path_buf).or_else(|| option_env!("TCH_FLUX_LIBTORCH_LIB").map(PathBuf::from))
}
