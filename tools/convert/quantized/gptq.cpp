#include "tools/convert/quantized/gptq.h"

#include <algorithm>

#include <fmt/format.h>

namespace oq::convert {
namespace {

/// 1 in the lowest bit of every field of a word. PRECOND: bits divides 32.
constexpr uint32_t ones(uint32_t bits) {
  return bits == 2 ? 0x55555555u : bits == 4 ? 0x11111111u : 0x01010101u;
}

uint64_t divide_up(uint64_t n, uint64_t by) { return n / by + (n % by != 0 ? 1 : 0); }

}  // namespace

GptqSource::GptqSource(const GptqParts& parts, const GptqFormat& format)
    : format_(format),
      qweight_(*parts.qweight, {"I32", "U32"}),
      qzeros_(*parts.qzeros, {"I32", "U32"}),
      scales_(*parts.scales, {"F16", "BF16", "F32"}) {
  const uint64_t rows = scales_.cols();
  uint64_t cols = qweight_.rows() * 32 / format_.bits;
  if (parts.g_idx != nullptr) cols = parts.g_idx->elements();
  const std::string bits = fmt::format("{} bits, {} inputs, {} outputs", format_.bits, cols, rows);
  qweight_.expect(stream_words(cols, format_.bits), rows, bits);

  const uint64_t group = format_.group == 0 ? cols : uint64_t(format_.group);
  const uint64_t groups = divide_up(cols, group);
  scales_.expect(groups, rows, fmt::format("groups of {} in {} inputs", group, cols));
  qzeros_.expect(groups, stream_words(rows, format_.bits),
                 fmt::format("{}, groups of {}", bits, group));
  read_groups(parts.g_idx, cols, group);
  set_layout(rows, cols, choose_packing(cols));
}

void GptqSource::read_groups(const SourceTensor* g_idx, uint64_t cols, uint64_t group) {
  const uint64_t groups = scales_.rows();
  for (uint64_t g = 0; g < groups; ++g) groups_.push_back(uint32_t(g));
  if (g_idx == nullptr) return;
  const Part index(*g_idx, {"I32", "U32"});
  for (uint64_t k = 0; k < cols; ++k) {
    const uint32_t source = index.word(k / index.cols(), k % index.cols());
    if (source >= groups) {
      index.fail("names a group that is not there", fmt::format("0 to {}", groups - 1),
                 fmt::format("{} for input {}", int32_t(source), k), "the checkpoint is damaged");
    }
    if (k % group == 0) groups_[k / group] = source;
    if (groups_[k / group] != source) {
      index.fail(
          "is of act-order (desc_act) with groups, which cannot be taken over",
          "inputs of a group that lie together",
          fmt::format("group {} for input {}, beside group {}", source, k, groups_[k / group]),
          "take a checkpoint without act-order, with static groups, or with group_size -1");
    }
  }
}

Packing GptqSource::choose_packing(uint64_t cols) {
  Packing p;
  p.bits = uint8_t(format_.bits);
  if (format_.group % kBlockCols == 0) {
    p.group = uint32_t(format_.group);
  } else if (uint64_t(format_.group) < cols) {
    scales_.fail("has groups of a size that a .oq file does not have", "a multiple of 32",
                 std::to_string(format_.group), "such a checkpoint cannot be taken over");
  }
  const int middle = 1 << (format_.bits - 1);
  int most = 0;
  for (uint64_t g = 0; g < qzeros_.rows(); ++g) {
    for (uint64_t row = 0; row < scales_.cols(); ++row) {
      const int z = zero(g, row);
      if (format_.symmetric && z != middle) asymmetric(g, row, z);
      most = std::max(most, z);
    }
  }
  ambiguous_ = most > p.max_code();
  if (format_.symmetric) {
    p.zero_mode = ZeroMode::constant;
    p.zero = int16_t(middle);
  } else if (ambiguous_) {
    p.zero_mode = ZeroMode::i16;
  }
  return p;
}

void GptqSource::asymmetric(uint64_t source_group, uint64_t row, int found) const {
  const int middle = 1 << (format_.bits - 1);
  const int other = format_.zeros == GptqZeros::stored ? found + 1 : found - 1;
  std::string hint = "settings and tensors are of different checkpoints";
  if (other == middle) {
    hint =
        format_.zeros == GptqZeros::stored
            ? "they fit version 1: its checkpoint_format is 'gptq'"
            : "they fit version 2: some tools wrote it without saying checkpoint_format 'gptq_v2'";
  }
  qzeros_.fail("contradicts the settings, which call it symmetric",
               fmt::format("zero points of {}", middle),
               fmt::format("{} in group {} of output {}", found, source_group, row), hint);
}

int GptqSource::zero(uint64_t source_group, uint64_t row) const {
  const bool words = format_.zeros == GptqZeros::minus_one_words;
  const uint32_t add = words && format_.bits != 3 ? ones(format_.bits) : 0;
  const auto word = [&](uint64_t i) { return qzeros_.word(source_group, i) + add; };
  const auto code = int(stream_code(format_.bits, row, word));
  if (format_.zeros == GptqZeros::minus_one) return code + 1;
  return words && format_.bits == 3 ? (code + 1) & 7 : code;
}

void GptqSource::read_row(uint64_t row, PackedRow& out) const {
  out.codes.resize(cols());
  unpack_stream(format_.bits, out.codes, [&](uint64_t i) { return qweight_.word(i, row); });
  out.scales.clear();
  out.zeros.clear();
  for (const uint32_t group : groups_) {
    out.scales.push_back(scales_.half(group, row, "scale"));
    out.zeros.push_back(zero(group, row));
  }
  out.weak.clear();
}

}  // namespace oq::convert
