#pragma once

#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "format/weak_file.h"
#include "tools/calibrate/learn/block_graph.h"
#include "tools/calibrate/learn/head_graph.h"

namespace oq::calibrate {

/// The weak columns of a quantized model under the language-model loss (OWQ's weak-column tuning,
/// Lee et al. 2023), everything else frozen: with dy what comes back to a linear and x its input,
///   dL/dW[r][i] = sum over tokens of dy[t][r] x[t][weak[i]].
/// Backwards a block runs forwards once more, so that one graph serves all blocks and only hidden
/// states are kept. Memory: two blocks, the head, and a window's hidden states before every block.
class WeakTuner {
 public:
  /// `stored`: the model runs with weak weights as a file holds them, and gradients pass through
  /// that; otherwise in fp32. Throws oq::Error where the model has no weak columns.
  WeakTuner(std::shared_ptr<const File> file, int64_t window, int threads, bool stored = true);

  BlockRunner& runner() { return runner_; }
  /// Of all tensors that have some, by full name: fp32, and their gradients by the last `learn`.
  WeakWeights& weights() { return weights_; }
  const WeakWeights& gradients() const { return gradients_; }

  /// The mean of -log p(next token) of a window; `learn` has the gradients as well.
  double loss(const std::vector<int32_t>& window) { return forward(window, nullptr); }
  double learn(const std::vector<int32_t>& window);
  /// Where the last window had a value that is no number: "blocks.3.output".
  std::string first_not_finite() const;

 private:
  double forward(const std::vector<int32_t>& window, float* d_x);
  BlockWeights block(int64_t index) const;

  std::shared_ptr<const File> file_;
  BlockRunner runner_;
  Scheme scheme_;
  bool stored_;
  BlockGraph graph_;
  HeadGraph head_;
  WeakWeights weights_, gradients_;
  std::vector<std::vector<float>> states_;  ///< before each block, and behind the last
  std::vector<float> d_in_, d_out_;
};

}  // namespace oq::calibrate
