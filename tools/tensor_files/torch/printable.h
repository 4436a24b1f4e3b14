#pragma once

#include <string>
#include <string_view>

namespace oq::torch {

/// A name from a hostile file for an error message: control characters become '?', so that it moves
/// no terminal's cursor, and of a long one the beginning remains.
inline std::string printable(std::string_view name) {
  constexpr size_t kMost = 120;
  std::string out(name.substr(0, kMost));
  for (char& c : out) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7F) c = '?';
  }
  return name.size() > kMost ? out + ".." : out;
}

}  // namespace oq::torch
