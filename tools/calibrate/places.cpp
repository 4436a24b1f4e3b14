#include "tools/calibrate/places.h"

#include <vector>

#include "format/error.h"

namespace oq::calibrate {
namespace {

bool same_file(const std::filesystem::path& a, const std::filesystem::path& b) {
  std::error_code absent;
  return std::filesystem::equivalent(a, b, absent) ||
         std::filesystem::weakly_canonical(a, absent) ==
             std::filesystem::weakly_canonical(b, absent);
}

}  // namespace

void check_places(std::initializer_list<Place> read, std::initializer_list<Place> written) {
  std::vector<Place> taken = read;
  for (const Place& w : written) {
    for (const Place& t : taken) {
      if (w.path.empty() || t.path.empty() || !same_file(w.path, t.path)) continue;
      throw Error({.what = "is " + t.name + " itself",
                   .where = w.path.string(),
                   .hint = "give another name with " + w.name});
    }
    taken.push_back({"the file of " + w.name, w.path});
  }
}

}  // namespace oq::calibrate
