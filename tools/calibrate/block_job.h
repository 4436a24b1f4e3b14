#pragma once

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "tools/calibrate/block.h"
#include "tools/calibrate/hidden_states.h"
#include "tools/calibrate/options.h"
#include "tools/calibrate/solver/quantized_linear.h"

namespace oq::calibrate {

/// One block while a method works on it: its weights, the inputs of all windows, and what has been
/// made of its linears.
class BlockJob {
 public:
  struct Done {
    QuantizedLinear linear;
    LinearReport report;
  };

  BlockJob(BlockRunner& runner, const HiddenStates& hidden, const Options& options,
           const Observer& observer, int64_t index, BlockWeights weights)
      : runner_(runner),
        hidden_(hidden),
        options_(options),
        observer_(observer),
        index_(index),
        weights_(std::move(weights)) {}

  const Options& options() const { return options_; }
  const ModelConfig& config() const { return runner_.config(); }
  ThreadPool& pool() { return runner_.pool(); }
  int64_t windows() const { return hidden_.windows(); }
  BlockWeights& weights() { return weights_; }
  const std::map<std::string, Done>& done() const { return done_; }

  /// "blocks.3.q"
  std::string full_name(const std::string& name) const;
  void notice(const std::string& text) const;

  /// Runs every window through the block as it stands.
  void observe(const BlockRunner::Tap& tap);

  /// A linear is finished. The block goes on running with its old weights until `apply`.
  void store(const std::string& name, QuantizedLinear linear, LinearReport report);
  /// From now on the block runs with what was stored so far, inputs quantized as the scheme says.
  void apply();

 private:
  BlockRunner& runner_;
  const HiddenStates& hidden_;
  const Options& options_;
  const Observer& observer_;
  int64_t index_;
  BlockWeights weights_;
  std::map<std::string, Done> done_;
};

}  // namespace oq::calibrate
