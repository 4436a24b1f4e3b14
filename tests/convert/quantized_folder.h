#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include <doctest/doctest.h>
#include <fmt/format.h>
#include <nlohmann/json.hpp>

#include "tests/support.h"
#include "tools/convert/json.h"
#include "tools/tensor_files/mapped_file.h"
#include "tools/tensor_files/safetensors.h"

namespace oq::test {

/// A tensor as a safetensors file holds it, whatever it means.
struct RawTensor {
  std::string dtype;
  std::vector<uint64_t> shape;
  std::string bytes;

  template <class T>
  std::vector<T> as() const {
    std::vector<T> values(bytes.size() / sizeof(T));
    std::memcpy(values.data(), bytes.data(), values.size() * sizeof(T));
    return values;
  }
  template <class T>
  void set(size_t i, T value) {
    std::memcpy(bytes.data() + i * sizeof(T), &value, sizeof(T));
  }
};
using RawTensors = std::map<std::string, RawTensor>;

inline RawTensors read_raw(const std::filesystem::path& path) {
  const MappedFile file(path);
  RawTensors tensors;
  for (const auto& t : read_safetensors(file.bytes(), path.string())) {
    tensors[t.name] = {
        t.dtype, t.shape, {reinterpret_cast<const char*>(t.data.data()), t.data.size()}};
  }
  return tensors;
}

inline void write_raw(const std::filesystem::path& path, const RawTensors& tensors) {
  nlohmann::json header = nlohmann::json::object();
  std::string data;
  for (const auto& [name, t] : tensors) {
    header[name] = {{"dtype", t.dtype},
                    {"shape", t.shape},
                    {"data_offsets", {data.size(), data.size() + t.bytes.size()}}};
    data += t.bytes;
  }
  const std::string text = header.dump();
  const uint64_t length = text.size();
  write_file(path, std::string(reinterpret_cast<const char*>(&length), 8) + text + data);
}

/// A copy of golden/quantized/KIND whose settings and tensors may be changed before it is used.
class QuantizedFolder {
 public:
  explicit QuantizedFolder(const std::string& kind) : folder_(golden("quantized/" + kind)) {
    config = convert::read_json(folder_ / "config.json");
    if (std::filesystem::exists(folder_ / "model.safetensors")) {
      tensors = read_raw(folder_ / "model.safetensors");
    }
  }

  nlohmann::json config;
  RawTensors tensors;

  nlohmann::json& settings() { return config["quantization_config"]; }
  RawTensor& tensor(const std::string& name) {
    REQUIRE_MESSAGE(tensors.count(name) == 1, name);
    return tensors[name];
  }
  /// Writes it all; the folder goes away with the object.
  std::filesystem::path write() {
    write_file(dir_ / "config.json", config.dump());
    write_raw(dir_ / "model.safetensors", tensors);
    return dir_.path();
  }
  std::filesystem::path operator/(std::string_view name) const { return dir_ / name; }

 private:
  std::filesystem::path folder_;
  TempDir dir_;
};

}  // namespace oq::test
