#include <algorithm>
#include <array>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <functional>

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "format/bytes.h"
#include "format/crc32c.h"
#include "format/file_layout.h"

namespace oq {
namespace {

constexpr const char* kNotZero = "bytes that hold nothing are not zero";
constexpr const char* kDamaged = "the file is damaged: convert or copy it again";

struct Descriptor {
  int fd;
  ~Descriptor() { close(fd); }
};

uint32_t crc_of(const void* p, size_t n) { return crc32c({static_cast<const std::byte*>(p), n}); }

Packing packing_of(const disk::Entry& e) {
  return {.bits = e.bits,
          .five_levels = e.five_levels != 0,
          .zero_mode = ZeroMode(e.zero_mode),
          .zero = e.zero,
          .group = e.group,
          .weak_columns = e.weak_columns,
          .weak_bf16 = e.weak_bf16 != 0};
}

Error bad_entry(std::string expected, std::string found) {
  return Error({.what = "directory entry is not one of this format",
                .expected = std::move(expected),
                .found = std::move(found),
                .hint = "use a newer OQ, or convert the checkpoint again"});
}

/// The tensor of an entry. Refuses every entry that a writer would not have made of that tensor,
/// so that each byte of it means something; size, place and packing are left to check.
TensorInfo info_of(const disk::Entry& e) {
  if (e.kind < uint8_t(Kind::f32) || e.kind > uint8_t(Kind::packed)) {
    throw bad_entry(fmt::format("a kind of 1..{}", uint8_t(Kind::packed)), std::to_string(e.kind));
  }
  TensorInfo info{.name = std::string(e.name, strnlen(e.name, sizeof(e.name) - 1)),
                  .kind = Kind(e.kind),
                  .rows = e.rows,
                  .cols = e.cols,
                  .packing = packing_of(e),
                  .offset = e.offset,
                  .bytes = e.bytes,
                  .crc = e.crc};
  if (info.name.empty()) throw bad_entry("a name", "none");
  const disk::Entry again = disk::entry_of(info);
  if (std::memcmp(&again, &e, sizeof(e)) != 0) {
    const auto wanted = std::as_bytes(std::span(&again, 1)), is = std::as_bytes(std::span(&e, 1));
    const auto [a, b] = std::mismatch(wanted.begin(), wanted.end(), is.begin());
    throw bad_entry(fmt::format("{} at byte {}", uint8_t(*a), a - wanted.begin()),
                    std::to_string(uint8_t(*b)));
  }
  return info;
}

/// The first byte between the parts that is not 0, if any. The parts ascend in one piece of memory.
const std::byte* stray_byte(std::span<const std::span<const std::byte>> parts) {
  for (size_t i = 1; i < parts.size(); ++i) {
    const std::byte *begin = parts[i - 1].data() + parts[i - 1].size(), *end = parts[i].data();
    const auto* stray = std::find_if(begin, end, [](std::byte b) { return b != std::byte(0); });
    if (stray != end) return stray;
  }
  return nullptr;
}

/// The sections of a packed tensor, in their order, and its end.
std::array<std::span<const std::byte>, 6> sections(const PackedLayout& l,
                                                   std::span<const std::byte> data) {
  const uint64_t groups = l.panels * l.groups;
  return {data.first(l.panels * l.panel_bytes),
          data.subspan(l.scales_offset, groups * kPanelRows * sizeof(f16)),
          data.subspan(l.zeros_offset, groups * l.zero_bytes),
          data.subspan(l.weak_index_offset, l.packing.weak_columns * sizeof(uint32_t)),
          data.subspan(l.weak_offset),
          data.last(0)};
}

}  // namespace

std::string_view to_string(Kind kind) {
  switch (kind) {
    case Kind::f32:
      return "f32";
    case Kind::f16:
      return "f16";
    case Kind::bf16:
      return "bf16";
    case Kind::bytes:
      return "bytes";
    case Kind::packed:
      return "packed";
  }
  return "unknown";
}

uint64_t TensorInfo::expected_bytes() const {
  const std::string where = "tensor '" + name + "'";
  if (kind == Kind::packed) {
    return with_place(where, [&] { return PackedLayout::of(rows, cols, packing).bytes; });
  }
  const uint64_t size = kind == Kind::f32 ? 4 : kind == Kind::bytes ? 1 : 2;
  uint64_t n = 0;
  if (rows == 0 || cols == 0 || !checked_mul(rows, cols, n) || !checked_mul(n, size, n)) {
    throw Error({.what = "tensor has no usable size",
                 .where = where,
                 .found = fmt::format("[{}, {}]", rows, cols),
                 .hint = kDamaged});
  }
  return n;
}

std::shared_ptr<const File> File::open(const std::filesystem::path& path, Pages pages) {
  return open(path, pages, {});
}

std::shared_ptr<const File> File::open(const std::filesystem::path& path, Pages pages,
                                       const std::function<void(File&)>& change) {
  std::shared_ptr<File> file(new File);
  file->path_ = path;
  with_place(path.string(), [&] {
    file->map(pages, bool(change));
    file->read_header();
  });
  if (change) change(*file);
  // A stray write crashes from now on, whether the bytes are copied or were changed.
  mprotect(const_cast<std::byte*>(file->map_.data()), file->map_.size(), PROT_READ);
  return file;
}

File::~File() {
  if (!map_.empty()) munmap(const_cast<std::byte*>(map_.data()), map_.size());
}

Error File::error(Error::Parts parts) const {
  parts.where = parts.where.empty() ? path_.string() : path_.string() + ", " + parts.where;
  return Error(std::move(parts));
}

void File::copy(int fd, size_t size) {
  const std::span<std::byte> memory = map_memory(path_.string(), size, Pages::huge);
  map_ = memory;  // freed with the file, whatever follows
  for (size_t done = 0; done < size;) {
    const ssize_t n = pread(fd, memory.data() + done, size - done, off_t(done));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) {
      throw error({.what = std::string("cannot be read: ") +
                           (n < 0 ? std::strerror(errno) : "it became shorter"),
                   .hint = "try again"});
    }
    done += size_t(n);
  }
}

