// Which build of the kernels runs, and libtorch's threads under it.

#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>

#include <dlfcn.h>

#ifdef TCH_FLUX_AMX
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include <algorithm>
#include <atomic>
#include <cstring>

#include "kernels.h"

using tch_flux::Kernels;
using tch_flux::Pool;

extern "C" {
extern const Kernels tch_flux_kernels_plain;
#ifdef TCH_FLUX_X86
extern const Kernels tch_flux_kernels_avx2;
extern const Kernels tch_flux_kernels_avx512;
extern const Kernels tch_flux_kernels_avx512_bf16;
#endif
#ifdef TCH_FLUX_AMX
extern const Kernels tch_flux_kernels_amx;
#endif
}

namespace {

// How many threads the kernels take on this thread, where that is not what libtorch takes.
thread_local int64_t own_threads = 0;

// Threads of all who lend one another theirs while they do not draw; 0 where this thread is none of those. What is drawn
// at present in this way, and what this thread has got for a call and its scratch memory.
thread_local int64_t lent = 0, granted = 0;
std::atomic<int64_t> drawn{0};

int64_t threads() {
  int64_t own = own_threads ? own_threads : at::get_num_threads();
  return granted > own ? granted : own;
}
// The same, as it is at the beginning of a call.
int64_t grant() {
  granted = lent ? lent / std::max<int64_t>(1, drawn.load(std::memory_order_relaxed)) : 0;
  return threads();
}

void run(int64_t count, void (*task)(void* context, int64_t i, int64_t thread), void* context) {
  tch_flux::share(count, at::in_parallel_region() ? 1 : threads(), task, context);
}

#ifdef TCH_FLUX_X86
bool has_avx512() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
         __builtin_cpu_supports("avx512dq");
}
bool has_avx512_bf16() {
  return has_avx512() && __builtin_cpu_supports("avx512vnni") && __builtin_cpu_supports("avx512bf16");
}
#endif

#ifdef TCH_FLUX_AMX
// Whether the CPU has tiles of bf16 and int8, and the system lets this process use them: it keeps their 8 kB of a thread
// only for those who ask.
bool has_amx() {
#ifdef __linux__
  constexpr unsigned BF16 = 1u << 22, TILE = 1u << 24, INT8 = 1u << 25, ALL = BF16 | TILE | INT8;
  constexpr long REQUEST = 0x1023, TILE_DATA = 18;
  unsigned a, b, c, d;
  if (!has_avx512_bf16() || !__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & ALL) != ALL) return false;
  return syscall(SYS_arch_prctl, REQUEST, TILE_DATA) == 0;
#else
  return false;
#endif
}
#endif

// These are of the calling thread only, as at::set_num_threads is not. MKL, with which libtorch computes sines and
// exponentials, has a number of its own; 0 takes it back.
const auto set_openmp = reinterpret_cast<void (*)(int)>(dlsym(RTLD_DEFAULT, "omp_set_num_threads"));
const auto set_mkl = reinterpret_cast<int (*)(int)>(dlsym(RTLD_DEFAULT, "MKL_Set_Num_Threads_Local"));

Pool pool() { return {run, threads()}; }

}  // namespace

// Rust calls these. None has a reason to throw; should one, the process ends, since an exception must not reach Rust.
extern "C" {

// The build of this name, if this CPU runs it; without a name, the fastest that it runs.
const Kernels* tch_flux_kernels(const char* name) noexcept {
#ifdef TCH_FLUX_AMX
  static const bool amx = has_amx();
#endif
  const Kernels* builds[] = {
#ifdef TCH_FLUX_AMX
      amx ? &tch_flux_kernels_amx : nullptr,
#endif
#ifdef TCH_FLUX_X86
      has_avx512_bf16() ? &tch_flux_kernels_avx512_bf16 : nullptr,
      has_avx512() ? &tch_flux_kernels_avx512 : nullptr,
      __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? &tch_flux_kernels_avx2 : nullptr,
#endif
      &tch_flux_kernels_plain,
  };
  for (const Kernels* build : builds)
    if (build && (!name || std::strcmp(build->name, name) == 0)) return build;
  return nullptr;
}

size_t tch_flux_product_scratch(const Kernels* kernels, const tch_flux::Product* product) noexcept {
  return kernels->product_scratch(product, grant());
}
void tch_flux_product(const Kernels* kernels, const tch_flux::Product* product, void* scratch) noexcept {
  Pool threads = pool();
  kernels->product(product, &threads, scratch);
}
size_t tch_flux_attention_scratch(const Kernels* kernels, const tch_flux::Attention* attention) noexcept {
  return kernels->attention_scratch(attention, grant());
}
void tch_flux_attention(const Kernels* kernels, const tch_flux::Attention* attention, void* scratch) noexcept {
  Pool threads = pool();
  kernels->attention(attention, &threads, scratch);
}
void tch_flux_modulate(const Kernels* kernels, const tch_flux::Modulate* modulate) noexcept {
  Pool threads = pool();
  kernels->modulate(modulate, &threads);
}
void tch_flux_finish(const Kernels* kernels, const tch_flux::Product* product) noexcept {
  Pool threads = pool();
  kernels->finish(product, &threads);
}
size_t tch_flux_group_norm_scratch(const Kernels* kernels, const tch_flux::GroupNorm* group_norm) noexcept {
  return kernels->group_norm_scratch(group_norm, grant());
}
void tch_flux_group_norm(const Kernels* kernels, const tch_flux::GroupNorm* group_norm, void* scratch) noexcept {
  Pool threads = pool();
  kernels->group_norm(group_norm, &threads, scratch);
}

// From here on libtorch's operations on this thread take this thread alone, and the kernels as many as before. What was
// taken until now, for `tch_flux_single_thread_leave`; 0 where nothing changed.
int64_t tch_flux_single_thread_enter() noexcept {
  int64_t before = at::get_num_threads();
  if (!set_openmp || before <= 1 || own_threads) return 0;
  own_threads = before;
  set_openmp(1);
  if (set_mkl) set_mkl(1);
  return before;
}
void tch_flux_single_thread_leave(int64_t before) noexcept {
  if (!before) return;
  set_openmp(int(before));
  if (set_mkl) set_mkl(0);
  own_threads = 0;
}

// From here on this thread draws, as one of several who have so many threads in all.
void tch_flux_thread_lending_enter(int64_t all) noexcept {
  lent = all;
  drawn++;
}
void tch_flux_thread_lending_leave() noexcept {
  lent = granted = 0;
  drawn--;
}

// Whether gradients are recorded on this thread.
bool tch_flux_grad_is_enabled() noexcept { return at::GradMode::is_enabled(); }

}  // extern "C"
