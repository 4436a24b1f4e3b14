#include "tools/convert/quantized/part.h"

#include <algorithm>
#include <cmath>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "format/error.h"

namespace oq::convert {

Part::Part(const SourceTensor& tensor, std::initializer_list<std::string_view> dtypes)
    : tensor_(&tensor), bytes_(tensor.bytes()), rows_(tensor.rows), cols_(tensor.cols) {
  if (std::find(dtypes.begin(), dtypes.end(), tensor.dtype) == dtypes.end()) {
    fail("is not of the type that the format has there",
         fmt::format("{}", fmt::join(dtypes, " or ")), tensor.dtype,
         "it is of a variant that cannot be taken over, or damaged");
  }
  if (rows_ == 0 || cols_ == 0) {
    fail("is empty", "at least one row and column", fmt::format("[{}, {}]", rows_, cols_),
         "the checkpoint is damaged");
  }
}

void Part::fail(std::string what, std::string expected, std::string found, std::string hint) const {
  throw Error({.what = std::move(what),
               .where = fmt::format("tensor '{}'", tensor_->name),
               .expected = std::move(expected),
               .found = std::move(found),
               .hint = std::move(hint)});
}

void Part::expect(uint64_t rows, uint64_t cols, const std::string& why) const {
  if (rows_ == rows && cols_ == cols) return;
  fail("has a shape that the settings do not give: " + why, fmt::format("[{}, {}]", rows, cols),
       fmt::format("[{}, {}]", rows_, cols_), "settings and tensors are of different checkpoints");
}

float Part::number(uint64_t row, uint64_t col) const {
  if (is("F16")) return to_float(f16{get<uint16_t>(row, col)});
  if (is("BF16")) return to_float(bf16{get<uint16_t>(row, col)});
  return get<float>(row, col);
}

f16 Part::half(uint64_t row, uint64_t col, const char* what) const {
  const float value = number(row, col);
  const f16 half = to_f16(value);
  if (!std::isfinite(value)) {
    fail(fmt::format("holds a {} that is not finite", what), "",
         fmt::format("{} at [{}, {}]", value, row, col), "the checkpoint is damaged");
  }
  if (to_float(half) != value) {
    fail(fmt::format("holds a {} that f16 cannot hold exactly", what), "",
         fmt::format("{} at [{}, {}]", value, row, col),
         "a .oq file keeps it in f16: such a checkpoint would have to be quantized again");
  }
  return half;
}

}  // namespace oq::convert
