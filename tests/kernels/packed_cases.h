#pragma once

#include <algorithm>
#include <vector>

#include "format/packed.h"
#include "kernels/reference/ops.h"
#include "tests/kernels/compare.h"

/// Packed matrices of every width, shape and zero mode, for the kernels of every machine.
namespace oq::test {

struct PackedCase {
  uint64_t rows, cols;
  Packing packing;
};

inline std::vector<PackedCase> packed_cases() {
  std::vector<PackedCase> list;
  for (uint8_t bits = 2; bits <= 8; ++bits) {
    list.push_back({16, 256, {.bits = bits, .group = 128}});
    list.push_back({27, 173, {.bits = bits, .group = 64}});  // tails of rows, columns, groups
    list.push_back({9, 576, {.bits = bits, .group = 128}});  // last group half as long
    list.push_back({8, 96, {.bits = bits}});                 // one group per row
    list.push_back(
        {5, 33, {.bits = bits, .zero_mode = ZeroMode::constant, .zero = 2, .group = 32}});
    list.push_back({11, 160, {.bits = bits, .zero_mode = ZeroMode::i16, .group = 96}});
    list.push_back({24, 320, {.bits = bits, .group = 64, .weak_columns = 7}});
    list.push_back({8, 64, {.bits = bits, .weak_columns = 64, .weak_bf16 = true}});
  }
  for (uint64_t cols : {96u, 192u, 200u, 31u, 576u}) {
    list.push_back({13, cols, {.bits = 2, .five_levels = true, .group = 64}});
    list.push_back({8,
                    cols,
                    {.bits = 2,
                     .five_levels = true,
                     .zero_mode = ZeroMode::constant,
                     .zero = 2,
                     .weak_columns = 3}});
  }
  return list;
}

/// The reference's y of x [tokens][cols], without a bias.
inline std::vector<float> linear_truth(const PackedBuilder& b, const std::vector<float>& x,
                                       int tokens) {
  const auto rows = int64_t(b.layout().rows), cols = int64_t(b.layout().cols);
  std::vector<float> y(size_t(tokens * rows));
  reference::linear(reference::dequantize(b.view()), {}, x, tokens, rows, cols, y);
  return y;
}

enum class Codes { random, largest, zero };

inline PackedBuilder random_packed(Rng& rng, const PackedCase& c, Codes kind = Codes::random) {
  PackedBuilder b(c.rows, c.cols, c.packing);
  const auto levels = uint32_t(c.packing.max_code() + 1);
  std::vector<uint32_t> weak(c.cols);
  for (uint32_t i = 0; i < c.cols; ++i) weak[i] = i;
  std::shuffle(weak.begin(), weak.end(), rng);
  weak.resize(c.packing.weak_columns);
  std::sort(weak.begin(), weak.end());
  b.set_weak_indices(weak);
  std::vector<uint8_t> codes(c.cols);
  for (uint64_t r = 0; r < c.rows; ++r) {
    for (auto& q : codes) {
      q = uint8_t(kind == Codes::largest ? levels - 1 : kind == Codes::zero ? 0 : rng() % levels);
    }
    for (uint32_t w : weak) codes[w] = 0;
    b.set_codes(r, codes);
    for (uint32_t i = 0; i < weak.size(); ++i) {
      b.set_weak_weight(r, i, float(int(rng() % 200) - 90) / 64.0f);
    }
    for (uint64_t g = 0; g < b.layout().groups; ++g) {
      b.set_scale(r, g, to_f16(float(20 + rng() % 50 + 30 * (g + 1 == b.layout().groups)) / 999));
      const int zero = c.packing.zero_mode == ZeroMode::constant ? c.packing.zero
                       : c.packing.zero_mode == ZeroMode::i16    ? int(rng() % 41) - 20
                                                                 : int(rng() % levels);
      b.set_zero(r, g, zero);
    }
  }
  return b;
}

}  // namespace oq::test
