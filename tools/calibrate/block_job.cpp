#include "tools/calibrate/block_job.h"

#include <algorithm>

#include <fmt/format.h>

namespace oq::calibrate {

std::string BlockJob::full_name(const std::string& name) const {
  return fmt::format("blocks.{}.{}", index_, name);
}

void BlockJob::notice(const std::string& text) const {
  if (observer_.notice) observer_.notice(text);
}

void BlockJob::progress(double done, std::string_view what) const {
  if (!observer_.progress) return;
  const auto [begin, end] = part_;
  observer_.progress(double(index_) + begin + (end - begin) * done, double(config().blocks),
                     fmt::format("block {} of {}, {}", index_ + 1, config().blocks, what));
}

void BlockJob::observe(const BlockRunner::Tap& tap, Sight of) {
  std::vector<float> x;
  for (int64_t w = 0; w < windows(); ++w) {
    if (sight(w) != of) continue;
    const auto window = hidden_.window(w);
    x.assign(window.begin(), window.end());
    runner_.forward(weights_, options_.scheme, x.data(), hidden_.tokens(), tap, of);
  }
}

void BlockJob::store(const std::string& name, QuantizedLinear linear, LinearReport report) {
  done_.insert_or_assign(name, Done{std::move(linear), std::move(report)});
}

void BlockJob::keep(std::string name, Matrix values) {
  parameters_.insert_or_assign(std::move(name), std::move(values));
}

void BlockJob::apply() {
  for (const auto& [name, done] : done_) {
    LinearWeights& l = weights_.linears.at(name);
    l.weight = done.linear.dequantize();
    l.weak = done.linear.weak;
    l.input_bits = options_.scheme.activation_bits;
  }
}

}  // namespace oq::calibrate
