#include "tools/convert/config.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include <fmt/format.h>

namespace oq::convert {
namespace {

using nlohmann::json;

Error wrong(const Config& config, std::string_view key, const char* expected) {
  const bool missing = !config.contains(key);
  return Error({.what = fmt::format("setting '{}' is {}", key,
                                    missing ? "missing" : "of another type than it should be"),
                .where = config.where(),
                .expected = expected,
                .hint = missing ? "the checkpoint is incomplete" : "the checkpoint is damaged"});
}

Config::Value from_json(const json& v) {
  if (v.is_boolean()) return v.get<bool>();
  if (v.is_number_unsigned() && v.get<uint64_t>() > uint64_t(std::numeric_limits<int64_t>::max())) {
    return v.get<double>();
  }
  if (v.is_number_integer()) return v.get<int64_t>();
  if (v.is_number()) return v.get<double>();
  if (v.is_string()) return v.get<std::string>();
  if (!v.is_array()) return {};
  const bool texts =
      !v.empty() && std::all_of(v.begin(), v.end(), [](const json& e) { return e.is_string(); });
  if (texts) return v.get<std::vector<std::string>>();
  std::vector<double> numbers;
  for (const json& e : v) {
    if (!e.is_number()) return {};
    numbers.push_back(e.get<double>());
  }
  return numbers;
}

/// The number that someone wrote before it was stored as an f32: 1e-5, and not 9.99999975e-6.
double as_written(double v) {
  const auto f = float(v);
  return double(f) == v && std::isfinite(v) ? std::stod(fmt::format("{}", f)) : v;
}

}  // namespace

bool is_whole(double v) { return v == std::floor(v) && std::abs(v) < 0x1p53; }

int64_t Config::integer(std::string_view key) const {
  const Value v = find(key);
  if (const auto* i = std::get_if<int64_t>(&v)) return *i;
  const auto* d = std::get_if<double>(&v);  // 4096.0 is an integer too
  if (d != nullptr && is_whole(*d)) return int64_t(*d);
  throw wrong(*this, key, "an integer");
}

double Config::number(std::string_view key) const {
  const Value v = find(key);
  if (const auto* i = std::get_if<int64_t>(&v)) return double(*i);
  const auto* d = std::get_if<double>(&v);
  if (d == nullptr || !std::isfinite(*d)) throw wrong(*this, key, "a finite number");
  return *d;
}

std::string Config::text(std::string_view key) const {
  Value v = find(key);
  if (auto* s = std::get_if<std::string>(&v)) return std::move(*s);
  throw wrong(*this, key, "a string");
}

int64_t Config::integer_or(std::string_view key, int64_t fallback) const {
  return contains(key) ? integer(key) : fallback;
}

double Config::number_or(std::string_view key, double fallback) const {
  return contains(key) ? number(key) : fallback;
}

bool Config::flag_or(std::string_view key, bool fallback) const {
  const Value v = find(key);
  if (std::holds_alternative<std::monostate>(v)) return fallback;
  if (const auto* b = std::get_if<bool>(&v)) return *b;
  throw wrong(*this, key, "true or false");
}

std::string Config::text_or(std::string_view key, const std::string& fallback) const {
  return contains(key) ? text(key) : fallback;
}

std::vector<std::string> Config::texts(std::string_view key) const {
  Value v = find(key);
  if (std::holds_alternative<std::monostate>(v)) return {};
  if (auto* list = std::get_if<std::vector<std::string>>(&v)) return std::move(*list);
  throw wrong(*this, key, "a list of strings");
}

const json* JsonConfig::at(std::string_view key) const {
  const json* node = &root_;
  while (true) {
    if (!node->is_object()) return nullptr;
    const size_t dot = key.find('.');
    const auto it = node->find(std::string(key.substr(0, dot)));
    if (it == node->end()) return nullptr;
    node = &*it;
    if (dot == std::string_view::npos) return node;
    key.remove_prefix(dot + 1);
  }
}

Config::Value JsonConfig::find(std::string_view key) const {
  const json* node = at(key);
  return node == nullptr ? Value() : from_json(*node);
}

bool JsonConfig::has_group(std::string_view key) const {
  const json* node = at(key);
  return node != nullptr && node->is_object();
}

Config::Value GgufConfig::find(std::string_view key) const {
  using Kind = GgufFile::ValueKind;
  switch (file_.kind(key)) {
    case Kind::boolean:
      return file_.get<bool>(key);
    case Kind::integer:
      return file_.get<int64_t>(key);
    case Kind::floating:
      return as_written(file_.get<double>(key));
    case Kind::string:
      return std::string(file_.get<std::string_view>(key));
    case Kind::number_array:
      return file_.get<std::vector<double>>(key);
    default:
      return {};
  }
}

}  // namespace oq::convert
