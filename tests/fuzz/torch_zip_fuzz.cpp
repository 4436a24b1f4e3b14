// Any bytes as a zip archive of torch, first as an archive alone, then with what is in it.

#include <vector>

#include "tests/fuzz/zip_mutation.h"
#include "tools/convert/state_dict.h"
#include "tools/tensor_files/torch/file.h"

using namespace oq;
using namespace oq::convert;
using namespace oq::fuzz;
using torch::ZipArchive;

namespace {

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
  return mutate_zip(data, size, max_size, seed);
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
