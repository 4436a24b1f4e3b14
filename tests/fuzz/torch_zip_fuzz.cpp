// Any bytes as a zip archive of torch, first as an archive alone, then with what is in it. No
// mutation would hit a CRC-32, so most are followed by making them right again.

#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <vector>

#include "format/error.h"
#include "tools/convert/state_dict.h"
#include "tools/tensor_files/torch/crc32.h"
#include "tools/tensor_files/torch/file.h"

using namespace oq;
using namespace oq::convert;
using torch::ZipArchive;

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t max_size);

namespace {

std::span<const std::byte> bytes_of(const uint8_t* data, size_t size) {
  return {reinterpret_cast<const std::byte*>(data), size};
}

template <class Body>
void allow_errors(const Body& body) {
  try {
    body();
  } catch (const oq::Error&) {
  }
}

/// Where a header of the directory begins whose name lies at `name`: its CRC is 16 bytes in.
constexpr ptrdiff_t kNameInHeader = 46, kCrcInHeader = 16;

void repair_checksums(uint8_t* data, size_t size) {
  allow_errors([&] {
    const ZipArchive zip(bytes_of(data, size), "fuzz.bin");
    for (const torch::ZipEntry& e : zip.entries()) {
      const uint32_t crc = torch::crc32(e.data);
      const ptrdiff_t header = e.name.data() - reinterpret_cast<const char*>(data) - kNameInHeader;
      std::memcpy(data + header + kCrcInHeader, &crc, sizeof crc);
    }
  });
}

void read_tensors(const torch::File& file) {
  for (const SourceTensor& t : state_dict(file.dict(), "fuzz.bin")) {
    allow_errors([&] { t.bytes(); });
    if (t.view == nullptr) continue;
    std::vector<std::byte> all(t.view->elements() * t.view->dtype->bytes);
    allow_errors([&] { t.view->read(0, t.view->elements(), all.data()); });
  }
}

}  // namespace

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size,
                                          unsigned seed) {
  size = LLVMFuzzerMutate(data, size, seed % 4 == 0 ? max_size : size);
  if (seed % 16 != 1) repair_checksums(data, size);
  return size;
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const auto bytes = bytes_of(data, size);
  allow_errors([&] {
    const ZipArchive zip(bytes, "fuzz.bin");
    size_t total = 0;
    for (const torch::ZipEntry& e : zip.entries()) {
      total += e.data.size();
      allow_errors([&] { zip.check_crc(e); });
    }
    if (total > size) std::abort();  // entries overlap
  });
  allow_errors([&] { read_tensors(torch::File(bytes, "fuzz.bin")); });
  return 0;
}
