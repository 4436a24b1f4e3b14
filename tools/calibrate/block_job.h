#pragma once

#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "tools/calibrate/block.h"
#include "tools/calibrate/hidden_states.h"
#include "tools/calibrate/options.h"
#include "tools/calibrate/parameters.h"
#include "tools/calibrate/solver/quantized_linear.h"

namespace oq::calibrate {

/// What is known of a block beforehand; nullptr where it is not.
struct KnownBlock {
  const HiddenStates* targets = nullptr;  ///< what the unquantized model has behind this block
  const BlockParameters* parameters = nullptr;  ///< to be applied instead of learned
  const BlockParameters* ranges = nullptr;      ///< of the linears' inputs (read_input_ranges)
};

/// One block while a method works on it: its weights, the inputs of all windows, and what has been
/// made of its linears.
class BlockJob {
 public:
  struct Done {
    QuantizedLinear linear;
    LinearReport report;
  };

  BlockJob(BlockRunner& runner, const HiddenStates& hidden, const Options& options,
           const Observer& observer, int64_t index, BlockWeights weights, KnownBlock known = {})
      : runner_(runner),
        hidden_(hidden),
        known_(known),
        options_(options),
        observer_(observer),
        index_(index),
        weights_(std::move(weights)) {}

  const Options& options() const { return options_; }
  const ModelConfig& config() const { return runner_.config(); }
  ThreadPool& pool() { return runner_.pool(); }
  BlockRunner& runner() { return runner_; }
  /// Windows that a method may see. Those behind them, up to all_windows, are held out.
  int64_t windows() const { return hidden_.windows() - held_out_; }
  int64_t all_windows() const { return hidden_.windows(); }
  /// Keeps the last windows, from now on, for judging what is made from the others.
  void hold_out(int64_t windows) { held_out_ = windows; }
  int64_t tokens() const { return hidden_.tokens(); }
  /// What enters the block, quantized as the blocks before it are, and what is to leave it, as in
  /// the unquantized model: [tokens][hidden] of a window. PRECOND of target: there are targets.
  std::span<const float> input(int64_t window) const { return hidden_.window(window); }
  std::span<const float> target(int64_t window) const { return known_.targets->window(window); }
  Sight sight(int64_t window) const { return hidden_.sight(window); }
  /// Zeros [windows][tokens][width], in memory or on disk by the inputs' rule.
  std::unique_ptr<HiddenStates> states(int64_t width) const { return hidden_.others(width); }
  const KnownBlock& known() const { return known_; }
  BlockWeights& weights() { return weights_; }
  const BlockWeights& weights() const { return weights_; }
  const std::map<std::string, Done>& done() const { return done_; }

  int64_t index() const { return index_; }
  /// "blocks.3.q"
  std::string full_name(const std::string& name) const;
  void notice(const std::string& text) const;
  /// A share of the part of this block's work is done; `what` says what comes next.
  void progress(double done, std::string_view what) const;
  /// What is done from now on is the block's work between these shares; all of it at first.
  void part(double begin, double end) { part_ = {begin, end}; }

  /// Runs every window that may be learned from through the block as it stands: texts, or that of
  /// first tokens, where there is one.
  void observe(const BlockRunner::Tap& tap, Sight of = Sight::causal);

  /// A linear is finished. The block goes on running with its old weights until `apply`.
  void store(const std::string& name, QuantizedLinear linear, LinearReport report);
  /// For the report: the mean loss of one epoch.
  void add_loss(double loss) { losses_.push_back(loss); }
  const std::vector<double>& losses() const { return losses_; }
  /// Likewise: the error of the block's output with what was stored, where a method measures it.
  void set_output_error(double error) { output_error_ = error; }
  std::optional<double> output_error() const { return output_error_; }
  /// What was learned: kept with the block.
  void keep(std::string name, Matrix values);
  const BlockParameters& parameters() const { return parameters_; }
  /// From now on the block runs with what was stored so far, inputs quantized as the scheme says.
  void apply();

 private:
  BlockRunner& runner_;
  const HiddenStates& hidden_;
  const KnownBlock known_;
  const Options& options_;
  const Observer& observer_;
  int64_t index_, held_out_ = 0;
  std::pair<double, double> part_ = {0, 1};
  BlockWeights weights_;
  std::map<std::string, Done> done_;
  std::vector<double> losses_;
  std::optional<double> output_error_;
  BlockParameters parameters_;
};

}  // namespace oq::calibrate
