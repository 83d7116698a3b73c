// Threads that share the tasks of a call. Whoever calls works on them itself, and waits for no thread that has not begun:
// on a machine where others compute, too, a thread that gets no core holds nobody up.

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#include "kernels.h"

#if defined(__x86_64__) || defined(__i386__)
#include <immintrin.h>
#define RELAX() _mm_pause()
#else
#define RELAX() std::this_thread::yield()
#endif

namespace {

// For how long a thread looks for work before it sleeps: calls follow each other, and waking takes longer.
constexpr std::chrono::microseconds PATIENCE{60};

// A call's tasks, and who takes part in them.
struct Work {
  int64_t count;
  void (*task)(void* context, int64_t i, int64_t thread);
  void* context;
  // How many may take part, how many have, and how many of those beside the caller are still at it.
  int64_t most, joined = 1, inside = 0;
  std::atomic<int64_t> next{0};

  // Who is done takes the next one: cores are seldom equally free.
  void take_part(int64_t thread) {
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;) task(context, i, thread);
  }
  bool wants_more() const { return joined < most && next.load(std::memory_order_relaxed) < count; }
};

class Threads {
  std::mutex mutex;
  std::condition_variable wake, left;
  std::vector<Work*> works;
  int64_t threads = 0;
  // Grows with every call, so that a look without the lock tells whether there is something new.
  std::atomic<uint64_t> calls{0};

  Work* work() {
    for (Work* work : works)
      if (work->wants_more()) return work;
    return nullptr;
  }

  // Where the system gives no more threads, those that there are do the work.
  void grow(int64_t wanted) {
    try {
      for (; threads < wanted; threads++) std::thread([this] { live(); }).detach();
    } catch (const std::system_error&) {
    }
  }

  void look(uint64_t seen) const {
    auto end = std::chrono::steady_clock::now() + PATIENCE;
    while (calls.load(std::memory_order_relaxed) == seen && std::chrono::steady_clock::now() < end)
      for (int i = 0; i < 16; i++) RELAX();
  }

  void live() {
    std::unique_lock<std::mutex> lock(mutex);
    for (;;) {
      if (Work* mine = work()) {
        int64_t thread = mine->joined++;
        mine->inside++;
        lock.unlock();
        mine->take_part(thread);
        lock.lock();
        if (--mine->inside == 0) left.notify_all();
        continue;
      }
      uint64_t seen = calls.load(std::memory_order_relaxed);
      lock.unlock();
      look(seen);
      lock.lock();
      if (calls.load(std::memory_order_relaxed) == seen) wake.wait(lock);
    }
  }

 public:
  void run(Work& mine) {
    {
      std::lock_guard<std::mutex> lock(mutex);
      grow(mine.most - 1);
      works.push_back(&mine);
      calls.fetch_add(1, std::memory_order_relaxed);
    }
    wake.notify_all();
    mine.take_part(0);
    std::unique_lock<std::mutex> lock(mutex);
    for (size_t i = 0; i < works.size(); i++)
      if (works[i] == &mine) works.erase(works.begin() + i);
    left.wait(lock, [&] { return mine.inside == 0; });
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
  Work work{count, task, context, most < count ? most : count};
  if (work.most <= 1) return work.take_part(0);
  threads().run(work);
}

}  // namespace tch_flux
