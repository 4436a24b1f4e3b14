#pragma once

#include <string>
#include <string_view>
#include <utility>

#include <nlohmann/json.hpp>

#include "format/error.h"

namespace oq::convert {

/// Reads values out of a JSON file, naming the key where one is not what it should be. All failures
/// throw oq::Error.
class JsonReader {
 public:
  using json = nlohmann::json;

  explicit JsonReader(std::string where) : where_(std::move(where)) {}

  const std::string& where() const { return where_; }

  Error error(const std::string& key, const std::string& what, const std::string& found = {},
              const std::string& hint = {}) const {
    return Error({.what = key + " " + what, .where = where_, .found = found, .hint = hint});
  }

  /// A member, or null where it is missing.
  const json& at(const json& object, const char* key) const {
    static const json kNull;
    if (!object.is_object()) throw error(key, "has no object around it");
    const auto it = object.find(key);
    return it == object.end() ? kNull : *it;
  }
  bool flag(const json& object, const char* key, bool fallback) const {
    const json& v = at(object, key);
    if (v.is_null()) return fallback;
    if (!v.is_boolean()) throw error(key, "is not true or false", v.type_name());
    return v.get<bool>();
  }
  /// "" where it is missing.
  std::string_view text(const json& object, const char* key) const {
    const json& v = at(object, key);
    if (v.is_null()) return {};
    if (!v.is_string()) throw error(key, "is not a text", v.type_name());
    return v.get_ref<const std::string&>();
  }
  const json& list(const json& object, const char* key) const {
    const json& v = at(object, key);
    if (!v.is_array()) throw error(key, "is not a list", v.type_name());
    return v;
  }
  /// An id; `limit` is the number of entries of the file that could have one.
  size_t id(const json& v, const char* key, size_t limit) const {
    if (!v.is_number_integer() || v.get<int64_t>() < 0 || v.get<uint64_t>() >= limit) {
      throw error(key, "holds an id that is no number below " + std::to_string(limit),
                  v.is_number() ? v.dump() : v.type_name());
    }
    return size_t(v.get<uint64_t>());
  }

 private:
  std::string where_;
};

}  // namespace oq::convert
