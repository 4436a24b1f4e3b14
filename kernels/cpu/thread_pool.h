#pragma once

#include <atomic>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <type_traits>
#include <vector>

namespace oq {

/// Cores that the calling thread may run on, at least 1: fewer than the machine's under taskset or
/// in a container with a cpuset.
int usable_cores();

/// A fixed team of threads for short, frequent parallel loops: a token of a 30-block model crosses
/// some 150 of them, so a worker that has just finished spins for a while before it
/// sleeps. Each thread has a run of neighbouring items, which lie behind each other in memory, and
/// takes half of what is left of it at a time; who is done with their own takes from others'. So a
/// core that somebody else is using costs only its share, and threads seldom meet on a cache line.
/// What a piece computes must not depend on which thread runs it.
///
/// One caller at a time. An exception thrown by a chunk is rethrown to the caller once all
/// threads have stopped.
class ThreadPool {
 public:
  /// `threads` counts the caller; 0 means usable_cores().
  explicit ThreadPool(int threads = 0);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return int(workers_.size()) + 1; }

  /// Calls f(begin, end, thread) over [0, n) in pieces of at least `chunk` (the last may be
  /// shorter); `thread` is in [0, threads()) and no two calls share one at a time.
  template <class F>
  void parallel_for(int64_t n, int64_t chunk, F&& f) {
    if (n <= 0) return;
    if (workers_.empty() || n <= chunk) return f(int64_t(0), n, 0);
    using Fn = std::remove_reference_t<F>;
    run({.n = n,
         .chunk = chunk,
         .context = const_cast<void*>(static_cast<const void*>(&f)),
         .call = [](void* c, int64_t b, int64_t e, int t) { (*static_cast<Fn*>(c))(b, e, t); }});
  }

 private:
  struct Job {
    int64_t n = 0;
    int64_t chunk = 1;
    void* context = nullptr;
    void (*call)(void*, int64_t, int64_t, int) = nullptr;
  };

  void stop();
  void run(const Job& job);
  void work(int thread);
  void take_chunks(int thread);

  /// The items of one thread's run that nobody has taken: [next, end).
  struct alignas(64) Run {
    std::atomic<int64_t> next{0};
    int64_t end = 0;
  };

  Job job_;
  std::vector<std::thread> workers_;
  std::mutex error_mutex_;
  std::exception_ptr error_;
  std::vector<Run> runs_;                            ///< by thread
  alignas(64) std::atomic<uint32_t> generation_{0};  ///< counts jobs; wakes the workers
  alignas(64) std::atomic<int> busy_{0};             ///< workers that have not finished the job
  std::atomic<bool> stopping_{false};
};

}  // namespace oq