void File::map(Pages pages, bool is_private) {
  const int fd = ::open(path_.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);  // a pipe: no wait
  if (fd < 0) {
    throw error({.what = std::string("cannot be opened: ") + std::strerror(errno),
                 .hint = "check the path and its permissions"});
  }
  const Descriptor closed_at_the_end{fd};
  struct stat st {};
  if (fstat(fd, &st) != 0 || !S_ISREG(st.st_mode) || st.st_size < int64_t(sizeof(disk::Header))) {
    throw error({.what = "is not a .oq file: shorter than its header, or no regular file",
                 .hint = "make one with oq-convert"});
  }
  const auto size = size_t(st.st_size);
  pages_ = pages;
  if (pages == Pages::huge) return copy(fd, size);
  void* p = mmap(nullptr, size, PROT_READ, is_private ? MAP_PRIVATE : MAP_SHARED, fd, 0);
  if (p == MAP_FAILED) {
    throw error({.what = std::string("cannot be mapped: ") + std::strerror(errno)});
  }
  map_ = {static_cast<const std::byte*>(p), size};
}

/// Only whole pages can be made writable. The system counts those, and no others, as memory that
/// this process may come to need: a model larger than memory stays mapped.
std::span<std::byte> File::writable(uint64_t offset, uint64_t bytes) {
  const auto page = uint64_t(sysconf(_SC_PAGESIZE));
  auto* all = const_cast<std::byte*>(map_.data());
  const uint64_t first = offset / page * page;
  if (mprotect(all + first, size_t(offset + bytes - first), PROT_READ | PROT_WRITE) != 0) {
    throw error({.what = std::string("cannot be changed in memory: ") + std::strerror(errno),
                 .hint = "free some memory"});
  }
  return {all + offset, size_t(bytes)};
}

void File::read_header() {
  disk::Header h;
  std::memcpy(&h, map_.data(), sizeof(h));
  if (std::memcmp(h.magic, disk::kMagic, sizeof(h.magic)) != 0) {
    throw error(
        {.what = "is not a .oq file: wrong magic bytes", .hint = "make one with oq-convert"});
  }
  if (h.version_major != kVersionMajor) {
    throw error({.what = "was written by another version of OQ",
                 .expected = fmt::format("format {}.x", kVersionMajor),
                 .found = fmt::format("format {}.{}", h.version_major, h.version_minor),
                 .hint = h.version_major > kVersionMajor ? "use a newer OQ"
                                                         : "convert the checkpoint again"});
  }
  if (crc_of(&h, sizeof(h) - 4) != h.header_crc) {
    throw error({.what = "header's checksum is wrong", .hint = kDamaged});
  }
  if (h.file_bytes != map_.size()) {
    throw error({.what = "file has the wrong size",
                 .expected = std::to_string(h.file_bytes),
                 .found = std::to_string(map_.size()),
                 .hint = "it was truncated or changed: convert or copy it again"});
  }
  uint64_t end = 0;
  const uint64_t region_end = sizeof(h) + 2 * uint64_t(h.metadata_capacity);
  const bool in_half = h.metadata_offset == sizeof(h) ||
                       h.metadata_offset == sizeof(h) + uint64_t(h.metadata_capacity);
  if (!in_half || h.metadata_bytes > h.metadata_capacity || region_end > h.directory_offset ||
      !checked_add(h.directory_offset, uint64_t(h.tensor_count) * sizeof(disk::Entry), end) ||
      end > map_.size() || h.reserved[0] != 0 || h.reserved[1] != 0) {
    throw error({.what = "header's values do not fit the file", .hint = kDamaged});
  }
  metadata_bytes_ = map_.subspan(h.metadata_offset, h.metadata_bytes);
  directory_bytes_ = map_.subspan(h.directory_offset, end - h.directory_offset);
  if (crc32c(metadata_bytes_) != h.metadata_crc || crc32c(directory_bytes_) != h.directory_crc) {
    throw error({.what = "checksum of metadata or directory is wrong", .hint = kDamaged});
  }
  metadata_ = Metadata::decode(metadata_bytes_, path_.string() + ", metadata");
  read_directory(directory_bytes_, end);
}

