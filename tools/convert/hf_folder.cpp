#include "tools/convert/hf_folder.h"

#include <map>
#include <optional>

#include <fmt/format.h>

#include "tools/convert/json.h"
#include "tools/convert/state_dict.h"
#include "tools/tensor_files/safetensors.h"

namespace oq::convert {
namespace {

namespace fs = std::filesystem;

/// Files that shape the result beside config and weights.
constexpr const char* kTokenizerFiles[] = {"tokenizer.json",
                                           "tokenizer.model",
                                           "vocab.json",
                                           "merges.txt",
                                           "added_tokens.json",
                                           "tokenizer_config.json",
                                           "special_tokens_map.json",
                                           "generation_config.json",
                                           "chat_template.jinja"};

/// The .safetensors file of a folder that has one only: AutoGPTQ called it after its settings,
/// "gptq_model-4bit-128g.safetensors".
std::optional<fs::path> lone_safetensors(const fs::path& folder) {
  std::optional<fs::path> found;
  for (const auto& entry : fs::directory_iterator(folder)) {
    if (entry.path().extension() != ".safetensors") continue;
    if (found) return std::nullopt;
    found = entry.path();
  }
  return found;
}

}  // namespace

HfFolder::HfFolder(fs::path folder, bool weights) : folder_(std::move(folder)) {
  config_ = std::make_unique<JsonConfig>(nlohmann::json::object(), folder_ / "config.json");
  if (weights) {
    read_config();
    read_weights();
  }
  for (const char* name : kTokenizerFiles) {
    if (fs::exists(folder_ / name)) files_.push_back(folder_ / name);
  }
}

void HfFolder::read_config() {
  const fs::path path = folder_ / "config.json";
  if (!fs::exists(path)) {
    throw Error({.what = "is not there",
                 .where = path.string(),
                 .hint = "give the folder of an HF checkpoint, or a GGUF file"});
  }
  config_ = std::make_unique<JsonConfig>(read_json_object(path), path.string());
  files_.push_back(path);
}

std::string HfFolder::architecture() const { return config_->text("model_type"); }

void HfFolder::read_weights() {
  for (const char* whole : {"model.safetensors", "pytorch_model.bin"}) {
    const fs::path file = folder_ / whole, index = file.string() + ".index.json";
    torch_ = file.extension() == ".bin";
    if (fs::exists(file)) {
      read_shard(file);
      return;
    }
    if (fs::exists(index)) return read_shards(index);
  }
  torch_ = false;
  if (const auto only = lone_safetensors(folder_)) {
    read_shard(*only);
    return;
  }
  throw Error({.what = "holds no weights",
               .where = folder_.string(),
               .expected = "model.safetensors or pytorch_model.bin, or their .index.json",
               .hint = "download it completely"});
}

void HfFolder::read_shards(const fs::path& index) {
  const auto error = [&](std::string what, std::string hint) {
    return Error({.what = std::move(what), .where = index.string(), .hint = std::move(hint)});
  };
  const auto root = read_json(index);
  const auto found = root.is_object() ? root.find("weight_map") : root.end();
  if (found == root.end() || !found->is_object()) {
    throw error("has no object 'weight_map'", "the file is damaged");
  }
  std::map<std::string, std::vector<std::string>> shards;  // file -> tensors
  for (const auto& [tensor, file] : found->items()) {
    const std::string name = file.is_string() ? file.get<std::string>() : "";
    if (name.empty() || name == "." || name == ".." || name.find('/') != std::string::npos ||
        name.find('\0') != std::string::npos) {
      throw error(fmt::format("tensor '{}' is not in a file of this folder", tensor),
                  "the file is damaged");
    }
    shards[name].push_back(tensor);
  }
  files_.push_back(index);
  for (const auto& [file, tensors] : shards) {
    if (!fs::exists(folder_ / file)) {
      throw error(fmt::format("shard '{}' is not there", file),
                  "download the checkpoint completely");
    }
    const std::set<std::string> brought = read_shard(folder_ / file);
    for (const std::string& tensor : tensors) {
      if (brought.count(tensor) == 0) {
        throw error(fmt::format("tensor '{}' is not in shard '{}'", tensor, file),
                    "index and shards are of different checkpoints");
      }
    }
  }
}

std::set<std::string> HfFolder::read_shard(const fs::path& path) {
  files_.push_back(path);
  std::set<std::string> names;
  for (SourceTensor& t : torch_ ? read_torch_file(path) : read_safetensors_file(path)) {
    names.insert(t.name);
    add(std::move(t), path.string());
  }
  return names;
}

std::vector<SourceTensor> HfFolder::read_safetensors_file(const fs::path& path) {
  const MappedFile& map = *maps_.emplace_back(std::make_unique<MappedFile>(path));
  std::vector<SourceTensor> sources;
  for (SafeTensor& t : read_safetensors(map.bytes(), path.string())) {
    SourceTensor& source = sources.emplace_back();
    source.type = find_ggml_type(t.dtype);
    source.dtype = std::move(t.dtype);
    if (!t.shape.empty()) source.cols = t.shape.back();
    for (size_t i = 0; i + 1 < t.shape.size(); ++i) source.rows *= t.shape[i];
    source.data = t.data;
    source.name = std::move(t.name);
  }
  return sources;
}

std::vector<SourceTensor> HfFolder::read_torch_file(const fs::path& path) {
  const torch::File& file = *torch_files_.emplace_back(std::make_unique<torch::File>(path));
  return state_dict(file.dict(), path.string());
}

}  // namespace oq::convert
