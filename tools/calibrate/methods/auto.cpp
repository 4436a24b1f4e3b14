/// Everything together, chosen by what it does to the block.
///
/// A block is made twice: as it is, and learned (clipping, transformations; as ABQ learns where
/// activations are quantized or weights have five levels, as OmniQuant elsewhere). In both, a
/// linear can be quantized in several ways: its learned codes; codes on the learned grid, or on a
/// searched one, with errors made up for (GPTQ); for integer activations also from weights
/// reformulated for them (AWRQ); with --weak-columns, all of that with weak columns (OWQ). Both
/// blocks run with each way for all of their linears, and the best is where a search by single
/// linears starts; what is not better is not taken.
///
/// Learning has all windows, as it has by itself; an eighth of them is held out from what makes up
/// for errors, to choose by. In the error of a block's output on these, no single method that was
/// tried is better than what the search ends with. That does not make the model better: so it takes
/// the place of learned codes only where the model's predictions come closer to those of full
/// precision, too (OutputJudge), by more than a standard error. Of few windows none are held out,
/// and the search has the last word, as it has within a budget.
///
/// With --target-bits, linears have other widths as well. Each block may take its share of the
/// bytes: what each linear costs at each width is measured with the rest of the block in full
/// precision, taken as if errors added up (solver/allocation.h), and then searched as before,
/// within the budget.

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <utility>

#include <fmt/format.h>

#include "tools/calibrate/methods/block_search.h"
#include "tools/calibrate/methods/learned.h"
#include "tools/calibrate/methods/method.h"
#include "tools/calibrate/methods/moments.h"
#include "tools/calibrate/methods/output_judge.h"
#include "tools/calibrate/solver/awrq.h"
#include "tools/calibrate/solver/gptq.h"
#include "tools/calibrate/solver/owq.h"

namespace oq::calibrate {
namespace {

constexpr int kFewerBits = 1, kMoreBits = 2;  ///< widths tried around the scheme's
constexpr int64_t kWeakShare = 64;  ///< with --target-bits, one column of so many may be weak
constexpr auto kFree = std::numeric_limits<uint64_t>::max();  ///< no budget

/// With --target-bits, what linears may take.
std::vector<int> widths(const Options& o) {
  std::vector<int> all;
  const int bits = o.scheme.weight_bits;
  for (int b = std::max(2, bits - kFewerBits); b <= std::min(8, bits + kMoreBits); ++b) {
    all.push_back(b);
  }
  return all;
}

/// How many weak columns a linear may have.
std::vector<int64_t> weak_counts(const Options& o, int64_t cols) {
  if (o.weak_columns > 0) return {0, std::min(o.weak_columns, cols)};
  if (o.target_bits > 0) return {0, std::max<int64_t>(1, cols / kWeakShare)};
  return {0};
}

/// What is known of the inputs of a group of linears, as they are or as the scheme quantizes them.
struct Inputs {
  const Moments& moments;
  bool quantized = false;
  /// Without weak columns neither the linear nor its width changes the order of columns.
  std::optional<InverseFactor> factor = {};
};

/// Where a search has come to.
struct Found {
  Variant* variant = nullptr;
  Choice choice = {};
  double error = std::numeric_limits<double>::infinity();
};

class Auto final : public Method {
 public:
  explicit Auto(const Options& o) : options_(o) {}

  bool needs_targets() const override { return true; }

  void check(const ModelConfig& config) const override {
    if (options_.target_bits == 0) return;
    uint64_t least = 0, weights = 0;
    for (const TensorSpec& spec : tensor_specs(config)) {
      if (spec.role != Role::linear || spec.name.rfind("blocks.0.", 0) != 0) continue;
      const auto rows = uint64_t(spec.rows), cols = uint64_t(spec.cols);
      uint64_t narrowest = std::numeric_limits<uint64_t>::max();
      for (const int width : widths(options_)) {
        const auto layout = PackedLayout::of(rows, cols, packing(options_, width));
        narrowest = std::min(narrowest, layout.bytes);
      }
      least += narrowest;
      weights += rows * cols;
    }
    if (least <= budget(weights)) return;
    throw Error({.what = "is less than the narrowest linears take, scales and all",
                 .where = "--target-bits",
                 .expected = fmt::format("{:.2f} or more",
                                         std::ceil(800 * double(least) / double(weights)) / 100),
                 .found = fmt::format("{}", options_.target_bits),
                 .hint = "or take a --scheme of fewer bits or larger groups"});
  }

