#include "bench/gpu/product.h"

#include <algorithm>

#include <fmt/format.h>

#include "bench/gpu/timing.h"

namespace oq {
namespace {

constexpr float kDeviation = 0.02f;
constexpr int kMostCopies = 256;

TensorInfo info_of(const ProductShape& s) {
  TensorInfo info{.name = "w", .kind = Kind::packed, .rows = uint64_t(s.rows)};
  info.cols = uint64_t(s.cols);
  info.packing = packing_of(Scheme::parse(s.scheme));
  info.packing.weak_columns = s.weak_columns;
  info.bytes = info.expected_bytes();
  return info;
}

}  // namespace

std::string ProductShape::name() const {
  return fmt::format("{} {}x{} x {}{}{}", scheme, rows, cols, tokens,
                     weak_columns > 0 ? fmt::format(", {} weak columns", weak_columns) : "",
                     norm ? ", behind a norm" : "");
}

Product::Product(KernelBench& bench, const ProductShape& shape, Weights weights)
    : shape_(shape),
      activation_bits_(Scheme::parse(shape.scheme).activation_bits),
      info_(info_of(shape)),
      stride_((shape.cols + 3) / 4 * 4),
      x_(bench.random_numbers(size_t(shape.tokens) * size_t(stride_) * sizeof(float))),
      y_(size_t(shape.tokens) * size_t(shape.rows) * sizeof(float)),
      norm_(bench.random_numbers(size_t(stride_) * sizeof(float))) {
  std::vector<uint32_t> weak(shape.weak_columns);
  for (uint32_t i = 0; i < weak.size(); ++i)
    weak[i] = i * uint32_t(shape.cols) / uint32_t(weak.size());
  const auto enough = int(kColdBytes / CudaUploader::device_bytes(info_)) + 1;
  const int copies = weights == Weights::hot ? 1 : std::clamp(enough, 2, kMostCopies);
  for (int i = 0; i < copies; ++i) {
    weights_.push_back(bench.uploader.make(info_, kDeviation, weak));
  }
  bench.uploader.finish();
}

cuda::NormArgs Product::norm() const {
  return {.kind = cuda::NormKind::rms,
          .weight = norm_.as<float>(),
          .bias = nullptr,
          .eps = 1e-5f,
          .weight_peak = 0.5f,
          .bias_peak = 0};
}

cuda::PackedArgs Product::args(int i) const {
  const CudaWeight& w = *weights_[size_t(i % copies())];
  return {.in = {.x = x_.as<float>(),
                 .stride = stride_,
                 .tokens = shape_.tokens,
                 .rows = nullptr,
                 .norm = shape_.norm ? norm() : cuda::NormArgs{},
                 .bits = activation_bits_,
                 .count = nullptr,
                 .expert_stride = 0},
          .out = {.finish = cuda::Finish::store,
                  .y = y_.as<float>(),
                  .stride = shape_.rows,
                  .activation = Activation::silu,
                  .expert_stride = 0},
          .count = 1,
          .linears = {{std::get<cuda::PackedMatrix>(w.matrix), nullptr, 0}},
          .experts = nullptr,
          .expert_count = 0,
          .weak_columns = int(shape_.weak_columns)};
}

std::vector<ProductShape> llama_block(const char* scheme, int tokens) {
  return {{scheme, 12288, 4096, tokens},
          {scheme, 4096, 4096, tokens},
          {scheme, 22016, 4096, tokens},
          {scheme, 4096, 11008, tokens}};
}

}  // namespace oq
