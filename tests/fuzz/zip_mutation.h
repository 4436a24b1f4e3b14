#pragma once

#include <cstring>

#include "tests/fuzz/support.h"
#include "tools/tensor_files/torch/crc32.h"
#include "tools/tensor_files/torch/zip.h"

namespace oq::fuzz {

/// Where a header of the directory begins whose name lies at `name`: its CRC is 16 bytes in.
constexpr ptrdiff_t kNameInHeader = 46, kCrcInHeader = 16;

inline void repair_checksums(uint8_t* data, size_t size) {
  allow_errors([&] {
    const torch::ZipArchive zip(bytes_of(data, size), "fuzz.bin");
    for (const torch::ZipEntry& e : zip.entries()) {
      const uint32_t crc = torch::crc32(e.data);
      const ptrdiff_t header = e.name.data() - reinterpret_cast<const char*>(data) - kNameInHeader;
      std::memcpy(data + header + kCrcInHeader, &crc, sizeof crc);
    }
  });
}

/// A mutation of a zip archive. No mutation would hit a CRC-32, so most are followed by making
/// them right again.
inline size_t mutate_zip(uint8_t* data, size_t size, size_t max_size, unsigned seed) {
  size = LLVMFuzzerMutate(data, size, seed % 4 == 0 ? max_size : size);
  if (seed % 16 != 1) repair_checksums(data, size);
  return size;
}

}  // namespace oq::fuzz