void File::read_directory(std::span<const std::byte> directory, uint64_t data_offset) {
  const size_t n = directory.size() / sizeof(disk::Entry);
  tensors_.reserve(n);
  for (size_t i = 0; i < n; ++i) {
    disk::Entry e;
    std::memcpy(&e, directory.data() + i * sizeof(e), sizeof(e));
    const TensorInfo info = with_place(fmt::format("entry {}", i), [&] { return info_of(e); });
    uint64_t end = 0;
    if (!checked_add(e.offset, e.bytes, end) || end > map_.size() || e.offset < data_offset ||
        e.offset % disk::kTensorAlign != 0 || info.expected_bytes() != e.bytes) {
      throw error({.what = "tensor's place or size does not fit the file",
                   .where = "tensor '" + info.name + "'",
                   .expected = fmt::format("{} bytes inside the data", info.expected_bytes()),
                   .found = fmt::format("{} bytes at {}", e.bytes, e.offset),
                   .hint = kDamaged});
    }
    data_offset = end;  // ascending, so no two overlap
    tensors_.push_back(info);
  }
  for (size_t i = 0; i < n; ++i) {
    if (!index_.emplace(tensors_[i].name, i).second) {
      throw error({.what = "two tensors have one name",
                   .where = "tensor '" + tensors_[i].name + "'",
                   .hint = kDamaged});
    }
  }
  for (const TensorInfo& t : tensors_) {
    if (t.kind != Kind::packed) continue;
    const auto weak = packed(t).weak_indices();
    const bool ascending =
        std::adjacent_find(weak.begin(), weak.end(), std::greater_equal<>()) == weak.end();
    if (!ascending || (!weak.empty() && weak.back() >= t.cols)) {
      throw error({.what = "weak columns are not ascending indices of columns",
                   .where = "tensor '" + t.name + "'",
                   .hint = kDamaged});
    }
  }
}

const TensorInfo* File::find(std::string_view name) const {
  const auto it = index_.find(name);
  return it == index_.end() ? nullptr : &tensors_[it->second];
}

const TensorInfo& File::tensor(std::string_view name) const {
  if (const TensorInfo* info = find(name)) return *info;
  throw error({.what = "tensor is missing",
               .where = "tensor '" + std::string(name) + "'",
               .hint = "convert the checkpoint again"});
}

PackedView File::packed(const TensorInfo& info) const {
  return {PackedLayout::of(info.rows, info.cols, info.packing), data(info).data()};
}

uint32_t File::checksum() const {
  uint32_t crc = 0;
  for (const TensorInfo& t : tensors_) crc = crc32c(std::as_bytes(std::span(&t.crc, 1)), crc);
  return crc;
}

void File::verify() const {
  verify_gaps();
  for (const TensorInfo& info : tensors_) verify(info);
}

void File::verify_gaps() const {
  std::vector<std::span<const std::byte>> used = {map_.first(sizeof(disk::Header)), metadata_bytes_,
                                                  directory_bytes_};
  for (const TensorInfo& t : tensors_) used.push_back(data(t));
  used.push_back(map_.last(0));
  if (const std::byte* stray = stray_byte(used)) {
    const bool edit = stray < directory_bytes_.data();
    throw error(
        {.what = kNotZero,
         .where = fmt::format("offset {}", stray - map_.data()),
         .hint = edit ? "the file is damaged, or an edit was interrupted: repeat it" : kDamaged});
  }
}

void File::verify(const TensorInfo& info) const {
  const std::string where = "tensor '" + info.name + "'";
  const uint32_t crc = crc32c(data(info));
  if (crc != info.crc) {
    throw error({.what = "checksum is wrong",
                 .where = where,
                 .expected = fmt::format("{:08x}", info.crc),
                 .found = fmt::format("{:08x}", crc),
                 .hint = kDamaged});
  }
  if (info.kind != Kind::packed) return;
  const PackedView view = packed(info);
  if (const std::byte* stray = stray_byte(sections(view.layout(), data(info)))) {
    throw error({.what = kNotZero,
                 .where = where,
                 .found = fmt::format("offset {}", stray - map_.data()),
                 .hint = kDamaged});
  }
  for (uint64_t row = 0; row < info.rows; ++row) {
    for (uint64_t g = 0; g < view.layout().groups; ++g) {
      if (std::isfinite(view.scale(row, g))) continue;
      throw error({.what = "scale is not finite",
                   .where = where,
                   .found = fmt::format("row {}, group {}", row, g),
                   .hint = kDamaged});
    }
  }
}

}  // namespace oq
