#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace oq::torch {

/// CRC-32 as zip has it (ISO 3309, reflected, polynomial 0x04C11DB7). `.oq` files have another:
/// format/crc32c.h.
uint32_t crc32(std::span<const std::byte> data);

}  // namespace oq::torch
