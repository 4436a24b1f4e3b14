#pragma once

#include <memory>
#include <span>
#include <vector>

#include "tools/calibrate/block_job.h"
#include "tools/calibrate/learn/head_graph.h"
#include "tools/eval/statistics.h"

namespace oq::calibrate {

/// How far the model's predictions are from full precision's with one block or another in a block's
/// place: the blocks before it as they are by now, those behind it in full precision. Which of two
/// blocks is better for the model is not to be seen in their own errors (docs/calibration.md, "All
/// together"). On the windows that a job holds out. Memory: the head in fp32, the logits of some
/// tokens, and hidden states of these windows, for full precision and for each of the two blocks.
/// The runner outlives it. One thread at a time.
class OutputJudge {
 public:
  explicit OutputJudge(BlockRunner& runner);

  /// Of the divergence with the other block, less that with the usual one, over tokens: a negative
  /// mean is for the other. Both are blocks as they would be executed. Every job has the windows of
  /// the first. PRECOND: it has targets and holds windows out.
  Statistics compare(const BlockJob& job, const BlockWeights& usual, const BlockWeights& other);

  /// Of each token, KL(full precision || with `block` in the job's place). PRECOND as above.
  std::vector<double> divergence(const BlockJob& job, const BlockWeights& block);

 private:
  using States = std::vector<std::vector<float>>;  ///< of each window

  States behind(const BlockJob& job, const BlockWeights& block);
  void go_on(const BlockJob& job, std::span<States* const> all);
  std::vector<double> divergence(const States& states, int64_t tokens);

  BlockRunner& runner_;
  HeadGraph head_;
  States full_;  ///< behind the last block in full precision, once somebody asked
};

/// What judging a block takes on average, in passes of all windows through a block.
double judging_passes(int64_t blocks, int64_t windows);

}  // namespace oq::calibrate
