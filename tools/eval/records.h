#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include <nlohmann/json.hpp>

#include "format/error.h"

namespace oq {

/// One JSON value of a file, and where it is, for errors: "piqa.jsonl, line 3".
class Record {
 public:
  Record(nlohmann::json value, std::string where);

  bool has(const std::string& key) const { return value_.is_object() && value_.contains(key); }
  /// These throw oq::Error when there is no such member, or it is of another type.
  std::string text(const std::string& key) const;
  /// A whole number, also when it is written as a string ("1") or a truth value.
  int64_t integer(const std::string& key) const;
  /// At least one.
  std::vector<std::string> texts(const std::string& key) const;
  Record object(const std::string& key) const;
  std::vector<Record> objects(const std::string& key) const;

  /// An index below `n` that a member holds, counted from `first`.
  int64_t choice(const std::string& key, int64_t first, int64_t n) const;

  Error error(const std::string& what, const std::string& expected = {},
              const std::string& found = {}) const;

 private:
  const nlohmann::json& member(const std::string& key) const;

  nlohmann::json value_;
  std::string where_;
};

/// Calls `line` with each line that is not blank, without its end, and with its place.
void for_each_line(
    std::string_view text, const std::string& path,
    const std::function<void(std::string_view line, const std::string& where)>& line);

/// One JSON object from each line that is not blank.
std::vector<Record> read_json_lines(const std::string& path);

/// A table with a header: quoted and comma-separated, or, where the header has a tab, plain and
/// tab-separated. Rows become objects of strings; every row must have as many fields as the header.
std::vector<Record> read_table(const std::string& path);

}  // namespace oq
