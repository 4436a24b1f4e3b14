#pragma once

#include <cmath>
#include <filesystem>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "format/file.h"
#include "format/scheme.h"
#include "runtime/config.h"

namespace oq::test {

/// Sizes that are odd on purpose.
inline ModelConfig tiny_config() {
  ModelConfig c;
  c.family = "tiny";
  c.vocab = 101;
  c.hidden = 72;
  c.blocks = 2;
  c.heads = 6;
  c.kv_heads = 2;
  c.head_dim = 20;
  c.mlp = 100;
  c.context = 700;
  c.norm_eps = 3e-4;
  c.rope_dim = 16;
  return c;
}

/// A small random model straight into a .oq, without converter or tokenizer: what the decoder's
/// own tests need.
struct TinyOq {
  std::string scheme = "w16a16";
  uint32_t weak_columns = 0;  ///< of every packed linear
  uint32_t seed = 1;
  int up_bits = 0;             ///< of "up" and "k" alone, where a file mixes widths; 16: f16
  bool equal_experts = false;  ///< all as the first, which equals the MLP of a model without
  ModelConfig config = tiny_config();
  bool heads_share_range = false;  ///< as in Scheme
};

class TinyOqWriter {
 public:
  TinyOqWriter(const TinyOq& tiny, const std::filesystem::path& path)
      : tiny_(tiny),
        scheme_(Scheme::parse(tiny.scheme)),
        rng_(tiny.seed),
        writer_(path, tensor_specs(tiny.config).size()) {
    scheme_.heads_share_range = tiny.heads_share_range;
  }

  void write() {
    tiny_.config.store(writer_.metadata);
    scheme_.store(writer_.metadata);
    for (const TensorSpec& spec : tensor_specs(tiny_.config)) {
      rng_.seed(seed_of(spec.name));
      if (spec.role == Role::f32 && spec.rows == 1) {
        write_vector(spec);
      } else if (spec.role == Role::linear && bits_of(spec.name) < 16) {
        write_packed(spec);
      } else if (spec.role == Role::f32) {
        write_table(spec);
      } else {
        write_f16(spec);
      }
    }
    writer_.finish();
  }

 private:
  float normal(float mean, float deviation) {
    return std::normal_distribution<float>(mean, deviation)(rng_);
  }

  int bits_of(const std::string& name) const {
    const bool other = tiny_.up_bits > 0 && (name.ends_with(".up") || name.ends_with(".k"));
    return other ? tiny_.up_bits : scheme_.weight_bits;
  }

  /// Every tensor has a seed of its own, so that models which differ in one share the others.
  uint32_t seed_of(std::string name) const {
    const size_t expert = name.find("experts.");
    if (tiny_.equal_experts && expert != std::string::npos) {
      name.erase(expert, name.find('.', expert + 8) + 1 - expert);
    }
    uint32_t hash = tiny_.seed;
    for (const char c : name) hash = hash * 31 + uint8_t(c);
    return hash;
  }

  /// A router, or what ALiBi adds: slopes times position.
  void write_table(const TensorSpec& spec) {
    std::vector<float> v(size_t(spec.rows * spec.cols));
    for (size_t i = 0; i < v.size(); ++i) {
      const size_t row = i / size_t(spec.cols), col = i % size_t(spec.cols);
      v[i] = spec.name == "alibi" ? 0.3f / float(row + 1) * float(col) : normal(0, 0.3f);
    }
    writer_.add({.name = spec.name,
                 .kind = Kind::f32,
                 .rows = uint64_t(spec.rows),
                 .cols = uint64_t(spec.cols)},
                std::as_bytes(std::span(v)));
  }

  void write_vector(const TensorSpec& spec) {
    std::vector<float> v(size_t(spec.cols));
    const bool frequencies = spec.name == "rope.inv_freq";
    const bool norm =
        spec.name.find("norm") != std::string::npos && spec.name.find(".bias") == std::string::npos;
    for (size_t i = 0; i < v.size(); ++i) {
      v[i] = frequencies ? std::pow(100.0f, -float(i) / float(v.size()))
                         : normal(norm ? 1.0f : 0.0f, 0.2f);
    }
    writer_.add({.name = spec.name, .kind = Kind::f32, .rows = 1, .cols = uint64_t(spec.cols)},
                std::as_bytes(std::span(v)));
  }

  void write_f16(const TensorSpec& spec) {
    std::vector<f16> v(size_t(spec.rows * spec.cols));
    for (f16& x : v) x = to_f16(normal(0.01f, 0.3f));
    writer_.add({.name = spec.name,
                 .kind = Kind::f16,
                 .rows = uint64_t(spec.rows),
                 .cols = uint64_t(spec.cols)},
                std::as_bytes(std::span(v)));
  }

  void write_packed(const TensorSpec& spec) {
    const Packing packing{.bits = uint8_t(bits_of(spec.name)),
                          .five_levels = scheme_.five_levels,
                          .group = scheme_.group,
                          .weak_columns = tiny_.weak_columns};
    PackedBuilder b(uint64_t(spec.rows), uint64_t(spec.cols), packing);
    const auto levels = uint32_t(packing.max_code() + 1);
    std::vector<uint32_t> weak;
    for (uint32_t i = 0; i < packing.weak_columns; ++i) weak.push_back(7 * i + 2);
    b.set_weak_indices(weak);
    std::vector<uint8_t> codes(size_t(spec.cols));
    for (uint64_t r = 0; r < uint64_t(spec.rows); ++r) {
      for (uint8_t& c : codes) c = uint8_t(rng_() % levels);
      for (uint32_t w : weak) codes[w] = 0;
      b.set_codes(r, codes);
      for (uint32_t i = 0; i < weak.size(); ++i) b.set_weak_weight(r, i, normal(0, 0.5f));
      for (uint64_t g = 0; g < b.layout().groups; ++g) {
        b.set_scale(r, g, to_f16((0.5f + float(rng_() % 8) / 8) * 0.4f / float(levels)));
        b.set_zero(r, g, int(levels / 2));
      }
    }
    writer_.add({.name = spec.name,
                 .kind = Kind::packed,
                 .rows = uint64_t(spec.rows),
                 .cols = uint64_t(spec.cols),
                 .packing = packing},
                b.bytes());
  }

  const TinyOq& tiny_;
  Scheme scheme_;
  std::mt19937 rng_;
  Writer writer_;
};

inline std::shared_ptr<const File> make_tiny_oq(const std::filesystem::path& path,
                                                const TinyOq& tiny = {}) {
  TinyOqWriter(tiny, path).write();
  return File::open(path);
}

}  // namespace oq::test
