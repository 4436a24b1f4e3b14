#pragma once

#include <cstddef>
#include <memory>

#include "kernels/cpu/thread_pool.h"

namespace oq {

/// The most bytes per second that this machine's cores can read from memory together: the limit
/// that a decode step is measured against. Two buffers of 1 GiB (less where memory is short), one
/// on huge pages and one not; every core streams its part with the widest loads it has into eight
/// accumulators. Passes are short, so that they can be interleaved with what is being measured.
class BandwidthProbe {
 public:
  /// `threads` 0: one per usable core.
  explicit BandwidthProbe(int threads = 0);
  ~BandwidthProbe();
  BandwidthProbe(const BandwidthProbe&) = delete;
  BandwidthProbe& operator=(const BandwidthProbe&) = delete;

  /// One pass over each buffer; keeps the best.
  void measure();

  int passes() const { return passes_; }
  /// Bytes per second, best of all passes so far.
  double best() const { return best_huge_ > best_small_ ? best_huge_ : best_small_; }
  double best_huge_pages() const { return best_huge_; }
  double best_small_pages() const { return best_small_; }

 private:
  double pass(const std::byte* buffer);

  ThreadPool pool_;
  size_t bytes_;
  std::byte* huge_ = nullptr;
  std::byte* small_ = nullptr;
  int passes_ = 0;
  double best_huge_ = 0, best_small_ = 0;
};

}  // namespace oq
