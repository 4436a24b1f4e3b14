#pragma once

#include "tools/convert/quantized/packed_source.h"
#include "tools/convert/quantized/part.h"

namespace oq::convert {

struct AwqFormat {
  int64_t group = 0;       ///< columns that share a scale; 0: all
  bool symmetric = false;  ///< "zero_point": false; every zero point is 8
};

/// The tensors of one linear in AWQ's "gemm" layout, of 4 bits: eight outputs share a word, and
/// field i of the word (bits 4i to 4i + 3) is output 0, 2, 4, 6, 1, 3, 5, 7 of the eight.
///   qweight  i32 [cols, rows / 8]
///   qzeros   i32 [groups, rows / 8]   the zero points themselves
///   scales   f16 [groups, rows]       (or another float type, where f16 holds them)
struct AwqParts {
  const SourceTensor *qweight = nullptr, *qzeros = nullptr, *scales = nullptr;
};

class AwqSource : public PackedSource {
 public:
  /// Throws oq::Error where the tensors contradict the format or each other. PRECOND: none of the
  /// parts is null.
  AwqSource(const AwqParts& parts, const AwqFormat& format);

  void read_row(uint64_t row, PackedRow& out) const override;

 private:
  Part qweight_, qzeros_, scales_;
};

}  // namespace oq::convert
