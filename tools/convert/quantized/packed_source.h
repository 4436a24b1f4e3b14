#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "format/half.h"
#include "format/packed.h"

namespace oq::convert {

/// One row of a quantized linear: the weights of one output.
struct PackedRow {
  std::vector<uint8_t> codes;  ///< [cols], 0 at weak columns
  std::vector<f16> scales;     ///< [groups]
  std::vector<int> zeros;      ///< [groups]
  std::vector<float> weak;     ///< [weak columns]
};

/// A linear that the checkpoint has quantized already, to be taken over as it is: the codes, zero
/// points and weak weights of the source, and scales that f16 holds exactly. Opening one checks the
/// shapes and finds out how zero points are to be stored. Immutable: any number of threads may
/// read. Views into the checkpoint, which must outlive it.
class PackedSource {
 public:
  virtual ~PackedSource() = default;

  uint64_t rows() const { return layout_.rows; }
  uint64_t cols() const { return layout_.cols; }
  const PackedLayout& layout() const { return layout_; }
  const Packing& packing() const { return layout_.packing; }
  /// Ascending.
  virtual std::span<const uint32_t> weak_indices() const { return {}; }

  /// PRECOND: row < rows(). Throws oq::Error on a scale that f16 cannot hold.
  virtual void read_row(uint64_t row, PackedRow& out) const = 0;

  /// scale * (code - zero), weak columns in place: out has cols() elements.
  void dequantize_row(uint64_t row, std::span<float> out) const;
  /// The same row into row `to` of a tensor of the same packing and width, its weak indices set.
  void copy_row(uint64_t row, uint64_t to, PackedBuilder& out) const;

 protected:
  /// Throws oq::Error where the format has no such tensor.
  void set_layout(uint64_t rows, uint64_t cols, const Packing& packing) {
    layout_ = PackedLayout::of(rows, cols, packing);
  }

 private:
  PackedLayout layout_;
};

}  // namespace oq::convert
