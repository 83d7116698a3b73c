//! The calls into `shim.cpp`, and all of the crate's `unsafe` beside the mapping of files.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::marker::PhantomData;
use std::sync::Arc;

use tch::{Device, Kind, TchError, Tensor};
use torch_sys::C_tensor;

unsafe extern "C" {
    fn tch_flux_borrow(
        data: *mut c_void,
        sizes: *const i64,
        dims: usize,
        kind: c_int,
        owner: *mut c_void,
        release: extern "C" fn(*mut c_void),
        error: *mut c_char,
        error_len: usize,
    ) -> *mut C_tensor;
    fn tch_flux_single_thread_enter() -> i64;
    fn tch_flux_thread_lending_enter(all: i64);
    fn tch_flux_thread_lending_leave();
    fn tch_flux_single_thread_leave(before: i64);
    fn tch_flux_autocast_enter(cuda: bool, enabled: *mut bool, kind: *mut c_int) -> bool;
    fn tch_flux_autocast_is_enabled(cuda: bool) -> bool;
    fn tch_flux_grad_is_enabled() -> bool;
    #[cfg(test)]
    fn tch_flux_count_begin() -> u64;
    #[cfg(test)]
    fn tch_flux_count_end(handle: u64) -> u64;
    fn tch_flux_autocast_leave(cuda: bool, enabled: bool, kind: c_int);
    fn tch_flux_torch_version() -> *const c_char;
    fn tch_flux_free_bytes(device: i8) -> i64;
    fn tch_flux_empty_cache();
    fn tch_flux_throttle(device: i8);
    fn tch_flux_copy_async(
        from: *const C_tensor,
        device: i8,
        error: *mut c_char,
        error_len: usize,
    ) -> *mut C_tensor;
    fn tch_flux_wait_for_copies(device: i8);
    fn tch_flux_addmm_gelu(
        bias: *const C_tensor,
        x: *const C_tensor,
        weight: *const C_tensor,
        error: *mut c_char,
        error_len: usize,
    ) -> *mut C_tensor;
    fn tch_flux_pinned(len: i64, error: *mut c_char, error_len: usize) -> *mut C_tensor;
    fn tch_flux_cpu_capability(text: *mut c_char, text_len: usize);
    fn tch_flux_copy(
        out: *const C_tensor,
        from: *const C_tensor,
        error: *mut c_char,
        error_len: usize,
    ) -> *mut C_tensor;
    fn tch_flux_randn(
        sizes: *const i64,
        dims: usize,
        seed: u64,
        error: *mut c_char,
        error_len: usize,
    ) -> *mut C_tensor;
}

/// Memory that may lie under tensors.
///
/// # Safety
/// The place and the length that `bytes` returns stay the same for as long as the value lives, libtorch may read and write
/// every byte there, and nobody else does so while a tensor lies over it.
pub(crate) unsafe trait Memory: Send + Sync + 'static {
    /// The first byte and the count of bytes.
    fn bytes(&self) -> (*mut u8, usize);
}

/// A tensor over `size` elements of `kind` at `offset` of `memory`, on the CPU. The memory lives as long as any
/// tensor over it. `None` where the place is not aligned for `kind` or does not lie within the memory.
pub(crate) fn borrow<M: Memory>(
    memory: &Arc<M>,
    offset: usize,
    size: &[i64],
    kind: Kind,
) -> Option<Result<Tensor, TchError>> {
    let (start, len) = memory.bytes();
    let count = size.iter().try_fold(1usize, |n, &d| n.checked_mul(usize::try_from(d).ok()?))?;
    let end = count.checked_mul(kind.elt_size_in_bytes())?.checked_add(offset)?;
    if end > len || !(start as usize + offset).is_multiple_of(kind.elt_size_in_bytes()) {
        return None;
    }
    extern "C" fn release<M>(owner: *mut c_void) {
        // SAFETY: `owner` came from `Arc::into_raw` of an `Arc<M>` below, and the deleter runs once.
        drop(unsafe { Arc::from_raw(owner as *const M) });
    }
    let owner = Arc::into_raw(Arc::clone(memory)) as *mut c_void;
    let mut error = [0 as c_char; 512];
    // SAFETY: `offset..end` lies within the memory, which the owner keeps in place until the deleter has run.
    let tensor = unsafe {
        let data = start.add(offset) as *mut c_void;
        let (sizes, dims) = (size.as_ptr(), size.len());
        tch_flux_borrow(
            data,
            sizes,
            dims,
            kind_code(kind),
            owner,
            release::<M>,
            error.as_mut_ptr(),
            error.len(),
        )
    };
    if tensor.is_null() {
        release::<M>(owner);
    }
    Some(owned(tensor, &error))
}

