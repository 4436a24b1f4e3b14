#include "tools/convert/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <utility>

#include <fmt/format.h>

namespace oq::convert {
namespace {

using std::numbers::pi;
using Frequencies = std::vector<double>;

/// theta^(-2i / dim)  [Su et al. 2021, eq. 15]
Frequencies base_frequencies(double theta, int64_t dim) {
  Frequencies f(size_t(dim / 2));
  for (size_t i = 0; i < f.size(); ++i) f[i] = std::pow(theta, -2.0 * double(i) / double(dim));
  return f;
}

/// LLaMA 3.1: long wavelengths are stretched by `factor`, short ones kept, and those between
/// `original / high` and `original / low` blended.
void scale_llama3(Frequencies& f, double factor, double low, double high, double original) {
  for (double& x : f) {
    const double wavelength = 2 * pi / x;
    if (wavelength > original / low) {
      x /= factor;
    } else if (wavelength >= original / high) {
      const double keep = (original / wavelength - low) / (high - low);
      x = (1 - keep) * x / factor + keep * x;
    }
  }
}

struct Yarn {
  double factor, original;
  double beta_fast = 32, beta_slow = 1;  ///< rotations within the original context
  bool whole_dims = true;                ///< round the ramp's ends to whole dimensions
};

/// YaRN [Peng et al. 2023, 3.2]: dimensions that turn more than beta_fast times are kept, those
/// that turn less than beta_slow times interpolated, with a linear ramp between.
void scale_yarn(Frequencies& f, const Yarn& y, double theta) {
  const double dim = 2.0 * double(f.size());
  const auto dim_of = [&](double rotations) {
    return dim * std::log(y.original / (rotations * 2 * pi)) / (2 * std::log(theta));
  };
  double low = dim_of(y.beta_fast), high = dim_of(y.beta_slow);
  if (y.whole_dims) low = std::floor(low), high = std::ceil(high);
  low = std::max(low, 0.0);
  high = std::min(high, dim - 1);
  if (low == high) high += 0.001;
  for (size_t i = 0; i < f.size(); ++i) {
    const double interpolate = std::clamp((double(i) - low) / (high - low), 0.0, 1.0);
    f[i] = f[i] / y.factor * interpolate + f[i] * (1 - interpolate);
  }
}

double yarn_attention(double factor, double mscale = 1) {
  return factor <= 1 ? 1.0 : 0.1 * mscale * std::log(factor) + 1.0;
}

/// Settings that make frequencies; each has to be a positive number.
double positive(const Config& config, const std::string& key, double value) {
  if (std::isfinite(value) && value > 0) return value;
  throw Error({.what = fmt::format("setting '{}' is not usable", key),
               .where = config.where(),
               .expected = "a number above 0",
               .found = fmt::format("{}", value),
               .hint = "the checkpoint is damaged"});
}

/// A setting that counts positions: any context that a model may have.
double positions(const Config& config, const std::string& key, double value) {
  if (is_whole(value) && value >= 1 && value <= 0x1p30) return value;
  throw Error({.what = fmt::format("setting '{}' is not usable", key),
               .where = config.where(),
               .expected = fmt::format("a whole number from 1 to {}", 1 << 30),
               .found = fmt::format("{}", value),
               .hint = "the checkpoint is damaged"});
}

Error unknown(const Config& config, const std::string& key, const std::string& type) {
  return Error(
      {.what = fmt::format("RoPE scaling of type '{}' ({}) cannot be converted", type, key),
       .where = config.where(),
       .expected = "default, linear, llama3, yarn or dynamic",
       .hint = "convert a variant of the model without it"});
}

Rope finish(const Config& config, const Frequencies& f, double attention_factor) {
  Rope rope;
  rope.attention_factor = attention_factor;
  for (double x : f) rope.inv_freq.push_back(float(x));
  const bool usable = std::isfinite(attention_factor) &&
                      std::all_of(rope.inv_freq.begin(), rope.inv_freq.end(),
                                  [](float x) { return std::isfinite(x) && x >= 0; });
  if (!usable) {
    throw Error({.what = "the RoPE settings give frequencies that are not usable",
                 .where = config.where(),
                 .hint = "the checkpoint is damaged"});
  }
  return rope;
}

/// config.json's settings under their group, which is "rope_scaling" or "rope_parameters".
class HfSettings {
 public:
  HfSettings(const Config& config, double default_theta)
      : config_(config), default_theta_(default_theta) {
    if (config.has_group("rope_parameters")) {
      group_ = "rope_parameters";
    } else if (config.has_group("rope_scaling")) {
      group_ = "rope_scaling";
    }
  }

  std::string key(const char* name) const { return group_.empty() ? name : group_ + "." + name; }

