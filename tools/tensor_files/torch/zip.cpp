#include "tools/tensor_files/torch/zip.h"

#include <algorithm>
#include <optional>

#include <fmt/format.h>

#include "format/bytes.h"
#include "tools/tensor_files/torch/crc32.h"
#include "tools/tensor_files/torch/printable.h"

namespace oq::torch {
namespace {

// Signatures and sizes are APPNOTE.TXT's, sections 4.3.7, 4.3.12, 4.3.14 to 4.3.16.
constexpr uint32_t kLocal = 0x04034B50, kCentral = 0x02014B50, kEnd = 0x06054B50;
constexpr uint32_t kEnd64 = 0x06064B50, kLocator64 = 0x07064B50;
constexpr uint64_t kLocalBytes = 30, kCentralBytes = 46, kEndBytes = 22;
constexpr uint64_t kEnd64Bytes = 56, kLocator64Bytes = 20;
constexpr uint32_t kMax16 = 0xFFFF, kMax32 = 0xFFFFFFFF;  ///< "see the zip64 field"
constexpr uint16_t kEncrypted = 1u << 0 | 1u << 6 | 1u << 13, kSizesFollow = 1u << 3;
constexpr uint16_t kZip64Field = 1;

/// Where the central directory is.
struct Directory {
  uint64_t entries, bytes, offset;
};

/// An entry of the central directory and where it lies in the file.
struct Listed {
  ZipEntry entry;
  uint16_t flags, method;
  uint64_t packed, unpacked, header, end;
};

std::string method_name(uint16_t method) {
  if (method == 8) return "deflate";
  if (method == 9) return "deflate64";
  if (method == 12) return "bzip2";
  if (method == 14) return "lzma";
  if (method == 93) return "zstd";
  return fmt::format("method {}", method);
}

/// The values that a header gives as 0xFFFFFFFF, from the zip64 field among its extra fields.
class Zip64Values {
 public:
  Zip64Values(std::span<const std::byte> extra, const std::string& where) : field_({}, where) {
    ByteReader in(extra, where);
    while (in.left() >= 4) {  // writers pad with less than a field's header
      const auto id = in.read<uint16_t>();
      const auto field = in.take(in.read<uint16_t>());
      if (id == kZip64Field) {
        field_ = ByteReader(field, where);
        return;
      }
    }
  }
  /// They follow one another in the order of the header, those alone that it lacks.
  uint64_t value(uint32_t in_header) {
    return in_header == kMax32 ? field_.read<uint64_t>() : in_header;
  }

 private:
  ByteReader field_;
};

class Parser {
 public:
  Parser(std::span<const std::byte> bytes, const std::string& where)
      : bytes_(bytes), where_(where) {}

  std::vector<Listed> parse() {
    const Directory d = find_directory();
    ByteReader in(bytes_.subspan(d.offset, d.bytes), where_ + ", central directory");
    if (d.entries > d.bytes / kCentralBytes) {
      throw damaged("lists more entries than fit into its directory");
    }
    std::vector<Listed> listed;
    listed.reserve(d.entries);
    for (uint64_t i = 0; i < d.entries; ++i) {
      listed.push_back(central_header(in));
      local_header(listed.back(), d.offset);
    }
    if (in.left() > 0) throw damaged("has a directory that is longer than its entries");
    return listed;
  }

 private:
  Error damaged(std::string what) const {
    return Error({.what = std::move(what),
                  .where = where_,
                  .hint = "the file is truncated or damaged: download it again"});
  }
  std::string place(std::string_view entry) const {
    return fmt::format("{}, entry '{}'", where_, printable(entry));
  }
  ByteReader reader(uint64_t offset) const { return {bytes_.subspan(offset), where_}; }

  /// The end record is the last thing in the file, but for its comment of up to 64 kB.
  uint64_t find_end() const {
    if (bytes_.size() >= kEndBytes) {
      const uint64_t last = bytes_.size() - kEndBytes;
      for (uint64_t comment = 0; comment <= std::min<uint64_t>(last, kMax16); ++comment) {
        ByteReader in = reader(last - comment);
        if (in.read<uint32_t>() != kEnd) continue;
        in.take(kEndBytes - 4 - 2);
        if (in.read<uint16_t>() == comment) return last - comment;
      }
    }
    throw damaged("is not a complete zip archive: it has no end record");
  }

