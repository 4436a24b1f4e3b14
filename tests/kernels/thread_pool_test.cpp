#include "kernels/cpu/thread_pool.h"

#include <atomic>
#include <stdexcept>
#include <thread>
#include <vector>

#include <doctest/doctest.h>
#include <sched.h>

using oq::ThreadPool;
using oq::usable_cores;

TEST_CASE("every item is done once, whatever the threads and chunks") {
  for (int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    CHECK(pool.threads() == threads);
    for (int64_t n : {0, 1, 7, 1000}) {
      for (int64_t chunk : {1, 3, 2000}) {
        std::vector<int> done(size_t(n), 0);
        pool.parallel_for(n, chunk, [&](int64_t begin, int64_t end, int thread) {
          CHECK(thread < threads);
          for (int64_t i = begin; i < end; ++i) ++done[size_t(i)];
        });
        for (int d : done) REQUIRE(d == 1);
      }
    }
  }
}

TEST_CASE("a pool has as many threads as there are cores that its caller may use") {
  cpu_set_t all, one;
  REQUIRE(sched_getaffinity(0, sizeof(all), &all) == 0);
  CHECK(usable_cores() == CPU_COUNT(&all));
  CHECK(ThreadPool().threads() == CPU_COUNT(&all));
  int core = 0;
  while (!CPU_ISSET(core, &all)) ++core;
  CPU_ZERO(&one);
  CPU_SET(core, &one);
  REQUIRE(sched_setaffinity(0, sizeof(one), &one) == 0);
  const int cores = usable_cores(), threads = ThreadPool().threads();
  REQUIRE(sched_setaffinity(0, sizeof(all), &all) == 0);
  CHECK(cores == 1);
  CHECK(threads == 1);
}

TEST_CASE("many short loops in a row") {
  ThreadPool pool(3);
  std::atomic<int64_t> sum{0};
  for (int i = 0; i < 20000; ++i) {  // a decode step has 150 of them
    pool.parallel_for(6, 1, [&](int64_t begin, int64_t end, int) {
      sum.fetch_add(end - begin, std::memory_order_relaxed);
    });
  }
  CHECK(sum == 120000);
}

TEST_CASE("a thread that is held up keeps nothing but the piece in hand") {
  constexpr int64_t kItems = 60;
  for (int threads : {2, 3}) {
    ThreadPool pool(threads);
    std::atomic<bool> first{true};
    std::atomic<int64_t> done{0};
    pool.parallel_for(kItems, 1, [&](int64_t begin, int64_t end, int) {
      if (first.exchange(false)) {
        CHECK(end - begin <= kItems / threads / 2);
        while (done < kItems - (end - begin)) std::this_thread::yield();
      }
      done += end - begin;
    });
    CHECK(done == kItems);
  }
}

TEST_CASE("an exception reaches the caller, and the pool goes on") {
  ThreadPool pool(2);
  for (int i = 0; i < 50; ++i) {
    CHECK_THROWS_AS(pool.parallel_for(100, 1,
                                      [](int64_t begin, int64_t end, int) {
                                        if (begin <= 42 && 42 < end) throw std::runtime_error("42");
                                      }),
                    std::runtime_error);
  }
  std::atomic<int> n{0};
  pool.parallel_for(10, 1, [&](int64_t begin, int64_t end, int) { n += int(end - begin); });
  CHECK(n == 10);
}
