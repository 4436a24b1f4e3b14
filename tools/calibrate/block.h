#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "format/file.h"
#include "format/scheme.h"
#include "kernels/cpu/kernels.h"
#include "kernels/cpu/thread_pool.h"
#include "runtime/backend/cpu/attention.h"
#include "runtime/backend/cpu/kv_cache.h"
#include "runtime/config.h"
#include "tools/calibrate/sight.h"
#include "tools/calibrate/solver/linalg.h"

namespace oq::calibrate {

/// y = W x + b. Weights are what will be executed: dequantized, once the linear is quantized.
struct LinearWeights {
  Matrix weight;               ///< [out][in]
  std::vector<float> bias;     ///< [out] or empty
  std::vector<uint32_t> weak;  ///< columns whose inputs are not quantized, ascending
  int input_bits = 16;         ///< of the scheme, once the linear is quantized

  int64_t out() const { return weight.rows(); }
  int64_t in() const { return weight.cols(); }
};

struct NormWeights {
  std::vector<float> weight, bias;  ///< a bias makes it LayerNorm

  /// Tensor `name` of the file and, if the model has LayerNorms, its bias.
  static NormWeights load(const File& file, const ModelConfig& config, const std::string& name);
};

/// out = norm(x), [tokens][n] both, as reference::rms_norm, or, where there is a bias,
/// reference::layer_norm.
void normalize(ThreadPool& pool, const NormWeights& norm, double eps, const float* x,
               int64_t tokens, float* out);

/// One decoder block in fp32. Linears by their names in tensor_specs: "q", "experts.3.up", ...
struct BlockWeights {
  NormWeights attn_norm, mlp_norm;
  std::map<std::string, LinearWeights> linears;
  std::vector<float> router;  ///< [experts][hidden] or empty

  /// PRECOND: check_tensors(file, config).
  static BlockWeights load(const File& file, const ModelConfig& config, int64_t block);
};

/// Linears that read the same input, in the order in which a token meets them.
std::vector<std::vector<std::string>> input_groups(const ModelConfig& config);

/// Floats of a tensor of any kind, [rows][cols].
std::vector<float> read_tensor(const File& file, const std::string& name);

/// Runs windows of tokens through blocks, as the runtime's decoder does (a test holds it to that),
/// in fp32 and with what happens on the way visible. Linears go through BLAS. One thread at a time;
/// a result depends on `threads` alone.
class BlockRunner {
 public:
  /// Sees the input of each group of linears before it is quantized: [rows][cols]. Of an expert
  /// the rows are the tokens that chose it.
  using Tap = std::function<void(const std::vector<std::string>& group, const float* x,
                                 int64_t rows, int64_t cols)>;

  /// `window`: the most tokens that one call takes.
  BlockRunner(std::shared_ptr<const File> file, int64_t window, int threads);

  const File& file() const { return *file_; }
  const ModelConfig& config() const { return config_; }
  ThreadPool& pool() { return pool_; }
  const cpu::Kernels& kernels() const { return kernels_; }

  /// What the first block takes: x [windows][tokens][hidden].
  /// With `first_tokens`, each token of the first window stands alone.
  void embed(std::span<const std::vector<int32_t>> windows, float* x, bool first_tokens = false);

  /// x [tokens][hidden] goes through a block, in place. Activations and KV are quantized as
  /// `scheme` says, inputs of linears as each linear says.
  void forward(const BlockWeights& block, const Scheme& scheme, float* x, int64_t tokens,
               const Tap& tap = {}, Sight sight = Sight::causal);

 private:
  void linear(const LinearWeights& l, const float* x, int64_t tokens, bool per_tensor, float* y,
              int64_t stride);
  void attention(const BlockWeights& block, const Scheme& scheme, const float* x, int64_t tokens,
                 const Tap& tap, Sight sight, float* out);
  void look_back(int64_t tokens);
  void take_own_values(int64_t tokens);
  void finish_heads(const Scheme& scheme, int64_t tokens);
  void mlp(const BlockWeights& block, const std::string& prefix, bool per_tensor, const float* x,
           int64_t tokens, const Tap& tap, float* out);
  void experts(const BlockWeights& block, bool per_tensor, const float* x, int64_t tokens,
               const Tap& tap, float* out);

  std::shared_ptr<const File> file_;
  ModelConfig config_;
  const cpu::Kernels& kernels_;
  ThreadPool pool_;
  CpuKvCache cache_;
  CpuAttention attention_;
  std::vector<float> inv_freq_, alibi_;
  std::vector<int32_t> positions_, zeros_;
  std::vector<float> qkv_, attended_, quantized_;
};

}  // namespace oq::calibrate
