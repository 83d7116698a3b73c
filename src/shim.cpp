// What libtorch has and tch's C interface lacks. Each function returns null with the reason in `error` on failure.

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/DeviceAccelerator.h>
#include <ATen/Version.h>
#include <ATen/autocast_mode.h>
#include <ATen/record_function.h>
#include <c10/core/Event.h>
#include <c10/core/StreamGuard.h>
#include <c10/core/impl/VirtualGuardImpl.h>
#include <torch/version.h>

#include <cstdint>
#include <cstring>
#include <exception>
#include <memory>
#include <optional>
#include <utility>

namespace {

template <typename F>
at::Tensor* guarded(char* error, size_t error_len, F f) noexcept {
  try {
    return new at::Tensor(f());
  } catch (const std::exception& e) {
    std::strncpy(error, e.what(), error_len - 1);
  } catch (...) {
    std::strncpy(error, "an exception of an unknown type", error_len - 1);
  }
  error[error_len - 1] = 0;
  return nullptr;
}

// What `f` returns, or `otherwise` where it throws: no exception may reach Rust.
template <typename T, typename F>
T caught(T otherwise, F f) noexcept {
  try {
    return f();
  } catch (...) {
    return otherwise;
  }
}

thread_local uint64_t calls = 0;
thread_local std::optional<c10::Event> before;

// The stream on which this thread copies beside what runs on a device.
c10::Stream stream_aside(const c10::impl::VirtualGuardImpl& guard, c10::Device device) {
  static thread_local std::optional<c10::Stream> aside;
  if (!aside || aside->device() != device) aside = guard.getStreamFromGlobalPool(device);
  return *aside;
}

}  // namespace

