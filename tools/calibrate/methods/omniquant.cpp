/// OmniQuant (Shao et al. 2023): learned weight clipping, and with --let learned equivalent
/// transformations, block by block. Beyond the paper's code, transformations also serve grouped
/// queries, experts, Falcon's one norm for two parts, and up -> down (learn/transformation.h).
///
/// --faithful keeps to that code where it differs and a file can express it: no up -> down, q and k
/// scaled by dimension under RoPE (which is no equivalence), scales started from one linear of each
/// pair and the first query head of a group, and codes chosen from weights folded in f16.

#include "tools/calibrate/learn/block_learner.h"
#include "tools/calibrate/methods/method.h"

namespace oq::calibrate {
namespace {

class OmniQuant final : public Method {
 public:
  bool needs_targets() const override { return true; }

  void quantize(BlockJob& job) override {
    if (!graph_) {
      graph_ =
          std::make_unique<BlockGraph>(job.runner().file(), job.config(), job.tokens(), job.pool());
    }
    BlockLearner(job, *graph_).run();
  }

 private:
  std::unique_ptr<BlockGraph> graph_;  ///< keeps its buffers from block to block
};

}  // namespace

std::unique_ptr<Method> make_omniquant(const Options&) { return std::make_unique<OmniQuant>(); }

}  // namespace oq::calibrate
