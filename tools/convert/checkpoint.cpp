#include "tools/convert/checkpoint.h"

#include <fmt/format.h>

#include "tools/convert/gguf_checkpoint.h"
#include "tools/convert/hf_folder.h"
#include "tools/convert/tokenizer_file.h"
#include "tools/tensor_files/mapped_file.h"
#include "tools/tensor_files/torch/value.h"

namespace oq::convert {

std::unique_ptr<Checkpoint> Checkpoint::open(const std::filesystem::path& path, bool weights) {
  std::error_code failed;
  const auto status = std::filesystem::status(path, failed);
  if (!std::filesystem::exists(status)) {
    throw Error({.what = "does not exist",
                 .where = path.string(),
                 .hint = "give an HF folder or a GGUF file"});
  }
  if (std::filesystem::is_directory(status)) return std::make_unique<HfFolder>(path, weights);
  const std::filesystem::path extension = path.extension();
  if (extension == ".safetensors" || extension == ".bin" || extension == ".pt" ||
      extension == ".pth") {
    throw Error({.what = "is only the weights of a checkpoint",
                 .where = path.string(),
                 .hint = "give the folder that also holds config.json"});
  }
  if (is_tokenizer_file(path)) {
    if (!weights) return std::make_unique<TokenizerFile>(path);
    throw Error({.what = "is only a part of a checkpoint",
                 .where = path.string(),
                 .hint = "give the folder around it; a tokenizer alone goes with --vocab-only"});
  }
  return std::make_unique<GgufCheckpoint>(path);
}

std::span<const std::byte> SourceTensor::bytes() const {
  if (view == nullptr) return data;
  if (!view->contiguous()) {
    throw Error({.what = "is a strided view, where its bytes are wanted in a row",
                 .where = fmt::format("tensor '{}'", name),
                 .hint = "save it with .contiguous()"});
  }
  return view->bytes();
}

const SourceTensor* Checkpoint::find(std::string_view name) const {
  const auto it = index_.find(std::string(name));
  return it == index_.end() ? nullptr : &tensors_[it->second];
}

std::string Checkpoint::place_of(const SourceTensor& tensor) const {
  return fmt::format("{}, tensor '{}'", config().where(), tensor.name);
}

void Checkpoint::add(SourceTensor tensor, const std::string& where) {
  if (!index_.emplace(tensor.name, tensors_.size()).second) {
    throw Error({.what = fmt::format("tensor '{}' occurs twice", tensor.name), .where = where});
  }
  tensors_.push_back(std::move(tensor));
}

void Checkpoint::read_rows(const SourceTensor& t, uint64_t row0, uint64_t n, float* out) const {
  if (t.type == nullptr) {
    throw Error({.what = "is of a type that cannot be read as weights",
                 .where = place_of(t),
                 .expected = "F32, F16 or BF16",
                 .found = t.dtype,
                 .hint = "take a checkpoint in BF16, F16 or F32"});
  }
  if (t.view != nullptr && !t.view->contiguous()) {
    std::vector<std::byte> gathered(n * t.cols * t.type->block_bytes);
    t.view->read(row0 * t.cols, n * t.cols, gathered.data());
    return t.type->dequantize(gathered.data(), n * t.cols, out);
  }
  const uint64_t blocks = t.cols / t.type->block_elements;
  t.type->dequantize(t.bytes().data() + row0 * blocks * t.type->block_bytes, n * blocks, out);
}

void Checkpoint::release(const SourceTensor& tensor) const { MappedFile::release(tensor.data); }

}  // namespace oq::convert
