#include "runtime/backend/cpu/mlp.h"

#include <algorithm>

#include "kernels/reference/ops.h"

namespace oq {
namespace {

const CpuWeight& weight_of(const Linear& l) { return static_cast<const CpuWeight&>(*l.weight); }

}  // namespace

void MlpRunner::run(const Mlp& mlp, cpu::Rows x, int64_t tokens, const InputMode& mode,
                    std::span<const int64_t> runs, cpu::MutableRows out) {
  const int64_t n = weight_of(mlp.up).rows();
  const bool gated = mlp.gate.weight != nullptr;
  const Linear both[] = {mlp.gate, mlp.up};
  const int64_t stride = gated ? 2 * n : n;
  gate_up_.resize(size_t(stride * tokens));
  linears_.run(std::span(both).subspan(gated ? 0 : 1), x, tokens, mode, runs, false,
               {gate_up_.data(), stride});
  pool_.parallel_for(tokens, 4, [&](int64_t begin, int64_t end, int) {
    for (int64_t m = begin; m < end; ++m) {
      const float* gate = gate_up_.data() + stride * m;
      kernels_.activate(mlp.activation, gate, gated ? gate + n : nullptr, n, out.row(m));
    }
  });
}

/// The router runs in fp32 whatever the mode: a rounded logit can choose another expert.
void ExpertRunner::route(const Experts& experts, cpu::Rows x, int64_t tokens) {
  const auto count = int64_t(experts.mlps.size());
  const Linear router{.weight = experts.router, .bias = nullptr};
  logits_.resize(size_t(tokens * count));
  linears_.run({&router, 1}, x, tokens, {.exact = true}, {}, false, {logits_.data(), count});
  visits_.resize(size_t(count));
  for (auto& visits : visits_) visits.clear();
  for (int64_t m = 0; m < tokens; ++m) {
    const auto logits = std::span(logits_).subspan(size_t(m * count), size_t(count));
    for (const reference::Choice& c : reference::route(logits, experts.used)) {
      visits_[size_t(c.expert)].push_back({m, c.weight});
    }
  }
}

void ExpertRunner::gather(std::span<const Visit> visits, cpu::Rows x, int64_t width,
                          std::span<const int64_t> runs) {
  in_.resize(visits.size() * size_t(width));
  runs_.clear();
  size_t last_run = runs.size();
  for (size_t i = 0; i < visits.size(); ++i) {
    const int64_t token = visits[i].token;
    std::copy_n(x.row(token), width, in_.data() + int64_t(i) * width);
    const auto run = size_t(std::upper_bound(runs.begin(), runs.end(), token) - runs.begin());
    if (run != last_run) runs_.push_back(int64_t(i));
    last_run = run;
  }
  runs_.push_back(int64_t(visits.size()));
}

void ExpertRunner::run(const Experts& experts, cpu::Rows x, int64_t tokens, const InputMode& mode,
                       std::span<const int64_t> runs, cpu::MutableRows out) {
  route(experts, x, tokens);
  for (size_t e = 0; e < experts.mlps.size(); ++e) {
    const std::vector<Visit>& visits = visits_[e];
    if (visits.empty()) continue;
    const Mlp& mlp = experts.mlps[e];
    const auto n = int64_t(visits.size());
    const int64_t width = weight_of(mlp.up).cols(), inner = weight_of(mlp.up).rows();
    gather(visits, x, width, runs);
    hidden_.resize(size_t(n * inner));
    out_.resize(size_t(n * width));
    mlps_.run(mlp, {in_.data(), width}, n, mode, runs_, {hidden_.data(), inner});
    linears_.run({&mlp.down, 1}, {hidden_.data(), inner}, n, mode, runs_, false,
                 {out_.data(), width});
    for (int64_t i = 0; i < n; ++i) {
      const Visit& visit = visits[size_t(i)];
      float* to = out.row(visit.token);
      for (int64_t d = 0; d < width; ++d) to[d] += visit.weight * out_[size_t(i * width + d)];
    }
  }
}

}  // namespace oq
