#include "tools/tensor_files/safetensors.h"

#include <algorithm>
#include <unordered_set>

#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "format/bytes.h"

namespace oq {
namespace {

using nlohmann::json;

constexpr uint64_t kMaxHeader = 100'000'000;
constexpr std::string_view kDamaged = "the file is truncated or damaged";

struct Dtype {
  std::string_view name;
  uint64_t bytes;
};
constexpr Dtype kDtypes[] = {
    {"F64", 8},  {"F32", 4}, {"F16", 2},     {"BF16", 2},    {"I64", 8},    {"I32", 4},
    {"I16", 2},  {"I8", 1},  {"U64", 8},     {"U32", 4},     {"U16", 2},    {"U8", 1},
    {"BOOL", 1}, {"C64", 8}, {"F8_E4M3", 1}, {"F8_E5M2", 1}, {"F8_E8M0", 1}};

struct Entry {
  SafeTensor tensor;
  std::vector<uint64_t> offsets;
};

/// Takes the events of the header's JSON and allows only
///   {"NAME": {"dtype": "F32", "shape": [..], "data_offsets": [begin, end]}, ...,
///    "__metadata__": {"KEY": "VALUE", ...}}
class HeaderReader : public json::json_sax_t {
 public:
  explicit HeaderReader(const std::string& where) : where_(where) {}
  std::vector<Entry> entries;
  SafeMetadata metadata;

  bool null() override { return refuse("null"); }
  bool boolean(bool) override { return refuse("a boolean"); }
  bool number_integer(number_integer_t) override { return refuse("a negative number"); }
  bool number_float(number_float_t, const string_t&) override { return refuse("a fraction"); }
  bool binary(binary_t&) override { return refuse("binary data"); }

  bool number_unsigned(number_unsigned_t v) override {
    if (place_ != Place::list) return refuse("a number");
    list_->push_back(v);
    return true;
  }

  bool string(string_t& v) override {
    if (place_ == Place::metadata) return metadata[key_] = v, true;
    if (place_ != Place::tensor || key_ != "dtype") return refuse("a string");
    entries.back().tensor.dtype = v;
    return true;
  }

  bool start_object(size_t) override {
    if (place_ == Place::start) return place_ = Place::header, true;
    if (place_ != Place::header) return refuse("an object");
    fields_.clear();
    if (key_ == "__metadata__") return place_ = Place::metadata, true;
    entries.push_back(
        {.tensor = {.name = key_, .dtype = {}, .shape = {}, .data = {}}, .offsets = {}});
    return place_ = Place::tensor, true;
  }

  bool end_object() override {
    if (place_ == Place::tensor && fields_.size() != 3) {
      throw error("lacks dtype, shape or data_offsets");
    }
    place_ = place_ == Place::header ? Place::end : Place::header;
    return true;
  }

  bool start_array(size_t) override {
    const bool shape = key_ == "shape";
    if (place_ != Place::tensor || (!shape && key_ != "data_offsets")) return refuse("a list");
    list_ = shape ? &entries.back().tensor.shape : &entries.back().offsets;
    return place_ = Place::list, true;
  }

  bool end_array() override { return place_ = Place::tensor, true; }

  bool key(string_t& v) override {
    key_ = v;
    if (place_ == Place::metadata) return true;
    auto& seen = place_ == Place::header ? names_ : fields_;
    if (!seen.insert(v).second) throw error(fmt::format("'{}' occurs twice", v));
    if (place_ == Place::tensor && v != "dtype" && v != "shape" && v != "data_offsets") {
      throw error(fmt::format("'{}' is not a field of the format", v));
    }
    return true;
  }

  bool parse_error(size_t position, const std::string&, const json::exception& e) override {
    throw Error({.what = fmt::format("header is not valid JSON at byte {}: {}", position, e.what()),
                 .where = where_,
                 .hint = std::string(kDamaged)});
  }

 private:
  enum class Place { start, header, metadata, tensor, list, end };

