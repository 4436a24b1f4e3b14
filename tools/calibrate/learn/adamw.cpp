#include "tools/calibrate/learn/adamw.h"

#include <algorithm>
#include <cmath>

#include "format/error.h"

namespace oq::calibrate {

void AdamW::add(std::string name, std::span<float> values, std::span<const float> gradient,
                double rate, float least) {
  tensors_.push_back({.name = std::move(name),
                      .values = values,
                      .gradient = gradient,
                      .rate = rate,
                      .least = least,
                      .m = std::vector<float>(values.size()),
                      .v = std::vector<float>(values.size())});
}

void AdamW::step(double share) {
  constexpr double kBeta1 = 0.9, kBeta2 = 0.999;
  constexpr float kEps = 1e-8f;
  ++steps_;
  const double bias1 = 1 - std::pow(kBeta1, double(steps_));
  const auto bias2 = float(1 - std::pow(kBeta2, double(steps_)));
  for (Tensor& t : tensors_) {
    float sum = 0;  // 0, or a NaN for good
    for (float g : t.gradient) sum += g - g;
    if (sum != 0) throw Error({.what = "a gradient is not finite", .where = t.name, .hint = hint_});
    const auto rate = float(share * t.rate / bias1);
    for (size_t i = 0; i < t.values.size(); ++i) {
      const float g = t.gradient[i];
      t.m[i] = float(kBeta1) * t.m[i] + float(1 - kBeta1) * g;
      t.v[i] = float(kBeta2) * t.v[i] + float(1 - kBeta2) * g * g;
      const float x = t.values[i] - rate * t.m[i] / (std::sqrt(t.v[i] / bias2) + kEps);
      t.values[i] = std::max(x, t.least);
    }
  }
}

}  // namespace oq::calibrate
