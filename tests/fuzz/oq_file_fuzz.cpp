// Any bytes as a .oq file: opened, verified, taken for a model and run for a few tokens. Header,
// metadata and directory are under checksums that no mutation would ever hit, so most mutations
// are followed by making the checksums right again.

#include <algorithm>
#include <cstring>
#include <string>
#include <vector>

#include <sys/mman.h>
#include <unistd.h>

#include "format/crc32c.h"
#include "format/file_layout.h"
#include "runtime/chat.h"
#include "runtime/decoder.h"
#include "runtime/tokenizer/tokenizer.h"

using namespace oq;

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t max_size);

namespace {

template <class Body>
void allow_errors(const Body& body) {
  try {
    body();
  } catch (const Error&) {
  }
}

/// A file of the input's bytes that lives in memory, at a path that File::open can open.
class MemoryFile {
 public:
  MemoryFile(const uint8_t* data, size_t size) : fd_(memfd_create("fuzz.oq", MFD_CLOEXEC)) {
    if (fd_ < 0 || write(fd_, data, size) != ssize_t(size)) std::abort();
  }
  ~MemoryFile() { close(fd_); }
  MemoryFile(const MemoryFile&) = delete;
  MemoryFile& operator=(const MemoryFile&) = delete;
  std::string path() const { return "/proc/self/fd/" + std::to_string(fd_); }

 private:
  int fd_;
};

/// The part [offset, offset + bytes) of the input where it has one.
std::span<std::byte> part(std::span<std::byte> all, uint64_t offset, uint64_t bytes) {
  if (offset > all.size() || bytes > all.size() - offset) return {};
  return all.subspan(size_t(offset), size_t(bytes));
}

/// Makes what a mutation broke right again, from the inside out: tensors' checksums, the
/// directory's, the metadata's, the header's.
void repair(std::span<std::byte> all) {
  if (all.size() < sizeof(disk::Header)) return;
  disk::Header h;
  std::memcpy(&h, all.data(), sizeof(h));
  std::memcpy(h.magic, disk::kMagic, sizeof(h.magic));
  h.version_major = kVersionMajor;
  h.file_bytes = all.size();
  const auto directory =
      part(all, h.directory_offset, uint64_t(h.tensor_count) * sizeof(disk::Entry));
  for (size_t at = 0; at < directory.size(); at += sizeof(disk::Entry)) {
    disk::Entry e;
    std::memcpy(&e, directory.data() + at, sizeof(e));
    e.crc = crc32c(part(all, e.offset, e.bytes));
    std::memcpy(directory.data() + at, &e, sizeof(e));
  }
  h.directory_crc = crc32c(directory);
  h.metadata_crc = crc32c(part(all, h.metadata_offset, h.metadata_bytes));
  h.header_crc = crc32c(std::as_bytes(std::span(&h, 1)).first(sizeof(h) - 4));
  std::memcpy(all.data(), &h, sizeof(h));
}

/// One of the file's parts, where something is: a file is mostly padding.
std::span<std::byte> choose_part(std::span<std::byte> all, unsigned seed) {
  if (all.size() < sizeof(disk::Header)) return all;
  disk::Header h;
  std::memcpy(&h, all.data(), sizeof(h));
  const auto directory =
      part(all, h.directory_offset, uint64_t(h.tensor_count) * sizeof(disk::Entry));
  switch (seed % 4) {
    case 0:
      return all.first(sizeof(h));
    case 1:
      return part(all, h.metadata_offset, h.metadata_bytes);
    case 2:
      return directory;
    default:
      break;
  }
  if (directory.empty()) return all;
  disk::Entry e;
  const size_t index = seed / 4 % (directory.size() / sizeof(e));
  std::memcpy(&e, directory.data() + index * sizeof(e), sizeof(e));
  return part(all, e.offset, e.bytes);
}

void read_tensors(const File& file) {
  for (const TensorInfo& t : file.tensors()) {
    if (t.kind != Kind::packed) continue;
    std::vector<float> row(size_t(t.cols));
    for (uint64_t r : {uint64_t(0), t.rows / 2, t.rows - 1}) {
      file.packed(t).dequantize_row(r, row);
    }
  }
}

/// Sizes at which a step takes no time, though the config may ask for more work than its file has
/// bytes: attention over the context.
bool small(const ModelConfig& c) { return c.blocks <= 4 && c.heads <= 64 && c.head_dim <= 256; }

void decode(const std::shared_ptr<const File>& file, std::span<const int32_t> ids) {
  if (!small(ModelConfig::load(*file))) return;
  for (const bool exact : {false, true}) {
    Decoder decoder(file, make_cpu_backend(1), {.context = 8, .exact = exact});
    decoder.feed(ids.first(std::min<size_t>(ids.size(), 5)));
    decoder.feed(ids.first(1));
  }
}

}  // namespace

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size,
                                          unsigned seed) {
  const auto chosen = choose_part({reinterpret_cast<std::byte*>(data), size}, seed / 16);
  if (seed % 16 == 0 || chosen.empty()) {
    size = LLVMFuzzerMutate(data, size, max_size);
  } else {  // in place: everything else stays where it is
    LLVMFuzzerMutate(reinterpret_cast<uint8_t*>(chosen.data()), chosen.size(), chosen.size());
  }
  if (seed % 16 != 1) repair({reinterpret_cast<std::byte*>(data), size});
  return size;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  allow_errors([&] {
    const MemoryFile memory(data, size);
    const auto file = File::open(memory.path());
    allow_errors([&] { file->verify(); });
    read_tensors(*file);
    for (const auto& [key, value] : file->metadata()) {
      allow_errors([&, &v = value] { Metadata::from_text(Metadata::to_text(v), v); });
    }
    allow_errors([&] { ChatTemplate::of(file->metadata()); });
    std::vector<int32_t> ids = {0, 1, 2};
    allow_errors([&] {
      const auto tokenizer = Tokenizer::load(*file);
      ids = tokenizer->encode("ab 11\n \xC3\xA9<|end|>\xFF it's", true);
      tokenizer->decode(ids);
    });
    allow_errors([&] {
      const ModelConfig config = ModelConfig::load(*file);
      check_tensors(*file, config);
      linear_bytes(*file, config);
    });
    if (!ids.empty()) allow_errors([&] { decode(file, ids); });
  });
  return 0;
}
