// A folder around a golden model's weights, converted as a whole: settings through the readers of
// all families, those of quantized tensors, and the files of a tokenizer.
//
// The input is sections, each headed by a line "=== NAME": NAME is a file of the folder; or "from
// MODEL", whose config.json and weights there are; or "patch", 4 bytes of a place in these weights
// and one to put there, again and again.

#include <algorithm>
#include <cstring>

#include "runtime/config.h"
#include "tests/fuzz/support.h"
#include "tests/support.h"
#include "tools/convert/convert.h"

using namespace oq;

namespace {

namespace fs = std::filesystem;

constexpr std::string_view kModels[] = {
    "families/bloom",     "families/falcon-40b", "families/falcon-7b",      "families/falcon-rw",
    "families/opt",       "families/llama-bias", "families/mistral-window", "families/mixtral",
    "quantized/bloom",    "quantized/gptq",      "quantized/awq",           "quantized/owq",
    "families/qwen2-tied"};
constexpr std::string_view kFiles[] = {"config.json",
                                       "quantize_config.json",
                                       "quant_config.json",
                                       "tokenizer.json",
                                       "tokenizer_config.json",
                                       "special_tokens_map.json",
                                       "added_tokens.json",
                                       "vocab.json",
                                       "generation_config.json",
                                       "chat_template.jinja",
                                       "merges.txt"};

bool known(std::span<const std::string_view> names, std::string_view name) {
  return std::find(names.begin(), names.end(), name) != names.end();
}

/// The files of a golden model: settings and weights.
void copy_model(std::string_view name, const fs::path& folder) {
  for (const auto& entry : fs::directory_iterator(test::golden(name))) {
    const fs::path file = entry.path().filename();
    const bool weights = file.extension() == ".safetensors" || file.extension() == ".pth";
    if (weights) fs::copy_file(entry.path(), folder / ("model" + file.extension().string()));
    if (file == "config.json") fs::copy_file(entry.path(), folder / file);
  }
}

void patch_weights(const fs::path& folder, std::string_view places) {
  for (const char* name : {"model.safetensors", "model.pth"}) {
    if (!fs::exists(folder / name)) continue;
    std::string weights = test::read_file(folder / name);
    for (; places.size() >= 5; places.remove_prefix(5)) {
      uint32_t at = 0;
      std::memcpy(&at, places.data(), 4);
      weights[at % weights.size()] = places[4];
    }
    test::write_file(folder / name, weights);
  }
}

void add_section(std::string_view name, std::string_view body, const fs::path& folder) {
  if (name.starts_with("from ") && known(kModels, name.substr(5)) && fs::is_empty(folder)) {
    copy_model(name.substr(5), folder);
  } else if (name == "patch") {
    patch_weights(folder, body);
  } else if (known(kFiles, name)) {
    test::write_file(folder / name, body);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const test::TempDir dir;
  const fs::path folder = dir / "model";
  fs::remove_all(folder);
  fs::create_directories(folder);
  constexpr std::string_view kHead = "=== ";
  std::string_view in(reinterpret_cast<const char*>(data), size);
  while (in.starts_with(kHead)) {
    const size_t line = std::min(in.find('\n'), in.size() - 1);
    const size_t end = std::min(in.find("\n=== ", line), in.size() - 1);
    add_section(in.substr(kHead.size(), line - kHead.size()), in.substr(line + 1, end - line),
                folder);
    in.remove_prefix(end + 1);
  }
  bool written = false;
  fuzz::allow_errors([&] {
    convert::convert({.source = folder, .output = dir / "out.oq"});
    written = true;
  });
  if (written) ModelConfig::load(*File::open(dir / "out.oq"));  // what is written is no error
  return 0;
}
