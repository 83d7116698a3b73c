//! The kernels of one device, loaded into libtorch's own context, and how they are launched.

use std::collections::HashMap;
use std::ffi::{CString, c_int, c_void};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use tch::{Kind, Tensor};

use super::compile::{Target, kernels};
use super::library::{Driver, current_stream, driver, nvrtc};

/// The most threads of a block, as every kernel is compiled for.
pub(super) const THREADS: i64 = 256;

/// A kernel, for each of the kinds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Kernel {
    Modulate,
    GatedModulate,
    GatedResidual,
    PackHeads,
    /// From SM 8.9 on, as the next two.
    ModulateFp8,
    GatedModulateFp8,
    QuantizeRows,
}

impl Kernel {
    pub(super) const ALL: [Self; 7] = [
        Self::Modulate,
        Self::GatedModulate,
        Self::GatedResidual,
        Self::PackHeads,
        Self::ModulateFp8,
        Self::GatedModulateFp8,
        Self::QuantizeRows,
    ];

    fn name(self) -> &'static str {
        match self {
            Self::Modulate => "modulate",
            Self::GatedModulate => "gated_modulate",
            Self::GatedResidual => "gated_residual",
            Self::PackHeads => "pack_heads",
            Self::ModulateFp8 => "modulate_fp8",
            Self::GatedModulateFp8 => "gated_modulate_fp8",
            Self::QuantizeRows => "quantize_rows",
        }
    }

    /// Whether its result is fp8.
    pub(super) fn is_fp8(self) -> bool {
        matches!(self, Self::ModulateFp8 | Self::GatedModulateFp8 | Self::QuantizeRows)
    }

    /// The least compute capability.
    pub(super) fn since(self) -> c_int {
        if self.is_fp8() { 89 } else { LEAST }
    }
}

/// The kinds that kernels are compiled for, and what their names end with.
const KINDS: [(Kind, &str); 3] = [(Kind::BFloat16, "bf16"), (Kind::Half, "f16"), (Kind::Float, "f32")];

/// The compute capability that has the conversions to bf16.
const LEAST: c_int = 80;

/// The name that a kernel has in the program.
pub(super) fn symbol(kernel: Kernel, kind: Kind) -> Option<String> {
    let (_, ending) = KINDS.into_iter().find(|(known, _)| *known == kind)?;
    Some(format!("{}_{ending}", kernel.name()))
}

/// An address of the driver's, which any thread may hand back to it.
#[derive(Debug, Clone, Copy)]
struct Handle(*mut c_void);

// SAFETY: an opaque number to us; the driver takes it on any thread.
unsafe impl Send for Handle {}
// SAFETY: as above.
unsafe impl Sync for Handle {}

