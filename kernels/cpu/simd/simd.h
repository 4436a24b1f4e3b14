#pragma once

#include <cstdint>

#include "kernels/cpu/kernels.h"

#if defined(__x86_64__)
#include "kernels/cpu/x86/vectors.h"
#else
#include "kernels/cpu/neon/vectors.h"
#endif

/// What the SIMD kernels share. The files of this folder are written once, in vectors of 8 floats
/// (a lane is a row of a panel) and of 32 bytes, and compiled once per instruction set, each time
/// in a namespace of its own (OQ_ISA, which the build sets): inline functions of the same name but
/// of other instructions must not be one to the linker. An architecture gives, in vectors.h:
///
///   Floats        8 floats, with + - * / and unary -; Floats{} is zeros
///   Doubles       8 doubles, with *; Doubles{} is zeros
///   Ints          8 int32
///   Bytes         32 bytes: four of each lane
///   kRegisters    how many vectors of 8 floats the registers hold
///
///   all(x), load_floats(p), store(p, v)        p: float, f16, bf16, uint8_t, int16_t
///   load_first(p, n), store_first(p, n, v)     lanes below n alone; the others load 0
///   fmadd(a, b, c), fnmadd(a, b, c)            c + a b, c - a b, rounded once
///   min(a, b), max(a, b)                       a NaN in b comes through
///   abs(v), nearest(v)                         nearest: integers, ties to even
///   times_power_of_2(v, n)                     v 2^n for integers n, by adding to the exponent
///   zero_where_less(a, b, v)                   0 where a < b, else v
///   sum_lanes(v), max_lane(v)                  always in the same order; sums of Ints too
///
///   all_doubles(x), load_doubles(p), doubles(v)  from Floats and Ints
///   fmadd(a, b, c), fnmadd(a, b, c), floats(v) of Doubles
///
///   floats(v), nearest_ints(v), add(a, b)      Ints from and to Floats
///   store_bytes(v[4], p)                       32 ints as int8
///
///   load_bytes(p)
///   field(v, shift, bits)                      of every byte, the `bits` bits from `shift` on
///   or_field(a, v, shift, bits, at)            (v >> shift)'s `bits` bits from `at` on, put into
///                                              a, which has zeros there
///   divide<d>(v)                               of bytes below 128, by 5 or 25
///   minus_5_times(a, b), at_most(v, limit)     a - 5 b, min(v, limit), per byte
///   column(v, c)                               byte c of every lane, as floats
///   EightFields(bits)(word)                    8 unsigned integers of `bits` bits, as floats
namespace oq::cpu::OQ_ISA {

/// Asks for the cache lines of `bytes` bytes that lie `ahead` bytes behind p, into cache kLevel.
/// Mapped files and the KV cache lie on small pages, at the end of each of which the hardware's own
/// prefetchers stop: worth 9 to 12 % in decode (on x86). A prefetch never faults, so there need not
/// be an object.
template <int kLevel>
inline __attribute__((always_inline)) void prefetch_lines(const void* p, int64_t ahead,
                                                          int64_t bytes) {
  const auto from = reinterpret_cast<uintptr_t>(p) + uintptr_t(ahead);
  for (int64_t line = 0; line < bytes; line += 64) {
    __builtin_prefetch(reinterpret_cast<const char*>(from + uintptr_t(line)), 0, 4 - kLevel);
  }
}

/// e^x to about 2 ulp on [-87, 88]; 0 below, e^88 above. Range reduction by ln 2 in two parts and
/// a degree-6 Taylor polynomial on [-ln2/2, ln2/2], whose error there is below 1.2e-7. Of several
/// vectors each step is done for all, since a step waits some 4 cycles for the one before it.
template <int kVectors>
inline __attribute__((always_inline)) void exp(Floats (&x)[kVectors]) {
  const Floats low = all(-87.0f);
  Floats n[kVectors], r[kVectors], p[kVectors];
  for (int j = 0; j < kVectors; ++j) r[j] = min(all(88.0f), max(low, x[j]));
  for (int j = 0; j < kVectors; ++j) n[j] = nearest(r[j] * all(1.44269504f));
  for (int j = 0; j < kVectors; ++j) r[j] = fnmadd(n[j], all(0.693145752f), r[j]);
  for (int j = 0; j < kVectors; ++j) r[j] = fnmadd(n[j], all(1.42860677e-6f), r[j]);
  for (int j = 0; j < kVectors; ++j) p[j] = all(1.0f / 720);
#pragma GCC unroll 6
  for (float c : {1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f}) {
    for (int j = 0; j < kVectors; ++j) p[j] = fmadd(p[j], r[j], all(c));
  }
  for (int j = 0; j < kVectors; ++j) {
    x[j] = zero_where_less(x[j], low, times_power_of_2(p[j], n[j]));
  }
}

inline Floats exp(Floats x) {
  Floats one[1] = {x};
  exp(one);
  return one[0];
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
void attend_f16(const float* q, int64_t queries, int64_t head_dim, KvView<f16> kv, Stretch stretch,
                const Sight* sights, float* scores, AttentionPart* parts);
void attend_f32(const float* q, int64_t queries, int64_t head_dim, KvView<float> kv,
                Stretch stretch, const Sight* sights, float* scores, AttentionPart* parts);
void attend_codes(const float* q, int64_t queries, int64_t head_dim, KvCodes kv, Stretch stretch,
                  const Sight* sights, float* scores, AttentionPart* parts);

}  // namespace oq::cpu::OQ_ISA
