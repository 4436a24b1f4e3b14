#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "format/error.h"

namespace oq {

/// Typed key-value pairs of a .oq file: config, tokenizer settings, provenance. Keys are unique
/// and kept sorted, so equal contents give equal bytes.
///
/// Not thread-safe for writing. All failures throw oq::Error naming the key.
class Metadata {
 public:
  using Value = std::variant<bool, int64_t, double, std::string, std::vector<int64_t>,
                             std::vector<double>, std::vector<std::string>>;

  void set(std::string key, Value value);
  void erase(std::string_view key);
  bool contains(std::string_view key) const { return find(key) != nullptr; }
  const Value* find(std::string_view key) const;

  /// The value of `key`; throws when it is missing or of another type.
  template <class T>
  const T& get(std::string_view key) const {
    const Value* v = find(key);
    if (v == nullptr) throw missing(key);
    if (const T* t = std::get_if<T>(v)) return *t;
    throw wrong_type(key, Value(T{}).index(), v->index());
  }

  /// The value of `key`, or `fallback` where it is missing; throws when it is of another type.
  template <class T>
  T get_or(std::string_view key, T fallback) const {
    return contains(key) ? get<T>(key) : fallback;
  }

  /// `get<int64_t>` held to [low, high]: for everything used as a count, an offset or an index.
  int64_t get_int(std::string_view key, int64_t low, int64_t high) const;

  auto begin() const { return entries_.begin(); }
  auto end() const { return entries_.end(); }
  size_t size() const { return entries_.size(); }

  /// The encoding in SPEC.md, "Metadata".
  std::vector<std::byte> encode() const;
  static Metadata decode(std::span<const std::byte> bytes, const std::string& where);

  /// A value as people read it, and back: the type is that of `like`. For oq-info.
  static std::string to_text(const Value& value);
  static Value from_text(std::string_view text, const Value& like);

  friend bool operator==(const Metadata&, const Metadata&) = default;

 private:
  static Error missing(std::string_view key);
  static Error wrong_type(std::string_view key, size_t expected, size_t found);

  std::map<std::string, Value, std::less<>> entries_;
};

}  // namespace oq
