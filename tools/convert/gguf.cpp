#include "tools/convert/gguf.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <numeric>
#include <type_traits>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "format/bytes.h"

namespace oq::convert {

namespace {

constexpr std::string_view kDamaged = "the file is truncated or damaged";

// The value types of the format, by number.
enum : uint32_t {
  kU8,
  kI8,
  kU16,
  kI16,
  kU32,
  kI32,
  kF32,
  kBool,
  kString,
  kArray,
  kU64,
  kI64,
  kF64
};
constexpr uint32_t kTypeBytes[] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
constexpr std::string_view kTypeNames[] = {"u8",   "i8",     "u16",   "i16", "u32", "i32", "f32",
                                           "bool", "string", "array", "u64", "i64", "f64"};

bool is_integer(uint32_t t) { return t <= kI32 || t == kU64 || t == kI64; }
bool is_float(uint32_t t) { return t == kF32 || t == kF64; }

template <class T>
T load(const std::byte* p) {
  T value;
  std::memcpy(&value, p, sizeof value);
  return value;
}

/// Element `i` of an array of numbers; false where it does not fit T.
bool number_at(uint32_t type, const std::byte* p, int64_t& out) {
  switch (type) {
    case kU8:
      return out = load<uint8_t>(p), true;
    case kI8:
      return out = load<int8_t>(p), true;
    case kU16:
      return out = load<uint16_t>(p), true;
    case kI16:
      return out = load<int16_t>(p), true;
    case kU32:
      return out = load<uint32_t>(p), true;
    case kI32:
      return out = load<int32_t>(p), true;
    case kI64:
      return out = load<int64_t>(p), true;
    default: {
      const auto v = load<uint64_t>(p);
      out = int64_t(v);
      return v <= uint64_t(std::numeric_limits<int64_t>::max());
    }
  }
}

bool number_at(uint32_t type, const std::byte* p, double& out) {
  if (type == kF32) return out = load<float>(p), true;
  if (type == kF64) return out = load<double>(p), true;
  if (type == kU64) return out = double(load<uint64_t>(p)), true;
  int64_t v = 0;
  const bool fits = number_at(type, p, v);
  out = double(v);
  return fits;
}

template <class T>
constexpr bool kIsNumber = std::is_same_v<T, int64_t> || std::is_same_v<T, double>;

template <class T>
bool accepts(uint32_t type) {
  if constexpr (std::is_same_v<T, bool>) return type == kBool;
  if constexpr (std::is_same_v<T, std::string_view>) return type == kString;
  if constexpr (std::is_same_v<T, int64_t>) return is_integer(type);
  if constexpr (std::is_same_v<T, double>) return is_integer(type) || is_float(type);
}

template <class T>
constexpr std::string_view kWanted = std::is_same_v<T, bool>      ? "a boolean"
                                     : std::is_same_v<T, int64_t> ? "an integer"
                                     : std::is_same_v<T, double>  ? "a number"
                                                                  : "a string";

template <class T>
struct Element {
  using Type = T;
  static constexpr bool kVector = false;
};
template <class T>
struct Element<std::vector<T>> {
  using Type = T;
  static constexpr bool kVector = true;
};

}  // namespace

Error GgufFile::error(Error::Parts parts) const {
  parts.where = parts.where.empty() ? where_ : where_ + ", " + parts.where;
  if (parts.hint.empty()) parts.hint = kDamaged;
  return Error(std::move(parts));
}

GgufFile::GgufFile(std::span<const std::byte> bytes, std::string where) : where_(std::move(where)) {
  ByteReader in(bytes, where_);
  read_header(in);
  for (uint64_t i = 0; i < n_entries_; ++i) {
    const std::string_view key = in.read_string<uint64_t>();
    if (!entries_.emplace(key, read_value(in, key)).second) {
      throw error({.what = fmt::format("metadata key '{}' occurs twice", key)});
    }
  }
  if (contains("general.alignment")) {
    const int64_t alignment = get<int64_t>("general.alignment");
    if (alignment < 8 || alignment > 1 << 16 || (alignment & (alignment - 1)) != 0) {
      throw error({.what = "general.alignment is not usable",
                   .expected = "a power of two from 8 to 65536",
                   .found = std::to_string(alignment)});
    }
    alignment_ = uint64_t(alignment);
  }
  std::vector<uint64_t> offsets;  // grown entry by entry: the count alone reserves nothing
  for (uint64_t i = 0; i < n_tensors_; ++i) {
    tensors_.push_back(read_tensor(in, offsets.emplace_back()));
  }
  if (tensors_.empty()) return;
  const uint64_t data = round_up(in.position(), alignment_);
  if (data > bytes.size()) throw error({.what = "ends before the tensors' data"});
  place_tensors(bytes.subspan(data), std::move(offsets));
}

void GgufFile::read_header(ByteReader& in) {
  if (in.left() < 4 || in.read<uint32_t>() != 0x46554747) {  // "GGUF"
    throw error({.what = "is not a GGUF file",
                 .expected = "the magic 'GGUF'",
                 .hint = "give an HF folder or a GGUF file"});
  }
  version_ = in.read<uint32_t>();
  if (version_ != 2 && version_ != 3) {
    const bool big_endian = version_ != 0 && (version_ & 0xFFFF) == 0;
    throw error({.what = big_endian ? "is a big-endian GGUF file" : "is of an unknown GGUF version",
                 .expected = "version 2 or 3, little-endian",
                 .found = std::to_string(version_),
                 .hint = "make the GGUF again with a current llama.cpp"});
  }
  // A tensor takes at least 8 + 1 + 4 + 8 + 4 + 8 bytes, a metadata entry 8 + 4 + 1.
  const uint64_t after_tensors = in.left() < 8 ? 0 : in.left() - 8;
  n_tensors_ = in.read<uint64_t>();
  if (n_tensors_ > after_tensors / 33) {
    throw error(
        {.what = "tensor count is larger than the file", .found = std::to_string(n_tensors_)});
  }
  n_entries_ = in.read_count<uint64_t>(13);
}

GgufFile::Entry GgufFile::read_value(ByteReader& in, std::string_view key) const {
  const auto type_number = [&] {
    const auto type = in.read<uint32_t>();
    if (type > kF64) {
      throw error({.what = fmt::format("metadata key '{}' has an unknown type", key),
                   .expected = "0 to 12",
                   .found = std::to_string(type)});
    }
    return type;
  };
  Entry e;
  e.type = type_number();
  if (e.type == kArray) {
    e.array = true;
    e.type = type_number();
    if (e.type == kArray) {
      throw error({.what = fmt::format("metadata key '{}' is an array of arrays", key),
                   .hint = "no known GGUF file needs one"});
    }
    e.count = in.read_count<uint64_t>(e.type == kString ? 8 : kTypeBytes[e.type]);
  }
  if (e.type != kString) {
    e.bytes = in.take(e.count * kTypeBytes[e.type]);
    return e;
  }
  ByteReader first = in;
  const size_t begin = in.position();
  for (uint64_t i = 0; i < e.count; ++i) in.read_string<uint64_t>();
  e.bytes = first.take(in.position() - begin);
  return e;
}

GgufTensor GgufFile::read_tensor(ByteReader& in, uint64_t& offset) const {
  GgufTensor t;
  t.name = in.read_string<uint64_t>();
  const std::string where = fmt::format("tensor '{}'", t.name);
  t.n_dims = in.read<uint32_t>();
  if (t.n_dims < 1 || t.n_dims > 4) {
    throw error({.what = "has an impossible number of dimensions",
                 .where = where,
                 .expected = "1 to 4",
                 .found = std::to_string(t.n_dims)});
  }
  uint64_t elements = 1;
  for (uint32_t d = 0; d < t.n_dims; ++d) {
    t.dims[d] = in.read<uint64_t>();
    if (t.dims[d] == 0 || !checked_mul(elements, t.dims[d], elements)) {
      throw error({.what = "has an impossible dimension",
                   .where = where,
                   .found = std::to_string(t.dims[d])});
    }
  }
  const auto type = in.read<uint32_t>();
  offset = in.read<uint64_t>();
  t.type = find_ggml_type(type);
  if (t.type == nullptr) {
    std::vector<std::string_view> known;
    for (const GgmlType& k : ggml_types()) known.push_back(k.name);
    throw error({.what = "is of a type that cannot be read",
                 .where = where,
                 .expected = fmt::format("{}", fmt::join(known, " ")),
                 .found = fmt::format("type {}", type),
                 .hint = "take another quantization of this model, best F16 or BF16"});
  }
  if (t.cols() % t.type->block_elements != 0) {
    throw error({.what = fmt::format("has a row that is not whole {} blocks", t.type->name),
                 .where = where,
                 .expected = fmt::format("a multiple of {}", t.type->block_elements),
                 .found = std::to_string(t.cols())});
  }
  return t;
}

void GgufFile::place_tensors(std::span<const std::byte> data, std::vector<uint64_t> offsets) {
  for (size_t i = 0; i < tensors_.size(); ++i) {
    GgufTensor& t = tensors_[i];
    const std::string where = fmt::format("tensor '{}'", t.name);
    uint64_t bytes = 0, end = 0;
    const uint64_t blocks = t.cols() / t.type->block_elements * t.rows();
    const bool fits = checked_mul(blocks, t.type->block_bytes, bytes) &&
                      checked_add(offsets[i], bytes, end) && end <= data.size();
    if (!fits) {
      throw error({.what = "lies beyond the end of the file",
                   .where = where,
                   .expected = fmt::format("at most {} bytes of data", data.size()),
                   .found = fmt::format("offset {}, {} x {} {}", offsets[i], t.rows(), t.cols(),
                                        t.type->name)});
    }
    if (offsets[i] % alignment_ != 0) {
      throw error({.what = "is not aligned",
                   .where = where,
                   .expected = fmt::format("a multiple of {}", alignment_),
                   .found = std::to_string(offsets[i])});
    }
    t.data = data.subspan(offsets[i], bytes);
    if (!index_.emplace(t.name, i).second) throw error({.what = "occurs twice", .where = where});
  }
  std::vector<size_t> order(tensors_.size());
  std::iota(order.begin(), order.end(), size_t(0));
  std::sort(order.begin(), order.end(),
            [&](size_t a, size_t b) { return offsets[a] < offsets[b]; });
  for (size_t i = 1; i < order.size(); ++i) {
    const GgufTensor &a = tensors_[order[i - 1]], &b = tensors_[order[i]];
    if (a.data.data() + a.data.size() > b.data.data()) {
      throw error({.what = fmt::format("tensors '{}' and '{}' overlap", a.name, b.name)});
    }
  }
}

const GgufTensor* GgufFile::find(std::string_view name) const {
  const auto it = index_.find(name);
  return it == index_.end() ? nullptr : &tensors_[it->second];
}

GgufFile::ValueKind GgufFile::kind(std::string_view key) const {
  const auto it = entries_.find(key);
  if (it == entries_.end()) return ValueKind::none;
  const uint32_t type = it->second.type;
  const bool number = is_integer(type) || is_float(type);
  if (it->second.array) return number ? ValueKind::number_array : ValueKind::other_array;
  if (number) return is_integer(type) ? ValueKind::integer : ValueKind::floating;
  return type == kString ? ValueKind::string : ValueKind::boolean;
}

const GgufFile::Entry& GgufFile::entry(std::string_view key, bool array) const {
  const auto it = entries_.find(key);
  if (it == entries_.end()) {
    throw error({.what = fmt::format("metadata key '{}' is missing", key),
                 .hint = "the file was not made by a complete conversion"});
  }
  if (it->second.array != array) {
    throw error({.what = fmt::format("metadata key '{}' is of another type", key),
                 .expected = array ? "an array" : "a single value",
                 .found = array ? "a single value" : "an array"});
  }
  return it->second;
}

template <class T>
T GgufFile::get(std::string_view key) const {
  using E = typename Element<T>::Type;
  const Entry& e = entry(key, Element<T>::kVector);
  if (!accepts<E>(e.type)) {
    throw error({.what = fmt::format("metadata key '{}' is of another type", key),
                 .expected = std::string(kWanted<E>),
                 .found = std::string(kTypeNames[e.type])});
  }
  ByteReader in(e.bytes, where_);
  const auto next = [&]() -> E {
    if constexpr (kIsNumber<E>) {
      E value{};
      if (!number_at(e.type, in.take(kTypeBytes[e.type]).data(), value)) {
        throw error({.what = fmt::format("metadata key '{}' is too large", key)});
      }
      return value;
    } else if constexpr (std::is_same_v<E, bool>) {
      return in.read<uint8_t>() != 0;
    } else {
      return in.read_string<uint64_t>();
    }
  };
  if constexpr (Element<T>::kVector) {
    T values;
    values.reserve(e.count);
    for (uint64_t i = 0; i < e.count; ++i) values.push_back(next());
    return values;
  } else {
    return next();
  }
}

template bool GgufFile::get(std::string_view) const;
template int64_t GgufFile::get(std::string_view) const;
template double GgufFile::get(std::string_view) const;
template std::string_view GgufFile::get(std::string_view) const;
template std::vector<int64_t> GgufFile::get(std::string_view) const;
template std::vector<double> GgufFile::get(std::string_view) const;
template std::vector<std::string_view> GgufFile::get(std::string_view) const;

}  // namespace oq::convert
