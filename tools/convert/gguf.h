#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "format/error.h"
#include "tools/convert/ggml_types.h"

namespace oq {
class ByteReader;
}

namespace oq::convert {

struct GgufTensor {
  std::string_view name;
  const GgmlType* type = nullptr;
  uint32_t n_dims = 1;
  std::array<uint64_t, 4> dims = {1, 1, 1, 1};  ///< fastest first: dims[0] is the columns
  std::span<const std::byte> data;

  uint64_t cols() const { return dims[0]; }
  uint64_t rows() const { return dims[1] * dims[2] * dims[3]; }
};

/// The header of a GGUF file, version 2 or 3, little-endian, parsed and checked in memory.
///
/// Every count is held against the bytes left before anything is allocated; tensors lie inside the
/// file, aligned, and do not overlap; names and keys are unique. All views point into the bytes
/// given, which the caller keeps alive. Immutable: any number of threads may read.
/// All failures throw oq::Error naming `where` and the key or tensor.
class GgufFile {
 public:
  GgufFile(std::span<const std::byte> bytes, std::string where);

  const std::string& where() const { return where_; }
  uint32_t version() const { return version_; }

  bool contains(std::string_view key) const { return entries_.count(key) != 0; }

  /// The value of `key`; throws when it is missing or of another type. T is one of
  ///   bool, std::string_view,
  ///   int64_t (from any integer type), double (from any number),
  ///   std::vector<std::string_view>, std::vector<int64_t>, std::vector<double> (from arrays).
  template <class T>
  T get(std::string_view key) const;

  /// The same, or `fallback` where the key is missing.
  template <class T>
  T get_or(std::string_view key, T fallback) const {
    return contains(key) ? get<T>(key) : fallback;
  }

  enum class ValueKind { none, boolean, integer, floating, string, number_array, other_array };
  /// What `key` holds; none where it is missing.
  ValueKind kind(std::string_view key) const;

  std::span<const GgufTensor> tensors() const { return tensors_; }
  const GgufTensor* find(std::string_view name) const;

 private:
  /// Where a value lies; it was walked once, so its bytes are all there.
  struct Entry {
    uint32_t type = 0;  ///< of the value, or of each element
    bool array = false;
    uint64_t count = 1;
    std::span<const std::byte> bytes;
  };

  void read_header(ByteReader& in);
  Entry read_value(ByteReader& in, std::string_view key) const;
  GgufTensor read_tensor(ByteReader& in, uint64_t& offset) const;
  void place_tensors(std::span<const std::byte> data, std::vector<uint64_t> offsets);
  const Entry& entry(std::string_view key, bool array) const;
  Error error(Error::Parts parts) const;

  std::string where_;
  uint32_t version_ = 0;
  uint64_t alignment_ = 32;
  uint64_t n_tensors_ = 0, n_entries_ = 0;
  std::map<std::string_view, Entry> entries_;
  std::vector<GgufTensor> tensors_;
  std::unordered_map<std::string_view, size_t> index_;
};

}  // namespace oq::convert
