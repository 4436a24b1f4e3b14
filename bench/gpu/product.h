#pragma once

#include <memory>
#include <string>
#include <vector>

#include "bench/gpu/kernel_bench.h"
#include "format/scheme.h"
#include "kernels/cuda/kernels.h"

namespace oq {

/// y [tokens x rows] = x [tokens x cols] W^T with random packed weights.
struct ProductShape {
  const char* scheme;
  int rows, cols;
  int tokens = 1;
  uint32_t weak_columns = 0;
  bool norm = false;  ///< RMSNorm in front, by the linear's own launch

  /// "w4a16g128 4096x4096 x 8"
  std::string name() const;
  Cublas::Shape plain() const { return {rows, cols, tokens}; }
};

class Product {
 public:
  enum class Weights { cold, hot };

  /// `cold`: as many copies of the weights as make each of them cold.
  Product(KernelBench& bench, const ProductShape& shape, Weights weights = Weights::cold);

  int copies() const { return int(weights_.size()); }
  /// Of the weights, as the file has them.
  double bytes() const { return double(info_.bytes); }
  /// With the i-th copy of the weights.
  cuda::PackedArgs args(int i) const;

 private:
  cuda::NormArgs norm() const;

  ProductShape shape_;
  int activation_bits_;
  TensorInfo info_;
  int stride_;
  cuda::Memory x_, y_, norm_;
  std::vector<std::unique_ptr<CudaWeight>> weights_;
};

/// A block's linears in LLaMA-7B: q, k and v; o; gate and up; down.
std::vector<ProductShape> llama_block(const char* scheme, int tokens);

}  // namespace oq