  void quantize(BlockJob& job) override {
    const Options& o = job.options();
    const double learning = learning_share(job);
    job.part(0, learning);
    Variant plain{job.weights()}, learned = learn(job);
    job.hold_out(held_out_windows(job.all_windows()));
    job.part(learning, 1);
    job.progress(0, "making up for errors");
    add_compensated(job, plain, {o.scheme.weight_bits});
    add_compensated(job, learned, {o.scheme.weight_bits});
    job.part((1 + learning) / 2, 1);  // about half of what is left, then
    Found found = search(job, plain, learned);
    if (o.target_bits > 0) {
      (found.variant == &plain ? learned : plain) = {};  // a block's memory and more
      spend(job, found);
    } else if (!found.choice.empty()) {
      improve(job, found);
      judge(job, learned, found);
    }
    if (found.choice.empty()) {
      throw Error({.what = "every way to quantize the block leaves an output that is not finite",
                   .where = job.full_name("output"),
                   .hint = remedy("auto")});
    }
    job.set_output_error(found.error);
    store(job, *found.variant, found.choice);
  }

 private:
  /// Of a block's work, by passes of all windows: three a learned epoch, one for each choice.
  static double learning_share(const BlockJob& job) {
    const Options& o = job.options();
    const AutoCandidates n = auto_candidates(o);
    const double epochs = 3.0 * double(o.learning.epochs) + 1;
    const double choices = double(n.plain + n.learned + n.mixed);
    const double searched =
        1 + judged_share(job.all_windows()) * (1 + double(job.weights().linears.size()));
    const double judged =
        o.target_bits > 0 ? 0 : judging_passes(job.config().blocks, job.all_windows());
    return epochs / (epochs + choices * searched + judged);
  }

  /// The block behind learned transformations, with its learned codes.
  Variant learn(BlockJob& job) {
    if (!graph_) {
      graph_ =
          std::make_unique<BlockGraph>(job.runner().file(), job.config(), job.tokens(), job.pool());
    }
    Variant v{job.weights()};
    const Learning& l = job.options().learning;
    const Scheme& scheme = job.options().scheme;
    const bool abq = scheme.activation_bits < 16 || scheme.five_levels;
    Recipe recipe = abq ? abq_recipe(job) : omniquant_recipe(job);
    recipe.f16 = false;  // errors are made up for in fp32
    BlockLearner learner(job, *graph_, recipe);
    learner.run();
    if (l.transform) v.weights = learner.folded();
    for (const auto& [name, done] : job.done()) {
      v.candidates[name].push_back({"learned", done.linear, done.report});
    }
    v.learned = true;
    return v;
  }

  /// Candidates with errors made up for, at so many bits each.
  void add_compensated(BlockJob& job, Variant& v, const std::vector<int>& widths) const {
    const bool integers = job.options().scheme.activation_bits < 16;
    job.weights() = v.weights;
    for (const std::vector<InputGroup>& batch : moment_batches(job, false)) {
      std::map<std::string, Moments> moments = observe_moments(job, batch, false), quantized;
      if (integers) quantized = observe_moments(job, batch, true);
      for (const InputGroup& group : batch) {
        Inputs inputs{.moments = moments[group.front()]};
        Inputs on_grid{.moments = quantized[group.front()], .quantized = true};
        for (const std::string& name : group) {
          with_place(job.full_name(name), [&] {
            for (int width : widths) {
              add_rounded(job, v, name, width, inputs.moments);
              add(job, v, name, width, inputs, inputs.moments);
              if (integers) add(job, v, name, width, on_grid, inputs.moments);
            }
          });
        }
      }
    }
  }

