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

// A call's tasks, and who takes part in it.
struct Work {
  int64_t count;
  void (*task)(void* context, int64_t i, int64_t thread);
  void* context;
  std::atomic<int64_t> next{0}, threads{0};

  // Who is done takes the next one: cores are seldom equally free.
  static void take_part(void* self) {
    Work& work = *static_cast<Work*>(self);
    int64_t thread = work.threads.fetch_add(1, std::memory_order_relaxed);
    for (int64_t i; (i = work.next.fetch_add(1, std::memory_order_relaxed)) < work.count;) {
      work.task(work.context, i, thread);
    }
  }
};

// libtorch's threads are those of the OpenMP library that it brings. `at::parallel_for` is a template that runs on one
// thread unless this file is compiled for OpenMP, and then with the compiler's own library; so the library that is there
// is asked itself. All of them have this entry.
typedef void (*Parallel)(void (*f)(void*), void* data, unsigned threads, unsigned flags);

void run(int64_t count, void (*task)(void* context, int64_t i, int64_t thread), void* context) {
  static const Parallel parallel = reinterpret_cast<Parallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
  int64_t threads = std::min<int64_t>(count, at::get_num_threads());
  Work work{count, task, context};
  if (threads > 1 && parallel && !at::in_parallel_region()) parallel(Work::take_part, &work, unsigned(threads), 0);
  else Work::take_part(&work);
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

Pool pool() { return {run, at::get_num_threads()}; }

}  // namespace

extern "C" {

// The build of this name, if this CPU runs it; without a name, the fastest that it runs.
const Kernels* tch_flux_kernels(const char* name) {
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

size_t tch_flux_product_scratch(const Kernels* kernels, const tch_flux::Product* product) {
  return kernels->product_scratch(product, at::get_num_threads());
}
void tch_flux_product(const Kernels* kernels, const tch_flux::Product* product, void* scratch) {
  Pool threads = pool();
  kernels->product(product, &threads, scratch);
}
size_t tch_flux_attention_scratch(const Kernels* kernels, const tch_flux::Attention* attention) {
  return kernels->attention_scratch(attention, at::get_num_threads());
}
void tch_flux_attention(const Kernels* kernels, const tch_flux::Attention* attention, void* scratch) {
  Pool threads = pool();
  kernels->attention(attention, &threads, scratch);
}
void tch_flux_modulate(const Kernels* kernels, const tch_flux::Modulate* modulate) {
  Pool threads = pool();
  kernels->modulate(modulate, &threads);
}
void tch_flux_finish(const Kernels* kernels, const tch_flux::Product* product) {
  Pool threads = pool();
  kernels->finish(product, &threads);
}
size_t tch_flux_group_norm_scratch(const Kernels* kernels, const tch_flux::GroupNorm* group_norm) {
  return kernels->group_norm_scratch(group_norm, at::get_num_threads());
}
void tch_flux_group_norm(const Kernels* kernels, const tch_flux::GroupNorm* group_norm, void* scratch) {
  Pool threads = pool();
  kernels->group_norm(group_norm, &threads, scratch);
}

// Whether gradients are recorded on this thread.
bool tch_flux_grad_is_enabled() { return at::GradMode::is_enabled(); }

}  // extern "C"
