#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <initializer_list>
#include <span>
#include <string>
#include <string_view>

#include "format/half.h"
#include "tools/convert/checkpoint.h"

namespace oq::convert {

/// One tensor of those that make up a quantized linear ("X.qweight"), as a matrix of what it holds.
/// A view: the checkpoint must outlive it. Elements are read wherever they lie, aligned or not.
class Part {
 public:
  Part() = default;
  /// Throws oq::Error where its type is none of `dtypes`, or it has no elements.
  Part(const SourceTensor& tensor, std::initializer_list<std::string_view> dtypes);

  const SourceTensor& tensor() const { return *tensor_; }
  uint64_t rows() const { return rows_; }
  uint64_t cols() const { return cols_; }
  bool is(std::string_view dtype) const { return tensor_->dtype == dtype; }

  /// Throws oq::Error, with `why` as the reason, where the shape is another.
  void expect(uint64_t rows, uint64_t cols, const std::string& why) const;

  /// PRECOND, here and below: the element exists and is of that width.
  uint32_t word(uint64_t row, uint64_t col) const { return get<uint32_t>(row, col); }
  uint8_t byte(uint64_t row, uint64_t col) const { return get<uint8_t>(row, col); }
  /// A float exactly as an f16. Throws oq::Error, calling it `what`, where f16 cannot hold it.
  f16 half(uint64_t row, uint64_t col, const char* what) const;
  /// The value, whatever float type it is of.
  float number(uint64_t row, uint64_t col) const;

  [[noreturn]] void fail(std::string what, std::string expected, std::string found,
                         std::string hint) const;

 private:
  template <class T>
  T get(uint64_t row, uint64_t col) const {
    T v;
    std::memcpy(&v, bytes_.data() + (row * cols_ + col) * sizeof(T), sizeof v);
    return v;
  }

  const SourceTensor* tensor_ = nullptr;
  std::span<const std::byte> bytes_;
  uint64_t rows_ = 0, cols_ = 0;
};

/// Codes that lie one after another, lowest bits first, from word 0 on: code i is the bits
/// [i * bits, (i + 1) * bits) of the stream. `word(i)` gives its 32-bit words. At 3 bits, 32 codes
/// fill 3 words and two of them lie across an edge; at 2, 4 and 8 none does.
template <class Word>
void unpack_stream(uint32_t bits, std::span<uint8_t> codes, const Word& word) {
  uint64_t buffer = 0, next = 0;
  uint32_t filled = 0;
  for (uint8_t& code : codes) {
    if (filled < bits) {
      buffer |= uint64_t(word(next++)) << filled;
      filled += 32;
    }
    code = uint8_t(buffer & ((1u << bits) - 1));
    buffer >>= bits;
    filled -= bits;
  }
}

/// One code of such a stream.
template <class Word>
uint32_t stream_code(uint32_t bits, uint64_t i, const Word& word) {
  const uint64_t at = i * bits / 32;
  const auto shift = uint32_t(i * bits % 32);
  uint64_t both = word(at);
  if (shift + bits > 32) both |= uint64_t(word(at + 1)) << 32;
  return uint32_t(both >> shift) & ((1u << bits) - 1);
}

/// Words that `codes` codes take in such a stream.
inline uint64_t stream_words(uint64_t codes, uint32_t bits) {
  return codes / 32 * bits + (codes % 32 * bits + 31) / 32;
}

}  // namespace oq::convert
