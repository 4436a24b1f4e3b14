#pragma once

#include <cstddef>
#include <filesystem>
#include <span>

namespace oq {

/// A whole file, mapped read-only. Throws oq::Error when it cannot be.
class MappedFile {
 public:
  explicit MappedFile(std::filesystem::path path);
  ~MappedFile();
  MappedFile(const MappedFile&) = delete;
  MappedFile& operator=(const MappedFile&) = delete;

  const std::filesystem::path& path() const { return path_; }
  std::span<const std::byte> bytes() const { return bytes_; }

  /// Takes the pages that lie wholly inside `part` of a mapping out of this process's memory:
  /// they were read for the last time. Reading them again is slow, not wrong.
  static void release(std::span<const std::byte> part);

 private:
  std::filesystem::path path_;
  std::span<const std::byte> bytes_;
};

}  // namespace oq
