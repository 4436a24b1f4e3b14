#include "tools/calibrate/smoothing.h"

#include <algorithm>
#include <cmath>

#include <fmt/format.h>

namespace oq::calibrate {
namespace {

InputMaxima observe_inputs(BlockJob& job) {
  InputMaxima inputs;
  job.observe(
      [&](const std::vector<std::string>& group, const float* x, int64_t rows, int64_t cols) {
        std::vector<float>& largest = inputs[group.front()];
        largest.resize(size_t(cols));
        update_channel_max({x, size_t(rows * cols)}, largest);
        for (const std::string& name : group) inputs[name] = largest;
      });
  return inputs;
}

}  // namespace

void smooth_block(BlockJob& job) {
  const Options& o = job.options();
  const InputMaxima inputs = observe_inputs(job);
  const BlockWeights original = job.weights();
  Transformation smoothing(job.config(), original, {});
  for (Pair& pair : smoothing.pairs()) {
    pair.scale = smoothing_scale(pair, original, inputs, o.alpha, o.min_scale, Sharing::largest);
  }
  smoothing.fold(job.pool(), original, job.weights());
}

void update_channel_max(std::span<const float> x, std::span<float> max) {
  const size_t channels = max.size();
  for (size_t at = 0; at + channels <= x.size(); at += channels) {
    for (size_t k = 0; k < channels; ++k) max[k] = std::max(max[k], std::fabs(x[at + k]));
  }
}

std::vector<float> smoothing_scales(std::span<const float> input_max,
                                    std::span<const float> weight_max, double alpha,
                                    double min_scale) {
  if (input_max.size() != weight_max.size() || !(alpha >= 0 && alpha <= 1) || !(min_scale > 0)) {
    throw Error({.what = "smoothing with these settings is not defined",
                 .expected = "alpha in 0..1, a positive least scale",
                 .found = fmt::format("alpha {}, least scale {}", alpha, min_scale)});
  }
  constexpr double kLeast = 1e-5;
  std::vector<float> scales(input_max.size());
  for (size_t k = 0; k < scales.size(); ++k) {
    const double a = std::max(double(input_max[k]), kLeast);
    const double w = std::max(double(weight_max[k]), kLeast);
    scales[k] = float(std::max(std::pow(a, alpha) / std::pow(w, 1 - alpha), min_scale));
  }
  return scales;
}

std::vector<float> smoothing_scale(const Pair& pair, const BlockWeights& weights,
                                   const InputMaxima& inputs, double alpha, double min_scale,
                                   Sharing sharing) {
  std::vector<float> input_max, weight_max;
  const Pair::Use* columns = nullptr;
  for (const Pair::Use& use : pair.uses) {
    if (use.where != Pair::Use::Where::columns) continue;
    columns = &use;
    const Matrix& w = weights.linears.at(use.tensor).weight;
    input_max.resize(size_t(w.cols()));
    weight_max.resize(size_t(w.cols()));
    update_channel_max(w.values(), weight_max);
    const auto seen = inputs.find(use.tensor);
    if (seen != inputs.end()) update_channel_max(seen->second, input_max);
  }
  if (columns == nullptr) return pair.scale;
  const std::vector<float> by_column = smoothing_scales(input_max, weight_max, alpha, min_scale);
  std::vector<float> scale(pair.scale.size(), 0.0f);
  for (size_t i = 0; i < by_column.size(); ++i) {
    float& s = scale[columns->channel_of(i)];
    if (s == 0 || sharing == Sharing::largest) s = std::max(s, by_column[i]);
  }
  return scale;
}

}  // namespace oq::calibrate