  std::string type() const {
    if (group_.empty()) return "default";
    if (config_.contains(key("rope_type"))) return config_.text(key("rope_type"));
    return config_.text_or(key("type"), "default");
  }
  /// A positive number of the group.
  double get(const char* name) const {
    return positive(config_, key(name), config_.number(key(name)));
  }
  double get_or(const char* name, double fallback) const {
    return positive(config_, key(name), config_.number_or(key(name), fallback));
  }
  bool has(const char* name) const { return config_.contains(key(name)); }
  bool flag_or(const char* name, bool fallback) const {
    return config_.flag_or(key(name), fallback);
  }
  double theta() const {
    return get_or("rope_theta",
                  positive(config_, "rope_theta", config_.number_or("rope_theta", default_theta_)));
  }
  /// The context before scaling: of the group, or else beside it, or else `context`.
  double original(int64_t context) const {
    const char* name = "original_max_position_embeddings";
    const std::string own = has(name) ? key(name) : name;
    return positions(config_, own, config_.number_or(own, double(context)));
  }

 private:
  const Config& config_;
  double default_theta_;
  std::string group_;
};

double hf_yarn_attention(const HfSettings& s, double factor) {
  if (s.has("attention_factor")) return s.get("attention_factor");
  if (s.has("mscale") && s.has("mscale_all_dim")) {
    return yarn_attention(factor, s.get("mscale")) /
           yarn_attention(factor, s.get("mscale_all_dim"));
  }
  return yarn_attention(factor);
}

}  // namespace

Rope hf_rope(const Config& config, int64_t rope_dim, int64_t context, double default_theta) {
  const HfSettings s(config, default_theta);
  const double theta = s.theta();
  const std::string type = s.type();
  Frequencies f = base_frequencies(theta, rope_dim);
  double attention = 1.0;
  if (type == "linear") {
    const double factor = s.get("factor");
    for (double& x : f) x /= factor;
  } else if (type == "llama3") {
    scale_llama3(f, s.get("factor"), s.get("low_freq_factor"), s.get("high_freq_factor"),
                 s.original(context));
  } else if (type == "yarn") {
    const double original = s.original(context);
    const double factor = s.get_or("factor", double(context) / original);
    const Yarn yarn = {.factor = factor,
                       .original = original,
                       .beta_fast = s.get_or("beta_fast", 32),
                       .beta_slow = s.get_or("beta_slow", 1),
                       .whole_dims = s.flag_or("truncate", true)};
    scale_yarn(f, yarn, theta);
    attention = hf_yarn_attention(s, factor);
  } else if (type != "default" && type != "dynamic") {
    throw unknown(config, s.key("rope_type"), type);
  }
  Rope rope = finish(config, f, attention);
  if (type == "dynamic") {
    rope.context_limit = std::min(context, int64_t(s.original(context)));
    rope.notice = fmt::format(
        "RoPE scaling 'dynamic' changes the frequencies as the text grows; the model is converted "
        "as it is up to {} positions, and its context ends there",
        rope.context_limit);
  }
  return rope;
}

Rope gguf_rope(const Config& config, std::string_view arch, int64_t rope_dim, int64_t context,
               std::span<const float> factors) {
  const auto key = [&](const char* name) { return fmt::format("{}.rope.{}", arch, name); };
  const auto get = [&](const char* name, double fallback) {
    return positive(config, key(name), config.number_or(key(name), fallback));
  };
  const double theta = get("freq_base", 10000.0);
  const std::string type = config.text_or(key("scaling.type"), "linear");
  const double factor = get("scaling.factor", get("scale_linear", 1.0));
  Frequencies f = base_frequencies(theta, rope_dim);
  double attention = get("scaling.attn_factor", 1.0);
  if (type == "linear") {
    for (double& x : f) x /= factor;
  } else if (type == "yarn") {
    if (config.number_or(key("scaling.yarn_log_multiplier"), 0) != 0) {
      throw unknown(config, key("scaling.yarn_log_multiplier"), "yarn with a log multiplier");
    }
    const std::string original = key("scaling.original_context_length");
    const Yarn yarn = {
        .factor = factor,
        .original = positions(config, original, config.number_or(original, double(context))),
        .beta_fast = get("scaling.yarn_beta_fast", 32),
        .beta_slow = get("scaling.yarn_beta_slow", 1)};
    scale_yarn(f, yarn, theta);
    attention *= yarn_attention(factor);
  } else if (type != "none") {
    throw unknown(config, key("scaling.type"), type);
  }
  if (!factors.empty() && factors.size() != f.size()) {
    throw Error({.what = "rope_freqs.weight has not one factor per pair of dimensions",
                 .where = config.where(),
                 .expected = std::to_string(f.size()),
                 .found = std::to_string(factors.size())});
  }
  for (size_t i = 0; i < factors.size(); ++i) {
    f[i] /= positive(config, "rope_freqs.weight", double(factors[i]));
  }
  return finish(config, f, attention);
}

}  // namespace oq::convert
