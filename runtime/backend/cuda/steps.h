#pragma once

#include <map>
#include <optional>
#include <vector>

#include "kernels/cuda/stream.h"

namespace oq {

/// Steps as graphs. A step of a shape runs as it is the first time, so that whatever is made on
/// first use has been made; it is captured the second time, and replayed from then on: one call
/// for all of its kernels. What differs between steps of one shape (tokens, positions, sequences)
/// lies in device memory, which the caller writes before.
class CudaSteps {
 public:
  /// `captures` false: every step runs as it is.
  CudaSteps(cuda::Stream& stream, bool captures) : stream_(stream), captures_(captures) {}

  /// What a step that failed half way has recorded is forgotten.
  void abandon();
  /// A step of this shape; one that is not to be captured has none. True: its work must be
  /// enqueued, and `end` comes after it. False: `end` will do.
  bool begin(const std::vector<int>& shape);
  /// False: the device could not make a graph of what was recorded (it takes memory). Nothing has
  /// run, no step is captured any more, and this one begins anew.
  bool end();

  /// Memory that captured steps use is about to go.
  void forget();

 private:
  struct Step {
    bool has_run = false;
    cuda::Graph graph;
  };

  /// Makes the step's graph of what was recorded. False: see `end`.
  bool finish(Step& step);

  cuda::Stream& stream_;
  bool captures_;
  std::map<std::vector<int>, Step> steps_;  ///< by shape
  Step* now_ = nullptr;
  std::optional<cuda::Recording> recording_;
};

}  // namespace oq