extern "C" {

// A tensor over `data`, which somebody else owns. `release(owner)` runs when the last tensor that shares the storage
// is gone; on failure it has not run and the owner stays the caller's.
at::Tensor* tch_flux_borrow(void* data, const int64_t* sizes, size_t dims, int kind, void* owner,
                            void (*release)(void*), char* error, size_t error_len) {
  // libtorch holds the deleter before it has checked the shape, and runs it if that check throws.
  auto armed = std::make_shared<bool>(false);
  at::Tensor* tensor = guarded(error, error_len, [&] {
    auto options = at::TensorOptions().dtype(static_cast<at::ScalarType>(kind)).device(at::kCPU);
    auto deleter = [armed, owner, release](void*) {
      if (*armed) release(owner);
    };
    return at::from_blob(data, at::IntArrayRef(sizes, dims), deleter, options);
  });
  *armed = tensor != nullptr;
  return tensor;
}

// The version of libtorch's headers.
const char* tch_flux_torch_version() { return TORCH_VERSION; }

// Bytes of an accelerator that the next tensors may take: what is free, and what libtorch keeps for them. -1 where it
// cannot be told.
int64_t tch_flux_free_bytes(int8_t device) {
  return caught(int64_t(-1), [&] {
    auto stats = at::accelerator::getDeviceStats(device);
    auto of = [](const auto& stat) { return stat[size_t(c10::CachingAllocator::StatType::AGGREGATE)].current; };
    auto kept = of(stats.reserved_bytes) - of(stats.allocated_bytes);
    return int64_t(at::accelerator::getMemoryInfo(device).first + kept);
  });
}

// Gives what libtorch keeps for the next tensors of an accelerator back to it.
void tch_flux_empty_cache() {
  try {
    at::accelerator::emptyCache();
  } catch (...) {
    // There is none, or it answers no more: then there is nothing to give back.
  }
}

// Waits until a CUDA device has done what this thread had queued when it called this the last time.
void tch_flux_throttle(int8_t device) {
  try {
    c10::impl::VirtualGuardImpl guard(c10::DeviceType::CUDA);
    c10::Event now(c10::DeviceType::CUDA);
    now.record(guard.getStream({c10::DeviceType::CUDA, device}));
    auto last = std::exchange(before, std::move(now));
    if (last) last->synchronize();
  } catch (...) {
    // A device that answers no more says so in what comes next.
  }
}

// Copies to a CUDA device beside what runs there.
at::Tensor* tch_flux_copy_async(const at::Tensor* from, int8_t device, char* error, size_t error_len) {
  return guarded(error, error_len, [&] {
    c10::Device to(c10::DeviceType::CUDA, device);
    c10::impl::VirtualGuardImpl guard(c10::DeviceType::CUDA);
    auto here = guard.getStream(to);
    auto copy = [&] {
      c10::StreamGuard aside(stream_aside(guard, to));
      return from->to(to, /*non_blocking=*/true);
    }();
    // Its memory is of the other stream, which may take it for the next copy only once this one has done with it.
    guard.recordDataPtrOnStream(copy.storage().data_ptr(), here);
    return copy;
  });
}

// What is queued on a CUDA device from now on waits for the copies that were begun beside it.
void tch_flux_wait_for_copies(int8_t device) {
  try {
    c10::Device to(c10::DeviceType::CUDA, device);
    c10::impl::VirtualGuardImpl guard(c10::DeviceType::CUDA);
    c10::Event copied(c10::DeviceType::CUDA);
    copied.record(stream_aside(guard, to));
    copied.block(guard.getStream(to));
  } catch (...) {
    // A device that answers no more says so in what comes next.
  }
}

// `gelu(bias + x @ weight)`, with tanh on CUDA. tch hands its `use_gelu` over in the place of `beta`.
at::Tensor* tch_flux_addmm_gelu(const at::Tensor* bias, const at::Tensor* x, const at::Tensor* weight, char* error,
                                size_t error_len) {
  return guarded(error, error_len, [&] {
    return at::_addmm_activation(*bias, *x, *weight, /*beta=*/1, /*alpha=*/1, /*use_gelu=*/true);
  });
}

// Bytes on the CPU that an accelerator reads without a detour. tch names a device for it, which libtorch warns of.
at::Tensor* tch_flux_pinned(int64_t len, char* error, size_t error_len) {
  return guarded(error, error_len, [&] {
    return at::empty({len}, at::TensorOptions().dtype(at::kByte).pinned_memory(true));
  });
}

// The instruction set that libtorch's CPU kernels run with: "DEFAULT", "AVX2", "AVX512", ...
void tch_flux_cpu_capability(char* text, size_t text_len) {
  caught(false, [&] {
    std::strncpy(text, at::get_cpu_capability().c_str(), text_len - 1);
    return true;
  });
  text[text_len - 1] = 0;
}

// Enters `torch.autocast(device_type, dtype=torch.bfloat16)` on this thread and says what was set before. False where
// libtorch refuses; then nothing is to be left.
bool tch_flux_autocast_enter(bool cuda, bool* enabled, int* kind) {
  return caught(false, [&] {
    auto device = cuda ? at::kCUDA : at::kCPU;
    *enabled = at::autocast::is_autocast_enabled(device);
    *kind = static_cast<int>(at::autocast::get_autocast_dtype(device));
    at::autocast::set_autocast_dtype(device, at::kBFloat16);
    at::autocast::set_autocast_enabled(device, true);
    at::autocast::increment_nesting();
    return true;
  });
}

bool tch_flux_autocast_is_enabled(bool cuda) {
  return caught(false, [&] { return at::autocast::is_autocast_enabled(cuda ? at::kCUDA : at::kCPU); });
}

// Leaves it for what was set before.
void tch_flux_autocast_leave(bool cuda, bool enabled, int kind) {
  caught(false, [&] {
    auto device = cuda ? at::kCUDA : at::kCPU;
    if (at::autocast::decrement_nesting() == 0) at::autocast::clear_cache();
    at::autocast::set_autocast_enabled(device, enabled);
    at::autocast::set_autocast_dtype(device, static_cast<at::ScalarType>(kind));
    return true;
  });
}

// Counts the calls of libtorch's operators on this thread from here to `tch_flux_count_end`, which takes the handle.
uint64_t tch_flux_count_begin() {
  calls = 0;
  auto count = [](const at::RecordFunction&) -> std::unique_ptr<at::ObserverContext> {
    calls++;
    return nullptr;
  };
  auto callback = at::RecordFunctionCallback(count).scopes({at::RecordScope::FUNCTION});
  return caught(uint64_t(0), [&]() -> uint64_t { return at::addThreadLocalCallback(callback); });
}

uint64_t tch_flux_count_end(uint64_t handle) {
  return caught(uint64_t(0), [&] {
    at::removeCallback(handle);
    return calls;
  });
}

// f32 standard normal values from a generator of their own, so that no other draw of the process has a part in them.
at::Tensor* tch_flux_randn(const int64_t* sizes, size_t dims, uint64_t seed, char* error, size_t error_len) {
  return guarded(error, error_len, [&] {
    auto generator = at::detail::createCPUGenerator(seed);
    return at::randn(at::IntArrayRef(sizes, dims), generator, at::TensorOptions().dtype(at::kFloat));
  });
}

// Begins to copy `from` over `out` and does not wait, where the devices allow it. Returns `out`.
at::Tensor* tch_flux_copy(const at::Tensor* out, const at::Tensor* from, char* error, size_t error_len) {
  return guarded(error, error_len, [&] { return out->copy_(*from, /*non_blocking=*/true); });
}
}
