#include "bench/pages.h"

#include <cstdint>
#include <cstdlib>
#include <fstream>
#include <string>

namespace oq {

double huge_page_share(std::span<const std::byte> bytes) {
  const auto begin = reinterpret_cast<uintptr_t>(bytes.data()), end = begin + bytes.size();
  std::ifstream smaps("/proc/self/smaps");
  bool inside = false;  // the lines belong to a mapping that has some of the bytes
  uint64_t resident = 0, huge = 0;
  for (std::string line; std::getline(smaps, line);) {
    char* rest = nullptr;
    const uint64_t low = std::strtoull(line.c_str(), &rest, 16);
    if (*rest == '-') {
      inside = low < end && std::strtoull(rest + 1, nullptr, 16) > begin;
      continue;
    }
    const size_t colon = line.find(':');
    if (!inside || colon == std::string::npos) continue;
    const std::string key = line.substr(0, colon);
    const uint64_t kib = std::strtoull(line.c_str() + colon + 1, nullptr, 10);
    if (key == "Rss") resident += kib;
    if (key == "AnonHugePages" || key == "FilePmdMapped") huge += kib;
  }
  return resident > 0 ? double(huge) / double(resident) : -1;
}

}  // namespace oq
