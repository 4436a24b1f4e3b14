#include "bench/synthetic.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include "bench/random_weights.h"
#include "format/memory_file.h"
#include "kernels/cpu/thread_pool.h"

namespace oq {
namespace {

constexpr uint64_t kPiece = 4 << 20;  ///< bytes of memory that are asked for at once
constexpr float kBias = 0.02f;        ///< deviation of biases

TensorInfo info_of(const TensorSpec& spec, const SyntheticOptions& o) {
  TensorInfo t{.name = spec.name, .kind = Kind::f16, .rows = uint64_t(spec.rows)};
  t.cols = uint64_t(spec.cols);
  const bool table = spec.role == Role::embedding || spec.role == Role::head;
  if (spec.role == Role::f32) {
    t.kind = Kind::f32;
  } else if (o.scheme.quantizes_weights() &&
             (spec.role == Role::linear || (table && o.head_bits < 16))) {
    t.kind = Kind::packed;
    t.packing = table ? head_packing(o.head_bits) : packing_of(o.scheme);
    if (!table) t.packing.weak_columns = std::min(o.weak_columns, uint32_t(t.cols));
  }
  return t;
}

/// theta^(-2i / dim)  [Su et al. 2021, eq. 15]
void fill_frequencies(double theta, std::span<float> out) {
  for (size_t i = 0; i < out.size(); ++i) {
    out[i] = float(std::pow(theta, -double(i) / double(out.size())));
  }
}

/// Slopes 2^(-8 (h + 1) / heads)  [Press et al. 2022], times the position.
void fill_alibi(const Shape& shape, std::span<float> out) {
  const auto context = size_t(shape.config.context);
  const double divisor = shape.alibi_divided ? std::sqrt(double(shape.config.head_dim)) : 1.0;
  for (size_t i = 0; i < out.size(); ++i) {
    const size_t head = i / context;
    const double slope = std::exp2(-8 * double(head + 1) / double(shape.config.heads));
    out[i] = float(slope * double(i % context) / divisor);
  }
}

bool ends_with(const std::string& name, std::string_view end) {
  return name.size() >= end.size() && name.compare(name.size() - end.size(), end.size(), end) == 0;
}

/// What keeps activations at their size through all blocks: a linear's output is as large as its
/// normed input, and what 2 x blocks linears add to the residual stream is together as large as the
/// embedding that it begins with [the residual scaling of Radford et al. 2019]. Without it, what
/// attention mixes in from all tokens soon outweighs the token itself, and a router sends all
/// tokens the same way. A head that is the embedding too needs the size of a head.
float deviation_of(const ModelConfig& config, const TensorInfo& t) {
  if (t.name == "embedding" && !config.tied_head) return 1;
  const bool residual = ends_with(t.name, ".o") || ends_with(t.name, ".down");
  return 1 / std::sqrt(float(t.cols) * (residual ? 2 * float(config.blocks) : 1.0f));
}

/// Weak columns stand at equal distances.
void fill_weak_indices(const TensorInfo& t, std::span<std::byte> data) {
  const PackedLayout l = PackedLayout::of(t.rows, t.cols, t.packing);
  for (uint32_t i = 0; i < t.packing.weak_columns; ++i) {
    const auto column = uint32_t(i * t.cols / t.packing.weak_columns);
    std::memcpy(data.data() + l.weak_index_offset + i * 4, &column, 4);
  }
}

void fill_floats(const Shape& shape, const TensorInfo& t, std::span<float> out, Rng rng) {
  if (t.name == "rope.inv_freq") return fill_frequencies(shape.rope_theta, out);
  if (t.name == "alibi") return fill_alibi(shape, out);
  const bool random = ends_with(t.name, ".bias") || ends_with(t.name, "router");
  const float deviation = ends_with(t.name, ".bias") ? kBias : 1 / std::sqrt(float(t.cols));
  for (float& x : out) x = random ? deviation * rng.spread() : 1.0f;  // the others are norms
}

/// Fills a MemoryFile on a thread pool. What a piece holds depends on the seed, the tensor and the
/// piece, not on the thread.
class Filler {
 public:
  Filler(const Shape& shape, const SyntheticOptions& options, MemoryFile& memory)
      : shape_(shape), seed_(options.seed), memory_(memory), pool_(options.threads) {}

