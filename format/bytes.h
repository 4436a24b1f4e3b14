#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "format/error.h"

namespace oq {

static_assert(std::endian::native == std::endian::little, "OQ's files are little-endian");

/// a + b and a * b of sizes that come from a file: false on overflow, and `out` is then unset.
[[nodiscard]] inline bool checked_add(uint64_t a, uint64_t b, uint64_t& out) {
  return !__builtin_add_overflow(a, b, &out);
}
[[nodiscard]] inline bool checked_mul(uint64_t a, uint64_t b, uint64_t& out) {
  return !__builtin_mul_overflow(a, b, &out);
}

constexpr uint64_t round_up(uint64_t n, uint64_t multiple) {
  return (n + multiple - 1) / multiple * multiple;
}

/// Reads little-endian values off a byte range that is hostile until read. Every length is held
/// against what is left before anything is allocated. Throws oq::Error naming `where`.
class ByteReader {
 public:
  ByteReader(std::span<const std::byte> data, std::string where)
      : data_(data), where_(std::move(where)) {}

  size_t position() const { return position_; }
  size_t left() const { return data_.size() - position_; }

  template <class T>
  T read() {
    static_assert(std::is_trivially_copyable_v<T> && !std::is_same_v<T, bool>);
    T value;
    std::memcpy(&value, take(sizeof(T)).data(), sizeof(T));
    return value;
  }

  std::span<const std::byte> take(uint64_t n) {
    if (n > left()) {
      throw Error(
          {.what = "ends in the middle of a value",
           .where = where_,
           .expected = std::to_string(n) + " more bytes at offset " + std::to_string(position_),
           .found = std::to_string(left()),
           .hint = "the file is truncated or damaged"});
    }
    auto part = data_.subspan(position_, size_t(n));
    position_ += size_t(n);
    return part;
  }

  /// A length of type `Length`, then that many bytes.
  template <class Length>
  std::string_view read_string() {
    const auto part = take(read<Length>());
    return {reinterpret_cast<const char*>(part.data()), part.size()};
  }

  /// A count of elements that take at least `min_bytes` each: refused when they cannot fit.
  template <class Count>
  size_t read_count(size_t min_bytes) {
    const uint64_t n = read<Count>();
    if (n > left() / min_bytes) {
      throw Error({.what = "count is larger than the bytes that follow it",
                   .where = where_,
                   .expected = "at most " + std::to_string(left() / min_bytes),
                   .found = std::to_string(n),
                   .hint = "the file is truncated or damaged"});
    }
    return size_t(n);
  }

 private:
  std::span<const std::byte> data_;
  std::string where_;
  size_t position_ = 0;
};

/// Appends little-endian values to a buffer.
class ByteWriter {
 public:
  template <class T>
  void write(T value) {
    static_assert(std::is_trivially_copyable_v<T> && !std::is_same_v<T, bool>);
    const auto* p = reinterpret_cast<const std::byte*>(&value);
    out_.insert(out_.end(), p, p + sizeof(T));
  }

  template <class Length>
  void write_string(std::string_view s) {
    if (s.size() > Length(-1)) {
      throw Error({.what = "string is too long to be stored",
                   .expected = "at most " + std::to_string(Length(-1)) + " bytes",
                   .found = std::to_string(s.size())});
    }
    write(Length(s.size()));
    const auto* p = reinterpret_cast<const std::byte*>(s.data());
    out_.insert(out_.end(), p, p + s.size());
  }

  const std::vector<std::byte>& bytes() const { return out_; }

 private:
  std::vector<std::byte> out_;
};

}  // namespace oq
