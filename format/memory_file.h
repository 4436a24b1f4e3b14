#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "format/file.h"
#include "format/memory.h"

namespace oq {

/// A .oq file in anonymous memory, for weights that are computed instead of read: byte for byte
/// what a Writer would have put on disk, filled in place, and opened through the same checks.
class MemoryFile {
 public:
  /// Lays `tensors` out in their order (name, kind, shape and packing count; places and checksums
  /// are set here) and maps zeroed memory for the whole of it. `name` stands where a path would, in
  /// messages. Throws oq::Error when the memory that is available is not enough, before any of it
  /// is taken.
  MemoryFile(std::string name, Metadata metadata, std::vector<TensorInfo> tensors,
             Pages pages = Pages::ordinary);
  ~MemoryFile();
  MemoryFile(const MemoryFile&) = delete;
  MemoryFile& operator=(const MemoryFile&) = delete;

  uint64_t bytes() const { return map_.size(); }
  std::span<const TensorInfo> tensors() const { return tensors_; }

  /// The bytes of one tensor, to be filled.
  std::span<std::byte> data(size_t tensor) {
    return map_.subspan(tensors_[tensor].offset, tensors_[tensor].bytes);
  }

  /// Takes the pages of bytes [begin, end) now, which is faster than one fault for each of them.
  /// From any number of threads.
  void populate(uint64_t begin, uint64_t end);

  /// A tensor has its last byte: takes its checksum. Different tensors from different threads.
  void seal(size_t tensor);

  /// The file, read-only from now on; it takes the memory with it. Once, after every tensor is
  /// sealed.
  std::shared_ptr<const File> finish();

 private:
  std::string name_;
  Metadata metadata_;
  std::vector<TensorInfo> tensors_;
  Pages pages_;
  uint64_t data_end_ = 0;
  std::span<std::byte> map_;
};

}  // namespace oq
