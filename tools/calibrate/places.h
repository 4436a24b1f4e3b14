#pragma once

#include <filesystem>
#include <initializer_list>
#include <string>

namespace oq::calibrate {

/// A file that a run reads ("the input") or writes ("-o").
struct Place {
  std::string name;
  std::filesystem::path path;  ///< empty: none
};

/// Refuses to write what is read, or one file twice. Throws oq::Error.
void check_places(std::initializer_list<Place> read, std::initializer_list<Place> written);

/// --text as a path; none where the model itself writes it.
inline std::filesystem::path text_file(const std::string& text) {
  return text == "self" ? std::filesystem::path() : std::filesystem::path(text);
}

}  // namespace oq::calibrate
