#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace oq::torch {

struct ZipEntry {
  std::string_view name;
  std::span<const std::byte> data;
  uint32_t crc = 0;  ///< CRC-32 that `data` should have
};

/// A zip archive in memory whose entries are stored, not compressed, as torch.save writes it.
/// All views point into `bytes`, which must outlive the archive.
///
/// Holds the archive to APPNOTE 6.3: one disk; zip64 where it is there; the central directory
/// agrees with every local header; entries lie inside the file and do not overlap; names are
/// unique and stay inside the folder they would be unpacked to. Compressed and encrypted entries
/// are refused by name. Throws oq::Error naming `where` and the entry.
class ZipArchive {
 public:
  ZipArchive(std::span<const std::byte> bytes, std::string where);

  /// As the directory lists them.
  std::span<const ZipEntry> entries() const { return entries_; }
  const ZipEntry* find(std::string_view name) const;
  /// Throws where the entry's bytes do not have its CRC. Costs reading them.
  void check_crc(const ZipEntry& entry) const;

 private:
  std::string where_;
  std::vector<ZipEntry> entries_;
  std::map<std::string_view, size_t> index_;
};

}  // namespace oq::torch
