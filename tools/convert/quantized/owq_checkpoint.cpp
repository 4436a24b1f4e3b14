#include "tools/convert/quantized/owq_checkpoint.h"

#include <algorithm>

#include <fmt/format.h>

#include "tools/convert/json.h"
#include "tools/convert/state_dict.h"

namespace oq::convert {
namespace {

namespace fs = std::filesystem;

bool torch_file(const fs::path& path) {
  return path.extension() == ".pth" || path.extension() == ".pt";
}

/// config.json beside the file, which holds no settings of the model.
JsonConfig read_config(const fs::path& file) {
  const fs::path path = OwqCheckpoint::folder_of(file) / "config.json";
  if (!fs::exists(path)) {
    throw Error({.what = "is not there",
                 .where = path.string(),
                 .hint = "put the .pth file of OWQ into the folder of the model that it was made "
                         "from: config.json and the tokenizer come from there"});
  }
  return {read_json_object(path), path.string()};
}

}  // namespace

std::optional<fs::path> OwqCheckpoint::find(const fs::path& source) {
  if (!fs::is_directory(source)) {
    return torch_file(source) && fs::exists(source) ? std::optional(source) : std::nullopt;
  }
  std::optional<fs::path> found;
  for (const auto& entry : fs::directory_iterator(source)) {
    const fs::path extension = entry.path().extension();
    if (extension == ".safetensors" || extension == ".bin") return std::nullopt;
    if (!torch_file(entry.path())) continue;
    if (found) {
      throw Error({.what = "holds several .pth files",
                   .where = source.string(),
                   .found = found->filename().string() + ", " + entry.path().filename().string(),
                   .hint = "give the one to convert"});
    }
    found = entry.path();
  }
  return found;
}

fs::path OwqCheckpoint::folder_of(const fs::path& file) {
  return file.has_parent_path() ? file.parent_path() : fs::path(".");
}

OwqCheckpoint::OwqCheckpoint(const fs::path& file)
    : path_(file), folder_(folder_of(file), false), config_(read_config(file)), file_(file) {
  const torch::Dict& root = file_.dict();
  read_settings(root);
  const auto& state = root.get<torch::Dict>("model_state_dict");
  for (SourceTensor& t : state_dict(state, path_.string())) add(std::move(t), path_.string());
  check_counts(root.get<torch::Dict>("n_out_dict"));
}

void OwqCheckpoint::read_settings(const torch::Dict& root) {
  const bool* packing = root.find<bool>("packing");
  if (packing == nullptr || !*packing) {
    throw Error({.what = packing == nullptr ? "is no checkpoint of OWQ"
                                            : "is a checkpoint of OWQ that is not packed (--fake)",
                 .where = path_.string(),
                 .expected = "'packing': True",
                 .hint = "save it with OWQ's --packing"});
  }
  const auto bits = root.get<int64_t>("bits");
  if (bits != 3 && bits != 4) {
    throw Error({.what = "is packed to a width that OWQ does not have",
                 .where = path_.string(),
                 .expected = "3 or 4 bits",
                 .found = std::to_string(bits),
                 .hint = "the file is damaged"});
  }
  quantization_.method = QuantMethod::owq;
  quantization_.bits = uint32_t(bits);
  quantization_.where = path_;
}

void OwqCheckpoint::check_counts(const torch::Dict& counts) const {
  for (const auto& [key, value] : counts.items()) {
    const auto* name = key.as<std::string_view>();
    const auto* entry = value.as<torch::Dict>();
    const std::string linear(name != nullptr ? *name : std::string_view());
    const int64_t expected = entry != nullptr ? entry->get<int64_t>("n_out") : -1;
    const SourceTensor* columns = Checkpoint::find(linear + ".outlieridx");
    const bool there = Checkpoint::find(linear + ".qweight") != nullptr;
    const auto found = int64_t(columns != nullptr ? columns->elements() : 0);
    if (there && found == expected) continue;
    throw Error({.what = fmt::format("linear '{}' is not as 'n_out_dict' says", linear),
                 .where = path_.string(),
                 .expected = fmt::format("{} weak columns", expected),
                 .found = there ? std::to_string(found) : "no such linear",
                 .hint = "the file is damaged"});
  }
}

std::vector<fs::path> OwqCheckpoint::files() const {
  std::vector<fs::path> files = folder_.files();
  files.insert(files.begin(), fs::path(config_.where()));
  files.push_back(path_);
  return files;
}

}  // namespace oq::convert
