#pragma once

#include <memory>
#include <string_view>
#include <vector>

#include "tools/calibrate/block_job.h"

namespace oq::calibrate {

/// A way to quantize a block. A new one is a new file in this folder and a line in methods.cpp.
class Method {
 public:
  virtual ~Method() = default;

  /// Whether it looks at calibration inputs at all.
  virtual bool needs_text() const { return true; }

  /// Whether it wants to know what the unquantized model has behind each block
  /// (BlockJob::target).
  virtual bool needs_targets() const { return false; }

  /// Throws oq::Error where the options ask for what no model of this shape can have. Called before
  /// any work.
  virtual void check(const ModelConfig&) const {}

  /// Stores every linear that is to be quantized. Throws oq::Error naming the tensor.
  virtual void quantize(BlockJob& job) = 0;
};

/// Throws oq::Error that lists the names.
std::unique_ptr<Method> make_method(const Options& options);
std::vector<std::string_view> method_names();

/// The methods that read a flag of oq-calibrate ("--damp"); none where it is not for methods to
/// say. --text and its windows are not: any method may be given them, as may smoothing before it.
std::vector<std::string_view> readers(std::string_view flag);
/// Whether a method is one of these.
bool reads(std::string_view method, std::string_view flag);
/// What to change where a method's block has an output that is not finite.
std::string remedy(std::string_view method);

/// Candidates of one linear that `auto` compares, each of a byte a weight: of the block as it is
/// and of the learned one. With --target-bits, those of the block as it is are made at so many
/// widths, and kept at one. An expert that saw no token has fewer.
struct AutoCandidates {
  int64_t plain = 0, learned = 0, widths = 1;
};
AutoCandidates auto_candidates(const Options& options);

/// What `auto` does to a block, in passes of all windows: before it learns, then, and behind that.
struct AutoPasses {
  double before = 0, learning = 0, after = 0;
  double sum() const { return before + learning + after; }
};
AutoPasses auto_passes(const Options& options, int64_t blocks, int64_t linears, int64_t windows);

std::unique_ptr<Method> make_rounding(const Options& options);
std::unique_ptr<Method> make_hessian_method(const Options& options);
std::unique_ptr<Method> make_learner(const Options& options);
std::unique_ptr<Method> make_auto(const Options& options);

}  // namespace oq::calibrate
