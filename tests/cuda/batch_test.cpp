/// Packed linears of many tokens, on tensor cores and by a matrix product, against the reference.

#include <array>

#include "format/packed.h"
#include "kernels/reference/ops.h"
#include "tests/cuda/on_device.h"
#include "tests/kernels/packed_cases.h"

using namespace oq;
using namespace oq::test;
using cuda::BatchEngine;
using cuda::BatchHow;

namespace {

void round_to_f16(std::vector<float>& values) {
  for (float& v : values) v = to_float(to_f16(v));
}

std::vector<PackedCase> cases() {
  std::vector<PackedCase> list = packed_cases();
  for (uint8_t bits : {3, 8}) {  // several blocks of rows; columns split, and more than one step
    list.push_back({150, 1100, {.bits = bits, .group = 128, .weak_columns = 3}});
  }
  list.push_back({20, 1300, {.bits = 2, .five_levels = true, .group = 256}});
  return list;
}

void run_linear(cuda::Stream& stream, const cuda::LinearArgs<cuda::PackedMatrix>& linear,
                const cuda::InputArgs& in, const cuda::OutputArgs& out, BatchHow how,
                cuda::BatchSpace& space) {
  cuda::batch_linears(stream,
                      {.in = in,
                       .out = out,
                       .count = 1,
                       .linears = {linear},
                       .experts = nullptr,
                       .expert_count = 0},
                      how, space);
}

/// One linear with a bias, added to what stands in y.
void check(cuda::Stream& stream, const PackedCase& c, int tokens, BatchHow how) {
  Rng rng(uint32_t(c.cols * 31 + c.packing.bits));
  const PackedBuilder b = random_packed(rng, c);
  const DevicePacked w(stream, b);
  const auto rows = int(c.rows), cols = int(c.cols);
  auto x = random_floats(rng, size_t(tokens * cols));
  const auto bias = random_floats(rng, c.rows, 1.0f),
             before = random_floats(rng, size_t(tokens * rows));
  const DeviceRows in(stream, tokens, cols, x), out(stream, tokens, rows, before);
  const cuda::Memory biases = cuda::uploaded(stream, std::span<const float>(bias));
  cuda::BatchSpace space;
  run_linear(stream, {w.matrix, biases.as<float>(), 0}, plain_input(in, tokens),
             output_to(out, cuda::Finish::add), how, space);
  std::vector<float> weights = reference::dequantize(b.view()), truth(before.size());
  if (how.engine == BatchEngine::gemm) round_to_f16(weights);
  if (how.engine == BatchEngine::gemm || !how.precise) {
    auto rounded = x;
    round_to_f16(rounded);
    const auto weak = b.view().weak_indices();
    for (size_t i = 0; i < x.size(); ++i) {
      const bool is_weak = std::binary_search(weak.begin(), weak.end(), uint32_t(i % size_t(cols)));
      // What meets weak columns of the tiles are floats.
      if (how.engine == BatchEngine::gemm || !is_weak) x[i] = rounded[i];
    }
  }
  reference::linear(weights, bias, x, tokens, int64_t(rows), int64_t(cols), truth);
  for (size_t i = 0; i < truth.size(); ++i) truth[i] += before[i];
  CAPTURE(int(c.packing.bits));
  CAPTURE(c.packing.five_levels);
  CAPTURE(c.rows);
  CAPTURE(c.cols);
  CAPTURE(tokens);
  CAPTURE(int(how.engine));
  CAPTURE(how.precise);
  // As for one token (packed_test.cpp).
  const double atol = 2e-5 * std::sqrt(double(c.cols)) * c.packing.max_code() * 0.1;
  CHECK_CLOSE(out.read(), truth, atol, 1e-5, 1e-11);
}

}  // namespace

TEST_CASE("batches on tensor cores equal the reference at every width, shape and zero mode") {
  cuda::Stream stream;
  int i = 0;
  for (const PackedCase& c : cases()) {
    const int tokens[] = {9, 20, 40};
    check(stream, c, tokens[i++ % 3], {BatchEngine::tiles, true});
    check(stream, c, tokens[i % 3], {BatchEngine::tiles, false});
  }
  check(stream, {40, 200, {.bits = 4, .group = 64, .weak_columns = 5}}, 135,
        {BatchEngine::tiles, true});  // three blocks of tokens
}

TEST_CASE("batches by a matrix product equal the reference with weights in f16") {
  cuda::Stream stream;
  for (const PackedCase& c : cases()) {
    check(stream, c, 13, {BatchEngine::gemm, false});
    if (c.rows > 16) check(stream, c, 9, {BatchEngine::gemm, false, 16});  // a tile at once
  }
}

