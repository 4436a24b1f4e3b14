#include "bench/gpu/results.h"

#include <algorithm>
#include <fstream>
#include <vector>

#include <fmt/format.h>

#include "format/error.h"

namespace oq {
namespace {

using Json = Results::Json;
constexpr const char* kFailed = "failed";

void write_file(const std::filesystem::path& path, const std::string& text) {
  const std::filesystem::path part = path.string() + ".part";
  std::ofstream out(part, std::ios::binary);
  out << text << std::flush;
  if (!out) throw Error({.what = "cannot write", .where = part.string()});
  out.close();
  std::filesystem::rename(part, path);
}

std::string cell(const Json& value) {
  if (value.is_number_float()) return fmt::format("{:.4g}", value.get<double>());
  if (value.is_boolean()) return value.get<bool>() ? "yes" : "no";
  if (value.is_null()) return "";
  std::string text = value.is_string() ? value.get<std::string>() : value.dump();
  std::replace(text.begin(), text.end(), '\n', ' ');
  std::replace(text.begin(), text.end(), '|', '/');
  return text;
}

/// Each once, in the order in which they first come.
void add_once(std::vector<std::string>& names, const std::string& name) {
  if (std::find(names.begin(), names.end(), name) == names.end()) names.push_back(name);
}

/// One table: the key, then the columns of all its rows; what failed comes last.
std::string table_of(const std::vector<Json>& rows) {
  std::vector<std::string> names;
  bool failures = false;
  for (const Json& row : rows) {
    for (const auto& item : row["columns"].items()) {
      item.key() == kFailed ? void(failures = true) : add_once(names, item.key());
    }
  }
  if (failures) names.emplace_back(kFailed);
  std::string text = "| |", rule = "|---|";
  for (const std::string& name : names) text += " " + name + " |", rule += "---|";
  text += "\n" + rule + "\n";
  for (const Json& row : rows) {
    text += "| " + cell(row["key"]) + " |";
    for (const std::string& name : names) {
      const Json& columns = row["columns"];
      text += " " + (columns.contains(name) ? cell(columns[name]) : "") + " |";
    }
    text += "\n";
  }
  return text;
}

bool is_row(const Json& row) {
  return row.is_object() && row.contains("table") && row["table"].is_string() &&
         row.contains("key") && row["key"].is_string() && row.contains("columns") &&
         row["columns"].is_object();
}

}  // namespace

Results::Results(std::filesystem::path path, std::string device)
    : path_(std::move(path)), device_(std::move(device)) {
  std::ifstream in(path_.string() + ".json", std::ios::binary);
  if (!in) return;
  const Json read = Json::parse(in, nullptr, false);
  if (!read.is_object() || !read.contains("rows") || !read["rows"].is_array() ||
      !std::all_of(read["rows"].begin(), read["rows"].end(), is_row)) {
    throw Error({.what = "not a table of results",
                 .where = path_.string() + ".json",
                 .hint = "move it away"});
  }
  rows_ = read["rows"];
}

const Json* Results::find(const std::string& table, const std::string& key) const {
  const auto it = std::find_if(rows_.begin(), rows_.end(), [&](const Json& row) {
    return row["table"] == table && row["key"] == key;
  });
  return it == rows_.end() ? nullptr : &*it;
}

bool Results::has(const std::string& table, const std::string& key) const {
  const Json* row = find(table, key);
  return row != nullptr && !(*row)["columns"].contains(kFailed);
}

bool Results::failed(const std::string& table, const std::string& key) const {
  const Json* row = find(table, key);
  return row != nullptr && (*row)["columns"].contains(kFailed);
}

void Results::put(const std::string& table, const std::string& key, Json columns) {
  Json row = {{"table", table}, {"key", key}, {"columns", std::move(columns)}};
  if (const Json* old = find(table, key)) {
    rows_[size_t(old - &rows_[0])] = std::move(row);
  } else {
    rows_.push_back(std::move(row));
  }
  write();
}

void Results::put_failure(const std::string& table, const std::string& key,
                          const std::string& why) {
  put(table, key, {{kFailed, why}});
}

std::string Results::markdown() const {
  std::vector<std::string> tables;
  for (const Json& row : rows_) add_once(tables, row["table"].get<std::string>());
  std::string text = fmt::format(
      "# {}\n\nBy `bench/gpu.sh`; docs/cuda.md says what each part measures. Times are medians.\n",
      device_);
  for (const std::string& name : tables) {
    std::vector<Json> rows;
    for (const Json& row : rows_) {
      if (row["table"] == name) rows.push_back(row);
    }
    text += fmt::format("\n## {}\n\n{}", name, table_of(rows));
  }
  return text;
}

std::string Results::summary() const {
  std::string text;
  size_t missed = 0, failed = 0;
  for (const Json& row : rows_) {
    const Json& columns = row["columns"];
    std::string why;
    if (columns.contains(kFailed)) {
      ++failed;
      why = "failed: " + cell(columns[kFailed]);
    } else if (columns.value("met", true)) {
      continue;
    } else {
      ++missed;
      why = "missed: " + columns.value("held to", std::string());
    }
    text += fmt::format("{}: {}: {}\n", cell(row["table"]), cell(row["key"]), why);
  }
  return fmt::format("{} rows, {} failed, {} missed what they are held to\n", rows_.size(), failed,
                     missed) +
         text;
}

bool Results::any_failed() const {
  return std::any_of(rows_.begin(), rows_.end(),
                     [](const Json& row) { return row["columns"].contains(kFailed); });
}

void Results::write() const {
  std::string text = "{\"device\": " + Json(device_).dump() + ", \"rows\": [";
  for (size_t i = 0; i < rows_.size(); ++i) text += (i == 0 ? "\n" : ",\n") + rows_[i].dump();
  std::filesystem::create_directories(path_.parent_path());
  write_file(path_.string() + ".json", text + "\n]}\n");
  write_file(path_.string() + ".md", markdown());
}

void hold_to(Results::Json& columns, const std::string& aim, bool met) {
  const std::string before = columns.value("held to", std::string());
  columns["held to"] = before.empty() ? aim : before + "; " + aim;
  columns["met"] = columns.value("met", true) && met;
}

}  // namespace oq
