#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "tools/convert/config.h"
#include "tools/convert/ggml_types.h"
#include "tools/convert/tokenizer_import.h"

namespace oq::torch {
struct Tensor;
}

namespace oq::convert {

class PackedSource;

/// A tensor of a checkpoint. A vector is one row; further dimensions count as rows.
struct SourceTensor {
  std::string name;
  uint64_t rows = 1, cols = 1;
  std::string dtype;                ///< as the format calls it
  const GgmlType* type = nullptr;   ///< nullptr: not a type that holds weights
  std::span<const std::byte> data;  ///< in the mapping: read it through bytes()
  /// Of a torch file: what stands between `data` and its reader, a checksum and strides.
  const torch::Tensor* view = nullptr;
  /// A linear that the checkpoint has quantized: its codes and scales; `type` is then nullptr.
  std::shared_ptr<const PackedSource> packed = nullptr;
  bool optional = false;  ///< a model may well do without it: a bias of zeros

  uint64_t elements() const { return rows * cols; }
  /// All of its bytes, row by row, in the mapping. Throws oq::Error where they fail their checksum,
  /// or are strided: only Checkpoint::read_rows() gathers those.
  std::span<const std::byte> bytes() const;
};

/// Whose names tensors and settings go by.
enum class Dialect { hf, gguf };

/// A foreign checkpoint, opened and checked: settings, tensors, tokenizer. Weights are read row by
/// row out of a mapping. Immutable: any number of threads may read. All failures throw oq::Error.
class Checkpoint {
 public:
  /// An HF folder or a GGUF file, told apart by what it is. Without `weights`, an HF folder need
  /// not have any, and a tokenizer.model or tokenizer.json is enough.
  static std::unique_ptr<Checkpoint> open(const std::filesystem::path& path, bool weights = true);
  virtual ~Checkpoint() = default;

  virtual Dialect dialect() const = 0;
  virtual std::string format() const = 0;        ///< "gguf", "safetensors", "torch"
  virtual std::string architecture() const = 0;  ///< what the checkpoint calls its family
  virtual const Config& config() const = 0;
  /// Every file that was read, for provenance.
  virtual std::vector<std::filesystem::path> files() const = 0;
  virtual TokenizerData tokenizer() const = 0;

  std::span<const SourceTensor> tensors() const { return tensors_; }
  const SourceTensor* find(std::string_view name) const;
  /// Settings and tensor, for messages: "model/config.json, tensor 'lm_head.weight'".
  std::string place_of(const SourceTensor& tensor) const;

  /// Rows [row0, row0 + n) as floats, [n][cols]. PRECOND: they exist. Throws where the tensor does
  /// not hold weights.
  virtual void read_rows(const SourceTensor& tensor, uint64_t row0, uint64_t n, float* out) const;

  /// The tensor was read for the last time: its pages may go.
  virtual void release(const SourceTensor& tensor) const;

 protected:
  /// Throws where the name is taken.
  void add(SourceTensor tensor, const std::string& where);

 private:
  std::vector<SourceTensor> tensors_;
  std::unordered_map<std::string, size_t> index_;
};

}  // namespace oq::convert