/// The bytes of a dense CPU tensor, to be filled; none of any other.
///
/// # Safety
/// Nobody else reads or writes the tensor's memory during the call.
pub(crate) unsafe fn with_bytes<R>(tensor: &Tensor, fill: impl FnOnce(&mut [u8]) -> R) -> R {
    let len = dense_len(tensor);
    if len == 0 {
        return fill(&mut []);
    }
    // SAFETY: a contiguous CPU tensor holds `len` bytes from its data pointer on, and it lives through the call, in which the
    // caller keeps everybody else away.
    fill(unsafe { std::slice::from_raw_parts_mut(tensor.data_ptr() as *mut u8, len) })
}

/// The bytes of dense CPU tensors, to be filled; those of any other are none. `None` where two of them share memory.
///
/// # Safety
/// Nobody else reads or writes the tensors' memory during the call.
pub(crate) unsafe fn with_all_bytes<R>(
    tensors: &[&Tensor],
    fill: impl FnOnce(Vec<&mut [u8]>) -> R,
) -> Option<R> {
    let place = |tensor: &&Tensor| {
        let len = dense_len(tensor);
        (if len == 0 { std::ptr::dangling_mut() } else { tensor.data_ptr() as *mut u8 }, len)
    };
    let places: Vec<(*mut u8, usize)> = tensors.iter().map(place).collect();
    let mut sorted: Vec<(usize, usize)> = places.iter().map(|&(start, len)| (start as usize, len)).collect();
    sorted.retain(|&(_, len)| len > 0);
    sorted.sort_unstable();
    if sorted.windows(2).any(|pair| pair[1].0 - pair[0].0 < pair[0].1) {
        return None;
    }
    // SAFETY: a contiguous CPU tensor holds `len` bytes from its data pointer on, it lives through the call, no two of these
    // places overlap, and the caller keeps everybody else away.
    let bytes = |&(start, len): &(*mut u8, usize)| unsafe { std::slice::from_raw_parts_mut(start, len) };
    Some(fill(places.iter().map(bytes).collect()))
}

/// The bytes of a dense CPU tensor; none of any other.
///
/// # Safety
/// Nobody writes to the tensor's memory while the bytes are borrowed.
pub(crate) unsafe fn bytes(tensor: &Tensor) -> &[u8] {
    let len = dense_len(tensor);
    if len == 0 {
        return &[];
    }
    // SAFETY: a contiguous CPU tensor holds `len` bytes from its data pointer on, for as long as it lives, to which the caller
    // lets nobody write.
    unsafe { std::slice::from_raw_parts(tensor.data_ptr() as *const u8, len) }
}

/// The bytes of a tensor, where they lie one after the other on the CPU.
fn dense_len(tensor: &Tensor) -> usize {
    let dense = tensor.device() == tch::Device::Cpu && tensor.is_contiguous();
    if dense { tensor.numel() * tensor.kind().elt_size_in_bytes() } else { 0 }
}

/// Standard normal f32 values of the shape `size` on the CPU: what `torch.randn` gives with a generator of its own
/// that was seeded with `seed`.
pub(crate) fn randn(size: &[i64], seed: u64) -> Result<Tensor, TchError> {
    let mut error = [0 as c_char; 512];
    // SAFETY: plain values and two buffers that outlive the call.
    let tensor = unsafe { tch_flux_randn(size.as_ptr(), size.len(), seed, error.as_mut_ptr(), error.len()) };
    owned(tensor, &error)
}

/// Keeps what sets something of a thread on that thread: it must be dropped where it was made.
pub(crate) type OnThisThread = PhantomData<*const ()>;

/// `torch.autocast(device_type, dtype=torch.bfloat16)` on this thread, until it is dropped.
pub(crate) struct Autocast {
    cuda: bool,
    was_enabled: bool,
    was_kind: c_int,
    _thread: OnThisThread,
}

