#pragma once

#include <cctype>
#include <cstdint>
#include <stdexcept>
#include <string>
#include <utility>

namespace oq {

/// What every library of OQ throws. Only a tool's `main` prints it and exits.
///
/// `what()` is one line: "where: what (expected E, found F); hint". Empty parts are left out.
class Error : public std::runtime_error {
 public:
  struct Parts {
    std::string what;        ///< what went wrong
    std::string where = {};  ///< file, tensor, metadata key: the place to look at
    std::string expected = {};
    std::string found = {};
    std::string hint = {};  ///< what the user can do about it
  };

  explicit Error(Parts parts) : std::runtime_error(line(parts)), parts_(std::move(parts)) {}

  const Parts& parts() const noexcept { return parts_; }

 private:
  static std::string line(const Parts& p) {
    std::string s = p.where.empty() ? p.what : p.where + ": " + p.what;
    if (!p.expected.empty() && !p.found.empty()) {
      s += " (expected " + p.expected + ", found " + p.found + ")";
    } else if (!p.expected.empty()) {
      s += " (expected " + p.expected + ")";
    } else if (!p.found.empty()) {
      s += " (found " + p.found + ")";
    }
    if (!p.hint.empty()) s += "; " + p.hint;
    return s;
  }

  Parts parts_;
};

/// What `body` returns. An Error that it throws gets `place` put before its own, where it is not
/// there already: metadata does not know which file it came from, but whoever loads it does.
template <class Body>
decltype(auto) with_place(const std::string& place, const Body& body) {
  try {
    return body();
  } catch (const Error& e) {
    const std::string& own = e.parts().where;
    // "tensor 'x'" does not begin with a file "t". Behind the last character there is a NUL.
    if (own.rfind(place, 0) == 0 && std::isalnum(uint8_t(own[place.size()])) == 0) throw;
    Error::Parts parts = e.parts();
    parts.where = parts.where.empty() ? place : place + ", " + parts.where;
    throw Error(std::move(parts));
  }
}

}  // namespace oq
