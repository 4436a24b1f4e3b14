#pragma once

#include <vector>

#include "kernels/cuda/kernels.h"
#include "runtime/ranking.h"

namespace oq {

/// Ranks rows of logits on the device; what comes to the host is 1.5 KB.
class CudaRanker {
 public:
  explicit CudaRanker(cuda::Stream& stream) : stream_(stream) {}

  /// Of the device's memory, for rows of `vocab` logits.
  static uint64_t device_bytes(int64_t vocab);
  static bool can_rank(int64_t vocab) {
    return vocab <= int64_t(cuda::kRankBlocks) * cuda::kRankChunk;
  }

  /// Waits. PRECOND: can_rank(request.vocab).
  void run(const float* logits, const RankRequest& request, Ranking& out);

 private:
  cuda::Stream& stream_;
  cuda::Memory parts_, also_, result_;
};

}  // namespace oq