impl Autocast {
    pub(crate) fn bf16(device: tch::Device) -> Result<Self, TchError> {
        let cuda = device.is_cuda();
        let mut autocast = Self { cuda, was_enabled: false, was_kind: 0, _thread: PhantomData };
        // SAFETY: sets flags of this thread and writes to two places that outlive the call.
        let entered = unsafe {
            tch_flux_autocast_enter(autocast.cuda, &mut autocast.was_enabled, &mut autocast.was_kind)
        };
        if entered {
            return Ok(autocast);
        }
        std::mem::forget(autocast);
        Err(TchError::Torch(format!("autocast to bf16 is not available on {device:?}")))
    }
}

impl Drop for Autocast {
    fn drop(&mut self) {
        // SAFETY: sets flags of this thread.
        unsafe { tch_flux_autocast_leave(self.cuda, self.was_enabled, self.was_kind) };
    }
}

/// libtorch's operations on this thread take this thread alone, until it is dropped; the kernels in `ops/cpu` take as
/// many as before. For tensors so small that calling other threads takes longer than the work.
pub(crate) struct SingleThread(i64, OnThisThread);

impl SingleThread {
    pub(crate) fn enter() -> Self {
        // SAFETY: sets numbers of this thread.
        Self(unsafe { tch_flux_single_thread_enter() }, PhantomData)
    }
}

impl Drop for SingleThread {
    fn drop(&mut self) {
        // SAFETY: sets numbers of this thread.
        unsafe { tch_flux_single_thread_leave(self.0) };
    }
}

/// Several threads draw on a CPU, each with threads of libtorch's of its own: the kernels in `ops/cpu` take those of the
/// others, too, while these do not draw. Lasts until it is dropped.
pub(crate) struct ThreadLending(OnThisThread);

impl ThreadLending {
    /// So many threads draw, with as many of libtorch's each as this one has.
    pub(crate) fn enter(among: usize) -> Self {
        let all = i64::try_from(among).unwrap_or(1) * i64::from(tch::get_num_threads());
        // SAFETY: sets numbers of this thread, and one that is atomic.
        unsafe { tch_flux_thread_lending_enter(all) };
        Self(PhantomData)
    }
}

impl Drop for ThreadLending {
    fn drop(&mut self) {
        // SAFETY: as above.
        unsafe { tch_flux_thread_lending_leave() };
    }
}

/// Whether libtorch casts by itself on this thread.
pub(crate) fn autocast_is_enabled(device: tch::Device) -> bool {
    // SAFETY: reads a flag of this thread.
    unsafe { tch_flux_autocast_is_enabled(device.is_cuda()) }
}

/// Whether libtorch records what gradients need on this thread.
pub(crate) fn grad_is_enabled() -> bool {
    // SAFETY: reads a flag of this thread.
    unsafe { tch_flux_grad_is_enabled() }
}

/// How many of libtorch's operators `f` calls on this thread.
#[cfg(test)]
pub(crate) fn operator_calls(f: &dyn Fn()) -> u64 {
    // SAFETY: registers a counter of this thread, which is taken off again below.
    let handle = unsafe { tch_flux_count_begin() };
    f();
    // SAFETY: the handle of above.
    unsafe { tch_flux_count_end(handle) }
}

/// The version of the libtorch that the crate was built with, such as `2.13.0`.
pub(crate) fn torch_version() -> String {
    // SAFETY: a constant text of the library.
    unsafe { CStr::from_ptr(tch_flux_torch_version()) }.to_string_lossy().into_owned()
}

/// Bytes that the next tensors may take on a CUDA device, what libtorch keeps for them included, if that can be told.
pub(crate) fn free_bytes(device: usize) -> Option<u64> {
    // SAFETY: reads numbers; an index that is none is answered with -1.
    u64::try_from(unsafe { tch_flux_free_bytes(i8::try_from(device).ok()?) }).ok()
}

/// Gives back what libtorch keeps of the accelerators' memory for the next tensors.
pub(crate) fn empty_cache() {
    // SAFETY: touches no tensor.
    unsafe { tch_flux_empty_cache() }
}

/// Waits until a CUDA device has done what this thread had queued when it called this the last time, so that it is never
/// further ahead of the device than from one call to the next.
pub(crate) fn throttle(device: usize) {
    let Ok(device) = i8::try_from(device) else { return };
    // SAFETY: touches no tensor.
    unsafe { tch_flux_throttle(device) }
}