/// The kernels of one device.
pub(super) struct Kernels {
    driver: &'static Driver,
    device: usize,
    context: Handle,
    functions: HashMap<(Kernel, &'static str), Handle>,
}

/// What a kernel takes, 8 bytes each.
#[derive(Debug, Clone, Copy)]
pub(super) struct Argument(u64);

impl Argument {
    /// No tensor, or nothing of one.
    pub(super) const NULL: Self = Self(0);
}

impl From<&Tensor> for Argument {
    fn from(tensor: &Tensor) -> Self {
        Self(tensor.data_ptr() as u64)
    }
}

impl From<i64> for Argument {
    fn from(number: i64) -> Self {
        Self(number as u64)
    }
}

impl From<f32> for Argument {
    /// In the lower half, where CUDA reads the 4 bytes of an f32.
    fn from(number: f32) -> Self {
        Self(u64::from(number.to_bits()))
    }
}

/// Where compiled kernels are kept.
static CACHE: Mutex<Option<PathBuf>> = Mutex::new(None);

/// See [`super::set_cache`].
pub(super) fn set_cache(folder: Option<PathBuf>) {
    *CACHE.lock().unwrap_or_else(PoisonError::into_inner) = folder;
}

/// The kernels of a device, compiled or read when they are first asked for, or why there are none.
pub(super) fn of_device(device: usize) -> Arc<Result<Kernels, String>> {
    type Devices = Mutex<HashMap<usize, Arc<Result<Kernels, String>>>>;
    static DEVICES: OnceLock<Devices> = OnceLock::new();
    let mut devices = DEVICES.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
    devices.entry(device).or_insert_with(|| Arc::new(Kernels::load(device))).clone()
}

/// The compute capability of a device, such as 90.
pub(super) fn capability(device: usize) -> Result<c_int, String> {
    const MAJOR: c_int = 75;
    const MINOR: c_int = 76;
    let driver = driver()?;
    let (mut handle, mut major, mut minor) = (0, 0, 0);
    // SAFETY: each call writes one number.
    unsafe {
        driver.check("the device", (driver.cuDeviceGet)(&raw mut handle, device as c_int))?;
        driver.check("its capability", (driver.cuDeviceGetAttribute)(&raw mut major, MAJOR, handle))?;
        driver.check("its capability", (driver.cuDeviceGetAttribute)(&raw mut minor, MINOR, handle))?;
    }
    Ok(10 * major + minor)
}

impl Kernels {
    fn load(device: usize) -> Result<Self, String> {
        let driver = driver()?;
        let capability = capability(device)?;
        if capability < LEAST {
            return Err(format!("the kernels want SM 8.0, and the device is SM {}", dotted(capability)));
        }
        let target = Target::of(nvrtc()?, capability)?;
        let cache = CACHE.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let binary = kernels(target, cache.as_deref())?;
        // The driver reads PTX up to a zero.
        let binary = [&binary[..], &[0]].concat();
        let (mut handle, mut context, mut module) = (0, std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: each call writes one number or address. libtorch lives in the primary context, which is kept for the
        // rest of the process, as is the module.
        unsafe {
            driver.check("the device", (driver.cuDeviceGet)(&raw mut handle, device as c_int))?;
            let retained = (driver.cuDevicePrimaryCtxRetain)(&raw mut context, handle);
            driver.check("its context", retained)?;
        }
        let context = Handle(context);
        let functions = within(driver, context, || {
            // SAFETY: `binary` is whole, and the driver copies it.
            let loaded = unsafe { (driver.cuModuleLoadData)(&raw mut module, binary.as_ptr().cast()) };
            driver.check("the kernels", loaded)?;
            let mut functions = HashMap::new();
            for kernel in Kernel::ALL.into_iter().filter(|kernel| capability >= kernel.since()) {
                for (kind, ending) in KINDS {
                    let Some(name) = symbol(kernel, kind) else { continue };
                    let symbol = CString::new(name.clone()).map_err(|error| error.to_string())?;
                    let mut function = std::ptr::null_mut();
                    // SAFETY: a loaded module and a text that ends with a zero.
                    let got =
                        unsafe { (driver.cuModuleGetFunction)(&raw mut function, module, symbol.as_ptr()) };
                    driver.check(&name, got)?;
                    functions.insert((kernel, ending), Handle(function));
                }
            }
            Ok(functions)
        })?;
        Ok(Self { driver, device, context, functions })
    }

    /// Whether there is such a kernel.
    pub(super) fn has(&self, kernel: Kernel, kind: Kind) -> bool {
        self.function(kernel, kind).is_some()
    }

    fn function(&self, kernel: Kernel, kind: Kind) -> Option<Handle> {
        let (_, ending) = KINDS.into_iter().find(|(known, _)| *known == kind)?;
        self.functions.get(&(kernel, ending)).copied()
    }

    /// Queues a kernel behind what libtorch has queued on this device: `blocks`, at least 1, of so many threads, at most
    /// [`THREADS`].
    ///
    /// # Safety
    /// The arguments are those of the kernel, in its order, and the tensors are on this device, as large as it takes
    /// them to be.
    ///
    /// # Panics
    /// As tch's operators do, where the driver refuses.
    pub(super) unsafe fn launch(
        &self,
        kernel: Kernel,
        kind: Kind,
        [blocks, threads]: [i64; 2],
        arguments: &[Argument],
    ) {
        let Some(function) = self.function(kernel, kind) else {
            panic!("there is no kernel {kernel:?} for {kind:?}");
        };
        let mut arguments: Vec<u64> = arguments.iter().map(|argument| argument.0).collect();
        let mut places: Vec<*mut c_void> =
            arguments.iter_mut().map(|argument| std::ptr::from_mut(argument).cast()).collect();
        let stream = current_stream(self.device);
        let launched = within(self.driver, self.context, || {
            // SAFETY: the driver copies the arguments before it returns; the caller vouches for what they say. A tensor
            // that is freed meanwhile is given to later work of the same stream alone.
            let code = unsafe {
                let (blocks, threads) = (blocks as u32, threads as u32);
                let (arguments, none) = (places.as_mut_ptr(), std::ptr::null_mut());
                (self.driver.cuLaunchKernel)(
                    function.0, blocks, 1, 1, threads, 1, 1, 0, stream, arguments, none,
                )
            };
            self.driver.check(kernel.name(), code)
        });
        launched.unwrap_or_else(|problem| panic!("{problem}"));
    }
}

/// Runs `f` with a context on this thread, which may not have called CUDA before, and leaves what was there.
fn within<R>(driver: &Driver, context: Handle, f: impl FnOnce() -> Result<R, String>) -> Result<R, String> {
    // SAFETY: a retained context.
    driver.check("its context", unsafe { (driver.cuCtxPushCurrent_v2)(context.0) })?;
    let result = f();
    let mut popped = std::ptr::null_mut();
    // SAFETY: takes away what was pushed above.
    driver.check("its context", unsafe { (driver.cuCtxPopCurrent_v2)(&raw mut popped) })?;
    result
}

/// `90` as `9.0`.
pub(super) fn dotted(capability: c_int) -> String {
    format!("{}.{}", capability / 10, capability % 10)
}
