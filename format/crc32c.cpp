#include "format/crc32c.h"

#include <array>
#include <cstring>

#if defined(__x86_64__)
#include <nmmintrin.h>
#endif

namespace oq {
namespace {

constexpr uint32_t kPolynomial = 0x82F63B78u;

constexpr std::array<uint32_t, 256> make_table() {
  std::array<uint32_t, 256> table{};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t c = i;
    for (int k = 0; k < 8; ++k) c = (c >> 1) ^ ((c & 1) ? kPolynomial : 0);
    table[i] = c;
  }
  return table;
}
constexpr auto kTable = make_table();

uint32_t crc_table(std::span<const std::byte> data, uint32_t c) {
  for (std::byte b : data) c = (c >> 8) ^ kTable[(c ^ uint32_t(b)) & 0xFF];
  return c;
}

#if defined(__x86_64__)
__attribute__((target("sse4.2"))) uint32_t crc_sse42(std::span<const std::byte> data, uint32_t c) {
  const std::byte* p = data.data();
  size_t n = data.size();
  uint64_t wide = c;
  for (; n >= 8; p += 8, n -= 8) {
    uint64_t word;
    std::memcpy(&word, p, 8);
    wide = _mm_crc32_u64(wide, word);
  }
  c = uint32_t(wide);
  for (; n > 0; ++p, --n) c = _mm_crc32_u8(c, uint8_t(*p));
  return c;
}
#endif

}  // namespace

uint32_t crc32c(std::span<const std::byte> data, uint32_t seed) {
#if defined(__x86_64__)
  static const bool fast = __builtin_cpu_supports("sse4.2") != 0;
  if (fast) return ~crc_sse42(data, ~seed);
#endif
  return ~crc_table(data, ~seed);
}

}  // namespace oq
