#include "tools/calibrate/methods/moments.h"

#include <algorithm>

#include <fmt/format.h>

#include "tools/calibrate/activation_quantizer.h"

namespace oq::calibrate {

std::string type_of(const std::string& linear) {
  const size_t dot = linear.rfind('.');
  return dot == std::string::npos ? linear : linear.substr(dot + 1);
}

std::vector<std::vector<InputGroup>> moment_batches(const BlockJob& job, bool one_by_one) {
  const auto size = [&](const InputGroup& g) {
    const int64_t in = job.weights().linears.at(g.front()).in();
    return in * in;
  };
  const std::vector<InputGroup> groups = input_groups(job.config());
  int64_t most = 0;
  for (const InputGroup& g : groups) most = std::max(most, size(g));
  std::vector<std::vector<InputGroup>> batches;
  int64_t room = 0;
  for (const InputGroup& g : groups) {
    // The largest may have the small ones beside it, up to twice its size in all.
    if (batches.empty() || one_by_one || room < size(g)) {
      batches.emplace_back();
      room = 2 * most;
    }
    batches.back().push_back(g);
    room -= size(g);
  }
  return batches;
}

std::map<std::string, Moments> observe_moments(BlockJob& job, const std::vector<InputGroup>& batch,
                                               bool quantized) {
  const Scheme& scheme = job.options().scheme;
  std::map<std::string, MomentAccumulator> sums;
  std::map<std::string, bool> seen;
  for (const InputGroup& g : batch) {
    sums.emplace(g.front(), MomentAccumulator(job.weights().linears.at(g.front()).in(), quantized));
  }
  const ActivationQuantizer quantizer{.bits = scheme.activation_bits,
                                      .per_tensor = scheme.per_tensor};
  std::vector<float> on_grid;
  job.observe([&](const InputGroup& group, const float* x, int64_t rows, int64_t cols) {
    const auto it = sums.find(group.front());
    if (it == sums.end()) return;
    seen[group.front()] = true;
    const std::span<const float> values(x, size_t(rows * cols));
    with_place("input of " + job.full_name(group.front()), [&] {
      if (!quantized) return it->second.add(job.pool(), values);
      on_grid.resize(values.size());
      quantizer.forward(job.pool(), x, rows, cols, cols, on_grid.data());
      it->second.add(job.pool(), values, on_grid);
    });
  });
  std::map<std::string, Moments> moments;
  for (auto& [name, sum] : sums) {
    if (seen[name]) moments[name] = std::move(sum).finish();
  }
  return moments;
}

Damping damping_of(const BlockJob& job, const std::string& linear) {
  return {.damp = job.options().damp, .on_failure = [&job, linear](const Damping::Failure& f) {
            job.notice(fmt::format("{}: Cholesky failed at column {} with --damp {}; trying {}",
                                   job.full_name(linear), f.column, f.damp, f.next));
          }};
}

}  // namespace oq::calibrate
