#pragma once

#include <memory>

#include "kernels/cuda/stream.h"

namespace oq {

/// What others would use for the same products: y [tokens x rows] = x [tokens x cols] W^T.
class Cublas {
 public:
  explicit Cublas(cuda::Stream& stream);
  ~Cublas();
  Cublas(const Cublas&) = delete;
  Cublas& operator=(const Cublas&) = delete;

  struct Shape {
    int rows, cols, tokens;
  };
  /// Whether weights come from memory or, used again and again, from where caches keep them.
  enum class Weights { cold, hot };

  /// Seconds in a graph, of the fastest of what cuBLAS offers: on f16 with fp32 sums, cublasGemmEx
  /// and cublasLt's proposals.
  double fp16(const Shape& shape, Weights weights = Weights::cold);
  /// On int8 with int32 sums, cublasLt's proposals, for 16 tokens where it has none for fewer; 0
  /// where it has none.
  double int8(const Shape& shape, Weights weights = Weights::cold);

 private:
  struct Handles;
  std::unique_ptr<Handles> handles_;
};

}  // namespace oq
