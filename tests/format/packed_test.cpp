#include "format/packed.h"

#include <algorithm>
#include <cmath>
#include <random>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "format/crc32c.h"
#include "format/error.h"

using namespace oq;

namespace {

struct Case {
  uint64_t rows, cols;
  Packing packing;
};

std::vector<Case> cases() {
  std::vector<Case> list;
  for (uint8_t bits = 2; bits <= 8; ++bits) {
    for (uint32_t group : {0u, 32u, 64u, 128u}) {
      list.push_back({19, 173, {.bits = bits, .group = group}});
    }
    list.push_back({8, 32, {.bits = bits, .zero_mode = ZeroMode::constant, .zero = 3}});
    list.push_back({1, 1, {.bits = bits, .zero_mode = ZeroMode::i16, .group = 32}});
    list.push_back({9, 100, {.bits = bits, .group = 64, .weak_columns = 5}});
  }
  list.push_back({13, 97, {.bits = 2, .five_levels = true, .group = 32}});
  list.push_back({8, 576, {.bits = 2, .five_levels = true, .weak_columns = 1, .weak_bf16 = true}});
  return list;
}

/// Random contents: codes, scales other than 1, zeros, weak columns.
struct Filled {
  PackedBuilder builder;
  std::vector<std::vector<uint8_t>> codes;
  std::vector<std::vector<float>> scales;
  std::vector<std::vector<int>> zeros;
  std::vector<uint32_t> weak;

  Filled(const Case& c, uint32_t seed) : builder(c.rows, c.cols, c.packing) {
    std::mt19937 rng(seed);
    const auto& l = builder.layout();
    for (uint32_t i = 0; i < c.packing.weak_columns; ++i) {
      weak.push_back(uint32_t(i * c.cols / c.packing.weak_columns));
    }
    builder.set_weak_indices(weak);
    for (uint64_t r = 0; r < c.rows; ++r) {
      codes.emplace_back(c.cols);
      for (auto& code : codes[r]) code = uint8_t(rng() % uint32_t(c.packing.max_code() + 1));
      for (uint32_t w : weak) codes[r][w] = 0;
      builder.set_codes(r, codes[r]);
      for (uint32_t i = 0; i < weak.size(); ++i) builder.set_weak_weight(r, i, 0.5f * float(r + i));
      scales.emplace_back();
      zeros.emplace_back();
      for (uint64_t g = 0; g < l.groups; ++g) {
        scales[r].push_back(float(1 + rng() % 100) * 0x1p-9f);
        builder.set_scale(r, g, to_f16(scales[r][g]));
        zeros[r].push_back(c.packing.zero_mode == ZeroMode::constant ? c.packing.zero
                           : c.packing.zero_mode == ZeroMode::i16
                               ? int(rng() % 2000) - 1000
                               : int(rng() % uint32_t(c.packing.max_code() + 1)));
        builder.set_zero(r, g, zeros[r][g]);
      }
    }
  }
};

}  // namespace

TEST_CASE("packed tensors give back what was put in, at every width and shape") {
  for (const Case& c : cases()) {
    CAPTURE(int(c.packing.bits));
    CAPTURE(c.cols);
    const Filled f(c, 7);
    const PackedView view = f.builder.view();
    const auto& l = view.layout();
    std::vector<uint8_t> codes(l.padded_cols);
    std::vector<float> weights(c.cols);
    for (uint64_t r = 0; r < c.rows; ++r) {
      view.unpack_row(r, codes);
      REQUIRE(std::equal(f.codes[r].begin(), f.codes[r].end(), codes.begin()));
      for (uint64_t k = c.cols; k < l.padded_cols; ++k) REQUIRE(codes[k] == 0);
      view.dequantize_row(r, weights);
      for (uint64_t k = 0; k < c.cols; ++k) {
        const auto w = std::find(f.weak.begin(), f.weak.end(), k);
        const auto g = k / l.group;
        const float expected = w != f.weak.end()
                                   ? 0.5f * float(r + uint64_t(w - f.weak.begin()))
                                   : f.scales[r][g] * float(int(f.codes[r][k]) - f.zeros[r][g]);
        REQUIRE(weights[k] == expected);
      }
    }
  }
}

TEST_CASE("bits per weight are what the widths promise") {
  const auto bits = [](Packing p) {
    return double(PackedLayout::of(4096, 4096 * 3, p).bytes) * 8 / (4096.0 * 4096 * 3);
  };
  CHECK(bits({.bits = 4, .group = 128}) == doctest::Approx(4 + 20.0 / 128).epsilon(1e-5));
  CHECK(bits({.bits = 3, .group = 128}) == doctest::Approx(3 + 19.0 / 128).epsilon(1e-5));
  CHECK(bits({.bits = 2, .five_levels = true, .zero_mode = ZeroMode::constant, .zero = 2}) ==
        doctest::Approx(7.0 / 3 + 16.0 / 12288).epsilon(1e-5));
}

