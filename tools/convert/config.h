#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include <nlohmann/json.hpp>

#include "tools/convert/gguf.h"

namespace oq::convert {

/// Whether a number is an integer that a double holds exactly, as all of less than 2^53 are. What
/// is not must not be cast to one.
bool is_whole(double v);

/// A checkpoint's own settings, whatever format they came in. Keys are the format's; a dot leads
/// into a nested object of config.json ("rope_scaling.factor"). A null is a missing value.
/// Wrong types and missing values throw oq::Error naming the file and the key.
class Config {
 public:
  using Value = std::variant<std::monostate, bool, int64_t, double, std::string,
                             std::vector<double>, std::vector<std::string>>;

  virtual ~Config() = default;
  virtual Value find(std::string_view key) const = 0;
  /// True where `key` holds an object.
  virtual bool has_group(std::string_view) const { return false; }
  /// The file, for messages.
  virtual std::string where() const = 0;

  bool contains(std::string_view key) const {
    return !std::holds_alternative<std::monostate>(find(key));
  }
  int64_t integer(std::string_view key) const;
  double number(std::string_view key) const;
  std::string text(std::string_view key) const;

  int64_t integer_or(std::string_view key, int64_t fallback) const;
  double number_or(std::string_view key, double fallback) const;
  bool flag_or(std::string_view key, bool fallback) const;
  std::string text_or(std::string_view key, const std::string& fallback) const;
  /// Empty where it is missing.
  std::vector<std::string> texts(std::string_view key) const;
};

/// config.json
class JsonConfig : public Config {
 public:
  JsonConfig(nlohmann::json root, std::string where)
      : root_(std::move(root)), where_(std::move(where)) {}

  Value find(std::string_view key) const override;
  bool has_group(std::string_view key) const override;
  std::string where() const override { return where_; }

 private:
  const nlohmann::json* at(std::string_view key) const;

  nlohmann::json root_;
  std::string where_;
};

/// A GGUF header's metadata. Arrays of strings are not settings and are not found.
class GgufConfig : public Config {
 public:
  /// PRECOND: `file` outlives the object.
  explicit GgufConfig(const GgufFile& file) : file_(file) {}

  Value find(std::string_view key) const override;
  std::string where() const override { return file_.where(); }

 private:
  const GgufFile& file_;
};

}  // namespace oq::convert
