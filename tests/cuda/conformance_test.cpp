/// Every instruction that the kernels use against what its documentation says, bit for bit. Passing
/// on the emulator shows that it was read; only passing on a GPU shows that it was read rightly.

#include "tests/cuda/conformance.h"

#include <bit>
#include <functional>
#include <random>
#include <vector>

#include <doctest/doctest.h>

#include "format/half.h"
#include "tests/cuda/on_device.h"

using namespace oq;
using namespace oq::test;

namespace {

std::vector<uint32_t> run(Instruction what, const std::vector<uint32_t>& in, size_t out_words) {
  cuda::Stream stream;
  const cuda::Memory from = cuda::uploaded(stream, std::span<const uint32_t>(in));
  const cuda::Memory to(out_words * 4);
  cuda::clear(stream, to.data(), to.bytes());
  run_conformance(stream, what, {from.as<uint32_t>(), to.as<uint32_t>()});
  std::vector<uint32_t> out(out_words);
  cuda::download(stream, out.data(), to.data(), to.bytes());
  return out;
}

/// PTX ISA, "Matrix fragments": the row and column of element `e` of lane `lane`'s register `r`,
/// with kPer elements to a register.
struct Cell {
  int row, col;
};
Cell a_cell(int lane, int r, int e, int per) {
  return {lane / 4 + (r % 2 == 1 ? 8 : 0), lane % 4 * per + e + (r >= 2 ? 4 * per : 0)};
}
Cell b_cell(int lane, int r, int e, int per) {
  return {lane % 4 * per + e + (r == 1 ? 4 * per : 0), lane / 4};
}
Cell c_cell(int lane, int r) { return {lane / 4 + (r >= 2 ? 8 : 0), lane % 4 * 2 + r % 2}; }

/// A product of 16 x depth and depth x 8 plus c, all exact, and the registers that hold it.
template <class T>
struct Product {
  int depth;
  std::vector<T> a, b, c;

  T truth(Cell at) const {
    T sum = c[size_t(at.row * 8 + at.col)];
    for (int k = 0; k < depth; ++k) {
      sum += a[size_t(at.row * depth + k)] * b[size_t(k * 8 + at.col)];
    }
    return sum;
  }
  std::vector<uint32_t> registers(int per, const std::function<uint32_t(T)>& bits) const {
    std::vector<uint32_t> in(320, 0);
    const int width = 32 / per;
    for (int lane = 0; lane < 32; ++lane) {
      uint32_t* words = in.data() + lane * 10;
      for (int r = 0; r < 4; ++r) {
        const Cell at = c_cell(lane, r);
        words[r] = std::bit_cast<uint32_t>(c[size_t(at.row * 8 + at.col)]);
        for (int e = 0; e < per; ++e) {
          const Cell x = a_cell(lane, r, e, per);
          words[4 + r] |= bits(a[size_t(x.row * depth + x.col)]) << (width * e);
          if (r >= 2) continue;
          const Cell y = b_cell(lane, r, e, per);
          words[8 + r] |= bits(b[size_t(y.row * 8 + y.col)]) << (width * e);
        }
      }
    }
    return in;
  }
};

void check_f16(const std::function<float()>& a, const std::function<float()>& b,
               const std::function<float()>& c) {
  Product<float> p{16, {}, {}, {}};
  for (int i = 0; i < 256; ++i) p.a.push_back(a());
  for (int i = 0; i < 128; ++i) p.b.push_back(b());
  for (int i = 0; i < 128; ++i) p.c.push_back(c());
  const auto out = run(Instruction::mma_f16,
                       p.registers(2, [](float x) { return uint32_t(to_f16(x).bits); }), 128);
  for (int lane = 0; lane < 32; ++lane) {
    for (int r = 0; r < 4; ++r) {
      REQUIRE(std::bit_cast<float>(out[size_t(lane * 4 + r)]) == p.truth(c_cell(lane, r)));
    }
  }
}

}  // namespace

TEST_CASE("mma of f16 and u8: fragments as documented, sums exact where floats can hold them") {
  std::mt19937 rng(3);
  const auto between = [&](int low, int high) {
    return int(rng() % uint32_t(high - low + 1)) + low;
  };
  for (int round = 0; round < 10; ++round) {
    check_f16([&] { return float(between(-60, 60)); }, [&] { return float(between(-60, 60)); },
              [&] { return float(between(-999, 999)); });
    Product<int32_t> p{32, {}, {}, {}};
    for (int i = 0; i < 512; ++i) p.a.push_back(between(0, 255));
    for (int i = 0; i < 256; ++i) p.b.push_back(between(0, 255));
    for (int i = 0; i < 128; ++i) p.c.push_back(between(-99999, 99999));
    const auto out = run(Instruction::mma_u8,
                         p.registers(4, [](int32_t x) { return uint32_t(x) & 0xFFu; }), 128);
    for (int lane = 0; lane < 32; ++lane) {
      for (int r = 0; r < 4; ++r) {
        REQUIRE(int32_t(out[size_t(lane * 4 + r)]) == p.truth(c_cell(lane, r)));
      }
    }
  }
}

