#pragma once

#include <cstdint>

#include "format/file.h"

/// The bytes of a .oq file that are plain structs; SPEC.md is the text to them. Private to
/// format/: everyone else sees File and Writer.
namespace oq::disk {

constexpr uint8_t kMagic[8] = {0x89, 'O', 'Q', 0x0D, 0x0A, 0x1A, 0x0A, 0x00};
constexpr uint64_t kDataAlign = 4096;
constexpr uint64_t kTensorAlign = 256;

struct Header {
  uint8_t magic[8];
  uint16_t version_major;
  uint16_t version_minor;
  uint32_t tensor_count;
  uint64_t file_bytes;
  uint32_t metadata_offset;  ///< one of the region's two halves
  uint32_t metadata_bytes;
  uint32_t metadata_capacity;  ///< of one half; the region starts right after the header
  uint32_t metadata_crc;
  uint64_t directory_offset;
  uint32_t directory_crc;
  uint32_t reserved[2];  ///< 0
  uint32_t header_crc;   ///< of the 60 bytes before it
};
static_assert(sizeof(Header) == 64);

struct Entry {
  char name[56];  ///< NUL-padded, at least one NUL
  uint64_t rows;
  uint64_t cols;
  uint64_t offset;
  uint64_t bytes;
  uint32_t crc;
  uint32_t group;
  uint32_t weak_columns;
  int16_t zero;
  uint8_t kind;
  uint8_t bits;
  uint8_t five_levels;
  uint8_t zero_mode;
  uint8_t weak_bf16;
  uint8_t reserved[17];  ///< 0
};
static_assert(sizeof(Entry) == 128);

}  // namespace oq::disk
