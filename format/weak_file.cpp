#include "format/weak_file.h"

#include <cmath>
#include <cstring>

#include <fmt/format.h>

#include "format/bytes.h"
#include "format/crc32c.h"

namespace oq {
namespace {

constexpr const char* kBase = "weak.base";

std::string identity(const File& file) { return fmt::format("{:08x}", file.checksum()); }

uint16_t bits_of(float x, bool bf16, const std::string& name) {
  const float kept = bf16 ? to_float(to_bf16(x)) : to_float(to_f16(x));
  if (!std::isfinite(kept)) {
    throw Error({.what = "a weak weight does not fit its 16 bits",
                 .where = "tensor '" + name + "'",
                 .found = fmt::format("{}", x)});
  }
  return bf16 ? to_bf16(x).bits : to_f16(x).bits;
}

bool finite(uint16_t bits, bool is_bf16) {
  return std::isfinite(is_bf16 ? to_float(bf16{bits}) : to_float(f16{bits}));
}

/// Throws unless `info` is what replaces the weak columns of a tensor.
PackedLayout check(const File& base, const TensorInfo& info) {
  const TensorInfo* to = base.find(info.name);
  if (to == nullptr || to->kind != Kind::packed || to->packing.weak_columns == 0) {
    throw Error({.what = "the model has no weak columns there",
                 .where = "tensor '" + info.name + "'",
                 .found = base.path().string()});
  }
  const PackedLayout layout = PackedLayout::of(to->rows, to->cols, to->packing);
  const Kind kind = to->packing.weak_bf16 ? Kind::bf16 : Kind::f16;
  const uint64_t cols = uint64_t(to->packing.weak_columns) * kPanelRows;
  if (info.kind != kind || info.rows != layout.panels || info.cols != cols) {
    throw Error({.what = "weak columns are of another type or number",
                 .where = "tensor '" + info.name + "'",
                 .expected = fmt::format("{} [{}, {}]", to_string(kind), layout.panels, cols),
                 .found = fmt::format("{} [{}, {}]", to_string(info.kind), info.rows, info.cols)});
  }
  return layout;
}

}  // namespace

void write_weak_file(Writer& out, const File& base, const WeakWeights& weights, Metadata metadata) {
  metadata.set(kBase, identity(base));
  out.metadata = std::move(metadata);
  for (const auto& [name, values] : weights) {
    const TensorInfo& t = base.tensor(name);
    const uint64_t columns = t.kind == Kind::packed ? t.packing.weak_columns : 0;
    if (columns == 0 || values.size() != t.rows * columns) {
      throw Error({.what = "weak weights do not fit the tensor",
                   .where = "tensor '" + name + "'",
                   .expected = std::to_string(t.rows * columns),
                   .found = std::to_string(values.size())});
    }
    const uint64_t panels = PackedLayout::of(t.rows, t.cols, t.packing).panels;
    std::vector<uint16_t> section(panels * columns * kPanelRows);
    for (uint64_t r = 0; r < t.rows; ++r) {
      for (uint64_t i = 0; i < columns; ++i) {
        section[(r / kPanelRows * columns + i) * kPanelRows + r % kPanelRows] =
            bits_of(values[r * columns + i], t.packing.weak_bf16, name);
      }
    }
    out.add({.name = name,
             .kind = t.packing.weak_bf16 ? Kind::bf16 : Kind::f16,
             .rows = panels,
             .cols = columns * kPanelRows},
            std::as_bytes(std::span(section)));
  }
  out.finish();
}

void File::replace_weak(const File& weak) {
  const std::string own = identity(*this);
  const auto found = weak.metadata().get_or<std::string>(kBase, "");
  if (found != own) {
    throw Error(
        {.what = found.empty() ? "holds no weak columns" : "holds another file's weak columns",
         .expected = own + ", " + path_.string(),
         .found = found.empty() ? "none" : found,
         .hint = "give the file that they were tuned for"});
  }
  weak.verify();
  for (const TensorInfo& from : weak.tensors()) {
    const PackedLayout layout = check(*this, from);
    const auto bytes = weak.data(from);
    for (size_t at = 0; at < bytes.size(); at += 2) {
      uint16_t bits;
      std::memcpy(&bits, bytes.data() + at, 2);
      if (!finite(bits, from.kind == Kind::bf16)) {
        throw Error({.what = "a weak weight is not finite", .where = "tensor '" + from.name + "'"});
      }
    }
    TensorInfo& to = tensors_[index_.at(from.name)];
    verify(to);  // its new checksum must not make damage right
    const std::span<std::byte> section = writable(to.offset + layout.weak_offset, bytes.size());
    std::memcpy(section.data(), bytes.data(), bytes.size());
    to.crc = crc32c(data(to));
  }
}

std::shared_ptr<const File> open_with_weak(const std::filesystem::path& path,
                                           const std::filesystem::path& weak, Pages pages) {
  if (weak.empty()) return File::open(path, pages);
  const auto columns = File::open(weak);
  return File::open(path, pages, [&](File& file) {
    with_place(weak.string(), [&] { file.replace_weak(*columns); });
  });
}

}  // namespace oq
