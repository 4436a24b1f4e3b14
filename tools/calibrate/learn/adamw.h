#pragma once

#include <span>
#include <string>
#include <utility>
#include <vector>

namespace oq::calibrate {

/// Adam without weight decay (Kingma and Ba 2015; AdamW at decay 0), beta 0.9 and 0.999, eps 1e-8:
///   m = b1 m + (1 - b1) g,  v = b2 v + (1 - b2) g^2
///   x -= rate (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)
class AdamW {
 public:
  /// `hint`: what a user can do about gradients that are not finite.
  explicit AdamW(std::string hint = "lower --lwc-lr and --let-lr") : hint_(std::move(hint)) {}

  /// Learns `values` from `gradient`, of the same size; both must live as long as this.
  void add(std::string name, std::span<float> values, std::span<const float> gradient, double rate,
           float least = -1e30f);

  /// One step of everything at `share` of the rates; values stay at `least` or above. Throws
  /// oq::Error naming the tensor whose gradient is not finite.
  void step(double share = 1);

 private:
  struct Tensor {
    std::string name;
    std::span<float> values;
    std::span<const float> gradient;
    double rate;
    float least;
    std::vector<float> m, v;
  };
  std::string hint_;
  std::vector<Tensor> tensors_;
  int64_t steps_ = 0;
};

}  // namespace oq::calibrate
