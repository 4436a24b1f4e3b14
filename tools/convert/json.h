#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <string_view>

#include <nlohmann/json.hpp>

namespace oq::convert {

/// JSON in memory. Refuses nesting deeper than 64 and a key that occurs twice in one object; throws
/// oq::Error with the position of the mistake.
nlohmann::json parse_json(std::string_view text, const std::string& where);

/// A JSON file of a checkpoint, from disk, likewise; refuses files above `max_bytes`.
nlohmann::json read_json(const std::filesystem::path& path, uint64_t max_bytes = 64 << 20);

/// Likewise, and refuses what is no object.
nlohmann::json read_json_object(const std::filesystem::path& path);

}  // namespace oq::convert
