#pragma once

#include <functional>
#include <optional>
#include <span>
#include <string_view>
#include <vector>

#include "format/file.h"
#include "tools/convert/binding.h"

namespace oq::convert {

/// What becomes of the tensors of a model, by role.
struct Storage {
  Kind dtype = Kind::f16;          ///< of what is not quantized
  std::optional<Packing> linears;  ///< nullopt: dtype
  std::optional<Packing> head;     ///< embedding and head; nullopt: dtype
  int threads = 1;

  std::optional<Packing> packing(Role role) const;
  Kind kind(Role role) const;
};

/// Streams tensors from a checkpoint into a .oq file. A tensor that is not quantized passes through
/// in chunks of 2^20 weights per thread; a quantized one is packed whole and read row by row. A
/// linear or head that the checkpoint has quantized is taken over as it is, whatever the storage.
class TensorWriter {
 public:
  /// Told how many bytes of the source were just converted, and for which tensor.
  using Progress = std::function<void(uint64_t, std::string_view)>;

  TensorWriter(const Checkpoint& checkpoint, const Model& model, const Storage& storage,
               Writer& out, Progress progress);

  /// Throws oq::Error naming the tensor: a weight that is not finite, or beyond the dtype.
  void write(const Binding& binding);

 private:
  void write_plain(const Binding& binding);
  void write_packed(const Binding& binding, const Packing& packing);
  void write_taken_over(const Binding& binding);
  void report(const Binding& binding, uint64_t rows) const;
  void read_rows(const Binding& binding, uint64_t row0, uint64_t n, float* out) const;

  const Checkpoint& checkpoint_;
  const Model& model_;
  Storage storage_;
  Writer& out_;
  Progress progress_;
  std::vector<float> floats_;
  std::vector<std::byte> bytes_;
};

}  // namespace oq::convert
