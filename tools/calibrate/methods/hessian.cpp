/// The methods that know their inputs by second moments: GPTQ, OWQ (weak columns stay in 16-bit
/// floats) and AWRQ (weights reformulated for quantized inputs). All are one solver, fed
/// differently.

#include <algorithm>
#include <cmath>
#include <optional>
#include <set>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "tools/calibrate/methods/method.h"
#include "tools/calibrate/methods/moments.h"
#include "tools/calibrate/solver/awrq.h"
#include "tools/calibrate/solver/gptq.h"
#include "tools/calibrate/solver/owq.h"

namespace oq::calibrate {
namespace {

class HessianMethod final : public Method {
 public:
  explicit HessianMethod(const Options& o)
      : options_(o), awrq_(o.method == "awrq"), owq_(o.method == "owq") {
    gptq_.grid = {.packing = packing_of(o.scheme), .tuning = o.tuning};
    gptq_.grid.packing.weak_bf16 = owq_ && o.weak_bf16;
    gptq_.static_groups = o.static_groups;
  }

  void check(const ModelConfig& config) const override {
    std::set<std::string> types;
    for (const TensorSpec& spec : tensor_specs(config)) {
      if (spec.role == Role::linear) types.insert(type_of(spec.name));
    }
    for (const std::string& type : options_.layers) {
      if (types.count(type) > 0) continue;
      throw Error({.what = "the model has no such linear",
                   .where = "--layers",
                   .expected = fmt::format("{}", fmt::join(types, ", ")),
                   .found = "'" + type + "'"});
    }
  }

  void quantize(BlockJob& job) override {
    if (counts_.empty()) count_weak(job);
    for (const std::vector<InputGroup>& batch : moment_batches(job, options_.true_sequential)) {
      std::map<std::string, Moments> moments = observe_moments(job, batch, awrq_);
      for (const InputGroup& group : batch) {
        solve_group(job, group, moments[group.front()]);
        moments.erase(group.front());
      }
      if (options_.true_sequential) job.apply();
    }
  }

 private:
  /// Linears of a group share the inverse as long as they share the order of columns.
  void solve_group(BlockJob& job, const InputGroup& group, const Moments& moments) {
    std::optional<InverseFactor> shared;
    for (const std::string& name : group) {
      with_place(job.full_name(name), [&] { solve(job, name, moments, shared); });
    }
  }

  void solve(BlockJob& job, const std::string& name, const Moments& moments,
             std::optional<InverseFactor>& shared) {
    const Matrix& w = job.weights().linears.at(name).weight;
    LinearReport report{.name = job.full_name(name), .output_error = NAN};
    if (moments.windows == 0) {  // an expert that no token chose
      job.notice(job.full_name(name) + " saw no token and is rounded to nearest");
      auto q = round_to_nearest(job.pool(), w, gptq_.grid);
      report.weight_error = relative_weight_error(w, q.dequantize());
      return job.store(name, std::move(q), std::move(report));
    }
    const uint32_t count = counts_.at(type_of(name));
    std::vector<uint32_t> weak;
    std::vector<float> score;
    const std::vector<float> diag = diagonal(moments.hessian);
    if (count > 0) {
      score = sensitivity(job.pool(), w, diag, gptq_.grid);
      weak = largest(score, count);
    } else if (options_.act_order) {
      score = diag;
    }
    if (!options_.act_order) score.clear();
    if (count > 0 || !shared || shared->columns.weak > 0) {
      shared = invert(job.pool(), moments.hessian, column_order(w.cols(), weak, score),
                      damping_of(job, name));
    }
    const Matrix start = awrq_ ? reformulate(job.pool(), w, moments.cross, *shared) : Matrix();
    auto q = gptq(job.pool(), w, *shared, gptq_, awrq_ ? &start : nullptr).linear;
    const Matrix result = q.dequantize();
    report.output_error = relative_output_error(job.pool(), w, result, moments.hessian);
    report.weight_error = relative_weight_error(w, result);
    report.weak_columns = int64_t(q.weak.size());
    report.damp = shared->damp;
    job.store(name, std::move(q), std::move(report));
  }

  void count_weak(BlockJob& job) {
    std::vector<LinearType> types;
    for (const auto& [name, l] : job.weights().linears) {
      const std::string type = type_of(name);
      const auto known = std::find_if(types.begin(), types.end(),
                                      [&](const LinearType& t) { return t.name == type; });
      if (known != types.end()) {
        ++known->count;
        continue;
      }
      const auto& chosen = options_.layers;
      types.push_back({.name = type,
                       .rows = l.out(),
                       .cols = l.in(),
                       .chosen = chosen.empty() ||
                                 std::find(chosen.begin(), chosen.end(), type) != chosen.end()});
    }
    const double d = double(job.config().hidden);
    for (LinearType& t : types) t.ratio = std::min(1.0, d * d / double(t.rows * t.cols));
    std::vector<uint32_t> counts(types.size(), 0);
    const double bits = options_.scheme.five_levels ? 7.0 / 3 : options_.scheme.weight_bits;
    if (owq_ && options_.target_bits > 0) {
      counts = options_.paper_counts ? weak_counts_paper(types, bits, options_.target_bits)
                                     : weak_counts(types, bits, options_.target_bits);
    }
    for (size_t i = 0; i < types.size(); ++i) {
      if (owq_ && options_.weak_columns > 0 && types[i].chosen) {
        counts[i] = uint32_t(std::min(options_.weak_columns, types[i].cols));
      }
      counts_[types[i].name] = counts[i];
    }
  }

  Options options_;
  bool awrq_, owq_;
  GptqOptions gptq_;
  std::map<std::string, uint32_t> counts_;  ///< weak columns by type
};

}  // namespace

std::unique_ptr<Method> make_hessian_method(const Options& options) {
  return std::make_unique<HessianMethod>(options);
}

}  // namespace oq::calibrate
