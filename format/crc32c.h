#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace oq {

/// CRC-32C (Castagnoli, reflected, RFC 3720 appendix B.4). `seed` continues an earlier result:
/// crc32c(b, crc32c(a)) == crc32c(a followed by b).
uint32_t crc32c(std::span<const std::byte> data, uint32_t seed = 0);

}  // namespace oq