  void run_hollow() {
    for (size_t i = 0; i < memory_.tensors().size(); ++i) {
      const TensorInfo& t = memory_.tensors()[i];
      if (t.kind == Kind::packed) fill_weak_indices(t, memory_.data(i));
      if (t.kind != Kind::f32) continue;
      fill(i);
      memory_.seal(i);
    }
  }

  void run() {
    const auto pieces = int64_t(memory_.bytes() / kPiece + 1);
    pool_.parallel_for(pieces, 1, [&](int64_t begin, int64_t end, int) {
      memory_.populate(uint64_t(begin) * kPiece, uint64_t(end) * kPiece);
    });
    const auto count = int64_t(memory_.tensors().size());
    for (int64_t i = 0; i < count; ++i) fill(size_t(i));
    pool_.parallel_for(count, 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t i = begin; i < end; ++i) memory_.seal(size_t(i));
    });
  }

 private:
  struct Made {
    Kind kind;
    Packing packing;
    uint64_t cols;
    float deviation;
    std::unique_ptr<WeightSource> source;
  };

  void fill(size_t tensor) {
    const TensorInfo& t = memory_.tensors()[tensor];
    const std::span<std::byte> data = memory_.data(tensor);
    if (t.kind == Kind::f32) {
      const std::span<float> floats(reinterpret_cast<float*>(data.data()), size_t(t.elements()));
      return fill_floats(shape_, t, floats, Rng(seed_, tensor << 32));
    }
    const WeightSource& source = source_for(t);
    const auto panels = int64_t((t.rows + kPanelRows - 1) / kPanelRows);
    pool_.parallel_for(panels, 8, [&](int64_t begin, int64_t end, int) {
      for (auto p = uint64_t(begin); p < uint64_t(end); ++p) {
        Rng rng(seed_, (uint64_t(tensor) << 32) + p);
        source.fill_panel(t, data, p, rng);
      }
    });
  }

  const WeightSource& source_for(const TensorInfo& t) {
    const float deviation = deviation_of(shape_.config, t);
    const auto it = std::find_if(made_.begin(), made_.end(), [&](const Made& m) {
      return m.kind == t.kind && m.packing == t.packing && m.cols == t.cols &&
             m.deviation == deviation;
    });
    if (it != made_.end()) return *it->source;
    const Rng rng(seed_, ~uint64_t(made_.size()));
    made_.push_back({t.kind, t.packing, t.cols, deviation,
                     t.kind == Kind::packed ? packed_source(t.packing, t.cols, deviation, rng)
                                            : half_source(t.cols, deviation, rng)});
    return *made_.back().source;
  }

  const Shape& shape_;
  uint64_t seed_;
  MemoryFile& memory_;
  ThreadPool pool_;
  std::vector<Made> made_;
};

}  // namespace

float synthetic_deviation(const ModelConfig& config, const TensorInfo& tensor) {
  return tensor.kind == Kind::f32 ? 0.0f : deviation_of(config, tensor);
}

std::shared_ptr<const File> make_synthetic(const Shape& shape, const SyntheticOptions& options) {
  shape.config.check();
  Metadata metadata;
  shape.config.store(metadata);
  metadata.set("scheme", options.scheme.str());
  metadata.set("head_bits", int64_t(options.scheme.quantizes_weights() ? options.head_bits : 16));
  metadata.set("source.synthetic", std::string(shape.name));
  metadata.set("source.seed", int64_t(options.seed));
  std::vector<TensorInfo> tensors;
  for (const TensorSpec& spec : tensor_specs(shape.config)) {
    tensors.push_back(info_of(spec, options));
  }
  MemoryFile memory("synthetic " + std::string(shape.name), std::move(metadata), std::move(tensors),
                    options.hollow ? Pages::sparse : options.pages);
  Filler filler(shape, options, memory);
  options.hollow ? filler.run_hollow() : filler.run();
  return memory.finish();
}

}  // namespace oq
