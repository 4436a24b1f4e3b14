#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "tools/calibrate/block_job.h"
#include "tools/calibrate/learn/adamw.h"
#include "tools/calibrate/learn/block_graph.h"
#include "tools/calibrate/learn/transformation.h"
#include "tools/calibrate/learn/weight_quantizer.h"

namespace oq::calibrate {

/// Learns clipping (LWC) and transformation (LET) of one block, so that the block with quantized
/// weights and activations comes close to the full-precision one (Shao et al. 2023, eq. 1), and
/// stores the block's linears, norms and biases. Memory: four times the block's weights, three
/// without LET, beside what the graph keeps of one window.
class BlockLearner {
 public:
  BlockLearner(BlockJob& job, BlockGraph& graph);

  /// Throws oq::Error that names the tensor, or epoch and window, where something is not finite.
  void run();

 private:
  /// What the calibration text says of a linear's input channels.
  struct InputStats {
    std::vector<float> largest;  ///< max |x|
    std::vector<float> middle;   ///< of the range: 0.99 of the windows before, 0.01 of the next
  };
  /// A linear while it learns.
  struct Learned {
    WeightQuantizer quantizer;
    Clipping clipping, gradient;
  };

  void observe_inputs();
  void start_pair(Pair& pair) const;
  /// Clipping starts at 4.0, or, with --tuning mse, where a search puts it.
  void set_up_learning();
  void make_targets();
  void make_weights();
  double learn_from(int64_t first, int64_t end);
  double learn_window(int64_t window, double share);
  void store();

  bool transforms() const { return transformation_ != nullptr; }
  const BlockWeights& base() const { return transforms() ? folded_ : original_; }

  BlockJob& job_;
  const Options& options_;
  BlockGraph& graph_;
  const BlockWeights& original_;
  BlockWeights folded_;    ///< original_ behind LET; empty without
  BlockWeights executed_;  ///< base(), quantized
  BlockWeights gradients_;
  std::map<std::string, Learned> learned_;
  std::map<std::string, InputStats> inputs_;
  std::unique_ptr<Transformation> transformation_;
  AdamW optimizer_;
  std::unique_ptr<HiddenStates> own_targets_;  ///< of --aug-loss: the block on these very inputs
  std::vector<float> output_, d_output_, d_input_;
};

}  // namespace oq::calibrate
