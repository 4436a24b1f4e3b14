#include "tools/common/text_file.h"

#include <cerrno>
#include <cstring>
#include <fstream>
#include <iostream>
#include <sstream>

#include "format/error.h"

namespace oq::tool {

std::string read_text(const std::string& path) {
  std::ostringstream text;
  if (path == "-") {
    if (std::cin.peek() != std::istream::traits_type::eof()) text << std::cin.rdbuf();
    return std::move(text).str();
  }
  std::ifstream in(path, std::ios::binary);
  if (in && in.peek() != std::ifstream::traits_type::eof()) text << in.rdbuf();
  if (!in.is_open() || in.bad() || text.fail()) {
    throw Error({.what = std::string("text cannot be read: ") + std::strerror(errno),
                 .where = path,
                 .hint = "check the path and its permissions"});
  }
  return std::move(text).str();
}

}  // namespace oq::tool
