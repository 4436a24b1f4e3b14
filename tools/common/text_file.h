#pragma once

#include <string>

namespace oq::tool {

/// The whole of a text file, or of standard input for "-". Throws oq::Error.
std::string read_text(const std::string& path);

}  // namespace oq::tool