  Error error(const std::string& what) const {
    const bool inside = place_ == Place::tensor || place_ == Place::list;
    return Error({.what = what,
                  .where = inside ? fmt::format("{}, header, tensor '{}'", where_,
                                                entries.back().tensor.name)
                                  : where_ + ", header",
                  .hint = std::string(kDamaged)});
  }
  bool refuse(const char* found) const {
    throw error(fmt::format("'{}' holds {} where the format has none", key_, found));
  }

  const std::string& where_;
  Place place_ = Place::start;
  std::string key_;
  std::vector<uint64_t>* list_ = nullptr;
  std::unordered_set<std::string> names_, fields_;
};

/// Bytes that dtype and shape call for; false on overflow or an unknown dtype.
bool expected_bytes(const SafeTensor& t, uint64_t& bytes) {
  const auto* dtype = std::find_if(std::begin(kDtypes), std::end(kDtypes),
                                   [&](const Dtype& d) { return d.name == t.dtype; });
  if (dtype == std::end(kDtypes)) return false;
  bytes = dtype->bytes;
  return std::all_of(t.shape.begin(), t.shape.end(),
                     [&](uint64_t n) { return checked_mul(bytes, n, bytes); });
}

void place(std::vector<Entry>& entries, std::span<const std::byte> data, const std::string& where) {
  const auto error = [&](const Entry& e, const char* what, std::string expected) {
    return Error({.what = what,
                  .where = fmt::format("{}, tensor '{}'", where, e.tensor.name),
                  .expected = std::move(expected),
                  .found = fmt::format("{} [{}], offsets [{}]", e.tensor.dtype,
                                       fmt::join(e.tensor.shape, ", "), fmt::join(e.offsets, ", ")),
                  .hint = std::string(kDamaged)});
  };
  for (const Entry& e : entries) {
    if (e.offsets.size() != 2) throw error(e, "has no pair of data_offsets", "[begin, end]");
  }
  std::sort(entries.begin(), entries.end(),
            [](const Entry& a, const Entry& b) { return a.offsets < b.offsets; });
  uint64_t end = 0;
  for (Entry& e : entries) {
    const uint64_t first = e.offsets[0], last = e.offsets[1];
    if (first != end)
      throw error(e, "overlaps another or leaves a hole", fmt::format("data from {}", end));
    if (last < first || last > data.size()) {
      throw error(e, "lies beyond the end of the file",
                  fmt::format("at most {} bytes of data", data.size()));
    }
    uint64_t bytes = 0;
    if (!expected_bytes(e.tensor, bytes) || bytes != last - first) {
      throw error(e, "has a size that its dtype and shape do not give",
                  fmt::format("{} bytes", bytes));
    }
    e.tensor.data = data.subspan(first, bytes);
    end = last;
  }
  if (end != data.size()) {
    throw Error({.what = "holds bytes that no tensor owns",
                 .where = where,
                 .expected = fmt::format("{} bytes of data", end),
                 .found = std::to_string(data.size()),
                 .hint = std::string(kDamaged)});
  }
}

}  // namespace

std::vector<SafeTensor> read_safetensors(std::span<const std::byte> bytes, const std::string& where,
                                         SafeMetadata* metadata) {
  ByteReader in(bytes, where);
  const auto length = in.read<uint64_t>();
  if (length > kMaxHeader) {
    throw Error({.what = "header is too long",
                 .where = where,
                 .expected = fmt::format("at most {} bytes", kMaxHeader),
                 .found = std::to_string(length),
                 .hint = "this is not a safetensors file"});
  }
  const auto header = in.take(length);
  if (header.empty() || header[0] != std::byte('{')) {
    throw Error({.what = "header does not begin with '{'",
                 .where = where,
                 .hint = "this is not a safetensors file"});
  }
  HeaderReader reader(where);
  const auto* text = reinterpret_cast<const char*>(header.data());
  json::sax_parse(text, text + header.size(), &reader);
  place(reader.entries, bytes.subspan(in.position()), where);
  if (metadata != nullptr) *metadata = std::move(reader.metadata);
  std::vector<SafeTensor> tensors;
  tensors.reserve(reader.entries.size());
  for (Entry& e : reader.entries) tensors.push_back(std::move(e.tensor));
  return tensors;
}

}  // namespace oq
