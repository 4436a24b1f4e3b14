#include "tools/calibrate/hidden_states.h"

#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <string>

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

#include "format/error.h"

namespace oq::calibrate {
namespace {

/// A file of `bytes` that nobody else sees and that goes away with the descriptor. Its blocks are
/// taken now: a full disk is an error here, not a signal later.
int scratch_file(const std::filesystem::path& folder, uint64_t bytes) {
  std::string name = (folder / "hidden.XXXXXX").string();
  const int fd = mkstemp(name.data());
  const int failed = fd < 0 ? errno : posix_fallocate(fd, 0, off_t(bytes));
  if (fd >= 0) unlink(name.c_str());
  if (failed == 0) return fd;
  if (fd >= 0) close(fd);
  throw Error({.what = "no room for the hidden states",
               .where = folder.string(),
               .expected = fmt::format("{} MiB", bytes >> 20),
               .found = std::strerror(failed),
               .hint = "make room, or take fewer --windows or a shorter --window"});
}

}  // namespace

uint64_t HiddenStates::bytes(int64_t windows, int64_t tokens, int64_t hidden) {
  return uint64_t(windows) * uint64_t(tokens) * uint64_t(hidden) * sizeof(float);
}

HiddenStates::HiddenStates(int64_t windows, int64_t tokens, int64_t hidden, uint64_t memory_limit,
                           const std::filesystem::path& scratch_folder)
    : windows_(windows),
      tokens_(tokens),
      size_(tokens * hidden),
      memory_limit_(memory_limit),
      scratch_folder_(scratch_folder),
      on_disk_(bytes(windows, tokens, hidden) > memory_limit) {
  const uint64_t n = bytes(windows, tokens, hidden);
  const int fd = on_disk_ ? scratch_file(scratch_folder, n) : -1;
  void* p = mmap(nullptr, n, PROT_READ | PROT_WRITE,
                 on_disk_ ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS, fd, 0);
  const int failed = errno;
  if (fd >= 0) close(fd);
  if (p == MAP_FAILED) {
    throw Error({.what = "no memory for the hidden states",
                 .where = "calibration",
                 .expected = fmt::format("{} MiB", n >> 20),
                 .found = std::strerror(failed),
                 .hint = "take fewer --windows or a shorter --window"});
  }
  data_ = static_cast<float*>(p);
}

HiddenStates::~HiddenStates() {
  munmap(data_, uint64_t(windows_) * uint64_t(size_) * sizeof(float));
}

std::unique_ptr<HiddenStates> HiddenStates::others(int64_t width) const {
  return std::make_unique<HiddenStates>(windows_, tokens_, width, memory_limit_, scratch_folder_);
}

}  // namespace oq::calibrate
