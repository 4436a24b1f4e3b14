/// Everything together, chosen by what it does to the block.
///
/// A block is made twice: as it is, and learned (clipping, transformations). In both, a linear can
/// be quantized in several ways: its learned codes; codes on the learned grid, or on a searched
/// one, with errors made up for (GPTQ); for integer activations also from weights reformulated for
/// them (AWRQ); with --weak-columns, all of that with weak columns (OWQ). The block runs with each
/// way for all of its linears, the best is where a search by single linears starts, and what is not
/// better is not taken: in the error of a block's output, no single method that was tried is better
/// than the result.
///
/// With --target-bits, linears have other widths as well. Each block may take its share of the
/// bytes: what each linear costs at each width is measured with the rest of the block in full
/// precision, taken as if errors added up (solver/allocation.h), and then searched as before,
/// within the budget.

#include <algorithm>
#include <cmath>
#include <limits>
#include <optional>
#include <tuple>

#include <fmt/format.h>

#include "tools/calibrate/learn/block_learner.h"
#include "tools/calibrate/learn/loss.h"
#include "tools/calibrate/methods/method.h"
#include "tools/calibrate/methods/moments.h"
#include "tools/calibrate/solver/allocation.h"
#include "tools/calibrate/solver/awrq.h"
#include "tools/calibrate/solver/gptq.h"
#include "tools/calibrate/solver/owq.h"

namespace oq::calibrate {
namespace {

constexpr int kFewerBits = 1, kMoreBits = 2;  ///< widths tried around the scheme's
constexpr int64_t kWeakShare = 64;  ///< with --target-bits, one column of so many may be weak

/// A way to quantize one linear.
struct Candidate {
  std::string how;
  QuantizedLinear linear;
  LinearReport report;

  uint64_t bytes() const {
    return PackedLayout::of(uint64_t(linear.rows), uint64_t(linear.cols), linear.packing).bytes;
  }
};

/// A block in full precision, and what its linears can become.
struct Variant {
  BlockWeights weights;
  std::map<std::string, std::vector<Candidate>> candidates = {};
};

/// One of its candidates for every linear.
using Choice = std::map<std::string, size_t>;

class BlockSearch {
 public:
  BlockSearch(BlockJob& job, Variant& variant, uint64_t budget)
      : job_(job), variant_(variant), budget_(budget), executed_(variant.weights) {
    for (auto& [name, l] : executed_.linears) l.input_bits = bits();
  }

  /// The error of the block's output, a token's by its size, with the linears of `choice`
  /// quantized.
  double error(const Choice& choice) {
    for (const auto& [name, index] : choice) set(name, &variant_.candidates.at(name)[index]);
    return measure();
  }

  /// The best of all choices that treat every linear alike.
  void start() {
    std::vector<std::string> ways;
    for (const auto& [name, candidates] : variant_.candidates) {
      for (const Candidate& c : candidates) {
        if (std::find(ways.begin(), ways.end(), c.how) == ways.end()) ways.push_back(c.how);
      }
    }
    for (const std::string& how : ways) {
      Choice choice;
      for (const auto& [name, candidates] : variant_.candidates) {
        const auto same = std::find_if(candidates.begin(), candidates.end(),
                                       [&](const Candidate& c) { return c.how == how; });
        choice[name] = same == candidates.end() ? 0 : size_t(same - candidates.begin());
      }
      consider(choice);
    }
  }

  /// What the budget buys, by the error of each candidate alone.
  void buy() {
    std::vector<std::vector<Price>> items;
    for (const auto& [name, candidates] : variant_.candidates) set(name, nullptr);
    for (const auto& [name, candidates] : variant_.candidates) {
      std::vector<Price>& item = items.emplace_back();
      for (const Candidate& c : candidates) {
        set(name, &c);
        item.push_back({c.bytes(), measure()});
      }
      set(name, nullptr);
    }
    const std::vector<size_t> bought =
        with_place(fmt::format("{}, --target-bits", job_.full_name("*")),
                   [&] { return allocate(items, budget_); });
    Choice choice;
    for (const auto& entry : variant_.candidates) choice[entry.first] = bought[choice.size()];
    consider(choice);
  }

  /// Linear by linear, whatever candidate leaves less error than the one before.
  void improve() {
    for (const auto& [name, candidates] : variant_.candidates) {
      const Choice before = best_;
      for (size_t i = 0; i < candidates.size(); ++i) {
        if (i == before.at(name)) continue;
        Choice other = before;
        other[name] = i;
        consider(other);
      }
    }
  }

