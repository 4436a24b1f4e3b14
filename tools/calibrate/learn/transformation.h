#pragma once

#include <map>
#include <string>
#include <vector>

#include "tools/calibrate/block.h"

namespace oq::calibrate {

/// One learnable equivalent transformation (LET, Shao et al. 2023, section 3.3): a scale s, and
/// where there is room for it a shift d, for every channel between two parts of a block,
///   x W^T + b = ((x - d) / s) (W diag(s))^T + (b + W d),
/// where what comes before takes "(. - d) / s" into its own weights.
struct Pair {
  /// Where s goes: into a linear's columns or rows, the weight of a norm, or the router's columns.
  struct Use {
    enum class Where { columns, rows, norm, router };
    Where where;
    std::string tensor;  ///< a linear, "attn_norm" or "mlp_norm"
    bool divides;
    std::vector<uint32_t> channel = {};  ///< of s, by column or row; empty: the same

    uint32_t channel_of(size_t i) const { return channel.empty() ? uint32_t(i) : channel[i]; }
  };

  std::string name;  ///< "qkv", "o", "qk", "mlp", "down", "experts.3.down"
  std::vector<Use> uses;
  std::vector<float> scale;
  std::vector<float> shift = {};  ///< empty: none

  static constexpr float kLeast = 1e-2f;  ///< of a scale, as in the reference
};

/// All pairs of a block that leave what it computes as it is, and their gradients:
///
///   qkv   attn_norm -> q, k, v (and up, where the MLP stands behind the same norm)
///   mlp   mlp_norm -> gate, up of all experts and the router's columns
///   o     v -> o: one channel per KV head's dimension, for all query heads that share it
///   qk    q / s and k s, per KV head; dimensions that RoPE turns into each other share a channel
///   down  up -> down of each expert, where the MLP is gated or its activation ReLU
///
/// A norm after the residual sum (OPT-350m) takes no scale. Shifts need a bias on both sides: a
/// LayerNorm or a v with bias, and linears with biases. GELU and SiLU without a gate let nothing
/// through.
class Transformation {
 public:
  struct Kinds {
    bool shifts = false;     ///< where they fit
    bool free_rope = false;  ///< q and k scaled by dimension under RoPE, as the reference has it,
                             ///< which changes what the block computes
    bool down = true;        ///< up -> down, which OmniQuant's own code has not
  };

  /// Scales of 1 and shifts of 0.
  Transformation(const ModelConfig& config, const BlockWeights& weights, const Kinds& kinds);

  std::vector<Pair>& pairs() { return pairs_; }
  const std::vector<Pair>& pairs() const { return pairs_; }

  /// Of the last `fold`: what a linear's columns were multiplied by.
  const std::vector<float>& column_factors(const std::string& linear) const {
    return sides_.at(linear).columns;
  }
  /// And what its inputs were shifted by, [in]: x became (x - shift) / factor.
  const std::vector<float>& column_shifts(const std::string& linear) const {
    return sides_.at(linear).in;
  }

  /// `folded` (of the same shape) becomes `original` with every pair in its weights, norms and
  /// biases. Products that a weight takes part in are made in a fixed order.
  void fold(ThreadPool& pool, const BlockWeights& original, BlockWeights& folded);

  /// Of the last `fold`: the gradients of the pairs' scales and shifts from those of the folded
  /// weights. What a fold makes is w' = w a / b, so dL/d(log a) = sum w' dL/dw', and one pass over
  /// each linear serves the pairs on both its sides.
  void backward(ThreadPool& pool, const BlockWeights& folded, const BlockWeights& gradients);
  /// [pairs], of the last `backward`: like `scale` and `shift`.
  struct Gradient {
    std::vector<float> scale, shift;
  };
  const std::vector<Gradient>& gradients() const { return gradients_; }

 private:
  /// What all pairs make of one linear: W' = diag(rows) W diag(columns) and
  /// b' = rows (b + W in - out).
  struct Side {
    std::vector<float> columns, rows, in, out;
    bool shifts_in = false;
  };

  void add_pairs(const BlockWeights& weights, const Kinds& kinds);
  Pair make(std::string name, int64_t channels) const;
  std::vector<uint32_t> query_channels(const std::vector<uint32_t>& of_kv) const;
  std::vector<uint32_t> rope_channels(bool free_rope) const;
  void set_sides();
  void fold_norm(const std::string& name, const NormWeights& from, NormWeights& to) const;
  void sum_products(ThreadPool& pool, const Matrix& w, const Matrix& g, std::vector<float>& columns,
                    std::vector<float>& rows);
  void linear_backward(ThreadPool& pool, const std::string& name, const LinearWeights& folded,
                       const LinearWeights& gradient);
  void norm_backward(size_t pair, const NormWeights& folded, const NormWeights& gradient);

  ModelConfig c_;
  std::vector<Pair> pairs_;
  std::vector<Gradient> gradients_;
  std::map<std::string, Side> sides_;
  std::vector<float> partial_, column_sums_, row_sums_;
};

}  // namespace oq::calibrate
