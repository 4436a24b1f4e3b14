#include "tools/convert/quantized/awq.h"

#include <fmt/format.h>

namespace oq::convert {
namespace {

constexpr uint32_t kBits = 4;
constexpr uint64_t kPerWord = 8;
constexpr int kMiddle = 8;

/// The 4 bits of output `row` in a row of words.
uint32_t field(const Part& words, uint64_t line, uint64_t row) {
  const uint64_t i = row % kPerWord;
  const uint64_t at = i % 2 == 0 ? i / 2 : 4 + i / 2;
  return words.word(line, row / kPerWord) >> (kBits * at) & 15;
}

}  // namespace

AwqSource::AwqSource(const AwqParts& parts, const AwqFormat& format)
    : qweight_(*parts.qweight, {"I32", "U32"}),
      qzeros_(*parts.qzeros, {"I32", "U32"}),
      scales_(*parts.scales, {"F16", "BF16", "F32"}) {
  const uint64_t cols = qweight_.rows(), rows = scales_.cols();
  if (rows % kPerWord != 0) {
    scales_.fail("has outputs that do not fill words", "a multiple of 8", std::to_string(rows),
                 "the checkpoint is damaged");
  }
  qweight_.expect(cols, rows / kPerWord, fmt::format("4 bits, {} outputs", rows));
  const uint64_t group = format.group == 0 ? cols : uint64_t(format.group);
  const uint64_t groups = cols / group + (cols % group != 0 ? 1 : 0);
  const std::string why = fmt::format("groups of {} in {} inputs", group, cols);
  scales_.expect(groups, rows, why);
  qzeros_.expect(groups, rows / kPerWord, why);

  Packing p;
  p.bits = kBits;
  if (format.group % kBlockCols == 0) {
    p.group = uint32_t(format.group);
  } else if (group < cols) {
    scales_.fail("has groups of a size that a .oq file does not have", "a multiple of 32",
                 std::to_string(group), "such a checkpoint cannot be taken over");
  }
  if (format.symmetric) {
    p.zero_mode = ZeroMode::constant;
    p.zero = kMiddle;
    for (uint64_t g = 0; g < groups; ++g) {
      for (uint64_t row = 0; row < rows; ++row) {
        const uint32_t zero = field(qzeros_, g, row);
        if (zero == kMiddle) continue;
        qzeros_.fail("contradicts the settings, which say that there are no zero points",
                     "zero points of 8", fmt::format("{} in group {} of output {}", zero, g, row),
                     "settings and tensors are of different checkpoints");
      }
    }
  }
  set_layout(rows, cols, p);
}

void AwqSource::read_row(uint64_t row, PackedRow& out) const {
  out.codes.resize(cols());
  for (uint64_t k = 0; k < cols(); ++k) out.codes[k] = uint8_t(field(qweight_, k, row));
  out.scales.clear();
  out.zeros.clear();
  for (uint64_t g = 0; g < scales_.rows(); ++g) {
    out.scales.push_back(scales_.half(g, row, "scale"));
    out.zeros.push_back(int(field(qzeros_, g, row)));
  }
  out.weak.clear();
}

}  // namespace oq::convert