  const Choice& best() const { return best_; }
  double least() const { return least_; }

 private:
  int bits() const { return job_.options().scheme.activation_bits; }

  uint64_t bytes(const Choice& choice) const {
    uint64_t sum = 0;
    for (const auto& [name, index] : choice) sum += variant_.candidates.at(name)[index].bytes();
    return sum;
  }

  void consider(const Choice& choice) {
    if (bytes(choice) > budget_) return;
    const double e = error(choice);
    if (!(e < least_)) return;
    least_ = e;
    best_ = choice;
  }

  /// nullptr: in full precision.
  void set(const std::string& name, const Candidate* c) {
    const Candidate*& now = set_[name];
    if (now == c && c != nullptr) return;
    now = c;
    LinearWeights& l = executed_.linears.at(name);
    l.weight = c != nullptr ? c->linear.dequantize() : variant_.weights.linears.at(name).weight;
    l.weak = c != nullptr ? c->linear.weak : std::vector<uint32_t>();
  }

  double measure() {
    double sum = 0;
    const int64_t cols = job_.config().hidden;
    for (int64_t w = 0; w < job_.windows(); ++w) {
      x_.assign(job_.input(w).begin(), job_.input(w).end());
      unused_.assign(x_.size(), 0);
      job_.runner().forward(executed_, job_.options().scheme, x_.data(), job_.tokens());
      sum += relative_error(x_, job_.target(w), cols, 1.0 / double(job_.windows()), unused_);
    }
    return std::isfinite(sum) ? sum : std::numeric_limits<double>::infinity();
  }

  BlockJob& job_;
  Variant& variant_;
  uint64_t budget_;
  BlockWeights executed_;
  std::map<std::string, const Candidate*> set_;
  Choice best_;
  double least_ = std::numeric_limits<double>::infinity();
  std::vector<float> x_, unused_;
};

class Auto final : public Method {
 public:
  bool needs_targets() const override { return true; }

  void quantize(BlockJob& job) override {
    const Options& o = job.options();
    Variant plain{job.weights()}, learned = learn(job);
    add_compensated(job, plain, {o.scheme.weight_bits});
    add_compensated(job, learned, {o.scheme.weight_bits});
    const auto free = std::numeric_limits<uint64_t>::max();
    Variant* best = nullptr;
    Choice choice;
    double least = std::numeric_limits<double>::infinity();
    for (Variant* v : {&plain, &learned}) {
      BlockSearch search(job, *v, free);
      search.start();
      if (o.target_bits == 0) search.improve();
      if (best != nullptr && !(search.least() < least)) continue;
      best = v;
      choice = search.best();
      least = search.least();
    }
    if (o.target_bits > 0) std::tie(choice, least) = spend(job, *best);
    if (choice.empty()) {
      throw Error({.what = "every way to quantize the block leaves an output that is not finite",
                   .where = job.full_name("output"),
                   .hint = "raise --damp, or take a scheme with more bits"});
    }
    job.add_loss(least);
    store(job, *best, choice);
  }

 private:
  /// The block behind learned transformations, with its learned codes.
  Variant learn(BlockJob& job) {
    if (!graph_) {
      graph_ =
          std::make_unique<BlockGraph>(job.runner().file(), job.config(), job.tokens(), job.pool());
    }
    Variant v{job.weights()};
    const Learning& l = job.options().learning;
    BlockLearner learner(job, *graph_, Recipe::of(l));
    learner.run();
    if (l.transform) v.weights = learner.folded();
    for (const auto& [name, done] : job.done()) {
      v.candidates[name].push_back({"learned", done.linear, done.report});
    }
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
        for (const std::string& name : group) {
          with_place(job.full_name(name), [&] {
            for (int width : widths) {
              add(job, v, name, width, moments[group.front()], nullptr);
              if (integers) {
                const Moments& q = quantized[group.front()];
                add(job, v, name, width, moments[group.front()], &q);
              }
            }
          });
        }
      }
    }
  }

