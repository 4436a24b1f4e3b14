#include "tools/convert/ggml_types.h"

#include <cstring>

#include "format/half.h"

namespace oq::convert {
namespace {

/// Little-endian values at byte offsets of a block.
struct Block {
  const uint8_t* p;
  explicit Block(const std::byte* b) : p(reinterpret_cast<const uint8_t*>(b)) {}

  float half(int at) const { return to_float(f16{uint16_t(p[at] | p[at + 1] << 8)}); }
  uint32_t u32(int at) const {
    uint32_t v;
    std::memcpy(&v, p + at, sizeof v);
    return v;
  }
};

void f32(const std::byte* b, float* out) { std::memcpy(out, b, sizeof *out); }

void f16_(const std::byte* b, float* out) { *out = Block(b).half(0); }

void bf16_(const std::byte* b, float* out) {
  const Block in(b);
  *out = to_float(bf16{uint16_t(in.p[0] | in.p[1] << 8)});
}

// The simple types: 32 codes share a scale, and a minimum in the _1 forms. Code i of a 4-bit block
// is the low nibble of byte i for i < 16 and the high nibble of byte i - 16 after that; a fifth
// bit is bit i of a word of its own.

int nibble(const uint8_t* codes, int i) { return i < 16 ? codes[i] & 15 : codes[i - 16] >> 4; }

void q8_0(const std::byte* b, float* out) {
  const Block in(b);
  const float d = in.half(0);
  for (int i = 0; i < 32; ++i) out[i] = float(int8_t(in.p[2 + i])) * d;
}

void q4_0(const std::byte* b, float* out) {
  const Block in(b);
  const float d = in.half(0);
  for (int i = 0; i < 32; ++i) out[i] = d * float(nibble(in.p + 2, i) - 8);
}

void q4_1(const std::byte* b, float* out) {
  const Block in(b);
  const float d = in.half(0), m = in.half(2);
  for (int i = 0; i < 32; ++i) out[i] = d * float(nibble(in.p + 4, i)) + m;
}

void q5_0(const std::byte* b, float* out) {
  const Block in(b);
  const float d = in.half(0);
  const uint32_t fifth = in.u32(2);
  for (int i = 0; i < 32; ++i) {
    const int q = nibble(in.p + 6, i) | int(fifth >> i & 1) << 4;
    out[i] = d * float(q - 16);
  }
}

void q5_1(const std::byte* b, float* out) {
  const Block in(b);
  const float d = in.half(0), m = in.half(2);
  const uint32_t fifth = in.u32(4);
  for (int i = 0; i < 32; ++i) {
    const int q = nibble(in.p + 8, i) | int(fifth >> i & 1) << 4;
    out[i] = d * float(q) + m;
  }
}

// The K types: 256 codes in groups of 16 or 32, whose scales are themselves codes under one f16.

void q2_k(const std::byte* b, float* out) {
  const Block in(b);
  const uint8_t *scales = in.p, *codes = in.p + 16;
  const float d = in.half(80), d_min = in.half(82);
  for (int i = 0; i < 256; ++i) {
    const int group = i / 16;
    const int q = codes[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3;
    const float scale = d * float(scales[group] & 15);
    const float minimum = d_min * float(scales[group] >> 4);
    out[i] = scale * float(q) - minimum;
  }
}

void q3_k(const std::byte* b, float* out) {
  const Block in(b);
  const uint8_t *third = in.p, *codes = in.p + 32, *scales = in.p + 96;
  const float d = in.half(108);
  for (int i = 0; i < 256; ++i) {
    const int group = i / 16;
    const int low = scales[group % 8] >> (group / 8 * 4) & 15;
    const int high = scales[8 + group % 4] >> (group / 4 * 2) & 3;
    const float scale = d * float((low | high << 4) - 32);
    const int q = codes[i / 128 * 32 + i % 32] >> (i % 128 / 32 * 2) & 3;
    const bool bit = third[i % 32] >> (i / 32) & 1;
    out[i] = scale * float(bit ? q : q - 4);
  }
}

/// The 6-bit scale and minimum of group 0..7 of Q4_K and Q5_K: 12 bytes whose first eight hold
/// the low six bits of groups 0..3, and whose rest is spread over all twelve.
struct ScaleMin {
  int scale, minimum;
};
ScaleMin scale_min(const uint8_t* s, int group) {
  if (group < 4) return {s[group] & 63, s[group + 4] & 63};
  const int k = group - 4;
  return {(s[8 + k] & 15) | (s[k] >> 6) << 4, (s[8 + k] >> 4) | (s[4 + k] >> 6) << 4};
}

void q4_k(const std::byte* b, float* out) {
  const Block in(b);
  const float d = in.half(0), d_min = in.half(2);
  const uint8_t* codes = in.p + 16;
  for (int group = 0; group < 8; ++group) {
    const ScaleMin s = scale_min(in.p + 4, group);
    const float scale = d * float(s.scale), minimum = d_min * float(s.minimum);
    for (int i = 0; i < 32; ++i) {
      const int q = codes[group / 2 * 32 + i] >> (group % 2 * 4) & 15;
      out[group * 32 + i] = scale * float(q) - minimum;
    }
  }
}

void q5_k(const std::byte* b, float* out) {
  const Block in(b);
  const float d = in.half(0), d_min = in.half(2);
  const uint8_t *fifth = in.p + 16, *codes = in.p + 48;
  for (int group = 0; group < 8; ++group) {
    const ScaleMin s = scale_min(in.p + 4, group);
    const float scale = d * float(s.scale), minimum = d_min * float(s.minimum);
    for (int i = 0; i < 32; ++i) {
      const int low = codes[group / 2 * 32 + i] >> (group % 2 * 4) & 15;
      const int q = low | (fifth[i] >> group & 1) << 4;
      out[group * 32 + i] = scale * float(q) - minimum;
    }
  }
}

void q6_k(const std::byte* b, float* out) {
  const Block in(b);
  const uint8_t *low = in.p, *high = in.p + 128, *scales = in.p + 192;
  const float d = in.half(208);
  for (int i = 0; i < 256; ++i) {
    const int half = i / 128, j = i % 128;
    const int l = low[half * 64 + j % 64] >> (j / 64 * 4) & 15;
    const int h = high[half * 32 + j % 32] >> (j / 32 * 2) & 3;
    const float scale = d * float(int8_t(scales[i / 16]));
    out[i] = scale * float((l | h << 4) - 32);
  }
}

template <void dequantize(const std::byte*, float*), uint32_t elements, uint32_t bytes>
void many(const std::byte* blocks, uint64_t n, float* out) {
  for (uint64_t b = 0; b < n; ++b) dequantize(blocks + b * bytes, out + b * elements);
}

template <void dequantize(const std::byte*, float*), uint32_t elements, uint32_t bytes>
constexpr GgmlType type(uint32_t id, std::string_view name) {
  return {id, name, elements, bytes, many<dequantize, elements, bytes>};
}

constexpr GgmlType kTypes[] = {
    type<f32, 1, 4>(0, "F32"),        type<f16_, 1, 2>(1, "F16"),
    type<q4_0, 32, 18>(2, "Q4_0"),    type<q4_1, 32, 20>(3, "Q4_1"),
    type<q5_0, 32, 22>(6, "Q5_0"),    type<q5_1, 32, 24>(7, "Q5_1"),
    type<q8_0, 32, 34>(8, "Q8_0"),    type<q2_k, 256, 84>(10, "Q2_K"),
    type<q3_k, 256, 110>(11, "Q3_K"), type<q4_k, 256, 144>(12, "Q4_K"),
    type<q5_k, 256, 176>(13, "Q5_K"), type<q6_k, 256, 210>(14, "Q6_K"),
    type<bf16_, 1, 2>(30, "BF16"),
};

}  // namespace

const GgmlType* find_ggml_type(uint32_t id) {
  for (const GgmlType& type : kTypes) {
    if (type.id == id) return &type;
  }
  return nullptr;
}

const GgmlType* find_ggml_type(std::string_view name) {
  for (const GgmlType& type : kTypes) {
    if (type.name == name) return &type;
  }
  return nullptr;
}

std::span<const GgmlType> ggml_types() { return kTypes; }

}  // namespace oq::convert