TEST_CASE("golden bytes of every width") {
  // One panel of 8 x 96: code(r, k) = (5 r + 3 k + r k) mod levels, scale 2^-(r + 1), zero r mod
  // levels. The checksums come from golden/make_packed.py, an implementation of SPEC.md's text of
  // its own. A change of any of these numbers is a change of the format.
  const uint32_t golden[] = {0x285FE242u, 0xD62BFF8Au, 0xE844D946u, 0x85EB0D81u,
                             0xDD3ACB8Fu, 0x782F6770u, 0x0E8FCD4Fu, 0x81D1CFE6u};
  for (int i = 0; i < 8; ++i) {
    Packing p{.bits = uint8_t(i < 7 ? i + 2 : 2), .five_levels = i == 7, .group = 64};
    PackedBuilder b(8, 96, p);
    const auto levels = uint64_t(p.max_code() + 1);
    for (uint64_t r = 0; r < 8; ++r) {
      std::vector<uint8_t> codes(96);
      for (uint64_t k = 0; k < 96; ++k) codes[k] = uint8_t((5 * r + 3 * k + r * k) % levels);
      b.set_codes(r, codes);
      for (uint64_t g = 0; g < 2; ++g) {
        b.set_scale(r, g, to_f16(std::ldexp(1.0f, -int(r + 1))));
        b.set_zero(r, g, int(r % levels));
      }
    }
    CAPTURE(p.bits);
    CHECK(crc32c(b.bytes()) == golden[i]);
  }
}

TEST_CASE("what the format does not have is refused") {
  CHECK_THROWS_AS(PackedLayout::of(8, 32, {.bits = 1}), Error);
  CHECK_THROWS_AS(PackedLayout::of(8, 32, {.bits = 9}), Error);
  CHECK_THROWS_AS(PackedLayout::of(8, 32, {.bits = 3, .five_levels = true}), Error);
  CHECK_THROWS_AS(PackedLayout::of(8, 32, {.bits = 4, .group = 48}), Error);
  CHECK_THROWS_AS(PackedLayout::of(8, 32, {.bits = 4, .weak_columns = 33}), Error);
  CHECK_THROWS_AS(PackedLayout::of(0, 32, {}), Error);
  CHECK_THROWS_AS(PackedLayout::of(uint64_t(1) << 47, uint64_t(1) << 47, {}), Error);
  CHECK_THROWS_AS(PackedLayout::of(~uint64_t(0), 1, {}), Error);
  PackedBuilder b(8, 32, {.bits = 3, .weak_columns = 2});
  CHECK_THROWS_AS(b.set_codes(0, std::vector<uint8_t>(32, 8)), Error);
  CHECK_THROWS_AS(b.set_codes(0, std::vector<uint8_t>(31, 0)), Error);
  CHECK_THROWS_AS(b.set_zero(0, 0, 8), Error);
  CHECK_THROWS_AS(b.set_zero(0, 0, -1), Error);
  const std::vector<uint32_t> descending = {4, 3}, beyond = {3, 32}, few = {1};
  CHECK_THROWS_AS(b.set_weak_indices(descending), Error);
  CHECK_THROWS_AS(b.set_weak_indices(beyond), Error);
  CHECK_THROWS_AS(b.set_weak_indices(few), Error);
}

TEST_CASE("half floats convert both ways, bit for bit") {
  for (uint32_t i = 0; i <= 0xFFFF; ++i) {
    const float h = to_float(f16{uint16_t(i)});
    if (h == h) REQUIRE(to_f16(h).bits == i);
    const float b = to_float(bf16{uint16_t(i)});
    if (b == b) REQUIRE(to_bf16(b).bits == i);
  }
  CHECK(to_f16(65519.99f).bits == 0x7BFF);
  CHECK(to_f16(65520.0f).bits == 0x7C00);
  CHECK(to_f16(0x1p-25f).bits == 0);  // ties to even
  CHECK(to_f16(0x1.000002p-25f).bits == 1);
  CHECK(to_f16(0x1.ffffffp-15f).bits == 0x400);
  CHECK(to_float(to_f16(1.0f + 0x1p-11f)) == 1.0f);
  CHECK(to_float(to_f16(1.0f + 3 * 0x1p-11f)) == 1.0f + 0x1p-9f);
}

TEST_CASE("CRC-32C of the RFC 3720 vectors") {
  const auto crc = [](const std::vector<uint8_t>& v) {
    return crc32c(std::as_bytes(std::span(v)));
  };
  CHECK(crc(std::vector<uint8_t>(32, 0)) == 0x8A9136AAu);
  CHECK(crc(std::vector<uint8_t>(32, 0xFF)) == 0x62A8AB43u);
  std::vector<uint8_t> up(32);
  for (size_t i = 0; i < 32; ++i) up[i] = uint8_t(i);
  CHECK(crc(up) == 0x46DD794Eu);
  const auto all = std::as_bytes(std::span(up));
  CHECK(crc32c(all.subspan(13), crc32c(all.first(13))) == 0x46DD794Eu);
}
