#pragma once

#include <memory>
#include <string>

#include "tools/convert/quantized/packed_source.h"
#include "tools/convert/quantized/part.h"

namespace oq::convert {

/// How GPTQ's `qzeros` stand for zero points.
///
/// Version 1 stores zero - 1. What a stored largest code means was never settled: it can only have
/// come from a zero of 0 (or 2^bits), and the programs that read it differ. Found in their sources:
///
///   | reader                            | 2 bits | 3 bits | 4 bits | 8 bits |
///   | exllama, exllama v2, Triton       | 4      | -      | 16     | 256    |
///   | AutoGPTQ, CUDA                    | 4      | 8      | 0      | -      |
///   | AutoGPTQ, torch                   | 0      | 8      | 0      | 0      |
///   | GPTQModel                         | adds 1 to all fields of a word, with carries; 3: 0 |
///
/// OQ takes the formula at its word, stored + 1 = 2^bits, as the kernels do that most people run
/// such files with. GPTQModel itself writes version 1 by subtracting 1 from every field of a word
/// at once, which borrows from the next field where a zero is 0: for its files the same addition
/// is the exact inverse, and is used.
enum class GptqZeros {
  stored,           ///< version 2: the zero point itself
  minus_one,        ///< version 1
  minus_one_words,  ///< version 1 as GPTQModel writes it
};

struct GptqFormat {
  uint32_t bits = 4;       ///< 2, 3, 4 or 8
  int64_t group = 0;       ///< columns that share a scale; 0: all
  bool symmetric = false;  ///< every zero point is 2^(bits-1)
  GptqZeros zeros = GptqZeros::minus_one;
};

/// The tensors of one linear of `rows` outputs and `cols` inputs.
///   qweight  i32 [cols * bits / 32, rows]        column n: the stream of output n's codes
///   qzeros   i32 [groups, rows * bits / 32]      row g: the stream of group g's zero points
///   scales   f16 [groups, rows]                  (or another float type, where f16 holds them)
///   g_idx    i32 [cols], may be missing          the group of each input
/// A g_idx may order groups in any way, but the inputs of a group must lie together: act-order with
/// groups is refused.
struct GptqParts {
  const SourceTensor *qweight = nullptr, *qzeros = nullptr, *scales = nullptr, *g_idx = nullptr;
};

class GptqSource : public PackedSource {
 public:
  /// Throws oq::Error where the tensors contradict the format or each other. PRECOND: none of the
  /// first three is null.
  GptqSource(const GptqParts& parts, const GptqFormat& format);

  void read_row(uint64_t row, PackedRow& out) const override;
  /// Some zero points are 2^bits, stored as the largest code of version 1.
  bool ambiguous() const { return ambiguous_; }

 private:
  void read_groups(const SourceTensor* g_idx, uint64_t cols, uint64_t group);
  Packing choose_packing(uint64_t cols);
  int zero(uint64_t source_group, uint64_t row) const;
  [[noreturn]] void asymmetric(uint64_t source_group, uint64_t row, int found) const;

  GptqFormat format_;
  Part qweight_, qzeros_, scales_;
  std::vector<uint32_t> groups_;  ///< the source's row of scales for each group of ours
  bool ambiguous_ = false;
};

}  // namespace oq::convert
