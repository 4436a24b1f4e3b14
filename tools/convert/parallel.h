#pragma once

#include <algorithm>
#include <cstdint>
#include <exception>
#include <mutex>
#include <thread>
#include <vector>

namespace oq::convert {

/// Calls body(begin, end) on ranges that together make [0, n), each a whole number of `grain`
/// (but the last), from up to `threads` threads. Rethrows the first exception. What a range
/// computes must not depend on how the ranges are cut.
template <class Body>
void parallel_ranges(uint64_t n, uint64_t grain, int threads, const Body& body) {
  const uint64_t grains = (n + grain - 1) / grain;
  const uint64_t parts = std::clamp<uint64_t>(grains, 1, uint64_t(std::max(1, threads)));
  std::exception_ptr failure;
  std::mutex mutex;
  const auto run = [&](uint64_t part) {
    try {
      const uint64_t begin = grains * part / parts * grain;
      const uint64_t end = std::min(n, grains * (part + 1) / parts * grain);
      if (begin < end) body(begin, end);
    } catch (...) {
      const std::lock_guard lock(mutex);
      if (!failure) failure = std::current_exception();
    }
  };
  std::vector<std::jthread> workers;
  for (uint64_t part = 1; part < parts; ++part) workers.emplace_back(run, part);
  run(0);
  workers.clear();  // joins
  if (failure) std::rethrow_exception(failure);
}

}  // namespace oq::convert
