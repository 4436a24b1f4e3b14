#include "format/memory.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <optional>

#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

#include "format/bytes.h"
#include "format/error.h"

namespace oq {
namespace {

/// The number behind `key` in a file of lines "key number ..."; without a key, the first one.
std::optional<uint64_t> read_number(const char* path, const std::string& key = {}) {
  std::ifstream in(path);
  for (std::string line; std::getline(in, line);) {
    if (line.rfind(key, 0) != 0) continue;
    const size_t digits = line.find_first_of("0123456789", key.size());
    if (digits == std::string::npos) return std::nullopt;  // a limit of "max" is none
    return std::strtoull(line.c_str() + digits, nullptr, 10);
  }
  return std::nullopt;
}

/// What a container's limit leaves, counting the page cache as free.
std::optional<uint64_t> available_in_container() {
  const auto limit = read_number("/sys/fs/cgroup/memory.max");
  const auto used = read_number("/sys/fs/cgroup/memory.current");
  if (!limit || !used) return std::nullopt;
  const uint64_t cache = read_number("/sys/fs/cgroup/memory.stat", "inactive_file ").value_or(0) +
                         read_number("/sys/fs/cgroup/memory.stat", "active_file ").value_or(0);
  const uint64_t held = *used - std::min(*used, cache);
  return *limit - std::min(*limit, held);
}

/// A sixteenth of what is available stays free, for a KV cache and everybody else: a process that
/// is killed later has said nothing.
void check_fits(const std::string& name, uint64_t wanted) {
  const uint64_t available = available_memory();
  if (wanted <= available - available / 16) return;
  throw Error({.what = "does not fit this machine's memory",
               .where = name,
               .expected = fmt::format("{:.1f} GB", double(wanted) / 1e9),
               .found = fmt::format("{:.1f} GB available, of which a sixteenth stays free",
                                    double(available) / 1e9),
               .hint = "choose a smaller model or fewer bits, or free some memory"});
}

}  // namespace

uint64_t available_memory() {
  const auto kib = read_number("/proc/meminfo", "MemAvailable:");
  const uint64_t system =
      kib ? *kib << 10 : uint64_t(sysconf(_SC_AVPHYS_PAGES)) * uint64_t(sysconf(_SC_PAGESIZE));
  return std::min(system, available_in_container().value_or(system));
}

void advise(std::span<std::byte> memory, Pages pages) {
#if defined(MADV_HUGEPAGE)
  if (pages != Pages::huge) return;
  const auto page = uintptr_t(sysconf(_SC_PAGESIZE));
  const auto first = round_up(reinterpret_cast<uintptr_t>(memory.data()), page);
  const auto end = reinterpret_cast<uintptr_t>(memory.data() + memory.size()) / page * page;
  if (first < end) madvise(reinterpret_cast<void*>(first), end - first, MADV_HUGEPAGE);
#endif
}

std::span<std::byte> map_memory(const std::string& name, uint64_t bytes, Pages pages) {
  const bool sparse = pages == Pages::sparse;
  if (!sparse) check_fits(name, bytes);
  const int flags = MAP_PRIVATE | MAP_ANONYMOUS | (sparse ? MAP_NORESERVE : 0);
  void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, flags, -1, 0);
  if (p == MAP_FAILED) {
    throw Error({.what = std::string("no memory: ") + std::strerror(errno),
                 .where = name,
                 .expected = fmt::format("{:.1f} GB", double(bytes) / 1e9),
                 .hint = "choose a smaller model or fewer bits, or raise the process's limit"});
  }
  const std::span<std::byte> memory(static_cast<std::byte*>(p), bytes);
  advise(memory, pages);
  return memory;
}

}  // namespace oq