  Directory find_directory() const {
    const uint64_t end = find_end();
    ByteReader in = reader(end + 4);
    const uint32_t disk = in.read<uint16_t>(), first_disk = in.read<uint16_t>();
    const uint32_t here = in.read<uint16_t>(), all = in.read<uint16_t>();
    const uint32_t bytes = in.read<uint32_t>(), offset = in.read<uint32_t>();
    Directory d = {all, bytes, offset};
    uint64_t limit = end;
    const bool zip64 =
        end >= kLocator64Bytes && reader(end - kLocator64Bytes).read<uint32_t>() == kLocator64;
    if (zip64) {
      d = find_directory64(end - kLocator64Bytes, limit);
      const auto agree = [](uint64_t narrow, uint64_t max, uint64_t wide) {
        return narrow == max || narrow == wide;
      };
      if (!agree(all, kMax16, d.entries) || !agree(bytes, kMax32, d.bytes) ||
          !agree(offset, kMax32, d.offset)) {
        throw damaged("has two end records that disagree");
      }
    } else if (disk != 0 || first_disk != 0 || here != all) {
      throw damaged("is one part of a zip archive in several");
    }
    if (d.offset > limit || d.bytes > limit - d.offset) {
      throw damaged("has a directory that lies outside the file");
    }
    return d;
  }

  /// `limit` becomes where the directory must end at the latest.
  Directory find_directory64(uint64_t locator, uint64_t& limit) const {
    ByteReader in = reader(locator + 4);
    const auto disk = in.read<uint32_t>();
    const auto at = in.read<uint64_t>();
    const auto disks = in.read<uint32_t>();
    if (disk != 0 || disks > 1) throw damaged("is one part of a zip archive in several");
    if (locator < kEnd64Bytes || at > locator - kEnd64Bytes) {
      throw damaged("has a zip64 end record that lies outside the file");
    }
    limit = at;
    ByteReader record = reader(at);
    if (record.read<uint32_t>() != kEnd64) throw damaged("has no zip64 end record");
    record.take(8 + 2 + 2);  // its size, versions
    const auto this_disk = record.read<uint32_t>(), first_disk = record.read<uint32_t>();
    const auto here = record.read<uint64_t>();
    Directory d;
    d.entries = record.read<uint64_t>();
    d.bytes = record.read<uint64_t>();
    d.offset = record.read<uint64_t>();
    if (this_disk != 0 || first_disk != 0 || here != d.entries) {
      throw damaged("is one part of a zip archive in several");
    }
    return d;
  }

  Listed central_header(ByteReader& in) const {
    if (in.read<uint32_t>() != kCentral) throw damaged("has a directory that is not one");
    Listed l = {};
    in.take(2 + 2);  // versions
    l.flags = in.read<uint16_t>();
    l.method = in.read<uint16_t>();
    in.take(2 + 2);  // time and date
    l.entry.crc = in.read<uint32_t>();
    const auto packed = in.read<uint32_t>(), unpacked = in.read<uint32_t>();
    const auto name_bytes = in.read<uint16_t>(), extra_bytes = in.read<uint16_t>();
    const auto comment_bytes = in.read<uint16_t>();
    in.take(2 + 2 + 4);  // disk, attributes
    const auto header = in.read<uint32_t>();
    const auto name = in.take(name_bytes);
    l.entry.name = {reinterpret_cast<const char*>(name.data()), name.size()};
    Zip64Values wide(in.take(extra_bytes), place(l.entry.name));
    l.unpacked = wide.value(unpacked);
    l.packed = wide.value(packed);
    l.header = wide.value(header);
    in.take(comment_bytes);
    check_entry(l);
    return l;
  }

