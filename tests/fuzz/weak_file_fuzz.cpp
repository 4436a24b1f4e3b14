// Any bytes as a file of tuned weak columns (--weak), on a sound model: what is not refused gives
// a model that is as sound.

#include <vector>

#include "format/weak_file.h"
#include "tests/fuzz/oq_file_mutation.h"

using namespace oq;
using namespace oq::fuzz;

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size,
                                          unsigned seed) {
  return mutate_oq_file(data, size, max_size, seed);
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const MemoryFile weak(data, size);
  std::shared_ptr<const File> model;
  allow_errors([&] { model = open_with_weak(OQ_FUZZ_CORPUS "/oq_file/w3_weak.oq", weak.path()); });
  if (!model) return 0;
  model->verify();  // throws nothing
  for (const TensorInfo& t : model->tensors()) {
    if (t.kind != Kind::packed) continue;
    std::vector<float> row(size_t(t.cols));
    model->packed(t).dequantize_row(t.rows - 1, row);
  }
  return 0;
}
