#include "tools/tensor_files/torch/crc32.h"

#include <array>
#include <cstring>

#include "format/bytes.h"

namespace oq::torch {
namespace {

constexpr uint32_t kPolynomial = 0xEDB88320u;
constexpr size_t kSlices = 16;

/// Row k takes a byte across k more bytes of zeros, so that 16 bytes are 16 independent look-ups
/// instead of a chain of 16 (M. Kounavis and F. Berry, "A Systematic Approach to Building High
/// Performance Software-based CRC Generators", 2005).
constexpr auto make_tables() {
  std::array<std::array<uint32_t, 256>, kSlices> tables{};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t c = i;
    for (int bit = 0; bit < 8; ++bit) c = (c >> 1) ^ ((c & 1) ? kPolynomial : 0);
    tables[0][i] = c;
  }
  for (size_t k = 1; k < kSlices; ++k) {
    for (size_t i = 0; i < 256; ++i) {
      const uint32_t c = tables[k - 1][i];
      tables[k][i] = (c >> 8) ^ tables[0][c & 0xFF];
    }
  }
  return tables;
}
constexpr auto kTables = make_tables();

/// What the eight bytes of `word` contribute when `after` more bytes follow them in the step.
uint32_t slices(uint64_t word, size_t after) {
  uint32_t c = 0;
  for (size_t i = 0; i < 8; ++i) c ^= kTables[after + 7 - i][word >> (8 * i) & 0xFF];
  return c;
}

}  // namespace

uint32_t crc32(std::span<const std::byte> data) {
  uint32_t c = ~0u;
  const std::byte* p = data.data();
  size_t n = data.size();
  for (; n >= kSlices; p += kSlices, n -= kSlices) {
    uint64_t low, high;
    std::memcpy(&low, p, 8);
    std::memcpy(&high, p + 8, 8);
    c = slices(low ^ c, 8) ^ slices(high, 0);
  }
  for (; n > 0; ++p, --n) c = (c >> 8) ^ kTables[0][(c ^ uint32_t(*p)) & 0xFF];
  return ~c;
}

}  // namespace oq::torch
