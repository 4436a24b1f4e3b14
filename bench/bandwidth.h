#pragma once

#include <cstddef>
#include <span>
#include <vector>

#include "bench/probe.h"
#include "kernels/cpu/thread_pool.h"

namespace oq {

/// Of this machine's cores together. Two buffers of 1 GiB (less where memory is short), one on huge
/// pages and one not; every core streams its part with the widest loads it has into eight
/// accumulators. A pass goes over each buffer once and counts the better.
/// `subject`, where given, is read as well: the same limit for bytes that lie where they lie.
class BandwidthProbe final : public Probe {
 public:
  /// `threads` 0: one per usable core. PRECOND: `subject` is aligned to 64 bytes, as tensors are.
  explicit BandwidthProbe(int threads = 0, std::span<const std::byte> subject = {});
  ~BandwidthProbe() override;

  /// Bytes per second of each pass, in order.
  const std::vector<double>& huge_pages() const { return huge_.rates; }
  const std::vector<double>& small_pages() const { return small_.rates; }
  const std::vector<double>& subject() const { return subject_.rates; }

 private:
  struct Buffer {
    std::span<const std::byte> bytes;
    std::vector<double> rates;
  };
  double pass() override;
  double read(Buffer& buffer);

  ThreadPool pool_;
  Buffer huge_, small_;  ///< mapped here
  Buffer subject_;
};

}  // namespace oq
