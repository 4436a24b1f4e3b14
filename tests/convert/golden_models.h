#pragma once

#include <algorithm>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include <doctest/doctest.h>
#include <nlohmann/json.hpp>

#include "runtime/config.h"
#include "tests/convert/conversion.h"
#include "tests/tiny_model.h"
#include "tools/convert/convert.h"
#include "tools/convert/ggml_types.h"
#include "tools/convert/json.h"
#include "tools/tensor_files/safetensors.h"

namespace oq::test {

/// The folders that golden/make_families.py made.
inline std::vector<std::string> golden_families() {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(golden("families"))) {
    if (entry.is_directory()) names.push_back(entry.path().filename().string());
  }
  std::sort(names.begin(), names.end());
  return names;
}

/// A golden model in memory, to be changed and written elsewhere. Tensors with rows of any rank
/// above one are [rows][cols], vectors one row.
struct HfModel {
  nlohmann::json config;
  std::vector<TinyTensor> tensors;

  explicit HfModel(const std::string& name) {
    const auto folder = golden("families") / name;
    config = convert::read_json(folder / "config.json");
    const std::string file = read_file(folder / "model.safetensors");
    for (const SafeTensor& t : read_safetensors(std::as_bytes(std::span(file)), name)) {
      TinyTensor tensor;
      tensor.hf_name = t.name;
      tensor.cols = t.shape.back();
      for (size_t i = 0; i + 1 < t.shape.size(); ++i) tensor.rows *= t.shape[i];
      tensor.values.resize(tensor.rows * tensor.cols);
      const convert::GgmlType* type = convert::find_ggml_type(t.dtype);
      REQUIRE(type != nullptr);
      type->dequantize(t.data.data(), tensor.values.size(), tensor.values.data());
      tensors.push_back(std::move(tensor));
    }
  }

  TinyTensor& operator[](const std::string& name) {
    const auto it = std::find_if(tensors.begin(), tensors.end(),
                                 [&](const TinyTensor& t) { return t.hf_name == name; });
    REQUIRE_MESSAGE(it != tensors.end(), name);
    return *it;
  }
  void erase(const std::string& name) {
    tensors.erase(tensors.begin() + (&(*this)[name] - tensors.data()));
  }
  /// Takes `prefix` away from every name that has it.
  void strip(const std::string& prefix) {
    for (TinyTensor& t : tensors) {
      if (t.hf_name.rfind(prefix, 0) == 0) t.hf_name.erase(0, prefix.size());
    }
  }
  void write(const std::filesystem::path& folder) const {
    std::filesystem::create_directories(folder);
    write_file(folder / "config.json", config.dump());
    write_file(folder / "model.safetensors", safetensors_bytes(tensors, "BF16"));
  }
};

/// `source` with its weights in f32.
inline std::shared_ptr<const File> to_oq(const std::filesystem::path& source,
                                         const std::filesystem::path& output,
                                         const char* scheme = "w16a16",
                                         convert::Result* result = nullptr) {
  const Converted c =
      converted(source, output, scheme, [](convert::Options& o) { o.dtype = Kind::f32; });
  if (result != nullptr) *result = c.result;
  return c.file;
}

/// The floats of an f32 tensor.
inline std::vector<float> floats(const File& file, const std::string& name) {
  const TensorInfo& info = file.tensor(name);
  REQUIRE(info.kind == Kind::f32);
  std::vector<float> values(info.rows * info.cols);
  const auto bytes = file.data(info);
  REQUIRE(bytes.size() == values.size() * 4);
  std::copy_n(bytes.data(), bytes.size(), reinterpret_cast<std::byte*>(values.data()));
  return values;
}

/// Rows [first, first + n) of a tensor.
inline std::vector<float> rows_of(const TinyTensor& t, uint64_t first, uint64_t n) {
  const auto begin = t.values.begin() + std::ptrdiff_t(first * t.cols);
  return {begin, begin + std::ptrdiff_t(n * t.cols)};
}

}  // namespace oq::test
