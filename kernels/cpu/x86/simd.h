#pragma once

#include <cstdint>
#include <cstring>

#include <immintrin.h>

#include "kernels/cpu/kernels.h"

/// What the x86 kernels share. The files of this folder are compiled once per instruction set, each
/// time in a namespace of its own (OQ_ISA, which the build sets): inline functions of the same name
/// but of other instructions must not be one to the linker.
///   avx2    AVX2, FMA, F16C
///   avx512  and AVX-512 F, VL, BW, DQ and VNNI, in vectors of 256 bits: twice the registers, and
///           products of bytes summed into 32 bits by one instruction
namespace oq::cpu::OQ_ISA {

inline __m256i load(const uint8_t* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}

/// Loads are what a packed kernel has least of (two a cycle); without this, a compiler folds one
/// load into every use of a vector of codes, and so reads it two to four times.
inline __m256i in_register(__m256i v) {
#if defined(__AVX512VL__)
  asm("" : "+v"(v));
#endif
  return v;
}

inline __m256 load_floats(const float* p) { return _mm256_loadu_ps(p); }
inline __m256 load_floats(const f16* p) {
  return _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
}
inline __m256 load_floats(const uint8_t* p) {
  return _mm256_cvtepi32_ps(
      _mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
}
inline __m256 load_floats(const bf16* p) {
  const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16));
}

/// Four int8 activations in every lane.
inline __m256i broadcast4(const int8_t* p) {
  int32_t word;
  std::memcpy(&word, p, 4);
  return _mm256_set1_epi32(word);
}

/// Asks for the cache lines of `bytes` bytes that lie `ahead` bytes behind p. Mapped files and the
/// KV cache lie on small pages, at the end of each of which the hardware's own prefetchers stop:
/// worth 9 to 12 % in decode. A prefetch never faults, so there need not be an object.
template <int kHint>
inline __attribute__((always_inline)) void prefetch_lines(const void* p, int64_t ahead,
                                                          int64_t bytes) {
  const auto from = reinterpret_cast<uintptr_t>(p) + uintptr_t(ahead);
  for (int64_t line = 0; line < bytes; line += 64) {
    _mm_prefetch(reinterpret_cast<const char*>(from + uintptr_t(line)),
                 static_cast<decltype(_MM_HINT_T0)>(kHint));
  }
}

/// a | (b & mask)
inline __m256i or_masked(__m256i a, __m256i b, __m256i mask) {
#if defined(__AVX512VL__)
  return _mm256_ternarylogic_epi32(a, b, mask, 0xF8);
#else
  return _mm256_or_si256(a, _mm256_and_si256(b, mask));
#endif
}

/// Sum of the lanes, always in the same order.
inline float sum_lanes(__m256 v) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  s = _mm_add_ss(s, _mm_movehdup_ps(s));
  return _mm_cvtss_f32(s);
}

/// e^x to about 2 ulp on [-87, 88]; 0 below, e^88 above. Range reduction by ln 2 in two parts and
/// a degree-6 Taylor polynomial on [-ln2/2, ln2/2], whose error there is below 1.2e-7.
inline __m256 exp(__m256 x) {
  const __m256 low = _mm256_set1_ps(-87.0f);
  const __m256 tiny = _mm256_cmp_ps(x, low, _CMP_LT_OQ);
  x = _mm256_min_ps(_mm256_set1_ps(88.0f), _mm256_max_ps(low, x));
  const __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504f)),
                                   _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693145752f), x);
  r = _mm256_fnmadd_ps(n, _mm256_set1_ps(1.42860677e-6f), r);
  __m256 p = _mm256_set1_ps(1.0f / 720);
  for (float c : {1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) {
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(c));
  }
  const __m256i e = _mm256_slli_epi32(_mm256_cvtps_epi32(n), 23);
  p = _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(p), e));
  return _mm256_andnot_ps(tiny, p);
}

const Kernels& table();

void quantize_row(const float* x, int64_t n, int8_t* codes, float* scales, float* sums,
                  int64_t blocks);
void range(const float* x, int64_t n, float* low, float* high);
void quantize_row_to(const ActivationGrid& grid, const float* x, int64_t n, int8_t* codes,
                     int32_t* sums, int64_t blocks);
void packed_grid(const PackedView& w, const GridRows& x, const double* live_sums,
                 const float* weak_x, int64_t tokens, int64_t begin, int64_t end, MutableRows y);
void packed_int8(const PackedView& w, const Int8Rows& x, const float* weak_x, int64_t tokens,
                 int64_t begin, int64_t end, MutableRows y);
void packed_exact(const PackedView& w, Rows x, const float* weak_x, int64_t tokens, int64_t begin,
                  int64_t end, MutableRows y);
void dense(const DenseView& w, Rows x, int64_t tokens, int64_t begin, int64_t end, MutableRows y);
void rms_norm(const float* x, const float* weight, float eps, int64_t n, float* y);
void layer_norm(const float* x, const float* weight, const float* bias, float eps, int64_t n,
                float* y);
void activate(Activation activation, const float* gate, const float* up, int64_t n, float* y);
void attend_f16(const float* q, int64_t queries, int64_t head_dim, KvView<f16> kv, int64_t begin,
                int64_t end, const Sight* sights, float* scores, AttentionPart* parts);
void attend_f32(const float* q, int64_t queries, int64_t head_dim, KvView<float> kv, int64_t begin,
                int64_t end, const Sight* sights, float* scores, AttentionPart* parts);
void attend_codes(const float* q, int64_t queries, int64_t head_dim, KvCodes kv, int64_t begin,
                  int64_t end, const Sight* sights, float* scores, AttentionPart* parts);

}  // namespace oq::cpu::OQ_ISA
