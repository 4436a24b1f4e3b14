/// Packed linears of many tokens, on tensor cores and by a matrix product, against the reference.

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
  cuda::batch_linears(stream,
                      {.in = plain_input(in, tokens),
                       .out = output_to(out, cuda::Finish::add),
                       .count = 1,
                       .linears = {{w.matrix, biases.as<float>(), 0}},
                       .experts = nullptr,
                       .expert_count = 0},
                      how, space);
  std::vector<float> weights = reference::dequantize(b.view()), truth(before.size());
  if (how.engine == BatchEngine::gemm) round_to_f16(weights);
  // Weak columns of the tiles are floats.
  if (how.engine == BatchEngine::gemm || (!how.precise && c.packing.weak_columns == 0))
    round_to_f16(x);
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
    if (c.packing.weak_columns == 0) check(stream, c, 11, {BatchEngine::tiles, false});
  }
  check(stream, {40, 200, {.bits = 4, .group = 64, .weak_columns = 5}}, 135,
        {BatchEngine::tiles, true});  // three blocks of tokens
}

TEST_CASE("batches by a matrix product equal the reference with weights in f16") {
  cuda::Stream stream;
  for (const PackedCase& c : cases()) check(stream, c, 13, {BatchEngine::gemm, false});
}

TEST_CASE("a matrix product takes weak columns that lie far out, and quantizes the others") {
  cuda::Stream stream;
  Rng rng(21);
  constexpr int kCols = 100, kRows = 24, kTokens = 10;
  const PackedBuilder b = random_packed(rng, {kRows, kCols, {.bits = 4, .weak_columns = 2}});
  const DevicePacked w(stream, b);
  const auto weak = b.view().weak_indices();
  auto x = random_floats(rng, size_t(kTokens * kCols));
  for (int m = 0; m < kTokens; ++m) x[size_t(m * kCols) + weak[1]] = m % 2 == 0 ? 3e4f : 2.0f;
  const DeviceRows in(stream, kTokens, kCols, x), out(stream, kTokens, kRows);
  cuda::PackedArgs args{.in = plain_input(in, kTokens),
                        .out = output_to(out, cuda::Finish::store),
                        .count = 1,
                        .linears = {{w.matrix, nullptr, 0}},
                        .experts = nullptr,
                        .expert_count = 0};
  args.in.bits = 8;
  cuda::BatchSpace space;
  cuda::batch_linears(stream, args, {BatchEngine::gemm, false}, space);
  for (int m = 0; m < kTokens; ++m) {
    std::vector<float> live;
    float* row = x.data() + m * kCols;
    const auto is_weak = [&](int k) {
      return std::find(weak.begin(), weak.end(), uint32_t(k)) != weak.end();
    };
    for (int k = 0; k < kCols; ++k) {
      if (!is_weak(k)) live.push_back(row[k]);
    }
    reference::fake_quantize(live, 8);
    auto value = live.begin();
    for (int k = 0; k < kCols; ++k) {
      if (!is_weak(k)) row[k] = *value++;
    }
  }
  std::vector<float> truth(size_t(kTokens * kRows));
  reference::linear(reference::dequantize(b.view()), {}, x, kTokens, kRows, kCols, truth);
  CHECK_CLOSE(out.read(), truth, 1e-2, 1e-3, 1e-6);
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
    cuda::batch_linears(stream,
                        {.in = plain_input(in, kTokens),
                         .out = output_to(out, cuda::Finish::store),
                         .count = 1,
                         .linears = {{w.matrix, nullptr, 0}},
                         .experts = nullptr,
                         .expert_count = 0},
                        how, space);
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