  /// All candidates of a linear at one width. With `reformulated`, from weights made for quantized
  /// inputs.
  static void add(BlockJob& job, Variant& v, const std::string& name, int width,
                  const Moments& seen, const Moments* reformulated) {
    const Options& o = job.options();
    const Matrix& w = v.weights.linears.at(name).weight;
    std::vector<Candidate>& candidates = v.candidates[name];
    GptqOptions options{.grid = {.packing = packing(o, width), .tuning = o.tuning},
                        .static_groups = o.static_groups};
    options.grid.packing.weak_bf16 = o.weak_bf16;
    const auto keep = [&](const char* how, QuantizedLinear q, double damp) {
      LinearReport report{.name = job.full_name(name), .output_error = NAN};
      const Matrix result = q.dequantize();
      if (seen.windows > 0) {
        report.output_error = relative_output_error(job.pool(), w, result, seen.hessian);
      }
      report.weight_error = relative_weight_error(w, result);
      report.weak_columns = int64_t(q.weak.size());
      report.damp = damp;
      candidates.push_back({fmt::format("{} w{}{}", how, width, q.weak.empty() ? "" : " weak"),
                            std::move(q), std::move(report)});
    };
    if (reformulated == nullptr) keep("rounded", round_to_nearest(job.pool(), w, options.grid), 0);
    if (seen.windows == 0) return;  // an expert that no token chose
    const Moments& moments = reformulated != nullptr ? *reformulated : seen;
    for (const int64_t count : weak_counts(o, w.cols())) {
      const std::vector<float> diag = diagonal(moments.hessian);
      std::vector<uint32_t> weak;
      if (count > 0) {
        weak = largest(sensitivity(job.pool(), w, diag, options.grid), uint32_t(count));
      }
      const InverseFactor factor =
          invert(job.pool(), moments.hessian,
                 column_order(w.cols(), weak, o.act_order ? diag : std::vector<float>()),
                 damping_of(job, name));
      std::optional<Matrix> start;
      if (reformulated != nullptr) start = reformulate(job.pool(), w, moments.cross, factor);
      const Matrix* from = start ? &*start : nullptr;
      keep(from != nullptr ? "reformulated" : "compensated",
           gptq(job.pool(), w, factor, options, from).linear, factor.damp);
      const QuantizedLinear* grids = learned_of(candidates, width);
      if (grids == nullptr) continue;
      GptqOptions on_learned = options;
      on_learned.grid.packing = grids->packing;
      on_learned.grid.packing.weak_bf16 = o.weak_bf16;
      on_learned.grids_of = grids;
      keep(from != nullptr ? "reformulated on the learned grid" : "compensated on the learned grid",
           gptq(job.pool(), w, factor, on_learned, from).linear, factor.damp);
    }
  }

  /// Those that learned the grids at this width, or nullptr.
  static const QuantizedLinear* learned_of(const std::vector<Candidate>& candidates, int width) {
    if (candidates.empty() || candidates.front().how != "learned") return nullptr;
    const QuantizedLinear& q = candidates.front().linear;
    return q.packing.bits == width ? &q : nullptr;
  }

  static Packing packing(const Options& o, int width) {
    Scheme s = o.scheme;
    if (width != s.weight_bits) s.five_levels = false;
    s.weight_bits = width;
    return packing_of(s);
  }

  static std::vector<int64_t> weak_counts(const Options& o, int64_t cols) {
    if (o.weak_columns > 0) return {0, std::min(o.weak_columns, cols)};
    if (o.target_bits > 0) return {0, std::max<int64_t>(1, cols / kWeakShare)};
    return {0};
  }

  /// The variant's best choice within the block's share of --target-bits.
  std::pair<Choice, double> spend(BlockJob& job, Variant& v) const {
    const Options& o = job.options();
    std::vector<int> widths;
    for (int b = o.scheme.weight_bits - kFewerBits; b <= o.scheme.weight_bits + kMoreBits; ++b) {
      if (b >= 2 && b <= 8 && b != o.scheme.weight_bits) widths.push_back(b);
    }
    add_compensated(job, v, widths);
    double weights = 0;
    for (const auto& [name, l] : v.weights.linears) weights += double(l.out()) * double(l.in());
    BlockSearch search(job, v, uint64_t(o.target_bits * weights / 8));
    search.start();
    search.buy();
    search.improve();
    return {search.best(), search.least()};
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

  std::unique_ptr<BlockGraph> graph_;  ///< keeps its buffers from block to block
};

}  // namespace

std::unique_ptr<Method> make_auto(const Options&) { return std::make_unique<Auto>(); }

}  // namespace oq::calibrate