TEST_CASE("a matrix product takes weak columns that lie far out") {
  cuda::Stream stream;
  Rng rng(21);
  constexpr int kCols = 100, kRows = 24, kTokens = 10;
  const PackedBuilder b = random_packed(rng, {kRows, kCols, {.bits = 4, .weak_columns = 2}});
  const DevicePacked w(stream, b);
  const auto weak = b.view().weak_indices();
  auto x = random_floats(rng, size_t(kTokens * kCols));
  for (int m = 0; m < kTokens; ++m) x[size_t(m * kCols) + weak[1]] = m % 2 == 0 ? 3e5f : 2.0f;
  const DeviceRows in(stream, kTokens, kCols, x), out(stream, kTokens, kRows);
  cuda::BatchSpace space;
  run_linear(stream, {w.matrix, nullptr, 0}, plain_input(in, kTokens),
             output_to(out, cuda::Finish::store), {BatchEngine::gemm, false}, space);
  const auto got = out.read(), truth = linear_truth(b, x, kTokens);
  for (int m = 0; m < kTokens; ++m) {
    const auto row = [&](const std::vector<float>& y) {
      return std::vector<float>(y.begin() + m * kRows, y.begin() + (m + 1) * kRows);
    };
    CHECK_CLOSE(row(got), row(truth), m % 2 == 0 ? 300 : 2e-2, 1e-3, 1e-6);
  }
}

TEST_CASE("dense weights of f16 by a matrix product: side by side, with biases, in parts") {
  cuda::Stream stream;
  Rng rng(23);
  const std::vector<std::array<int, 3>> shapes = {{9, 21, 173}, {70, 5, 64}, {17, 75, 9}};
  for (const auto& shape : shapes) {
    const int tokens = shape[0], rows = shape[1], cols = shape[2];
    const int stride = (cols + 7) / 8 * 8;
    std::vector<float> weights = random_floats(rng, size_t(rows * cols));
    round_to_f16(weights);
    std::vector<uint16_t> halves(size_t(rows * stride), 0);
    for (int i = 0; i < rows * cols; ++i) {
      halves[size_t(i / cols * stride + i % cols)] = to_f16(weights[size_t(i)]).bits;
    }
    const cuda::Memory device = cuda::uploaded(stream, std::span<const uint16_t>(halves));
    const cuda::DenseMatrix matrix{cuda::Dense::f16, rows, cols, stride, device.data()};
    auto x = random_floats(rng, size_t(tokens * cols));
    const auto bias = random_floats(rng, size_t(rows), 1.0f);
    const cuda::Memory biases = cuda::uploaded(stream, std::span<const float>(bias));
    const DeviceRows in(stream, tokens, cols, x), out(stream, tokens, 2 * rows);
    cuda::BatchSpace space;
    cuda::batch_linears(
        stream,
        cuda::DenseArgs{.in = plain_input(in, tokens),
                        .out = output_to(out, cuda::Finish::store),
                        .count = 2,
                        .linears = {{matrix, biases.as<float>(), 0}, {matrix, nullptr, rows}},
                        .experts = nullptr,
                        .expert_count = 0},
        space, rows > 60 ? 32 : 0);
    round_to_f16(x);
    std::vector<float> truth(size_t(tokens * rows)), first, second;
    reference::linear(weights, bias, x, tokens, rows, cols, truth);
    const auto got = out.read();
    for (int m = 0; m < tokens; ++m) {
      const auto at = got.begin() + int64_t(m) * 2 * rows;
      first.insert(first.end(), at, at + rows);
      second.insert(second.end(), at + rows, at + 2 * rows);
    }
    const double atol = 2e-5 * std::sqrt(double(cols));
    CHECK_CLOSE(first, truth, atol, 1e-5, 1e-11);
    for (size_t i = 0; i < truth.size(); ++i) truth[i] -= bias[i % size_t(rows)];
    CHECK_CLOSE(second, truth, atol, 1e-5, 1e-10);
  }
}

TEST_CASE("a token's bits do not depend on the tokens beside it") {
  cuda::Stream stream;
  Rng rng(22);
  constexpr int kCols = 300, kRows = 20, kTokens = 21, kWatched = 10;
  const PackedBuilder b =
      random_packed(rng, {kRows, kCols, {.bits = 4, .group = 64, .weak_columns = 2}});
  const DevicePacked w(stream, b);
  cuda::BatchSpace space;
  const auto watched = [&](const std::vector<float>& x, BatchHow how) {
    const DeviceRows in(stream, kTokens, kCols, x), out(stream, kTokens, kRows);
    run_linear(stream, {w.matrix, nullptr, 0}, plain_input(in, kTokens),
               output_to(out, cuda::Finish::store), how, space);
    const auto y = out.read();
    return std::vector<float>(y.begin() + kWatched * kRows, y.begin() + (kWatched + 1) * kRows);
  };
  const auto x = random_floats(rng, size_t(kTokens * kCols));
  auto other = random_floats(rng, x.size(), 5.0f, 100.0f);
  std::copy_n(x.begin() + kWatched * kCols, kCols, other.begin() + kWatched * kCols);
  for (const BatchHow how :
       {BatchHow{BatchEngine::tiles, true}, BatchHow{BatchEngine::tiles, false},
        BatchHow{BatchEngine::gemm, false}}) {
    CHECK(watched(x, how) == watched(other, how));
  }
}