TEST_CASE("mma of bits counts those that are 1 in both") {
  if (!runs_planes()) return;
  std::mt19937 rng(6);
  for (int round = 0; round < 10; ++round) {
    std::vector<uint32_t> in(32 * 7);
    for (uint32_t& x : in) x = round == 0 ? ~0u : uint32_t(rng());
    for (int i = 0; i < 32 * 4; ++i) in[size_t(i / 4 * 7 + i % 4)] %= 100000;
    const auto out = run(Instruction::mma_and_popc, in, 128);
    const auto bit = [&](int lane, int reg, int i) {
      return int32_t(in[size_t(lane * 7 + 4 + reg)] >> i & 1u);
    };
    for (int lane = 0; lane < 32; ++lane) {
      for (int r = 0; r < 4; ++r) {
        const Cell at = c_cell(lane, r);
        auto sum = int32_t(in[size_t(lane * 7 + r)]);
        for (int k = 0; k < 128; ++k) {
          sum += bit(at.row % 8 * 4 + k / 32, at.row / 8, k % 32) *
                 bit(at.col * 4 + k / 32, 2, k % 32);
        }
        REQUIRE(int32_t(out[size_t(lane * 4 + r)]) == sum);
      }
    }
  }
}

TEST_CASE("mma takes subnormal f16 numbers for what they are") {
  // What packed_linear.h stands on: a code in the low bits of a half is code x 2^-24.
  std::mt19937 rng(4);
  for (int round = 0; round < 10; ++round) {
    check_f16([&] { return float(rng() % 1024) * 0x1p-24f; },
              [&] { return float(int(rng() % 127) - 63) * 0x1p6f; }, [] { return 0.0f; });
  }
}

TEST_CASE("shuffles and votes move bits, halves convert to nearest even, atomics lose nothing") {
  std::mt19937 rng(5);
  std::vector<uint32_t> in(65536);
  for (uint32_t& x : in) x = rng() % 0x7F000000u;  // finite and positive
  const auto warp = run(Instruction::warp, in, 128);
  uint32_t votes = 0;
  for (uint32_t i = 0; i < 32; ++i) votes |= uint32_t(in[i] % 3 == 0) << i;
  for (uint32_t i = 0; i < 32; ++i) {
    CHECK(warp[i] == in[i ^ 5]);
    CHECK(warp[32 + i] == in[(i * 3 + 1) % 32]);
    CHECK(warp[64 + i] == votes);
    CHECK(warp[96 + i] == in[i ^ 9]);
  }
  for (size_t i = 0; i < in.size(); ++i) {  // where halves live, and beyond
    in[i] = std::bit_cast<uint32_t>(std::bit_cast<float>(0x30000000u + in[i] % 0x18000000u));
  }
  const auto halves = run(Instruction::halves, in, 131072);
  for (uint32_t i = 0; i < 65536; ++i) {
    const float value = to_float(f16{uint16_t(i)});
    const float got = std::bit_cast<float>(halves[i]);
    REQUIRE((value == got || (value != value && got != got)));
    REQUIRE(halves[65536 + i] == to_f16(std::bit_cast<float>(in[i])).bits);
  }
  uint32_t sum = 0;
  for (size_t i = 0; i < 96; ++i) sum += 7 * in[i];
  CHECK(run(Instruction::atomics, in, 1)[0] == sum);
}

TEST_CASE("asynchronous copies land group by group") {
  std::vector<uint32_t> in(512);
  for (uint32_t i = 0; i < 512; ++i) in[i] = i * 77 + 1;
  const auto out = run(Instruction::copy, in, 512);
  for (uint32_t t = 0; t < 64; ++t) {
    for (uint32_t i = 0; i < 4; ++i) {
      CHECK(out[4 * t + i] == in[4 * (63 - t) + i]);
      CHECK(out[4 * (64 + t) + i] == in[4 * (127 - t) + i]);
    }
  }
}

TEST_CASE("loads past the first-level cache bring what lies in memory") {
  std::vector<uint32_t> in(256);
  for (uint32_t i = 0; i < 256; ++i) in[i] = 0x3F800000u + i * 77;
  const auto out = run(Instruction::loads, in, 448);
  for (uint32_t i = 0; i < 256; ++i) CHECK(out[i] == in[i]);
  for (uint32_t i = 0; i < 128; ++i) CHECK(out[256 + i] == in[i]);
  for (uint32_t t = 0; t < 64; ++t) CHECK(out[384 + t] == in[4 * t]);
}
