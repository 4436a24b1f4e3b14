// Any bytes as a file of learned parameters or of measured ranges (--params, --act-scales,
// --act-shifts): torch's where they begin like a zip archive, else a .safetensors. What is read
// is finite, and written and read again is the same.

#include <algorithm>
#include <cmath>

#include "tests/fuzz/zip_mutation.h"
#include "tests/support.h"
#include "tools/calibrate/parameters.h"

using namespace oq;
using namespace oq::fuzz;

namespace {

/// The model of golden/omniquant/llama-bias, whose files the corpus starts from.
ModelConfig llama_config() {
  ModelConfig c;
  c.family = "llama";
  c.vocab = 97;
  c.hidden = 42;
  c.blocks = 2;
  c.heads = 6;
  c.kv_heads = 2;
  c.head_dim = c.rope_dim = 10;
  c.mlp = 52;
  c.context = 128;
  c.qkv_bias = c.o_bias = c.mlp_bias = true;
  return c;
}

/// And of golden/omniquant/opt.
ModelConfig opt_config() {
  ModelConfig c = llama_config();
  c.family = "opt";
  c.hidden = 44;
  c.heads = c.kv_heads = 4;
  c.head_dim = 11;
  c.mlp = 58;
  c.norm = NormKind::layer;
  c.positions = PositionKind::learned;
  c.rope_dim = 0;
  c.activation = Activation::relu;
  c.gated = false;
  return c;
}

/// As many rows to its fused linear as golden/families/falcon-40b.
ModelConfig falcon_config() {
  ModelConfig c = opt_config();
  c.family = "falcon";
  c.hidden = 60;
  c.heads = 6;
  c.kv_heads = 2;
  c.head_dim = c.rope_dim = 10;
  c.mlp = 70;
  c.positions = PositionKind::rope;
  c.activation = Activation::gelu;
  c.parallel = true;
  return c;
}

bool is_zip(const uint8_t* data, size_t size) {
  return size >= 2 && data[0] == 'P' && data[1] == 'K';
}

void check_finite(const std::vector<calibrate::BlockParameters>& blocks, const ModelConfig& c) {
  if (int64_t(blocks.size()) != c.blocks) std::abort();
  for (const auto& block : blocks) {
    for (const auto& [name, m] : block) {
      const auto values = m.values();
      if (!std::all_of(values.begin(), values.end(), [](float v) { return std::isfinite(v); })) {
        std::abort();
      }
    }
  }
}

bool same(const calibrate::BlockParameters& a, const calibrate::BlockParameters& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](const auto& x, const auto& y) {
    const auto u = x.second.values(), v = y.second.values();
    return x.first == y.first && x.second.rows() == y.second.rows() &&
           std::equal(u.begin(), u.end(), v.begin(), v.end());
  });
}

void read(const std::filesystem::path& path, const ModelConfig& config, const test::TempDir& dir) {
  const auto p = calibrate::read_parameters(path, config);
  check_finite(p.blocks, config);
  calibrate::write_parameters(dir / "again.safetensors", p);
  const auto again = calibrate::read_parameters(dir / "again.safetensors", config);
  if (!std::equal(p.blocks.begin(), p.blocks.end(), again.blocks.begin(), again.blocks.end(),
                  same)) {
    std::abort();
  }
}

}  // namespace

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size, size_t max_size,
                                          unsigned seed) {
  if (is_zip(data, size)) return mutate_zip(data, size, max_size, seed);
  return LLVMFuzzerMutate(data, size, max_size);
}

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const ModelConfig configs[] = {llama_config(), opt_config(), falcon_config()};
  static const test::TempDir dir;
  const bool zip = is_zip(data, size);
  const auto path = dir / (zip ? "p.pth" : "p.safetensors");
  test::write_file(path, {reinterpret_cast<const char*>(data), size});
  for (const ModelConfig& config : configs) {
    allow_errors([&] { read(path, config, dir); });
    if (!zip) continue;
    allow_errors([&] { check_finite(calibrate::read_input_ranges(path, path, config), config); });
  }
  return 0;
}
