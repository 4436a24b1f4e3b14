#pragma once

#include <cstdint>
#include <memory>

#include "bench/shapes.h"
#include "format/file.h"
#include "format/memory.h"
#include "format/scheme.h"

namespace oq {

struct SyntheticOptions {
  Scheme scheme = {};
  int head_bits = 8;          ///< of embedding and head, where the scheme quantizes weights; or 16
  uint32_t weak_columns = 0;  ///< of each of the blocks' packed linears, at most all it has
  uint64_t seed = 1;
  Pages pages = Pages::ordinary;
  int threads = 0;  ///< 0: one per usable core; the bytes do not depend on it
  /// Weights are left out, for a backend that makes them itself: only vectors and routers, and weak
  /// columns' indices, are there.
  bool hollow = false;
};

/// The deviation of a weight of such a model; 0 of what a hollow one has too.
float synthetic_deviation(const ModelConfig& config, const TensorInfo& tensor);

/// A model of `shape` with random weights, in memory: what oq-convert would have written for such a
/// checkpoint, but for a tokenizer. Equal options give equal bytes. Norms are 1 and biases small,
/// so that activations keep their size through all blocks. Throws oq::Error when it does not fit
/// the machine's memory, before any of it is taken.
std::shared_ptr<const File> make_synthetic(const Shape& shape, const SyntheticOptions& options);

}  // namespace oq
