#include "format/memory_file.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <fstream>
#include <optional>
#include <utility>

#include <fmt/format.h>
#include <sys/mman.h>
#include <unistd.h>

#include "format/bytes.h"
#include "format/crc32c.h"
#include "format/file_layout.h"

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

MemoryFile::MemoryFile(std::string name, Metadata metadata, std::vector<TensorInfo> tensors)
    : name_(std::move(name)),
      metadata_(std::move(metadata)),
      tensors_(std::move(tensors)),
      data_end_(disk::data_offset(kMetadataRoom, tensors_.size())) {
  for (TensorInfo& t : tensors_) data_end_ = disk::place(t, data_end_, name_);
  check_fits(name_, data_end_);
  const uint64_t size = round_up(data_end_, disk::kDataAlign);
  void* p = mmap(nullptr, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) {
    throw Error({.what = std::string("no memory: ") + std::strerror(errno),
                 .where = name_,
                 .expected = fmt::format("{:.1f} GB", double(size) / 1e9),
                 .hint = "choose a smaller model or fewer bits, or raise the process's limit"});
  }
  map_ = {static_cast<std::byte*>(p), size};
}

MemoryFile::~MemoryFile() {
  if (!map_.empty()) munmap(map_.data(), map_.size());
}

void MemoryFile::populate(uint64_t begin, uint64_t end) {
#if defined(MADV_POPULATE_WRITE)  // Linux 5.14
  begin = begin / disk::kDataAlign * disk::kDataAlign;
  madvise(map_.data() + begin, std::min(end, bytes()) - begin, MADV_POPULATE_WRITE);
#endif
}

void MemoryFile::seal(size_t tensor) { tensors_[tensor].crc = crc32c(data(tensor)); }

std::shared_ptr<const File> MemoryFile::finish() {
  const disk::Front front = disk::make_front(metadata_, kMetadataRoom, tensors_, data_end_, name_);
  const auto directory = std::as_bytes(std::span(front.directory));
  std::memcpy(map_.data(), &front.header, sizeof(front.header));
  std::memcpy(map_.data() + front.header.metadata_offset, front.metadata.data(),
              front.metadata.size());
  std::memcpy(map_.data() + front.header.directory_offset, directory.data(), directory.size());
  mprotect(map_.data(), map_.size(), PROT_READ);  // a stray write crashes, as in a mapped file

  std::shared_ptr<File> file(new File);
  file->path_ = name_;
  file->map_ = std::exchange(map_, {});
  with_place(name_, [&] { file->read_header(); });
  return file;
}

}  // namespace oq