/// Copies to a CUDA device beside what runs there; [`wait_aside`] comes before the copy is used.
pub(crate) fn copy_async(from: &Tensor, device: Device) -> Result<Tensor, TchError> {
    let Device::Cuda(index) = device else { return from.f_to_device(device) };
    let Ok(index) = i8::try_from(index) else {
        return Err(TchError::Torch(format!("there is no CUDA device {index}")));
    };
    let mut error = [0 as c_char; 512];
    // SAFETY: a live tensor, a number and a buffer that outlives the call.
    owned(unsafe { tch_flux_copy_async(from.as_ptr(), index, error.as_mut_ptr(), error.len()) }, &error)
}

/// What is queued on a CUDA device from now on waits for the copies that were begun beside it.
pub(crate) fn wait_for_copies(device: usize) {
    let Ok(device) = i8::try_from(device) else { return };
    // SAFETY: touches no tensor.
    unsafe { tch_flux_wait_for_copies(device) }
}

/// `gelu(bias + x @ weight)`, with tanh on CUDA: the product's epilogue.
pub(crate) fn addmm_gelu(bias: &Tensor, x: &Tensor, weight: &Tensor) -> Result<Tensor, TchError> {
    let mut error = [0 as c_char; 512];
    // SAFETY: three live tensors and a buffer that outlives the call.
    let out = unsafe {
        let (bias, x, weight) = (bias.as_ptr(), x.as_ptr(), weight.as_ptr());
        tch_flux_addmm_gelu(bias, x, weight, error.as_mut_ptr(), error.len())
    };
    owned(out, &error)
}

/// Bytes on the CPU that an accelerator reads without a detour.
pub(crate) fn pinned(len: usize) -> Result<Tensor, TchError> {
    let mut error = [0 as c_char; 512];
    // SAFETY: a number and a buffer that outlives the call.
    owned(unsafe { tch_flux_pinned(len as i64, error.as_mut_ptr(), error.len()) }, &error)
}

/// The instruction set that libtorch's CPU kernels run with, such as `AVX512`.
pub(crate) fn cpu_capability() -> String {
    let mut text = [0 as c_char; 64];
    // SAFETY: the C++ side ends the text with a zero within the buffer.
    unsafe {
        tch_flux_cpu_capability(text.as_mut_ptr(), text.len());
        CStr::from_ptr(text.as_ptr()).to_string_lossy().into_owned()
    }
}

/// Begins to copy `from` over the values of `out`. From pinned memory to a CUDA device this does not wait for the end:
/// neither may be touched before the device was synchronised.
pub(crate) fn begin_copy(out: &Tensor, from: &Tensor) -> Result<(), TchError> {
    let mut error = [0 as c_char; 512];
    // SAFETY: two live tensors and a buffer that outlives the call.
    let done = unsafe { tch_flux_copy(out.as_ptr(), from.as_ptr(), error.as_mut_ptr(), error.len()) };
    owned(done, &error).map(drop)
}

fn owned(tensor: *mut C_tensor, error: &[c_char; 512]) -> Result<Tensor, TchError> {
    if tensor.is_null() {
        // SAFETY: the C++ side ends the text with a zero within the buffer.
        let text = unsafe { CStr::from_ptr(error.as_ptr()) };
        return Err(TchError::Torch(text.to_string_lossy().into_owned()));
    }
    // SAFETY: a fresh `at::Tensor` that nobody else owns.
    Ok(unsafe { Tensor::from_ptr(tensor) })
}

/// libtorch's number of a kind that a file can hold.
fn kind_code(kind: Kind) -> c_int {
    match kind {
        Kind::Uint8 => 0,
        Kind::Int8 => 1,
        Kind::Int16 => 2,
        Kind::Int => 3,
        Kind::Int64 => 4,
        Kind::Half => 5,
        Kind::Float => 6,
        Kind::Double => 7,
        Kind::ComplexHalf => 8,
        Kind::ComplexFloat => 9,
        Kind::ComplexDouble => 10,
        Kind::Bool => 11,
        Kind::QInt8 => 12,
        Kind::QUInt8 => 13,
        Kind::QInt32 => 14,
        Kind::BFloat16 => 15,
        Kind::Float8e5m2 => 23,
        Kind::Float8e4m3fn => 24,
        Kind::Float8e5m2fnuz => 25,
        Kind::Float8e4m3fnuz => 26,
    }
}
