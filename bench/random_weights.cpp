#include "bench/random_weights.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "format/half.h"
#include "format/packed.h"

namespace oq {
namespace {

void set_random_row(PackedBuilder& out, uint64_t row, float deviation, Rng& rng) {
  const PackedLayout& l = out.layout();
  const Packing& p = l.packing;
  const bool constant = p.zero_mode == ZeroMode::constant;
  const uint32_t levels = constant ? 2 * uint32_t(p.zero) + 1 : uint32_t(p.max_code()) + 1;
  const bool even = levels % 2 == 0;
  std::vector<uint8_t> codes(l.cols);
  for (uint8_t& c : codes) c = uint8_t(rng.below(levels));
  uint32_t weak = 0;
  for (uint32_t column : out.view().weak_indices()) {
    codes[column] = 0;
    out.set_weak_weight(row, weak++, deviation * rng.spread());
  }
  out.set_codes(row, codes);
  // An even number of levels has no middle: the zero point is half a code above or below it. The
  // mean square of code - zero is then (levels^2 - 1) / 12 + 1 / 4.
  const double square = (double(levels) * levels - 1) / 12 + (even ? 0.25 : 0.0);
  const double scale = deviation / std::sqrt(square);
  for (uint64_t g = 0; g < l.groups; ++g) {
    out.set_scale(row, g, to_f16(float(scale * (0.75 + 0.5 * rng.uniform()))));
    if (!constant) out.set_zero(row, g, int(levels / 2) - (even ? int(rng.below(2)) : 0));
  }
}

PackedBuilder empty(uint64_t rows, uint64_t cols, const Packing& packing) {
  PackedBuilder out(rows, cols, packing);
  std::vector<uint32_t> weak(packing.weak_columns);
  for (size_t i = 0; i < weak.size(); ++i) weak[i] = uint32_t(i * cols / weak.size());
  out.set_weak_indices(weak);
  return out;
}

/// A tensor's panels, put together from those of `pool`.
class PackedSource final : public WeightSource {
 public:
  PackedSource(const Packing& packing, uint64_t cols, float deviation, Rng& rng)
      : deviation_(deviation), pool_(empty(kPanels * kPanelRows, cols, packing)) {
    for (uint64_t r = 0; r < pool_.layout().rows; ++r) set_random_row(pool_, r, deviation, rng);
  }

  void fill_panel(const TensorInfo& t, std::span<std::byte> data, uint64_t panel,
                  Rng& rng) const override {
    const PackedLayout to = PackedLayout::of(t.rows, t.cols, t.packing);
    const uint64_t rows = std::min<uint64_t>(kPanelRows, t.rows - panel * kPanelRows);
    if (panel == 0) {
      const auto weak = std::as_bytes(pool_.view().weak_indices());
      std::copy(weak.begin(), weak.end(), data.data() + to.weak_index_offset);
    }
    if (rows == kPanelRows) return copy_panel(pool_, kPanels, data.data(), to, panel, rng);
    PackedBuilder last = empty(rows, t.cols, t.packing);  // with its padding
    for (uint64_t r = 0; r < rows; ++r) set_random_row(last, r, deviation_, rng);
    copy_panel(last, 1, data.data(), to, panel, rng);
  }

 private:
  static constexpr uint32_t kPanels = 32;

  static void copy_panel(const PackedBuilder& pool, uint32_t choice, std::byte* base,
                         const PackedLayout& to, uint64_t panel, Rng& rng) {
    const PackedView from = pool.view();
    const uint64_t block_bytes = to.panel_bytes / to.blocks;
    std::byte* codes = base + panel * to.panel_bytes;
    for (uint64_t b = 0; b < to.blocks; ++b) {
      const uint8_t* block = from.codes(rng.below(choice)) + b * block_bytes;
      std::memcpy(codes + b * block_bytes, block, block_bytes);
    }
    constexpr uint64_t kScaleBytes = kPanelRows * sizeof(f16);
    std::byte* scales = base + to.scales_offset + panel * to.groups * kScaleBytes;
    std::byte* zeros = base + to.zeros_offset + panel * to.groups * to.zero_bytes;
    for (uint64_t g = 0; g < to.groups; ++g) {
      const uint32_t p = rng.below(choice);
      std::memcpy(scales + g * kScaleBytes, from.scales(p) + g * kPanelRows, kScaleBytes);
      std::memcpy(zeros + g * to.zero_bytes, from.zeros(p) + g * to.zero_bytes, to.zero_bytes);
    }
    const uint64_t weak_bytes = to.packing.weak_columns * kPanelRows * sizeof(f16);
    if (weak_bytes == 0) return;
    std::memcpy(base + to.weak_offset + panel * weak_bytes, from.weak(rng.below(choice)),
                weak_bytes);
  }

  float deviation_;
  PackedBuilder pool_;
};

class HalfSource final : public WeightSource {
 public:
  HalfSource(uint64_t cols, float deviation, Rng& rng) : cols_(cols), pool_(kRows * cols) {
    for (f16& w : pool_) w = to_f16(deviation * rng.spread());
  }

  void fill_panel(const TensorInfo& t, std::span<std::byte> data, uint64_t panel,
                  Rng& rng) const override {
    const uint64_t end = std::min(t.rows, (panel + 1) * kPanelRows);
    for (uint64_t row = panel * kPanelRows; row < end; ++row) {
      std::byte* to = data.data() + row * cols_ * sizeof(f16);
      for (uint64_t col = 0; col < cols_; col += kPiece) {
        const f16* from = pool_.data() + rng.below(kRows) * cols_ + col;
        std::memcpy(to + col * sizeof(f16), from, std::min(kPiece, cols_ - col) * sizeof(f16));
      }
    }
  }

 private:
  static constexpr uint32_t kRows = 64;
  static constexpr uint64_t kPiece = 64;  ///< columns

  uint64_t cols_;
  std::vector<f16> pool_;
};

}  // namespace

std::unique_ptr<WeightSource> packed_source(const Packing& packing, uint64_t cols, float deviation,
                                            Rng rng) {
  return std::make_unique<PackedSource>(packing, cols, deviation, rng);
}

std::unique_ptr<WeightSource> half_source(uint64_t cols, float deviation, Rng rng) {
  return std::make_unique<HalfSource>(cols, deviation, rng);
}

}  // namespace oq
