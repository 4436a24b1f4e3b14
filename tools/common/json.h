#pragma once

#include <nlohmann/json.hpp>

#include "tools/common/cli.h"

namespace oq::tool {

/// What --json promises: one object on stdout. Bytes that are no UTF-8, as a path or a damaged
/// file may have, come out as U+FFFD.
inline void print_object(const nlohmann::json& object) {
  print(object.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n");
}

}  // namespace oq::tool
