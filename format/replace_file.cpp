#include "format/replace_file.h"

#include <cstdio>

#include <fcntl.h>
#include <unistd.h>

namespace oq {

bool replace_file(const std::filesystem::path& part, const std::filesystem::path& path) {
  if (std::rename(part.c_str(), path.c_str()) != 0) return false;
  const auto parent = path.parent_path();
  const int fd = open(parent.empty() ? "." : parent.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return true;  // the rename has happened; only its durability is left to the system
  fsync(fd);
  close(fd);
  return true;
}

}  // namespace oq
