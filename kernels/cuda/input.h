#pragma once

#include "kernels/cuda/block.h"
#include "kernels/cuda/kernels.h"

/// The front of a linear: its norm, worked out by every block for itself. Reading x again costs a
/// block of 16 rows 4 bytes a column from the second-level cache, where its 4-bit weights are 8
/// from memory; a kernel of its own would cost a launch.
namespace oq::cuda {

/// What a block knows of one token before it multiplies.
struct TokenStats {
  float mean, inv;  ///< of the norm
  float up, down;   ///< a power of two that fills the range of f16, and its inverse
};

/// A power of two that brings `peak` into [2^14, 2^15), so that nothing overflows f16 and 2^-39 of
/// it is still a number; and its inverse. Both 1 where the peak is no such number.
OQ_DEVICE void fill_range(float peak, float& up, float& down) {
  up = down = 1.0f;
  if (!(peak > 0x1p-100f && peak < 0x1p100f)) return;
  const int exponent = int(float_to_bits(peak) >> 23) - 127;
  up = bits_to_float(uint32_t(127 + 14 - exponent) << 23);
  down = bits_to_float(uint32_t(127 - 14 + exponent) << 23);
}

/// The input of one block: rows of x behind the norm.
class BlockInput {
 public:
  /// Reads the statistics of up to `most` tokens from `first` on, which count from 0 here.
  /// `scratch` has kWarps floats, `stats` room for `most`; `weak_mask` as in PackedMatrix. All
  /// threads of the block.
  OQ_DEVICE BlockInput(const InputArgs& args, int cols, const uint32_t* weak_mask,
                       TokenStats* stats, float* scratch, int first, int most)
      : args_(args), cols_(cols), first_(first), weak_mask_(weak_mask), stats_(stats) {
    const int left = args.count == nullptr ? most : args.count[block_y()] - first;
    tokens_ = left < most ? left : most;
    for (int m = 0; m < tokens_; ++m) measure(m, scratch);
    sync_block();
  }

  OQ_DEVICE int tokens() const { return tokens_; }
  OQ_DEVICE int cols() const { return cols_; }
  OQ_DEVICE const TokenStats& stats(int m) const { return stats_[m]; }

  /// What meets live weights of column k; nothing beyond the last column.
  OQ_DEVICE float live(int m, int k) const {
    return k >= cols_ || is_weak(k) ? 0.0f : normed(m, k);
  }
  /// What meets the weak weights of column k.
  OQ_DEVICE float normed(int m, int k) const {
    const float v = row(m)[k];
    if (args_.norm.kind == NormKind::none) return v;
    const TokenStats& s = stats_[m];
    const float y = (v - s.mean) * s.inv;
    return fmaf(y, args_.norm.weight[k],
                args_.norm.kind == NormKind::layer ? args_.norm.bias[k] : 0.0f);
  }

 private:
  OQ_DEVICE bool is_weak(int k) const {
    return weak_mask_ != nullptr && (weak_mask_[k / 32] >> (k % 32) & 1u) != 0;
  }
  OQ_DEVICE const float* row(int m) const {
    const int32_t* rows = args_.rows == nullptr    ? nullptr
                          : args_.count == nullptr ? args_.rows
                                                   : args_.rows + int64_t(block_y()) * kExpertRows;
    const int64_t r = rows == nullptr ? first_ + m : rows[first_ + m];
    const int64_t expert = args_.count == nullptr ? 0 : block_y();
    return args_.x + expert * args_.expert_stride + r * args_.stride;
  }

  template <class Rule, class Term>
  OQ_DEVICE float over_row(float* scratch, Term term) const {
    float x = Rule::start();
    for (int k = thread_id(); k < cols_; k += block_threads()) x = Rule::join(x, term(k));
    return block_reduce<Rule>(x, scratch);
  }

  OQ_DEVICE void measure(int m, float* scratch) {
    const float* x = row(m);
    const NormArgs& norm = args_.norm;
    TokenStats s{0.0f, 1.0f, 1.0f, 1.0f};
    float peak = over_row<Max>(scratch, [&](int k) { return fabsf(x[k]); });
    if (norm.kind != NormKind::none) {
      if (norm.kind == NormKind::layer) {
        s.mean = over_row<Sum>(scratch, [&](int k) { return x[k]; }) / float(cols_);
      }
      const float square =
          over_row<Sum>(scratch, [&](int k) { return (x[k] - s.mean) * (x[k] - s.mean); });
      s.inv = 1.0f / sqrtf(square / float(cols_) + norm.eps);
      peak = (peak + fabsf(s.mean)) * s.inv * norm.weight_peak + norm.bias_peak;
    }
    fill_range(peak, s.up, s.down);
    if (thread_id() == 0) stats_[m] = s;  // for all threads, behind the constructor's barrier
  }

  const InputArgs& args_;
  int cols_, first_, tokens_;
  const uint32_t* weak_mask_;
  TokenStats* stats_;
};

}  // namespace oq::cuda
