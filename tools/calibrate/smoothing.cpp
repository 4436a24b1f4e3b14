#include "tools/calibrate/smoothing.h"

#include <algorithm>
#include <cmath>

#include "tools/calibrate/solver/awrq.h"

namespace oq::calibrate {
namespace {

/// Inputs that one vector of scales serves: those of all linears behind one norm, or of one `o` or
/// `down`.
struct Site {
  std::vector<std::string> linears;
  std::vector<float> input_max;
};

class Smoother {
 public:
  explicit Smoother(BlockJob& job) : job_(job), c_(job.config()), weights_(job.weights()) {}

  void run() {
    measure();
    // All scales come from the weights as they were, before any of them is folded.
    std::map<std::string, std::vector<float>> scales;
    for (auto& [key, site] : sites_) scales[key] = scales_of(site);
    for (auto& [key, site] : sites_) fold(key, site, scales.at(key));
  }

 private:
  /// "attn", "mlp", "o", or a down's own name.
  std::string key_of(const std::string& linear) const {
    if (linear == "q" || linear == "k" || linear == "v") return "attn";
    if (linear == "o" || linear.ends_with("down")) return linear;
    return c_.shared_norm ? "attn" : "mlp";
  }

  void measure() {
    for (const auto& group : input_groups(c_)) {
      Site& site = sites_[key_of(group.front())];
      site.linears.insert(site.linears.end(), group.begin(), group.end());
      site.input_max.assign(size_t(weights_.linears.at(group.front()).in()), 0.0f);
    }
    job_.observe(
        [&](const std::vector<std::string>& group, const float* x, int64_t rows, int64_t cols) {
          update_channel_max({x, size_t(rows * cols)}, sites_.at(key_of(group.front())).input_max);
        });
  }

  bool foldable(const std::string& key) const {
    if (key == "attn" || key == "mlp") return !c_.post_norm;
    return key == "o" || c_.gated || c_.activation == Activation::relu;
  }

  std::vector<float> scales_of(const Site& site) const {
    std::vector<float> weight_max(site.input_max.size(), 0.0f);
    for (const std::string& name : site.linears) {
      update_channel_max(weights_.linears.at(name).weight.values(), weight_max);
    }
    auto s = smoothing_scales(site.input_max, weight_max, job_.options().alpha,
                              job_.options().min_scale);
    return site.linears.front() == "o" ? shared_by_kv_head(std::move(s)) : s;
  }

  std::vector<float> shared_by_kv_head(std::vector<float> s) const {
    const int64_t group = c_.heads / c_.kv_heads;
    for (int64_t kv = 0; kv < c_.kv_heads; ++kv) {
      for (int64_t d = 0; d < c_.head_dim; ++d) {
        const auto at = [&](int64_t h) { return size_t((kv * group + h) * c_.head_dim + d); };
        float most = 0;
        for (int64_t h = 0; h < group; ++h) most = std::max(most, s[at(h)]);
        for (int64_t h = 0; h < group; ++h) s[at(h)] = most;
      }
    }
    return s;
  }

  void fold(const std::string& key, const Site& site, const std::vector<float>& s) {
    if (!foldable(key)) return;
    for (const std::string& name : site.linears) scale_columns(weights_.linears.at(name).weight, s);
    if (key == "attn") {
      divide(weights_.attn_norm, s);
      if (c_.shared_norm) weights_.mlp_norm = weights_.attn_norm;
    } else if (key == "mlp") {
      divide(weights_.mlp_norm, s);
      for (size_t i = 0; i < weights_.router.size(); ++i) weights_.router[i] *= s[i % s.size()];
    } else if (key == "o") {
      std::vector<float> rows;  // of v: one query head of each group speaks for it
      for (int64_t kv = 0; kv < c_.kv_heads; ++kv) {
        const auto from = s.begin() + kv * (c_.heads / c_.kv_heads) * c_.head_dim;
        rows.insert(rows.end(), from, from + c_.head_dim);
      }
      divide_rows(weights_.linears.at("v"), rows);
    } else {
      divide_rows(weights_.linears.at(key.substr(0, key.size() - 4) + "up"), s);
    }
  }

  static void divide(NormWeights& norm, const std::vector<float>& s) {
    for (size_t i = 0; i < s.size(); ++i) {
      norm.weight[i] /= s[i];
      if (!norm.bias.empty()) norm.bias[i] /= s[i];
    }
  }

  static void divide_rows(LinearWeights& l, const std::vector<float>& s) {
    for (int64_t r = 0; r < l.out(); ++r) {
      for (float& w : l.weight.row(r)) w /= s[size_t(r)];
      if (!l.bias.empty()) l.bias[size_t(r)] /= s[size_t(r)];
    }
  }

  BlockJob& job_;
  const ModelConfig& c_;
  BlockWeights& weights_;
  std::map<std::string, Site> sites_;
};

}  // namespace

void smooth_block(BlockJob& job) { Smoother(job).run(); }

}  // namespace oq::calibrate
