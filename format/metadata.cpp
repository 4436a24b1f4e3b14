#include "format/metadata.h"

#include <array>
#include <charconv>
#include <cmath>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "format/bytes.h"

namespace oq {
namespace {

constexpr std::array<const char*, 7> kTypeNames = {
    "bool",           "integer", "number", "string", "list of integers", "list of numbers",
    "list of strings"};
static_assert(kTypeNames.size() == std::variant_size_v<Metadata::Value>);

struct Encoder {
  ByteWriter& out;

  void operator()(bool v) const { out.write(uint8_t(v)); }
  void operator()(int64_t v) const { out.write(v); }
  void operator()(double v) const { out.write(v); }
  void operator()(const std::string& v) const { out.write_string<uint32_t>(v); }
  template <class T>
  void operator()(const std::vector<T>& list) const {
    out.write(uint32_t(list.size()));
    for (const T& v : list) (*this)(v);
  }
};

template <class T>
T decode_one(ByteReader& in) {
  if constexpr (std::is_same_v<T, std::string>) {
    return std::string(in.read_string<uint32_t>());
  } else {
    return in.read<T>();
  }
}

template <class T>
std::vector<T> decode_list(ByteReader& in) {
  const size_t n = in.read_count<uint32_t>(std::is_same_v<T, std::string> ? 4 : sizeof(T));
  std::vector<T> list;
  list.reserve(n);
  for (size_t i = 0; i < n; ++i) list.push_back(decode_one<T>(in));
  return list;
}

Metadata::Value decode_value(ByteReader& in, uint8_t type, const std::string& where) {
  switch (type) {
    case 0: {
      const uint8_t b = in.read<uint8_t>();
      if (b > 1) {
        throw Error({.what = "a bool is neither 0 nor 1",
                     .where = where,
                     .found = std::to_string(b),
                     .hint = "the file is damaged"});
      }
      return b == 1;
    }
    case 1:
      return decode_one<int64_t>(in);
    case 2:
      return decode_one<double>(in);
    case 3:
      return decode_one<std::string>(in);
    case 4:
      return decode_list<int64_t>(in);
    case 5:
      return decode_list<double>(in);
    case 6:
      return decode_list<std::string>(in);
    default:
      throw Error({.what = "unknown metadata type",
                   .where = where,
                   .expected = "0..6",
                   .found = std::to_string(type),
                   .hint = "the file is damaged"});
  }
}

template <class T>
T parse_number(std::string_view text) {
  T value{};
  const auto [stop, ec] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (ec != std::errc{} || stop != text.data() + text.size()) {
    throw Error({.what = "not a number", .found = "'" + std::string(text) + "'"});
  }
  return value;
}

std::vector<std::string_view> split_commas(std::string_view text) {
  std::vector<std::string_view> parts;
  while (!text.empty()) {
    const size_t comma = text.find(',');
    parts.push_back(text.substr(0, comma));
    text.remove_prefix(comma == std::string_view::npos ? text.size() : comma + 1);
  }
  return parts;
}

}  // namespace

void Metadata::set(std::string key, Value value) {
  entries_.insert_or_assign(std::move(key), std::move(value));
}

void Metadata::erase(std::string_view key) {
  if (const auto it = entries_.find(key); it != entries_.end()) entries_.erase(it);
}

const Metadata::Value* Metadata::find(std::string_view key) const {
  const auto it = entries_.find(key);
  return it == entries_.end() ? nullptr : &it->second;
}

int64_t Metadata::get_int(std::string_view key, int64_t low, int64_t high) const {
  const int64_t v = get<int64_t>(key);
  if (v < low || v > high) {
    throw Error({.what = "value is out of range",
                 .where = "metadata '" + std::string(key) + "'",
                 .expected = fmt::format("{}..{}", low, high),
                 .found = std::to_string(v)});
  }
  return v;
}

std::vector<std::byte> Metadata::encode() const {
  ByteWriter out;
  out.write(uint32_t(entries_.size()));
  for (const auto& [key, value] : entries_) {
    out.write_string<uint16_t>(key);
    out.write(uint8_t(value.index()));
    std::visit(Encoder{out}, value);
  }
  return out.bytes();
}

Metadata Metadata::decode(std::span<const std::byte> bytes, const std::string& where) {
  ByteReader in(bytes, where);
  Metadata m;
  const size_t n = in.read_count<uint32_t>(4);
  for (size_t i = 0; i < n; ++i) {
    std::string key(in.read_string<uint16_t>());
    if (!m.entries_.empty() && key <= m.entries_.rbegin()->first) {
      throw Error({.what = "metadata keys are not sorted and unique",
                   .where = where,
                   .found = "'" + key + "'",
                   .hint = "the file is damaged"});
    }
    const uint8_t type = in.read<uint8_t>();
    m.entries_.emplace_hint(m.entries_.end(), std::move(key), decode_value(in, type, where));
  }
  if (in.left() != 0) {
    throw Error({.what = "bytes are left over after the metadata",
                 .where = where,
                 .found = std::to_string(in.left()),
                 .hint = "the file is damaged"});
  }
  return m;
}

std::string Metadata::to_text(const Value& value) {
  return std::visit(
      [](const auto& v) -> std::string {
        using T = std::decay_t<decltype(v)>;
        if constexpr (std::is_arithmetic_v<T> || std::is_same_v<T, std::string>) {
          return fmt::format("{}", v);
        } else {
          return fmt::format("{}", fmt::join(v, ","));
        }
      },
      value);
}

Metadata::Value Metadata::from_text(std::string_view text, const Value& like) {
  return std::visit(
      [text](const auto& v) -> Value {
        using T = std::decay_t<decltype(v)>;
        if constexpr (std::is_same_v<T, bool>) {
          if (text != "true" && text != "false") {
            throw Error({.what = "not a bool",
                         .expected = "true or false",
                         .found = "'" + std::string(text) + "'"});
          }
          return text == "true";
        } else if constexpr (std::is_arithmetic_v<T>) {
          return parse_number<T>(text);
        } else if constexpr (std::is_same_v<T, std::string>) {
          return std::string(text);
        } else {
          T list;
          for (std::string_view part : split_commas(text)) {
            if constexpr (std::is_same_v<T, std::vector<std::string>>) {
              list.emplace_back(part);
            } else {
              list.push_back(parse_number<typename T::value_type>(part));
            }
          }
          return list;
        }
      },
      like);
}

Error Metadata::missing(std::string_view key) {
  return Error({.what = "metadata key is missing",
                .where = "'" + std::string(key) + "'",
                .hint = "convert the model again with this version of oq-convert"});
}

Error Metadata::wrong_type(std::string_view key, size_t expected, size_t found) {
  return Error({.what = "metadata has the wrong type",
                .where = "'" + std::string(key) + "'",
                .expected = kTypeNames.at(expected),
                .found = kTypeNames.at(found)});
}

}  // namespace oq
