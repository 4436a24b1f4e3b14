#include "tools/eval/records.h"

#include <algorithm>
#include <charconv>
#include <utility>

#include <fmt/format.h>

#include "tools/common/text_file.h"

namespace oq {
namespace {

constexpr std::string_view kByteOrderMark = "\xef\xbb\xbf";

std::string place(const std::string& path, int64_t line) {
  return fmt::format("{}, line {}", path, line);
}

bool is_blank(std::string_view line) { return line.find_first_not_of(" \t\r") == line.npos; }

std::string_view without_mark(std::string_view text) {
  if (text.substr(0, kByteOrderMark.size()) == kByteOrderMark) {
    text.remove_prefix(kByteOrderMark.size());
  }
  return text;
}

/// Cuts a table into rows of fields. Between quotes, where they count, separators and ends of
/// lines are text, and "" is a quote.
class TableReader {
 public:
  TableReader(std::string_view text, std::string path, char separator, bool quotes)
      : rest_(text), path_(std::move(path)), separator_(separator), quotes_(quotes) {}

  bool at_end() const { return rest_.empty(); }
  std::string where() const { return place(path_, line_); }

  std::vector<std::string> row() {
    std::vector<std::string> fields;
    do {
      fields.push_back(quotes_ && !rest_.empty() && rest_[0] == '"' ? quoted() : plain());
    } while (take(separator_));
    take('\r');
    if (!rest_.empty() && !take('\n')) {
      throw Error({.what = "text after a closing quote", .where = where()});
    }
    ++line_;
    return fields;
  }

 private:
  bool take(char c) {
    if (rest_.empty() || rest_[0] != c) return false;
    rest_.remove_prefix(1);
    return true;
  }

  std::string plain() {
    const size_t end = std::min(rest_.size(), rest_.find_first_of(std::string{separator_, '\n'}));
    std::string field(rest_.substr(0, end));
    rest_.remove_prefix(end);
    const bool ends_row = rest_.empty() || rest_[0] == '\n';
    if (ends_row && !field.empty() && field.back() == '\r') field.pop_back();
    return field;
  }

  std::string quoted() {
    const std::string opened = where();
    rest_.remove_prefix(1);
    std::string field;
    while (true) {
      const size_t end = rest_.find('"');
      if (end == rest_.npos) throw Error({.what = "a quote is not closed", .where = opened});
      field += rest_.substr(0, end);
      line_ += std::count(rest_.begin(), rest_.begin() + int64_t(end), '\n');
      rest_.remove_prefix(end + 1);
      if (!take('"')) return field;
      field += '"';
    }
  }

  std::string_view rest_;
  std::string path_;
  char separator_;
  bool quotes_;
  int64_t line_ = 1;
};

}  // namespace

Record::Record(nlohmann::json value, std::string where)
    : value_(std::move(value)), where_(std::move(where)) {}

Error Record::error(const std::string& what, const std::string& expected,
                    const std::string& found) const {
  return Error({.what = what, .where = where_, .expected = expected, .found = found});
}

const nlohmann::json& Record::member(const std::string& key) const {
  if (!has(key)) throw error(fmt::format("there is no '{}'", key));
  return value_.at(key);
}

std::string Record::text(const std::string& key) const {
  const auto& v = member(key);
  if (!v.is_string()) throw error(fmt::format("'{}' is not a text", key), "string", v.type_name());
  return v.get<std::string>();
}

int64_t Record::integer(const std::string& key) const {
  const auto& v = member(key);
  if (v.is_boolean()) return v.get<bool>() ? 1 : 0;
  if (v.is_number_integer()) return v.get<int64_t>();
  if (v.is_string()) {
    const auto& s = v.get_ref<const std::string&>();
    int64_t n = 0;
    const auto [end, problem] = std::from_chars(s.data(), s.data() + s.size(), n);
    if (problem == std::errc() && end == s.data() + s.size()) return n;
  }
  throw error(fmt::format("'{}' is not a whole number", key), "integer",
              v.is_string() ? "'" + v.get<std::string>() + "'" : v.type_name());
}

std::vector<std::string> Record::texts(const std::string& key) const {
  const auto& v = member(key);
  std::vector<std::string> all;
  if (v.is_array()) {
    for (const auto& item : v) {
      if (item.is_string()) all.push_back(item.get<std::string>());
    }
  }
  if (all.empty() || all.size() != v.size()) {
    throw error(fmt::format("'{}' is not a list of texts", key));
  }
  return all;
}

Record Record::object(const std::string& key) const {
  const auto& v = member(key);
  if (!v.is_object()) {
    throw error(fmt::format("'{}' is not an object", key), "object", v.type_name());
  }
  return {v, where_};
}

std::vector<Record> Record::objects(const std::string& key) const {
  const auto& v = member(key);
  if (!v.is_array()) throw error(fmt::format("'{}' is not a list", key), "list", v.type_name());
  std::vector<Record> all;
  for (const auto& item : v) all.emplace_back(item, where_);
  return all;
}

int64_t Record::choice(const std::string& key, int64_t first, int64_t n) const {
  const int64_t value = integer(key);
  if (value >= first && value < first + n) return value - first;
  throw error(fmt::format("'{}' names no choice", key), fmt::format("{}..{}", first, first + n - 1),
              std::to_string(value));
}

void for_each_line(
    std::string_view text, const std::string& path,
    const std::function<void(std::string_view line, const std::string& where)>& line) {
  text = without_mark(text);
  for (int64_t number = 1; !text.empty(); ++number) {
    const size_t end = std::min(text.find('\n'), text.size());
    std::string_view part = text.substr(0, end);
    text.remove_prefix(std::min(text.size(), end + 1));
    if (!part.empty() && part.back() == '\r') part.remove_suffix(1);
    if (!is_blank(part)) line(part, place(path, number));
  }
}

std::vector<Record> read_json_lines(const std::string& path) {
  const std::string text = tool::read_text(path);
  std::vector<Record> records;
  for_each_line(text, path, [&](std::string_view line, const std::string& where) {
    auto value = nlohmann::json::parse(line, nullptr, false);
    if (!value.is_object()) {
      throw Error({.what = "a line is no JSON object",
                   .where = where,
                   .hint = "give the task's file in JSON lines"});
    }
    records.emplace_back(std::move(value), where);
  });
  return records;
}

std::vector<Record> read_table(const std::string& path) {
  const std::string text = tool::read_text(path);
  const std::string_view body = without_mark(text);
  const bool tabs = body.substr(0, body.find('\n')).find('\t') != body.npos;
  TableReader reader(body, path, tabs ? '\t' : ',', !tabs);
  if (reader.at_end()) return {};
  const std::vector<std::string> header = reader.row();
  std::vector<Record> records;
  while (!reader.at_end()) {
    const std::string where = reader.where();
    std::vector<std::string> fields = reader.row();
    if (fields.size() == 1 && is_blank(fields[0])) continue;
    if (fields.size() != header.size()) {
      throw Error({.what = "a row has another number of fields than the header",
                   .where = where,
                   .expected = std::to_string(header.size()),
                   .found = std::to_string(fields.size())});
    }
    nlohmann::json row = nlohmann::json::object();
    for (size_t i = 0; i < header.size(); ++i) row[header[i]] = std::move(fields[i]);
    records.emplace_back(std::move(row), where);
  }
  return records;
}

}  // namespace oq
