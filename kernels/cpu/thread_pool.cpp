#include "kernels/cpu/thread_pool.h"

#include <algorithm>
#include <string>
#include <system_error>
#include <utility>

#include <sched.h>

#include "format/error.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace oq {
namespace {

/// How often a waiting thread looks before it sleeps: some 50 us on CPUs whose pause is short,
/// longer than the serial stretch between two parallel loops of a decode step and far shorter than
/// a person notices. From time to time it gives its core to whoever wants it: with more threads
/// than cores, spinning would keep the others from the work that is waited for.
constexpr int kSpins = 4000;
constexpr int kSpinsPerYield = 512;

void pause_cpu() {
#if defined(__x86_64__)
  _mm_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

/// Spins, then sleeps, until `value` differs from `old`.
template <class T>
void wait_for_change(const std::atomic<T>& value, T old) {
  for (int i = 0; i < kSpins; ++i) {
    if (value.load(std::memory_order_acquire) != old) return;
    pause_cpu();
    if (i % kSpinsPerYield == kSpinsPerYield - 1) sched_yield();
  }
  value.wait(old, std::memory_order_acquire);
}

}  // namespace

int usable_cores() {
  cpu_set_t set;
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return std::max(1, CPU_COUNT(&set));
  return std::max(1, int(std::thread::hardware_concurrency()));
}

ThreadPool::ThreadPool(int threads) {
  const int n = threads > 0 ? threads : usable_cores();
  runs_ = std::vector<Run>(size_t(n));
  workers_.reserve(size_t(n - 1));
  try {
    for (int t = 1; t < n; ++t) workers_.emplace_back([this, t] { work(t); });
  } catch (const std::system_error& e) {
    stop();
    throw Error({.what = std::string("threads cannot be started: ") + e.what(),
                 .where = "thread pool",
                 .found = std::to_string(n) + " threads wanted",
                 .hint = "choose fewer with --threads"});
  }
}

ThreadPool::~ThreadPool() { stop(); }

void ThreadPool::stop() {
  stopping_.store(true, std::memory_order_relaxed);
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  for (std::thread& w : workers_) w.join();
  workers_.clear();
}

void ThreadPool::run(const Job& job) {
  job_ = job;
  const int64_t chunks = (job.n + job.chunk - 1) / job.chunk;
  int64_t begin = 0;
  for (int t = 0; t < threads(); ++t) {
    Run& run = runs_[size_t(t)];
    run.next.store(begin, std::memory_order_relaxed);
    begin = run.end = std::min(job.n, chunks * (t + 1) / threads() * job.chunk);
  }
  busy_.store(int(workers_.size()), std::memory_order_relaxed);
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  take_chunks(0);
  for (int left; (left = busy_.load(std::memory_order_acquire)) != 0;) {
    wait_for_change(busy_, left);
  }
  if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
}

void ThreadPool::work(int thread) {
  uint32_t seen = 0;
  while (true) {
    wait_for_change(generation_, seen);
    seen = generation_.load(std::memory_order_acquire);
    if (stopping_.load(std::memory_order_relaxed)) return;
    take_chunks(thread);
    if (busy_.fetch_sub(1, std::memory_order_acq_rel) == 1) busy_.notify_one();
  }
}

void ThreadPool::take_chunks(int thread) {
  try {
    for (int i = 0; i < threads(); ++i) {
      Run& run = runs_[size_t((thread + i) % threads())];
      int64_t begin = run.next.load(std::memory_order_relaxed);
      while (begin < run.end) {
        const int64_t end = std::min(run.end, begin + std::max(job_.chunk, (run.end - begin) / 2));
        if (!run.next.compare_exchange_weak(begin, end, std::memory_order_relaxed)) continue;
        job_.call(job_.context, begin, end, thread);
        begin = run.next.load(std::memory_order_relaxed);
      }
    }
  } catch (...) {
    for (Run& run : runs_) run.next.store(run.end, std::memory_order_relaxed);
    const std::lock_guard lock(error_mutex_);
    if (!error_) error_ = std::current_exception();
  }
}

}  // namespace oq
