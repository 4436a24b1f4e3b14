#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <type_traits>
#include <vector>

#include "format/file.h"

/// The bytes of a .oq file that are plain structs, without padding: every byte belongs to a field.
/// SPEC.md is the text to them. Private to format/: everyone else sees File and Writer.
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
static_assert(sizeof(Header) == 64 && std::has_unique_object_representations_v<Header>);

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
  uint8_t reserved[21];  ///< 0
};
static_assert(sizeof(Entry) == 128 && std::has_unique_object_representations_v<Entry>);

/// A tensor's entry: what its kind does not have is 0. PRECOND: `place` took the name.
Entry entry_of(const TensorInfo& info);

/// Where the directory starts behind a metadata region with two halves of `metadata_room` bytes.
uint64_t directory_offset(uint64_t metadata_room);
/// Where the first tensor may start.
uint64_t data_offset(uint64_t metadata_room, size_t max_tensors);

/// Gives a tensor its offset, the first that is free from `position` on, and its size; returns the
/// position behind it. Throws oq::Error on a name that cannot be stored and on an unusable size.
uint64_t place(TensorInfo& info, uint64_t position, const std::string& file);

/// Everything before the tensors, ready to be written.
struct Front {
  Header header;
  std::vector<std::byte> metadata;  ///< at header.metadata_offset
  std::vector<Entry> directory;     ///< at header.directory_offset
};

/// PRECOND: `tensors` are placed and have their CRCs; the last ends at `data_end`. Throws oq::Error
/// when the metadata is larger than its room.
Front make_front(const Metadata& metadata, uint64_t metadata_room,
                 std::span<const TensorInfo> tensors, uint64_t data_end, const std::string& file);

/// Sets the header's own checksum.
void seal(Header& header);

Error metadata_too_large(const std::string& file, size_t bytes, uint64_t room);

}  // namespace oq::disk
