/// The methods that learn, block by block.
///
/// OmniQuant (Shao et al. 2023): learned weight clipping, and with --let learned equivalent
/// transformations. Beyond the paper's code, transformations also serve grouped queries, experts,
/// Falcon's one norm for two parts, and up -> down (learn/transformation.h).
///
/// ABQ (Zeng et al. 2024): the same, with the cosine of outputs beside the squared errors; down
/// projections of the first three and last four blocks get a learned rank-1 compensation. Its five
/// levels are a scheme, w2*. Two more of its losses have to be asked for, for they cost
/// (docs/calibration.md, "What ABQ adds"): the second target, the full-precision block on the
/// quantized inputs, is --aug-loss as for the others; --attention-loss is the divergence of
/// attention maps from that block's, where the paper has the full-precision model's.
///
/// A token's error counts by the size of its target, not as it is; rates fall to 0; clipping starts
/// from the grids that lose least of the outputs, and its two bounds learn apart. The last block,
/// behind which there is nothing but the head, learns what the model predicts: the divergence from
/// full precision's predictions takes the place of the errors of its output. A text's first token,
/// whichever it is, becomes hundreds of times larger than others in some block, and all others
/// attend to it; windows have one each, too few to learn from, so where activations are quantized
/// there is a window more of tokens that stand alone (--first-tokens).
///
/// --faithful keeps to their code where it differs: q and k scaled by dimension under RoPE (which
/// is no equivalence), scales started from one linear of each pair and the first query head of a
/// group; q, k and v of OPT quantized in one range over all heads of a token (calibrate.cpp sets
/// Scheme::heads_share_range); errors as they are, rates too; bounds from 4.0 that move together;
/// for OmniQuant, and for ABQ's OPT, no up -> down; for OmniQuant a block that is folded and
/// quantized in f16 (learn/f16_fold.h); for ABQ both targets (of the loss of attention maps nothing
/// is left in that code).

#include "tools/calibrate/methods/learned.h"

#include "tools/calibrate/methods/method.h"

namespace oq::calibrate {
namespace {

/// ABQ's ends of a model, where down projections are compensated.
constexpr int64_t kFirstBlocks = 3, kLastBlocks = 4;

class Learner final : public Method {
 public:
  explicit Learner(const Options& o) : abq_(o.method == "abq") {}

  bool needs_targets() const override { return true; }

  void quantize(BlockJob& job) override {
    if (!graph_) {
      graph_ =
          std::make_unique<BlockGraph>(job.runner().file(), job.config(), job.tokens(), job.pool());
    }
    BlockLearner(job, *graph_, abq_ ? abq_recipe(job) : omniquant_recipe(job)).run();
  }

 private:
  bool abq_;
  std::unique_ptr<BlockGraph> graph_;  ///< keeps its buffers from block to block
};

}  // namespace

Recipe omniquant_recipe(const BlockJob& job) {
  Recipe r = Recipe::of(job.options());
  r.f16 = job.options().learning.faithful;
  return r;
}

Recipe abq_recipe(const BlockJob& job) {
  const Learning& o = job.options().learning;
  const int64_t from_end = job.config().blocks - job.index();
  Recipe r = Recipe::of(job.options());
  r.cosine = true;
  // For OPT the pair is there in their code, and not used.
  r.down = !o.faithful || job.config().positions != PositionKind::learned;
  r.attention = o.attention_share;
  r.compensation = o.transform && (job.index() < kFirstBlocks || from_end <= kLastBlocks);
  return r;
}

std::unique_ptr<Method> make_learner(const Options& o) { return std::make_unique<Learner>(o); }

}  // namespace oq::calibrate
