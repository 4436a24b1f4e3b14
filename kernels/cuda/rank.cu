/// The likeliest tokens of a row of logits, in order, and the sum of their weights: what a sampler
/// needs, without all logits going to the host.
///
/// Regime: one row, behind the head. Bound: the launch, and in the second kernel one block's sort.
/// Layout: a token is a key of 64 bits, its logit as an unsigned number that orders as floats do
///   above the complement of its id: the largest key is the likeliest token, and of equal logits
///   the lowest id. No two keys are equal, so a sort has one outcome.
/// Work split: a block of the first kernel takes 4096 tokens and leaves its likeliest `keep`, by a
///   bitonic sort in shared memory, or the largest alone; the one block of the second merges them.
///   Weights are summed in double, by threads, then by halves, then by blocks in order.
/// Lost: reading a threshold off histograms takes fewer steps for large `keep`, and wants a second
///   pass for ties.
/// Measured: not measured.

#include "kernels/cuda/block.h"
#include "kernels/cuda/kernels.h"

namespace oq::cuda {
namespace {

OQ_DEVICE uint64_t key_of(float logit, int id) {
  const uint32_t bits = float_to_bits(logit + 0.0f);  // -0 equals 0
  const uint32_t ordered = (bits >> 31) != 0 ? ~bits : bits | 0x80000000u;
  return uint64_t(ordered) << 32 | (0xFFFFFFFFu - uint32_t(id));
}
OQ_DEVICE int id_of(uint64_t key) { return int(0xFFFFFFFFu - uint32_t(key)); }
OQ_DEVICE float logit_of(uint64_t key) {
  const auto ordered = uint32_t(key >> 32);
  return bits_to_float((ordered >> 31) != 0 ? ordered & 0x7FFFFFFFu : ~ordered);
}
OQ_DEVICE bool is_finite(float x) { return (float_to_bits(x) & 0x7F800000u) != 0x7F800000u; }

/// The `keep` largest of n keys come first, in descending order; n is a power of two. All threads.
OQ_DEVICE void select(uint64_t* keys, int n, int keep) {
  if (keep == 1) {
    for (int half = n / 2; half > 0; half /= 2) {
      for (int i = thread_id(); i < half; i += block_threads()) {
        if (keys[i + half] > keys[i]) keys[i] = keys[i + half];
      }
      sync_block();
    }
    return;
  }
  for (int size = 2; size <= n; size *= 2) {
    for (int step = size / 2; step > 0; step /= 2) {
      for (int i = thread_id(); i < n / 2; i += block_threads()) {
        const int a = i / step * 2 * step + i % step, b = a + step;
        const bool descends = (a & size) == 0;
        const uint64_t x = keys[a], y = keys[b];
        if ((x < y) == descends) keys[a] = y, keys[b] = x;
      }
      sync_block();
    }
  }
}

/// In thread 0: the sum of what all threads give.
OQ_DEVICE double sum_of(double x, double* scratch) {
  scratch[thread_id()] = x;
  sync_block();
  for (int half = block_threads() / 2; half > 0; half /= 2) {
    if (thread_id() < half) scratch[thread_id()] += scratch[thread_id() + half];
    sync_block();
  }
  return scratch[0];
}

__global__ void rank_parts_kernel(RankArgs a) {
  auto* keys = reinterpret_cast<uint64_t*>(shared_memory());
  auto* sums = reinterpret_cast<double*>(keys + kRankChunk);
  auto* scratch = reinterpret_cast<float*>(sums + kThreads);
  const int first = block_x() * kRankChunk;
  float top = -INFINITY, finite = 1.0f;
  for (int i = thread_id(); i < kRankChunk; i += kThreads) {
    const int id = first + i;
    if (id >= a.vocab) {
      keys[i] = 0;
      continue;
    }
    keys[i] = key_of(a.logits[id], id);
    top = fmaxf(top, a.logits[id]);
    finite = is_finite(a.logits[id]) ? finite : 0.0f;
  }
  top = block_reduce<Max>(top, scratch);
  finite = block_reduce<Min>(finite, scratch);
  double weights = 0;
  if (a.temperature > 0) {
    for (int i = thread_id(); i < kRankChunk && first + i < a.vocab; i += kThreads) {
      weights += exp((double(a.logits[first + i]) - double(top)) / a.temperature);
    }
  }
  weights = sum_of(weights, sums);
  RankPart& part = a.parts[block_x()];
  if (thread_id() == 0) {
    part.top = top;
    part.finite = finite != 0.0f;
    part.total = weights;
  }
  select(keys, kRankChunk, a.keep);
  for (int i = thread_id(); i < a.keep; i += kThreads) part.keys[i] = keys[i];
}

__global__ void rank_merge_kernel(RankArgs a) {
  auto* keys = reinterpret_cast<uint64_t*>(shared_memory());
  int n = 1;
  while (n < a.blocks * a.keep) n *= 2;
  for (int i = thread_id(); i < n; i += kThreads) {
    keys[i] = i < a.blocks * a.keep ? a.parts[i / a.keep].keys[i % a.keep] : 0;
  }
  sync_block();
  select(keys, n, a.keep);
  for (int i = thread_id(); i < a.keep && i < a.vocab; i += kThreads) {
    a.out->ids[i] = id_of(keys[i]);
    a.out->logits[i] = logit_of(keys[i]);
  }
  for (int i = thread_id(); i < a.also_count; i += kThreads) {
    a.out->also[i] = a.logits[a.also[i]];
  }
  if (thread_id() != 0) return;
  double total = 0;
  bool finite = true;
  const float top = logit_of(keys[0]);
  for (int b = 0; b < a.blocks; ++b) {
    finite = finite && a.parts[b].finite;
    if (a.temperature <= 0) continue;
    total += a.parts[b].total * exp((double(a.parts[b].top) - double(top)) / a.temperature);
  }
  a.out->total = total;
  a.out->finite = finite ? 1 : 0;
}

}  // namespace

void start_rank(Stream& stream, const RankArgs& a) {
  constexpr size_t kParts = kRankChunk * sizeof(uint64_t) + kThreads * sizeof(double) + 64;
  int n = 1;
  while (n < a.blocks * a.keep) n *= 2;
  launch(stream, "rank_parts", rank_parts_kernel,
         {.x = a.blocks, .threads = kThreads, .shared = kParts}, a);
  launch(stream, "rank_merge", rank_merge_kernel,
         {.threads = kThreads, .shared = size_t(n) * sizeof(uint64_t)}, a);
}

}  // namespace oq::cuda
