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
/// and the search has the last word.
///
/// With --target-bits, linears have widths of their own. Each block may take its share of the
/// bytes, and buys widths first: what each linear costs at each width, errors made up for, is
/// measured with the rest of the block in full precision and taken as if errors added up
/// (solver/allocation.h). Learning and all that follows is at these widths. Weak columns, which
/// --weak-columns asks for and a budget may pay for, are chosen then, too, and are no part of what
/// learns.

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
constexpr int64_t kWeakShare = 128;  ///< with --target-bits, one column of so many may be weak
constexpr auto kFree = std::numeric_limits<uint64_t>::max();  ///< no budget

/// What linears may take.
std::vector<int> widths(const Options& o) {
  const int bits = o.scheme.weight_bits;
  if (o.target_bits == 0) return {bits};
  std::vector<int> all;
  for (int b = std::max(2, bits - kFewerBits); b <= std::min(8, bits + kMoreBits); ++b) {
    all.push_back(b);
  }
  return all;
}

/// How many weak columns a linear may have.
int64_t weak_count(const Options& o, int64_t cols) {
  if (o.weak_columns > 0) return std::min(o.weak_columns, cols);
  return o.target_bits > 0 ? std::max<int64_t>(1, cols / kWeakShare) : 0;
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
        const auto layout = PackedLayout::of(rows, cols, packing_of(options_.scheme, width));
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
    const int64_t held_out = held_out_windows(job.all_windows());
    const AutoPasses passes = auto_passes(job.options(), job.config().blocks,
                                          int64_t(job.weights().linears.size()), job.all_windows());
    const double learning = passes.before / passes.sum();
    const double after = (passes.before + passes.learning) / passes.sum();
    job.part(0, learning);
    job.hold_out(held_out);
    auto [plain, forms] = compensated(job);
    job.hold_out(0);
    job.part(learning, after);
    Variant learned = learn(job, plain.weights, std::move(forms));
    job.hold_out(held_out);
    job.part(after, 1);
    job.progress(0, "making up for errors");
    add_compensated(job, learned);
    job.part((1 + after) / 2, 1);  // about half of what is left, then
    Found found = search(job, plain, learned);
    if (found.choice.empty()) {
      throw Error({.what = "every way to quantize the block leaves an output that is not finite",
                   .where = job.full_name("output"),
                   .hint = remedy("auto")});
    }
    improve(job, found);
    judge(job, learned, found);
    job.set_output_error(found.error);
    store(job, *found.variant, found.choice);
  }

 private:
  using Forms = std::map<std::string, Form>;  ///< of linears

  static Form form_of(const QuantizedLinear& q) { return {q.packing.bits, q.weak}; }

  /// The block as it is, and the form that each linear is to have: with weak columns if they were
  /// asked for, and of the scheme's width; or what the block buys. Of other widths nothing is kept.
  std::pair<Variant, Forms> compensated(BlockJob& job) const {
    Variant v{job.weights()};
    job.progress(0, "making up for errors");
    add_compensated(job, v);
    job.progress(0.5, "comparing forms");
    Choice bought;
    if (options_.target_bits > 0) bought = BlockSearch(job, v, budget(job)).buy();
    Forms forms;
    for (auto& [name, candidates] : v.candidates) {
      const Candidate& chosen =  // of those without a price, weak columns come last
          bought.empty() ? candidates.back() : candidates[bought.at(name)];
      const Form& form = forms[name] = form_of(chosen.linear);
      std::erase_if(candidates,
                    [&](const Candidate& c) { return c.linear.packing.bits != form.bits; });
    }
    return {std::move(v), std::move(forms)};
  }

  /// The block behind learned transformations, with its learned codes.
  Variant learn(BlockJob& job, const BlockWeights& plain, Forms forms) {
    if (!graph_) {
      graph_ =
          std::make_unique<BlockGraph>(job.runner().file(), job.config(), job.tokens(), job.pool());
    }
    job.weights() = plain;
    Variant v{plain};
    const Learning& l = job.options().learning;
    const Scheme& scheme = job.options().scheme;
    const bool abq = scheme.activation_bits < 16 || scheme.five_levels;
    Recipe recipe = abq ? abq_recipe(job) : omniquant_recipe(job);
    recipe.f16 = false;  // errors are made up for in fp32
    recipe.forms = std::move(forms);
    BlockLearner learner(job, *graph_, recipe);
    learner.run();
    if (l.transform) v.weights = learner.folded();
    for (const auto& [name, done] : job.done()) {
      v.candidates[name].push_back({"learned", done.linear, done.report});
    }
    v.learned = true;
    return v;
  }

  /// Candidates rounded and with errors made up for, in every form that they may have; where they
  /// are learned already, in that.
  static void add_compensated(BlockJob& job, Variant& v) {
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
            for (const Form& form : forms_of(job, v, name, inputs.moments)) {
              add_rounded(job, v, name, form, inputs.moments);
              add(job, v, name, form, inputs, inputs.moments);
              if (integers) add(job, v, name, form, on_grid, inputs.moments);
            }
          });
        }
      }
    }
  }

  /// Weak columns are chosen as OWQ does.
  static std::vector<Form> forms_of(BlockJob& job, const Variant& v, const std::string& name,
                                    const Moments& seen) {
    if (v.learned) return {form_of(v.candidates.at(name).front().linear)};
    const Options& o = job.options();
    const Matrix& w = v.weights.linears.at(name).weight;
    const auto count = uint32_t(weak_count(o, w.cols()));
    std::vector<Form> all;
    for (const int width : widths(o)) {
      all.push_back({.bits = width});
      if (count == 0 || seen.windows == 0) continue;
      const auto scores =
          sensitivity(job.pool(), w, diagonal(seen.hessian), gptq_options(o, width).grid);
      all.push_back({.bits = width, .weak = largest(scores, count)});
    }
    return all;
  }

  static GptqOptions gptq_options(const Options& o, int width) {
    GptqOptions options{.grid = {.packing = packing_of(o.scheme, width), .tuning = o.tuning},
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

  static void add_rounded(BlockJob& job, Variant& v, const std::string& name, const Form& form,
                          const Moments& seen) {
    const Matrix& w = v.weights.linears.at(name).weight;
    auto q =
        round_to_nearest(job.pool(), w, gptq_options(job.options(), form.bits).grid, form.weak);
    keep(job, v, name, "rounded", std::move(q), seen, 0);
  }

  /// The candidates of a linear in one form with errors made up for; where `inputs` are quantized,
  /// from weights made for that.
  static void add(BlockJob& job, Variant& v, const std::string& name, const Form& form,
                  Inputs& inputs, const Moments& seen) {
    if (seen.windows == 0) return;  // an expert that no token chose
    // Inputs of weak columns are no part of the range that the others are quantized in, but were
    // of that which the moments saw.
    if (inputs.quantized && !form.weak.empty()) return;
    const Matrix& w = v.weights.linears.at(name).weight;
    const GptqOptions options = gptq_options(job.options(), form.bits);
    const char* how = inputs.quantized ? "reformulated" : "compensated";
    std::optional<InverseFactor> own;
    if (!form.weak.empty()) {
      own = factor_of(job, name, inputs.moments, form.weak);
    } else if (!inputs.factor) {
      inputs.factor = factor_of(job, name, inputs.moments, {});
    }
    const InverseFactor& factor = own ? *own : *inputs.factor;
    std::optional<Matrix> start;
    if (inputs.quantized) start = reformulate(job.pool(), w, inputs.moments.cross, factor);
    const Matrix* from = start ? &*start : nullptr;
    keep(job, v, name, how, gptq(job.pool(), w, factor, options, from).linear, seen, factor.damp);
    if (!v.learned) return;
    const QuantizedLinear& grids = v.candidates.at(name).front().linear;
    GptqOptions on_learned = options;
    on_learned.grid.packing = grids.packing;
    on_learned.grids_of = &grids;
    keep(job, v, name, std::string(how) + " on the learned grid",
         gptq(job.pool(), w, factor, on_learned, from).linear, seen, factor.damp);
  }

  static InverseFactor factor_of(BlockJob& job, const std::string& name, const Moments& moments,
                                 std::span<const uint32_t> weak) {
    std::vector<float> score;
    if (job.options().act_order) score = diagonal(moments.hessian);
    return invert(job.pool(), moments.hessian, column_order(moments.hessian.cols(), weak, score),
                  damping_of(job, name));
  }

  uint64_t budget(uint64_t weights) const {
    return uint64_t(options_.target_bits * double(weights) / 8);
  }

  /// Bytes that the block's linears may take.
  uint64_t budget(const BlockJob& job) const {
    if (options_.target_bits == 0) return kFree;
    uint64_t weights = 0;
    for (const auto& [name, l] : job.weights().linears) weights += uint64_t(l.out() * l.in());
    return budget(weights);
  }

  /// The better of both variants, by choices that treat every linear alike.
  Found search(BlockJob& job, Variant& plain, Variant& learned) const {
    Found found;
    for (Variant* v : {&plain, &learned}) {
      BlockSearch search(job, *v, budget(job));
      search.start();
      if (found.variant != nullptr && !(search.least() < found.error)) continue;
      found = {v, search.best(), search.least()};
    }
    return found;
  }

  void improve(BlockJob& job, Found& found) const {
    BlockSearch search(job, *found.variant, budget(job));
    search.start(found.choice, found.error);
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
    BlockSearch usual(job, learned, budget(job)), other(job, *found.variant, budget(job));
    if (!usual.affords(codes)) return;
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
  const int64_t weak = weak_count(o, kWeakShare) > 0 ? 1 : 0;
  return {.plain = 2 + 2 * weak + reformulated,
          .learned = 4 + 2 * reformulated,
          .widths = int64_t(widths(o).size())};
}

AutoPasses auto_passes(const Options& o, int64_t blocks, int64_t linears, int64_t windows) {
  const AutoCandidates n = auto_candidates(o);
  const double judged = judged_share(windows), moments = o.scheme.activation_bits < 16 ? 2 : 1;
  const auto each = judged * double(linears);
  AutoPasses p{.before = moments, .learning = 3.0 * double(o.learning.epochs) + 1};
  if (o.target_bits > 0) p.before += each * double(n.widths * n.plain);
  p.after = moments + judged * double(n.plain + n.learned) + each * double(n.learned - 1) +
            judging_passes(blocks, windows);
  return p;
}

std::unique_ptr<Method> make_auto(const Options& o) { return std::make_unique<Auto>(o); }

}  // namespace oq::calibrate
