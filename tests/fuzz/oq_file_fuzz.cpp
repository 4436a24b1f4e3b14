// Any bytes as a .oq file: opened, verified, taken for a model and run for a few tokens.

#include <algorithm>
#include <string>
#include <vector>

#include "runtime/chat.h"
#include "runtime/decoder.h"
#include "runtime/tokenizer/tokenizer.h"
#include "tests/fuzz/oq_file_mutation.h"

using namespace oq;
using namespace oq::fuzz;

namespace {

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
  return mutate_oq_file(data, size, max_size, seed);
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
