#pragma once

#include "tools/convert/quantized/packed_source.h"
#include "tools/convert/quantized/part.h"

namespace oq::convert {

/// The tensors of one linear of OWQ's packed checkpoint, of 3 or 4 bits, one scale per output:
///   qweight     i32 [cols * bits / 32, rows]   column n: the stream of output n's codes
///   scales      float [rows, 1]
///   zeros       u8 [rows / 2, 1]               two zero points: the low nibble is the even output
///   oweight     float [weak columns, rows]     first releases: [rows, weak columns]
///   outlieridx  i32 [weak columns]             in any order
/// The last two may be missing or empty. Codes at weak columns are the zero point there, 0 here.
struct OwqParts {
  const SourceTensor *qweight = nullptr, *scales = nullptr, *zeros = nullptr, *oweight = nullptr,
                     *outlieridx = nullptr;
};

class OwqSource : public PackedSource {
 public:
  /// Throws oq::Error where the tensors contradict `bits` or each other. PRECOND: none of the first
  /// three is null.
  OwqSource(const OwqParts& parts, uint32_t bits);

  std::span<const uint32_t> weak_indices() const override { return indices_; }
  void read_row(uint64_t row, PackedRow& out) const override;

 private:
  void read_indices(const OwqParts& parts, uint64_t rows, uint64_t cols);
  int zero(uint64_t row) const;

  uint32_t bits_;
  Part qweight_, scales_, zeros_, oweight_;
  std::vector<uint32_t> indices_;  ///< ascending
  std::vector<uint32_t> order_;    ///< where in oweight the columns lie
  bool transposed_ = false;        ///< oweight is [rows, weak columns]
};

}  // namespace oq::convert