  static GptqOptions gptq_options(const Options& o, int width) {
    GptqOptions options{.grid = {.packing = packing(o, width), .tuning = o.tuning},
                        .static_groups = o.static_groups};
    options.grid.packing.weak_bf16 = o.weak_bf16;
    return options;
  }

  /// A candidate more; its error is that on the inputs as they are.
  static void keep(BlockJob& job, Variant& v, const std::string& name, std::string how,
                   QuantizedLinear q, const Moments& seen, double damp) {
    const Matrix& w = v.weights.linears.at(name).weight;
    LinearReport report{.name = job.full_name(name), .output_error = NAN};
    const Matrix result = q.dequantize();
    if (seen.windows > 0) {
      report.output_error = relative_output_error(job.pool(), w, result, seen.hessian);
    }
    report.weight_error = relative_weight_error(w, result);
    report.weak_columns = int64_t(q.weak.size());
    report.damp = damp;
    how += fmt::format(" w{}{}", q.packing.bits, q.weak.empty() ? "" : " weak");
    v.candidates[name].push_back({std::move(how), std::move(q), std::move(report)});
  }

  static void add_rounded(BlockJob& job, Variant& v, const std::string& name, int width,
                          const Moments& seen) {
    const Matrix& w = v.weights.linears.at(name).weight;
    auto q = round_to_nearest(job.pool(), w, gptq_options(job.options(), width).grid);
    keep(job, v, name, "rounded", std::move(q), seen, 0);
  }

  /// The candidates of a linear at one width with errors made up for; where `inputs` are quantized,
  /// from weights made for that.
  static void add(BlockJob& job, Variant& v, const std::string& name, int width, Inputs& inputs,
                  const Moments& seen) {
    if (seen.windows == 0) return;  // an expert that no token chose
    const Options& o = job.options();
    const Matrix& w = v.weights.linears.at(name).weight;
    const GptqOptions options = gptq_options(o, width);
    const char* how = inputs.quantized ? "reformulated" : "compensated";
    for (const int64_t count : weak_counts(o, w.cols())) {
      // Inputs of weak columns are no part of the range that the others are quantized in, but were
      // of that which the moments saw.
      if (inputs.quantized && count > 0) continue;
      std::optional<InverseFactor> own;
      if (count > 0) {
        const auto scores =
            sensitivity(job.pool(), w, diagonal(inputs.moments.hessian), options.grid);
        own = factor_of(job, name, inputs.moments, largest(scores, uint32_t(count)));
      } else if (!inputs.factor) {
        inputs.factor = factor_of(job, name, inputs.moments, {});
      }
      const InverseFactor& factor = own ? *own : *inputs.factor;
      std::optional<Matrix> start;
      if (inputs.quantized) start = reformulate(job.pool(), w, inputs.moments.cross, factor);
      const Matrix* from = start ? &*start : nullptr;
      keep(job, v, name, how, gptq(job.pool(), w, factor, options, from).linear, seen, factor.damp);
      if (!v.learned || width != o.scheme.weight_bits) continue;
      const QuantizedLinear& grids = v.candidates.at(name).front().linear;
      GptqOptions on_learned = options;
      on_learned.grid.packing = grids.packing;
      on_learned.grid.packing.weak_bf16 = o.weak_bf16;
      on_learned.grids_of = &grids;
      keep(job, v, name, std::string(how) + " on the learned grid",
           gptq(job.pool(), w, factor, on_learned, from).linear, seen, factor.damp);
    }
  }

  static InverseFactor factor_of(BlockJob& job, const std::string& name, const Moments& moments,
                                 std::span<const uint32_t> weak) {
    std::vector<float> score;
    if (job.options().act_order) score = diagonal(moments.hessian);
    return invert(job.pool(), moments.hessian, column_order(moments.hessian.cols(), weak, score),
                  damping_of(job, name));
  }

