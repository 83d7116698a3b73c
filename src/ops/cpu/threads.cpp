// Threads that share the tasks of a call. Whoever calls works on them itself, and waits for no thread that has not begun:
// on a machine where others compute, too, a thread that gets no core holds nobody up.
//
// Calls follow each other within microseconds, in which a sleeping thread is not even awake: so those without work look
// for it for a while, and give their core away to whoever wants it meanwhile.

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "kernels.h"

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#define RELAX() _mm_pause()
#else
#define RELAX() std::this_thread::yield()
#endif

namespace {

typedef std::chrono::steady_clock Clock;

// For how long a thread looks for work before it sleeps, and a caller for the last one to be done.
constexpr std::chrono::microseconds PATIENCE{400};

// Looks until `done`, at most for as long as the patience lasts. Whether it is.
template <class F>
bool look(F done) {
  for (int i = 0; i < 64; i++) {
    if (done()) return true;
    RELAX();
  }
  for (auto end = Clock::now() + PATIENCE; Clock::now() < end;) {
    std::this_thread::yield();
    for (int i = 0; i < 64; i++) {
      if (done()) return true;
      RELAX();
    }
  }
  return false;
}

// A call's tasks: each thread has a stretch of them, of which the next call's threads find their own again in their
// caches, and those who are done take from the others' stretches, since cores are seldom equally free. It lives longer
// than the call, so that a thread that comes late reads nothing that is gone.
struct Work {
  static constexpr int64_t MOST = 64;
  // Whether it is taken by a caller, whether others may join, and how many are at it beside the caller.
  static constexpr uint64_t TAKEN = 1, OPEN = 2, INSIDE = 4;
  std::atomic<uint64_t> state{0};
  std::atomic<int64_t> most{0};
  void (*task)(void* context, int64_t i, int64_t thread) = nullptr;
  void* context = nullptr;
  struct alignas(64) Stretch {
    std::atomic<int64_t> next{0}, end{0};
    bool is_empty() const { return next.load(std::memory_order_relaxed) >= end.load(std::memory_order_relaxed); }
  } stretches[MOST];

  static bool inside(uint64_t state) { return state >= INSIDE; }

  void take_part(int64_t thread) {
    int64_t all = most.load(std::memory_order_relaxed);
    for (int64_t k = 0; k < all; k++) {
      Stretch& stretch = stretches[(thread + k) % all];
      int64_t end = stretch.end.load(std::memory_order_relaxed);
      while (!stretch.is_empty()) {
        int64_t i = stretch.next.fetch_add(1, std::memory_order_relaxed);
        if (i < end) task(context, i, thread);
      }
    }
  }

  bool is_empty() const {
    for (int64_t k = 0; k < most.load(std::memory_order_relaxed); k++)
      if (!stretches[k].is_empty()) return false;
    return true;
  }

  // Whether this thread takes part, which it must say when it is done.
  bool join(int64_t thread) {
    uint64_t now = state.load(std::memory_order_acquire);
    while ((now & OPEN) && thread < most.load(std::memory_order_relaxed) && !is_empty()) {
      if (state.compare_exchange_weak(now, now + INSIDE, std::memory_order_acquire)) return true;
    }
    return false;
  }
};

class Threads {
  // Calls at a time that are shared: what comes on top of them works alone.
  static constexpr int WORKS = 32;
  Work works[WORKS];
  // Grows with every call, so that one look tells whether there is something new.
  std::atomic<uint64_t> calls{0};
  // Threads that sleep until there is work, and callers until theirs is done.
  std::atomic<int64_t> asleep{0}, waiting{0};
  std::atomic<int64_t> threads{0};
  std::mutex mutex;
  std::condition_variable wake, left;

  // Where the system gives no more threads, those that there are do the work.
  void grow(int64_t wanted) {
    if (threads.load(std::memory_order_relaxed) >= wanted) return;
    std::lock_guard<std::mutex> lock(mutex);
    try {
      for (int64_t thread; (thread = threads + 1) <= wanted; threads++) std::thread([=] { live(thread); }).detach();
    } catch (...) {
    }
  }

  bool work_on_any(int64_t thread) {
    bool worked = false;
    for (Work& work : works) {
      if (!work.join(thread)) continue;
      worked = true;
      // It may be another call by now, of fewer threads.
      if (thread < work.most.load(std::memory_order_relaxed)) work.take_part(thread);
      uint64_t now = work.state.fetch_sub(Work::INSIDE) - Work::INSIDE;
      if (!Work::inside(now) && waiting.load()) {
        std::lock_guard<std::mutex> lock(mutex);
        left.notify_all();
      }
    }
    return worked;
  }

  void live(int64_t thread) {
    for (;;) {
      uint64_t seen = calls.load();
      if (work_on_any(thread)) continue;
      if (look([&] { return calls.load(std::memory_order_relaxed) != seen; })) continue;
      std::unique_lock<std::mutex> lock(mutex);
      asleep++;
      wake.wait(lock, [&] { return calls.load() != seen; });
      asleep--;
    }
  }

  Work* free() {
    for (Work& work : works) {
      uint64_t none = 0;
      if (work.state.load(std::memory_order_relaxed) == 0 && work.state.compare_exchange_strong(none, Work::TAKEN)) return &work;
    }
    return nullptr;
  }

 public:
  bool run(int64_t count, int64_t most, void (*task)(void*, int64_t, int64_t), void* context) {
    Work* mine = free();
    if (!mine) return false;
    grow(most - 1);
    mine->task = task, mine->context = context, mine->most = most;
    for (int64_t k = 0; k < most; k++) {
      mine->stretches[k].next = count * k / most;
      mine->stretches[k].end = count * (k + 1) / most;
    }
    mine->state.store(Work::TAKEN | Work::OPEN, std::memory_order_release);
    calls.fetch_add(1);
    if (asleep.load()) {
      std::lock_guard<std::mutex> lock(mutex);
      wake.notify_all();
    }
    mine->take_part(0);
    mine->state.fetch_and(~Work::OPEN);
    // In one order with `waiting`, which whoever leaves reads after it.
    auto done = [&] { return !Work::inside(mine->state.load()); };
    if (!look(done)) {
      std::unique_lock<std::mutex> lock(mutex);
      waiting++;
      left.wait(lock, done);
      waiting--;
    }
    mine->state.store(0, std::memory_order_release);
    return true;
  }
};

// The threads live as long as the process, and so must what they look at.
Threads& threads() {
  static Threads* all = new Threads;
  return *all;
}

}  // namespace

namespace tch_flux {

void share(int64_t count, int64_t most, void (*task)(void* context, int64_t i, int64_t thread), void* context) {
  if (most > count) most = count;
  if (most > Work::MOST) most = Work::MOST;
  if (most > 1 && threads().run(count, most, task, context)) return;
  for (int64_t i = 0; i < count; i++) task(context, i, 0);
}

}  // namespace tch_flux
