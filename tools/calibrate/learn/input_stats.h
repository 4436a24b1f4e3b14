#pragma once

#include <map>
#include <string>
#include <vector>

#include "tools/calibrate/block_job.h"
#include "tools/calibrate/learn/transformation.h"
#include "tools/calibrate/smoothing.h"

namespace oq::calibrate {

/// What the calibration text says of the input channels of a block's linears: where
/// transformations and grids start.
class InputStats {
 public:
  /// Of all windows, first tokens among them, as the job's block takes them.
  void observe(BlockJob& job);

  /// Maxima and middles as they are given (act_scales, act_shifts), for all linears of `block`;
  /// middles that are not given are 0. PRECOND: `ranges` has each linear's "NAME.largest".
  void take_ranges(const BlockWeights& block, const BlockParameters& ranges);

  InputMaxima largest() const;  ///< max |x| of each channel

  /// The middle of each channel's range: 0.99 of the windows before, 0.01 of the next, as in
  /// OmniQuant's code. PRECOND: the linear's inputs were seen or given.
  const std::vector<float>& middle(const std::string& linear) const;

  /// How much an error of each of a linear's weights shows in its output, inputs apart: the sum of
  /// x^2 as the transformation, if there is one, leaves x. A share of the mean is added, as to a
  /// Hessian's diagonal, for channels that the text left silent. Empty where no input was seen, or
  /// zeros alone.
  std::vector<float> importance(const std::string& linear,
                                const Transformation* transformation) const;

 private:
  struct Channels {
    std::vector<float> largest, middle;
    std::vector<float> sums, squares;  ///< of x and x^2, over
    int64_t tokens = 0;
  };
  std::map<std::string, Channels> of_;  ///< by linear
};

}  // namespace oq::calibrate
