#include "format/file_layout.h"

#include <cstring>

#include <fmt/format.h>

#include "format/bytes.h"
#include "format/crc32c.h"

namespace oq::disk {

Entry entry_of(const TensorInfo& t) {
  Entry e{};
  t.name.copy(e.name, sizeof(e.name) - 1);
  e.rows = t.rows;
  e.cols = t.cols;
  e.offset = t.offset;
  e.bytes = t.bytes;
  e.crc = t.crc;
  e.kind = uint8_t(t.kind);
  if (t.kind == Kind::packed) {
    e.group = t.packing.group;
    e.weak_columns = t.packing.weak_columns;
    e.zero = t.packing.zero;
    e.bits = t.packing.bits;
    e.five_levels = t.packing.five_levels;
    e.zero_mode = uint8_t(t.packing.zero_mode);
    e.weak_bf16 = t.packing.weak_bf16;
  }
  return e;
}

uint64_t directory_offset(uint64_t metadata_room) {
  return round_up(sizeof(Header) + 2 * metadata_room, 64);
}

uint64_t data_offset(uint64_t metadata_room, size_t max_tensors) {
  return round_up(directory_offset(metadata_room) + max_tensors * sizeof(Entry), kDataAlign);
}

uint64_t place(TensorInfo& info, uint64_t position, const std::string& file) {
  const std::string where = file + ", tensor '" + info.name + "'";
  if (info.name.empty() || info.name.size() >= sizeof(Entry::name) ||
      info.name.find('\0') != std::string::npos) {
    throw Error({.what = "tensor's name cannot be stored",
                 .where = where,
                 .expected = fmt::format("1..{} bytes", sizeof(Entry::name) - 1),
                 .found = std::to_string(info.name.size())});
  }
  info.bytes = with_place(file, [&] { return info.expected_bytes(); });
  info.crc = 0;
  uint64_t end = 0;
  if (!checked_add(position, kTensorAlign - 1, end) ||
      !checked_add(position = end / kTensorAlign * kTensorAlign, info.bytes, end)) {
    throw Error({.what = "tensors are larger than any file", .where = where});
  }
  info.offset = position;
  return end;
}

Front make_front(const Metadata& metadata, uint64_t metadata_room,
                 std::span<const TensorInfo> tensors, uint64_t data_end, const std::string& file) {
  Front front{.header = {}, .metadata = metadata.encode(), .directory = {}};
  if (front.metadata.size() > metadata_room) {
    throw metadata_too_large(file, front.metadata.size(), metadata_room);
  }
  front.directory.reserve(tensors.size());
  for (const TensorInfo& t : tensors) front.directory.push_back(entry_of(t));

  Header& h = front.header;
  std::memcpy(h.magic, kMagic, sizeof(h.magic));
  h.version_major = kVersionMajor;
  h.version_minor = kVersionMinor;
  h.tensor_count = uint32_t(tensors.size());
  h.file_bytes = round_up(data_end, kDataAlign);
  h.metadata_offset = sizeof(Header);
  h.metadata_bytes = uint32_t(front.metadata.size());
  h.metadata_capacity = uint32_t(metadata_room);
  h.metadata_crc = crc32c(front.metadata);
  h.directory_offset = directory_offset(metadata_room);
  h.directory_crc = crc32c(std::as_bytes(std::span(front.directory)));
  seal(h);
  return front;
}

void seal(Header& header) {
  header.header_crc =
      crc32c({reinterpret_cast<const std::byte*>(&header), sizeof(header) - sizeof(uint32_t)});
}

Error metadata_too_large(const std::string& file, size_t bytes, uint64_t room) {
  return Error({.what = "metadata does not fit its region",
                .where = file,
                .expected = fmt::format("at most {} bytes", room),
                .found = std::to_string(bytes),
                .hint = "shorten the values"});
}

}  // namespace oq::disk
