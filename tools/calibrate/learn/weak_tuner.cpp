#include "tools/calibrate/learn/weak_tuner.h"

#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include "tools/calibrate/work_folder.h"

namespace oq::calibrate {

WeakTuner::WeakTuner(std::shared_ptr<const File> file, int64_t window, int threads, bool stored)
    : file_(std::move(file)),
      runner_(file_, window, threads),
      scheme_(Scheme::load(*file_)),
      stored_(stored),
      graph_(*file_, runner_.config(), window, runner_.pool()),
      head_(*file_, runner_.config(), runner_.pool()),
      states_(size_t(runner_.config().blocks) + 1) {
  for (const TensorSpec& spec : tensor_specs(runner_.config())) {
    const TensorInfo& info = file_->tensor(spec.name);
    if (info.kind != Kind::packed || info.packing.weak_columns == 0) continue;
    if (spec.role != Role::linear) continue;
    const PackedView view = file_->packed(info);
    std::vector<float>& values = weights_[spec.name];
    for (uint64_t r = 0; r < info.rows; ++r) {
      for (uint32_t i = 0; i < info.packing.weak_columns; ++i) {
        values.push_back(view.weak_weight(r, i));
      }
    }
    gradients_[spec.name].resize(values.size());
  }
  if (weights_.empty()) {
    throw Error({.what = "has no weak columns that could be tuned",
                 .where = file_->path().string(),
                 .hint = "make it with --method owq, or with auto and --weak-columns"});
  }
}

/// A block as it runs with the weak weights of now.
BlockWeights WeakTuner::block(int64_t index) const {
  BlockWeights w = load_finished(*file_, runner_.config(), scheme_, index);
  for (auto& [name, l] : w.linears) {
    const std::string full = fmt::format("blocks.{}.{}", index, name);
    const auto found = weights_.find(full);
    if (found == weights_.end()) continue;
    const bool bf16 = file_->tensor(full).packing.weak_bf16;
    const float* value = found->second.data();
    for (int64_t r = 0; r < l.out(); ++r) {
      for (uint32_t column : l.weak) {
        const float exact = *value++;
        const float kept = bf16 ? to_float(to_bf16(exact)) : to_float(to_f16(exact));
        l.weight(r, column) = stored_ ? kept : exact;
      }
    }
  }
  return w;
}

double WeakTuner::forward(const std::vector<int32_t>& window, float* d_x) {
  const auto tokens = int64_t(window.size());
  for (std::vector<float>& x : states_) x.resize(size_t(tokens * runner_.config().hidden));
  runner_.embed(std::span(&window, 1), states_[0].data());
  for (int64_t b = 0; b < runner_.config().blocks; ++b) {
    const auto at = size_t(b);
    graph_.forward(block(b), scheme_, states_[at].data(), tokens, states_[at + 1].data());
  }
  return head_.loss(states_.back().data(), window, d_x);
}

std::string WeakTuner::first_not_finite() const {
  for (size_t i = 0; i < states_.size(); ++i) {
    if (std::all_of(states_[i].begin(), states_[i].end(), [](float v) { return std::isfinite(v); }))
      continue;
    return i == 0 ? "embedding" : fmt::format("blocks.{}.output", i - 1);
  }
  return "logits";
}

double WeakTuner::learn(const std::vector<int32_t>& window) {
  const auto tokens = int64_t(window.size());
  d_out_.resize(window.size() * size_t(runner_.config().hidden));
  d_in_.resize(d_out_.size());
  const double loss = forward(window, d_out_.data());
  std::vector<float> again(d_out_.size());
  for (int64_t b = runner_.config().blocks - 1; b >= 0; --b) {
    const BlockWeights w = block(b);
    BlockWeights gradient = BlockGraph::of_shape(w);
    graph_.forward(w, scheme_, states_[size_t(b)].data(), tokens, again.data());
    graph_.backward(w, d_out_.data(), gradient, b > 0 ? d_in_.data() : nullptr);
    for (const auto& [name, l] : w.linears) {
      if (l.weak.empty()) continue;
      float* to = gradients_.at(fmt::format("blocks.{}.{}", b, name)).data();
      const Matrix& g = gradient.linears.at(name).weight;
      for (int64_t r = 0; r < l.out(); ++r) {
        for (uint32_t column : l.weak) *to++ = g(r, column);
      }
    }
    std::swap(d_in_, d_out_);
  }
  return loss;
}

}  // namespace oq::calibrate