  void check_entry(const Listed& l) const {
    const std::string_view name = l.entry.name;
    const auto refuse = [&](std::string what, std::string hint) {
      return Error({.what = std::move(what), .where = place(name), .hint = std::move(hint)});
    };
    // As a path it must not lead out of the folder that it would be unpacked to.
    const std::string path = fmt::format("/{}/", name);
    if (name.empty() || name[0] == '/' || path.find("/../") != std::string::npos ||
        name.find_first_of(std::string_view("\\\0", 2)) != std::string_view::npos) {
      throw refuse("has a name that no file of torch has", "do not trust this file");
    }
    if ((l.flags & kEncrypted) != 0) throw refuse("is encrypted", "save it again with torch.save");
    if (l.method != 0) {
      throw refuse(fmt::format("is compressed ({})", method_name(l.method)),
                   "torch does not compress: load the file with torch and save it again");
    }
    if (l.packed != l.unpacked) {
      throw refuse("is stored as it is, yet has two sizes",
                   "the file is truncated or damaged: download it again");
    }
  }

  /// Finds the data of an entry behind its local header, which must say what the directory says.
  void local_header(Listed& l, uint64_t directory) const {
    const auto disagree = [&] {
      return Error({.what = "has a local header that disagrees with the directory",
                    .where = place(l.entry.name),
                    .hint = "the file is truncated or damaged: download it again"});
    };
    if (l.header > directory || directory - l.header < kLocalBytes) throw disagree();
    ByteReader in(bytes_.subspan(l.header, directory - l.header), place(l.entry.name));
    if (in.read<uint32_t>() != kLocal) throw disagree();
    in.take(2);  // version
    const auto flags = in.read<uint16_t>(), method = in.read<uint16_t>();
    in.take(2 + 2);  // time and date
    const auto crc = in.read<uint32_t>(), packed = in.read<uint32_t>(),
               unpacked = in.read<uint32_t>();
    const auto name_bytes = in.read<uint16_t>(), extra_bytes = in.read<uint16_t>();
    const auto name = in.take(name_bytes);
    const auto extra = in.take(extra_bytes);
    if (method != l.method || ((flags ^ l.flags) & (kEncrypted | kSizesFollow)) != 0 ||
        std::string_view(reinterpret_cast<const char*>(name.data()), name.size()) != l.entry.name) {
      throw disagree();
    }
    if ((flags & kSizesFollow) == 0) {  // else they stand behind the data: torch writes so
      Zip64Values wide(extra, place(l.entry.name));
      if (wide.value(unpacked) != l.unpacked || wide.value(packed) != l.packed ||
          crc != l.entry.crc) {
        throw disagree();
      }
    }
    l.entry.data = in.take(l.unpacked);
    l.end = l.header + in.position();
  }

  std::span<const std::byte> bytes_;
  const std::string& where_;
};

}  // namespace

ZipArchive::ZipArchive(std::span<const std::byte> bytes, std::string where)
    : where_(std::move(where)) {
  std::vector<Listed> listed = Parser(bytes, where_).parse();
  const auto error = [&](const Listed& l, const char* what) {
    return Error({.what = what,
                  .where = fmt::format("{}, entry '{}'", where_, printable(l.entry.name)),
                  .hint = "do not trust this file"});
  };
  entries_.reserve(listed.size());
  for (const Listed& l : listed) {
    if (!index_.emplace(l.entry.name, entries_.size()).second) throw error(l, "occurs twice");
    entries_.push_back(l.entry);
  }
  std::sort(listed.begin(), listed.end(),
            [](const Listed& a, const Listed& b) { return a.header < b.header; });
  for (size_t i = 1; i < listed.size(); ++i) {
    if (listed[i].header < listed[i - 1].end) throw error(listed[i], "overlaps another");
  }
}

const ZipEntry* ZipArchive::find(std::string_view name) const {
  const auto it = index_.find(name);
  return it == index_.end() ? nullptr : &entries_[it->second];
}

void ZipArchive::check_crc(const ZipEntry& entry) const {
  const uint32_t found = crc32(entry.data);
  if (found == entry.crc) return;
  // torch.serialization.set_crc32_options(False) makes torch write zeros.
  const char* hint = entry.crc == 0
                         ? "the file is damaged, or was saved without checksums: save it with them"
                         : "the file is damaged: download it again";
  throw Error({.what = "has a wrong CRC-32",
               .where = fmt::format("{}, entry '{}'", where_, printable(entry.name)),
               .expected = fmt::format("{:08x}", entry.crc),
               .found = fmt::format("{:08x}", found),
               .hint = hint});
}

}  // namespace oq::torch
