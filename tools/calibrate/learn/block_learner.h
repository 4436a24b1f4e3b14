#pragma once

#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "tools/calibrate/block_job.h"
#include "tools/calibrate/learn/adamw.h"
#include "tools/calibrate/learn/block_graph.h"
#include "tools/calibrate/learn/compensation.h"
#include "tools/calibrate/learn/head_graph.h"
#include "tools/calibrate/learn/input_stats.h"
#include "tools/calibrate/learn/transformation.h"
#include "tools/calibrate/learn/weight_quantizer.h"

namespace oq::calibrate {

/// How a linear is stored, where that is not for the scheme alone to say.
struct Form {
  int bits = 0;
  std::vector<uint32_t> weak = {};  ///< columns, ascending
};

/// What is learned from, and what is learned beside clipping and transformation.
struct Recipe {
  bool relative = true;  ///< errors count by the size of their token's target
  bool decays = true;    ///< rates fall to 0 along half a cosine
  WeightQuantizer::Bounds bounds = WeightQuantizer::Bounds::apart;
  bool own_targets = false;   ///< also towards the full-precision block on the same inputs
  bool cosine = false;        ///< log_cosine beside the squared error
  double attention = 0;       ///< share of map_divergence from that block
  bool compensation = false;  ///< W + a b^T before down is quantized, in this block
  bool down = true;           ///< LET: up -> down
  bool predictions = true;    ///< the last block learns what the model predicts, not its output
  bool f16 = false;           ///< what was learned is applied in f16, step by step (f16_fold.h)
  std::map<std::string, Form> forms = {};  ///< of linears that do not have the scheme's

  /// What all methods that learn have in common.
  static Recipe of(const Options& options);
};

/// Learns clipping (LWC) and transformation (LET) of one block, so that the block with quantized
/// weights and activations comes close to the full-precision one (Shao et al. 2023, eq. 1), or, if
/// it is the last, what the model predicts; and
/// stores the block's linears, norms and biases. Where the job has parameters, these are applied
/// and nothing is learned. Memory: four times the block's weights, three
/// without LET, beside what the graph keeps of one window; in the last block also a HeadGraph.
class BlockLearner {
 public:
  BlockLearner(BlockJob& job, BlockGraph& graph, const Recipe& recipe);

  /// Throws oq::Error that names the tensor, or epoch and window, where something is not finite.
  void run();

  /// The block before its weights were quantized, transformations folded. PRECOND: there are
  /// transformations.
  const BlockWeights& folded() const { return folded_; }

 private:
  /// A linear while it learns.
  struct Learned {
    WeightQuantizer quantizer;
    Clipping clipping = {}, gradient = {};
    Compensation compensation = {};  ///< of base()
  };

  /// One learned tensor, by its name in parameters.h.
  struct Slot {
    std::string name;
    int64_t rows;
    std::span<float> values;
    std::span<const float> gradient;
    double rate;
    float least = -1e30f;
  };

  void start();
  void start_pair(Pair& pair, const InputMaxima& inputs) const;
  void start_shift(Pair& pair, const Pair::Use& columns) const;
  /// Clipping starts at 4.0, or, with `search`, where a search puts it.
  void set_up(bool search);
  std::vector<Slot> slots();
  void apply(const BlockParameters& given);
  void learn();
  void make_targets();
  void make_weights();
  void quantize_weights();
  void fold_in_f16();
  double learn_from(int64_t first, int64_t end, double rates);
  double learn_window(int64_t window, double share);
  double towards(std::span<const float> target, double share);
  Form form(const std::string& name) const;
  WeightQuantizer quantizer(const std::string& name, const LinearWeights& l) const;
  const Matrix& source(const std::string& name, const Learned& learned) const;
  void store();

  bool transforms() const { return transformation_ != nullptr; }
  const BlockWeights& base() const { return folded_.linears.empty() ? original_ : folded_; }

  BlockJob& job_;
  const Options& options_;
  const Recipe recipe_;
  BlockGraph& graph_;
  const BlockWeights& original_;
  BlockWeights folded_;    ///< original_ behind LET, or in f16; empty without
  BlockWeights executed_;  ///< base(), quantized
  BlockWeights gradients_;
  std::map<std::string, Learned> learned_;
  InputStats inputs_;
  std::unique_ptr<Transformation> transformation_;
  AdamW optimizer_;
  std::unique_ptr<HeadGraph> head_;                   ///< where predictions are learned
  std::unique_ptr<HiddenStates> own_targets_, maps_;  ///< of the block on these very inputs
  std::vector<float> output_, d_output_, d_input_, map_, d_map_;
};

}  // namespace oq::calibrate
