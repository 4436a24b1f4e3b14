#include "tools/convert/json.h"

#include <set>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "format/error.h"
#include "tools/tensor_files/mapped_file.h"

namespace oq::convert {
namespace {

using nlohmann::json;
constexpr int kMaxDepth = 64;

/// Watches a parse: what nlohmann-json would let through, and should not.
class Guard {
 public:
  explicit Guard(std::string where) : where_(std::move(where)) {}

  bool operator()(int depth, json::parse_event_t event, json& parsed) {
    if (depth > kMaxDepth) {
      throw Error({.what = "is nested too deeply",
                   .where = where_,
                   .expected = fmt::format("at most {} levels", kMaxDepth)});
    }
    if (event == json::parse_event_t::object_start) keys_.emplace_back();
    if (event == json::parse_event_t::object_end) keys_.pop_back();
    if (event == json::parse_event_t::key) {
      const auto key = parsed.get<std::string>();
      if (!keys_.back().insert(key).second) {
        throw Error({.what = fmt::format("key '{}' occurs twice", key), .where = where_});
      }
    }
    return true;
  }

 private:
  std::string where_;
  std::vector<std::set<std::string>> keys_;  ///< of the objects that are open
};

}  // namespace

json read_json(const std::filesystem::path& path, uint64_t max_bytes) {
  const MappedFile file(path);
  if (file.bytes().size() > max_bytes) {
    throw Error({.what = "is too large for what it should hold",
                 .where = path.string(),
                 .expected = fmt::format("at most {} bytes", max_bytes),
                 .found = std::to_string(file.bytes().size())});
  }
  return parse_json({reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()},
                    path.string());
}

json read_json_object(const std::filesystem::path& path) {
  json root = read_json(path);
  if (!root.is_object()) throw Error({.what = "is not a JSON object", .where = path.string()});
  return root;
}

json parse_json(std::string_view text, const std::string& where) {
  auto guard = std::make_shared<Guard>(where);
  try {
    return json::parse(text.begin(), text.end(),
                       [guard](int depth, json::parse_event_t event, json& parsed) {
                         return (*guard)(depth, event, parsed);
                       });
  } catch (const json::exception& e) {
    throw Error({.what = fmt::format("is not valid JSON: {}", e.what()), .where = where});
  }
}

}  // namespace oq::convert
