#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "format/scheme.h"
#include "runtime/config.h"
#include "tools/calibrate/solver/grid.h"

namespace oq::calibrate {

/// How a block is learned (OmniQuant, ABQ).
struct Learning {
  int64_t epochs = 10;
  int64_t batch = 1;        ///< windows to a step
  bool clip = true;         ///< LWC
  bool transform = false;   ///< LET
  double clip_rate = 1e-1;  ///< AdamW's; the paper's 1e-2 and 5e-3 are for 16 times the steps
  double transform_rate = 2e-2;
  bool aug_loss = false;  ///< also towards the full-precision block on the quantized block's inputs
  bool first_tokens = false;   ///< also from a window of tokens that are each a text's first
  double attention_share = 0;  ///< abq: of the divergence of attention maps, in the loss
  bool faithful =
      false;  ///< as the reference's code does it where it differs (methods/learned.cpp)
  bool clip_given = false, transform_given = false;  ///< by a flag, not by default
};

/// Whether a method is one of those that do (methods/methods.cpp).
bool learns(std::string_view method);

/// What a user may ask for. Names are those of the flags.
struct Options {
  std::filesystem::path input, output;
  std::string method = "gptq";
  Scheme scheme;
  int head_bits = 8;  ///< of embedding and head, rounded to nearest; 16: as they are

  std::string text;  ///< a file (.jsonl: its "text" fields are documents), or "self"
  int64_t windows = 128, window = 2048;
  uint64_t seed = 0;

  double target_bits = 0;    ///< OWQ's count of bits per weight, or auto's, all as stored; 0: none
  int64_t weak_columns = 0;  ///< per linear, instead
  std::vector<std::string> layers;  ///< types that may have weak columns ("q", "down"); empty: all
  bool paper_counts = false;        ///< columns by the paper's formula instead of by storage
  bool weak_bf16 = false;           ///< weak columns as bf16 instead of f16
  Tuning tuning = Tuning::minmax;
  bool act_order = true;  ///< sensitive columns first; the grids of groups are static then
  bool static_groups = false, true_sequential = false;
  double damp = 0.01;
  bool smooth = false;
  double alpha = 0.5, min_scale = 0.01;
  Learning learning;
  std::filesystem::path save_parameters;         ///< what was learned goes there as well
  std::filesystem::path parameters;              ///< to be applied instead of learned
  std::filesystem::path act_scales, act_shifts;  ///< OmniQuant's, instead of those of the text

  int threads = 0;
  bool resume = false;
};

/// Whether learned transformations start from the sizes of inputs (--alpha, --act-scales): where
/// only weights are quantized there is nothing to move out of activations, and they start at 1.
bool starts_from_inputs(const Options& options);

/// Whether a pass over each block's inputs comes before learning: for that, or for grids searched
/// by what they cost the output.
bool observes_inputs(const Options& options);

/// Whether learning aims at the full-precision block on the quantized block's inputs as well: with
/// --aug-loss; the code of ABQ's authors always does. OmniQuant's scripts ask for it at 2 bits.
bool aims_at_own_targets(const Options& options);

/// Whether a window more is learned from, of tokens that are each a text's first: other windows
/// begin with one each, and a model treats it as no other (methods/learned.cpp).
bool learns_first_tokens(const Options& options);

/// Whether q, k and v of a token are each quantized in one range over all heads: as the references
/// do it for models with learned positions (OPT), which they quantize before heads are split.
bool heads_share_range(const Options& options, const ModelConfig& config);

/// What of the options shapes the file that given learned parameters make, as flags.
std::string applied_options(const Options& options);
/// What else of them shapes a result.
std::string training_options(const Options& options);

/// How a calibration tells what it does. Members may be empty.
struct Observer {
  /// `done` of `total` units of work; now at `what`.
  std::function<void(double done, double total, std::string_view what)> progress;
  /// Something that the user should know, in one line.
  std::function<void(std::string_view text)> notice;
};

/// What came of one linear; kept in the block's file, so that a resumed run reports it too.
struct LinearReport {
  std::string name;         ///< "blocks.3.q"
  double output_error = 0;  ///< relative, on the calibration inputs; NaN where none were seen
  double weight_error = 0;  ///< relative
  double bits = 0;          ///< per weight, as stored
  int64_t weak_columns = 0;
  double damp = 0;  ///< that Cholesky needed; 0 where there was none
};

/// A part of the written file: "codes of down", "scales", "weak columns", "head", ...
struct Part {
  std::string name;
  uint64_t bytes = 0;
};

struct Result {
  std::string options;         ///< everything that shaped it, as flags
  double bits_per_weight = 0;  ///< of the blocks' linears, everything counted
  uint64_t weights = 0;        ///< that these are
  uint64_t bytes = 0;          ///< of the whole file
  std::vector<Part> parts;     ///< come to `bytes`, but for padding and the directory
  std::string text_source;     ///< empty: none was needed
  std::vector<LinearReport> linears;
  /// [blocks][epochs]; empty where nothing was learned. Errors of a block's output, but of the last
  /// block the divergence of predictions (Recipe::predictions).
  std::vector<std::vector<double>> losses;
  std::vector<double> output_errors;  ///< [blocks], relative; NaN where none was measured
};

/// Calibrates `input` block by block and writes `output`. Finished blocks are kept beside it, in
/// OUTPUT.work, until all are done; with `resume` a killed run goes on after the last of them, and
/// with the same number of threads comes to the same bytes. Memory: one block in fp32 a few times,
/// the hidden states of all windows (in a file where they would fill memory), the Hessians of one
/// block's inputs up to twice the largest. On failure throws oq::Error, and `output` is as
/// it was.
Result calibrate(const Options& options, const Observer& observer = {});

}  // namespace oq::calibrate
