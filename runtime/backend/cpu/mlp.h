#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "runtime/backend/cpu/linear.h"

namespace oq {

/// Runs an MLP up to what its last linear takes.
class MlpRunner {
 public:
  MlpRunner(ThreadPool& pool, const cpu::Kernels& kernels, LinearRunner& linears)
      : pool_(pool), kernels_(kernels), linears_(linears) {}

  /// out = activation(gate(x)) * up(x), or activation(up(x)); arguments as in LinearRunner.
  void run(const Mlp& mlp, cpu::Rows x, int64_t tokens, const InputMode& mode,
           std::span<const int64_t> runs, cpu::MutableRows out);

 private:
  ThreadPool& pool_;
  const cpu::Kernels& kernels_;
  LinearRunner& linears_;
  std::vector<float> gate_up_;
};

/// Routes tokens to experts and adds up what comes out. Tokens are gathered by expert, so a batch
/// reads each chosen expert's weights once; a token's sum runs over its experts in ascending
/// order, whatever the batch.
class ExpertRunner {
 public:
  ExpertRunner(MlpRunner& mlps, LinearRunner& linears) : mlps_(mlps), linears_(linears) {}

  /// out += experts(x).
  void run(const Experts& experts, cpu::Rows x, int64_t tokens, const InputMode& mode,
           std::span<const int64_t> runs, cpu::MutableRows out);

 private:
  /// A token that an expert was chosen for.
  struct Visit {
    int64_t token;
    float weight;
  };

  void route(const Experts& experts, cpu::Rows x, int64_t tokens);
  void gather(std::span<const Visit> visits, cpu::Rows x, int64_t width,
              std::span<const int64_t> runs);

  MlpRunner& mlps_;
  LinearRunner& linears_;
  std::vector<std::vector<Visit>> visits_;  ///< per expert, tokens ascending
  std::vector<float> logits_, in_, hidden_, out_;
  std::vector<int64_t> runs_;  ///< of the gathered rows
};

}  // namespace oq