  static Packing packing(const Options& o, int width) {
    Scheme s = o.scheme;
    if (width != s.weight_bits) s.five_levels = false;
    s.weight_bits = width;
    return packing_of(s);
  }

  uint64_t budget(uint64_t weights) const {
    return uint64_t(options_.target_bits * double(weights) / 8);
  }

  /// The better of both variants, by choices that treat every linear alike.
  static Found search(BlockJob& job, Variant& plain, Variant& learned) {
    Found found;
    for (Variant* v : {&plain, &learned}) {
      BlockSearch search(job, *v, kFree);
      search.start();
      if (found.variant != nullptr && !(search.least() < found.error)) continue;
      found = {v, search.best(), search.least()};
    }
    return found;
  }

  static void improve(BlockJob& job, Found& found) {
    BlockSearch search(job, *found.variant, kFree);
    search.start(found.choice, found.error);
    search.improve();
    found.choice = search.best();
    found.error = search.least();
  }

  /// The best choice within the block's share of --target-bits.
  void spend(BlockJob& job, Found& found) const {
    Variant& v = *found.variant;
    std::vector<int> others = widths(options_);
    others.erase(std::find(others.begin(), others.end(), options_.scheme.weight_bits));
    add_compensated(job, v, others);
    uint64_t weights = 0;
    for (const auto& [name, l] : v.weights.linears) weights += uint64_t(l.out() * l.in());
    BlockSearch search(job, v, budget(weights));
    search.start();
    search.buy();
    search.improve();
    found.choice = search.best();
    found.error = search.least();
  }

  /// Goes back to the learned codes, unless what was found is better for the model.
  void judge(BlockJob& job, Variant& learned, Found& found) {
    Choice codes;
    for (const auto& entry : learned.candidates) codes[entry.first] = 0;
    const bool same = found.variant == &learned && found.choice == codes;
    if (same || job.windows() == job.all_windows()) return;
    BlockSearch usual(job, learned, kFree), other(job, *found.variant, kFree);
    const double error = usual.error(codes);
    if (!std::isfinite(error)) return;
    if (!judge_) judge_ = std::make_unique<OutputJudge>(job.runner());
    job.progress(1, "comparing predictions");
    const auto d = judge_->compare(job, usual.executed(codes), other.executed(found.choice));
    if (!(d.mean() < -d.standard_error())) found = {&learned, std::move(codes), error};
  }

  static void store(BlockJob& job, Variant& v, const Choice& choice) {
    std::map<std::string, int> ways;
    for (const auto& [name, index] : choice) {
      Candidate& c = v.candidates.at(name)[index];
      ++ways[c.how];
      job.store(name, std::move(c.linear), std::move(c.report));
    }
    std::string text;
    for (const auto& [how, count] : ways)
      text += fmt::format("{}{} {}", text.empty() ? "" : ", ", count, how);
    job.notice(fmt::format("block {}: {}", job.index() + 1, text));
    job.weights() = std::move(v.weights);
    job.apply();
  }

  Options options_;
  std::unique_ptr<BlockGraph> graph_;   ///< keeps its buffers from block to block
  std::unique_ptr<OutputJudge> judge_;  ///< and what full precision predicts
};

}  // namespace

AutoCandidates auto_candidates(const Options& o) {
  const int64_t reformulated = o.scheme.activation_bits < 16 ? 1 : 0;
  const int64_t compensated = int64_t(weak_counts(o, kWeakShare).size()) + reformulated;
  AutoCandidates n{.plain = 1 + compensated, .learned = 2 + 2 * compensated};
  if (o.target_bits > 0) n.mixed = int64_t(widths(o).size() - 1) * n.plain;
  return n;
}

std::unique_ptr<Method> make_auto(const Options& o) { return std::make_unique<Auto>(o); }

}  // namespace oq::calibrate
