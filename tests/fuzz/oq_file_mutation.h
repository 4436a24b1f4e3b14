#pragma once

// Header, metadata and directory of a .oq file are under checksums that no mutation would ever
// hit, so most mutations are followed by making the checksums right again.

#include <cstring>

#include "format/crc32c.h"
#include "format/file.h"
#include "format/file_layout.h"
#include "tests/fuzz/support.h"

namespace oq::fuzz {

/// The part [offset, offset + bytes) of the input where it has one.
inline std::span<std::byte> part(std::span<std::byte> all, uint64_t offset, uint64_t bytes) {
  if (offset > all.size() || bytes > all.size() - offset) return {};
  return all.subspan(size_t(offset), size_t(bytes));
}

/// Makes what a mutation broke right again, from the inside out: tensors' checksums, the
/// directory's, the metadata's, the header's.
inline void repair(std::span<std::byte> all) {
  if (all.size() < sizeof(disk::Header)) return;
  disk::Header h;
  std::memcpy(&h, all.data(), sizeof(h));
  std::memcpy(h.magic, disk::kMagic, sizeof(h.magic));
  h.version_major = kVersionMajor;
  h.file_bytes = all.size();
  const auto directory =
      part(all, h.directory_offset, uint64_t(h.tensor_count) * sizeof(disk::Entry));
  for (size_t at = 0; at < directory.size(); at += sizeof(disk::Entry)) {
    disk::Entry e;
    std::memcpy(&e, directory.data() + at, sizeof(e));
    e.crc = crc32c(part(all, e.offset, e.bytes));
    std::memcpy(directory.data() + at, &e, sizeof(e));
  }
  h.directory_crc = crc32c(directory);
  h.metadata_crc = crc32c(part(all, h.metadata_offset, h.metadata_bytes));
  h.header_crc = crc32c(std::as_bytes(std::span(&h, 1)).first(sizeof(h) - 4));
  std::memcpy(all.data(), &h, sizeof(h));
}

/// One of the file's parts, where something is: a file is mostly padding.
inline std::span<std::byte> choose_part(std::span<std::byte> all, unsigned seed) {
  if (all.size() < sizeof(disk::Header)) return all;
  disk::Header h;
  std::memcpy(&h, all.data(), sizeof(h));
  const auto directory =
      part(all, h.directory_offset, uint64_t(h.tensor_count) * sizeof(disk::Entry));
  switch (seed % 4) {
    case 0:
      return all.first(sizeof(h));
    case 1:
      return part(all, h.metadata_offset, h.metadata_bytes);
    case 2:
      return directory;
    default:
      break;
  }
  if (directory.empty()) return all;
  disk::Entry e;
  const size_t index = seed / 4 % (directory.size() / sizeof(e));
  std::memcpy(&e, directory.data() + index * sizeof(e), sizeof(e));
  return part(all, e.offset, e.bytes);
}

/// A mutation of a .oq file that its checksums do not give away.
inline size_t mutate_oq_file(uint8_t* data, size_t size, size_t max_size, unsigned seed) {
  const auto chosen = choose_part({reinterpret_cast<std::byte*>(data), size}, seed / 16);
  if (seed % 16 == 0 || chosen.empty()) {
    size = LLVMFuzzerMutate(data, size, max_size);
  } else {  // in place: everything else stays where it is
    LLVMFuzzerMutate(reinterpret_cast<uint8_t*>(chosen.data()), chosen.size(), chosen.size());
  }
  if (seed % 16 != 1) repair({reinterpret_cast<std::byte*>(data), size});
  return size;
}

}  // namespace oq::fuzz
