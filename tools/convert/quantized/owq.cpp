#include "tools/convert/quantized/owq.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include <fmt/format.h>

namespace oq::convert {

OwqSource::OwqSource(const OwqParts& parts, uint32_t bits)
    : bits_(bits),
      qweight_(*parts.qweight, {"I32", "U32"}),
      scales_(*parts.scales, {"F16", "BF16", "F32"}),
      zeros_(*parts.zeros, {"U8"}) {
  const uint64_t rows = qweight_.cols(), cols = qweight_.rows() / bits * 32;
  const std::string why = fmt::format("{} bits, {} inputs, {} outputs", bits, cols, rows);
  qweight_.expect(cols / 32 * bits, rows, why);
  scales_.expect(rows, 1, why);
  zeros_.expect(rows / 2, 1, why);
  if (rows % 2 != 0) {
    qweight_.fail("has outputs that do not fill bytes of zero points", "an even number",
                  std::to_string(rows), "the checkpoint is damaged");
  }
  Packing p;
  p.bits = uint8_t(bits);
  for (uint64_t row = 0; row < rows; ++row) {
    if (zero(row) > p.max_code()) p.zero_mode = ZeroMode::i16;
  }
  if (parts.outlieridx != nullptr && parts.outlieridx->elements() > 0) {
    read_indices(parts, rows, cols);
    p.weak_columns = uint32_t(indices_.size());
    p.weak_bf16 = oweight_.is("BF16");
  }
  set_layout(rows, cols, p);
}

void OwqSource::read_indices(const OwqParts& parts, uint64_t rows, uint64_t cols) {
  const Part listed(*parts.outlieridx, {"I32", "U32"});
  const uint64_t n = parts.outlieridx->elements();
  if (parts.oweight == nullptr) {
    listed.fail("names weak columns that the checkpoint does not hold", "a tensor 'oweight'", "",
                "the checkpoint is incomplete");
  }
  oweight_ = Part(*parts.oweight, {"F16", "BF16", "F32"});
  transposed_ = n != rows && oweight_.rows() == rows && oweight_.cols() == n;
  if (!transposed_) oweight_.expect(n, rows, fmt::format("{} weak columns", n));

  std::vector<uint32_t> found(n);
  for (uint64_t i = 0; i < n; ++i) {
    found[i] = listed.word(i / listed.cols(), i % listed.cols());
    if (found[i] < cols) continue;
    listed.fail("names a column that is not there", fmt::format("0 to {}", cols - 1),
                std::to_string(int32_t(found[i])), "the checkpoint is damaged");
  }
  order_.resize(n);
  std::iota(order_.begin(), order_.end(), 0u);
  std::stable_sort(order_.begin(), order_.end(),
                   [&](uint32_t a, uint32_t b) { return found[a] < found[b]; });
  for (uint32_t i : order_) indices_.push_back(found[i]);
  const auto twice = std::adjacent_find(indices_.begin(), indices_.end());
  if (twice != indices_.end()) {
    listed.fail("names a weak column twice", "", std::to_string(*twice),
                "the checkpoint is damaged");
  }
}

int OwqSource::zero(uint64_t row) const { return zeros_.byte(row / 2, 0) >> (row % 2 * 4) & 15; }

void OwqSource::read_row(uint64_t row, PackedRow& out) const {
  out.codes.resize(cols());
  unpack_stream(bits_, out.codes, [&](uint64_t i) { return qweight_.word(i, row); });
  out.scales.assign(1, scales_.half(row, 0, "scale"));
  out.zeros.assign(1, zero(row));
  out.weak.clear();
  for (size_t i = 0; i < indices_.size(); ++i) {
    out.codes[indices_[i]] = 0;
    const uint64_t r = transposed_ ? row : order_[i], c = transposed_ ? order_[i] : row;
    const float weight =
        oweight_.is("BF16") ? oweight_.number(r, c) : to_float(oweight_.half(r, c, "weight"));
    if (!std::isfinite(weight)) {
      oweight_.fail("holds a weight that is not finite", "",
                    fmt::format("{} at [{}, {}]", weight, r, c), "the checkpoint is damaged");
    }
    out.weak.push_back(weight);
  }
}

}  // namespace oq::convert
