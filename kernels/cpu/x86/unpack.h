#pragma once

#include "kernels/cpu/x86/simd.h"

/// From the bytes of a column block to codes, and the other things of a packed panel that the
/// int8 and the exact kernel read alike.
namespace oq::cpu::OQ_ISA {

/// Vectors of codes in one column block: vector d, lane r, byte c = row r, column 4 d + c.
constexpr int kCodeVectors = 8;

/// The 8 fields of `kBits` bits of each byte lane (SPEC.md, "Column blocks"): those that lie
/// whole in a byte take a shift and a mask, the rest are put together from the top bits.
/// Instructions per 8 vectors: 2 bits 14, 3 bits 21, 4 bits 12, 5 bits 23, 6 bits 22, 7 bits 27.
template <int kBits>
inline __attribute__((always_inline)) void unpack_fields(const uint8_t* block,
                                                         __m256i out[kCodeVectors]) {
  constexpr int kWhole = 8 / kBits, kDirect = kWhole * kBits, kLeft = 8 - kDirect;
  const auto mask = [](int bits, int shift) {
    return _mm256_set1_epi8(char(((1 << bits) - 1) << shift));
  };
  __m256i v[kBits];
#pragma GCC unroll 8
  for (int j = 0; j < kBits; ++j) v[j] = in_register(load(block + 32 * j));
#pragma GCC unroll 8
  for (int d = 0; d < kDirect; ++d) {
    const __m256i shifted =
        d < kBits ? v[d % kBits] : _mm256_srli_epi16(v[d % kBits], d / kBits * kBits);
    out[d] = kBits == 8 ? shifted : _mm256_and_si256(shifted, mask(kBits, 0));
  }
#pragma GCC unroll 8
  for (int d = kDirect; d < 8; ++d) {  // spill bits [low, high), byte j holds kLeft of them
    const int low = (d - kDirect) * kBits, high = low + kBits;
    out[d] = _mm256_setzero_si256();
#pragma GCC unroll 8
    for (int j = 0; j < kBits; ++j) {
      const int from = low > j * kLeft ? low : j * kLeft;
      const int to = high < (j + 1) * kLeft ? high : (j + 1) * kLeft;
      if (from >= to) continue;
      const __m256i part = _mm256_srli_epi16(v[j], kDirect - j * kLeft + low);
      out[d] = or_masked(out[d], part, mask(to - from, from - low));
    }
  }
}

/// x / divisor for bytes below 128, by a 16-bit reciprocal on even and odd bytes.
template <int kDivisor>
inline __m256i divide_bytes(__m256i x) {
  const __m256i reciprocal = _mm256_set1_epi16(short(65536 / kDivisor + 1));
  const __m256i even = _mm256_mulhi_epu16(_mm256_and_si256(x, _mm256_set1_epi16(255)), reciprocal);
  const __m256i odd = _mm256_mulhi_epu16(_mm256_srli_epi16(x, 8), reciprocal);
  return _mm256_or_si256(even, _mm256_slli_epi16(odd, 8));
}

inline __m256i times5(__m256i x) {  // of bytes below 26
  return _mm256_add_epi8(x, _mm256_slli_epi16(x, 2));
}

/// The three codes of each field of a w2* block: out[0..7] are its columns 0..31, and so on.
inline void unpack_five_levels(const uint8_t* block, __m256i out[3 * kCodeVectors]) {
  __m256i fields[kCodeVectors];
  unpack_fields<7>(block, fields);
  for (int d = 0; d < kCodeVectors; ++d) {
    const __m256i by5 = divide_bytes<5>(fields[d]);
    const __m256i by25 = divide_bytes<25>(fields[d]);
    out[d] = _mm256_sub_epi8(fields[d], times5(by5));
    out[d + 8] = _mm256_sub_epi8(by5, times5(by25));
    out[d + 16] = _mm256_min_epu8(by25, _mm256_set1_epi8(4));
  }
}

/// The 8 zero points of a panel and group.
class ZeroReader {
 public:
  explicit ZeroReader(const PackedView& w)
      : mode_(w.layout().packing.zero_mode),
        bytes_(w.layout().zero_bytes),
        groups_(int64_t(w.layout().groups)),
        p_(w.zeros(0)),
        constant_(_mm256_set1_ps(w.layout().packing.zero)),
        mask_(_mm256_set1_epi64x((1 << bytes_) - 1)) {
    const __m256i lane = _mm256_setr_epi64x(0, 1, 2, 3);
    shift_low_ = _mm256_mul_epu32(lane, _mm256_set1_epi64x(bytes_));
    shift_high_ = _mm256_add_epi64(shift_low_, _mm256_set1_epi64x(4 * bytes_));
  }

  __m256 operator()(int64_t panel, int64_t group) const {
    if (mode_ == ZeroMode::constant) return constant_;
    const uint8_t* p = p_ + (panel * groups_ + group) * bytes_;
    if (mode_ == ZeroMode::i16) {
      const __m128i v = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
      return _mm256_cvtepi32_ps(_mm256_cvtepi16_epi32(v));
    }
    uint64_t word;  // 8 zero points of up to 8 bits; the section has 8 readable bytes behind it
    std::memcpy(&word, p, 8);
    const __m256i all = _mm256_set1_epi64x(int64_t(word));
    const __m256i low = _mm256_and_si256(_mm256_srlv_epi64(all, shift_low_), mask_);
    const __m256i high = _mm256_and_si256(_mm256_srlv_epi64(all, shift_high_), mask_);
    const __m256i even = _mm256_or_si256(low, _mm256_slli_epi64(high, 32));  // 0 4 1 5 2 6 3 7
    const __m256i order = _mm256_setr_epi32(0, 2, 4, 6, 1, 3, 5, 7);
    return _mm256_cvtepi32_ps(_mm256_permutevar8x32_epi32(even, order));
  }

 private:
  ZeroMode mode_;
  int bytes_;
  int64_t groups_;
  const uint8_t* p_;
  __m256 constant_;
  __m256i mask_, shift_low_, shift_high_;
};

/// acc[m] += weak weights of one panel times their activations.
template <int kTokens>
inline void add_weak(const PackedView& w, int64_t panel, const float* weak_x, __m256 acc[]) {
  const int64_t n = w.layout().packing.weak_columns;
  const uint16_t* weights = w.weak(uint64_t(panel));
  for (int64_t i = 0; i < n; ++i) {
    const uint16_t* p = weights + i * kPanelRows;
    const __m256 column = w.layout().packing.weak_bf16
                              ? load_floats(reinterpret_cast<const bf16*>(p))
                              : load_floats(reinterpret_cast<const f16*>(p));
    for (int m = 0; m < kTokens; ++m) {
      acc[m] = _mm256_fmadd_ps(column, _mm256_set1_ps(weak_x[m * n + i]), acc[m]);
    }
  }
}

inline void store_panel(const PackedView& w, int64_t panel, __m256 acc, float* y) {
  const int64_t first = panel * kPanelRows, left = int64_t(w.layout().rows) - first;
  if (left >= kPanelRows) return _mm256_storeu_ps(y + first, acc);
  const __m256i lanes = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  _mm256_maskstore_ps(y + first, _mm256_cmpgt_epi32(_mm256_set1_epi32(int(left)), lanes), acc);
}

}  // namespace oq::cpu::OQ_ISA
