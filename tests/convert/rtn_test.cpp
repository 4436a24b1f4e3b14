// Rounding to nearest against the formulas, written out once more and slowly.

#include "tools/convert/rtn.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include <doctest/doctest.h>

#include "format/error.h"
#include "format/scheme.h"

using namespace oq;
using namespace oq::convert;

namespace {

struct Expected {
  float scale;
  int zero;
  std::vector<int> codes;
};

Expected brute_force(std::span<const float> w, const Scheme& scheme) {
  const int qmax = scheme.five_levels ? 4 : (1 << scheme.weight_bits) - 1;
  const int half = scheme.five_levels ? 2 : (1 << (scheme.weight_bits - 1)) - 1;
  const float low = std::min(0.0f, *std::min_element(w.begin(), w.end()));
  const float high = std::max(0.0f, *std::max_element(w.begin(), w.end()));
  Expected e;
  const double range =
      scheme.symmetric ? std::max(-low, high) / double(half) : (double(high) - double(low)) / qmax;
  e.scale = to_float(to_f16(float(range)));
  if (e.scale == 0) e.scale = 0x1p-24f;
  e.zero =
      scheme.symmetric ? half : int(std::clamp(std::nearbyint(-low / e.scale), 0.0f, float(qmax)));
  for (float x : w) {
    e.codes.push_back(
        int(std::clamp(std::nearbyint(x / e.scale) + float(e.zero), 0.0f, float(qmax))));
  }
  return e;
}

void check_row(const std::vector<float>& w, const char* text) {
  CAPTURE(text);
  const Scheme scheme = Scheme::parse(text);
  PackedBuilder builder(3, w.size(), packing_of(scheme));
  rtn_row(w, 1, builder);
  const PackedLayout& layout = builder.layout();
  std::vector<uint8_t> codes(layout.padded_cols);
  builder.view().unpack_row(1, codes);
  for (uint64_t g = 0; g < layout.groups; ++g) {
    CAPTURE(g);
    const size_t begin = g * layout.group, n = std::min<size_t>(layout.group, w.size() - begin);
    const Expected e = brute_force(std::span(w).subspan(begin, n), scheme);
    CHECK(builder.view().scale(1, g) == e.scale);
    CHECK(builder.view().zero(1, g) == e.zero);
    CHECK(std::equal(e.codes.begin(), e.codes.end(), codes.begin() + ptrdiff_t(begin)));
  }
}

std::vector<float> weights(size_t n, float deviation, float mean = 0) {
  std::mt19937 random{uint32_t(n)};
  std::normal_distribution<float> normal(mean, deviation);
  std::vector<float> w(n);
  for (float& x : w) x = normal(random);
  return w;
}

constexpr const char* kSchemes[] = {"w2a16",     "w3a16",      "w4a16",    "w5a16g64",  "w6a16g32",
                                    "w7a16",     "w8a16g64",   "w2a16g32", "w3a16g128", "w4a16g64",
                                    "w4sa16",    "w3sa16g32",  "w2sa16",   "w8sa16g64", "w2*a16",
                                    "w2*a16g96", "w2*sa16g96", "w6a6",     "w4a16g96"};

}  // namespace

TEST_CASE("every scheme equals the formulas") {
  for (const char* scheme : kSchemes) {
    check_row(weights(576, 0.03f), scheme);
    check_row(weights(200, 0.3f, 0.2f), scheme);
    check_row(weights(97, 1e-3f, -0.01f), scheme);
    check_row(weights(1, 1.0f), scheme);
    check_row(std::vector<float>(96, 0.0f), scheme);
    check_row(std::vector<float>(96, 1e-9f), scheme);
    check_row(std::vector<float>(96, -3e-8f), scheme);
  }
}

TEST_CASE("no weight moves further than half a step beyond the scale's own rounding") {
  for (const char* text : kSchemes) {
    CAPTURE(text);
    const std::vector<float> w = weights(576, 0.05f);
    PackedBuilder builder(1, w.size(), packing_of(Scheme::parse(text)));
    rtn_row(w, 0, builder);
    std::vector<float> back(w.size());
    builder.view().dequantize_row(0, back);
    for (size_t i = 0; i < w.size(); ++i) {
      const float scale = builder.view().scale(0, i / builder.layout().group);
      // Rounding the zero point and the scale may each cost the ends of the range half a step.
      CHECK(std::abs(back[i] - w[i]) <= 1.05f * scale);
    }
  }
}

TEST_CASE("zero is kept exactly") {
  std::vector<float> w = weights(128, 0.1f, 0.3f);
  w[17] = 0;
  for (const char* text : kSchemes) {
    PackedBuilder builder(1, w.size(), packing_of(Scheme::parse(text)));
    rtn_row(w, 0, builder);
    std::vector<float> back(w.size());
    builder.view().dequantize_row(0, back);
    CHECK(back[17] == 0);
  }
}

TEST_CASE("weights without a grid are refused") {
  for (float bad : {std::numeric_limits<float>::infinity(), -std::numeric_limits<float>::infinity(),
                    std::numeric_limits<float>::quiet_NaN(), 3e8f}) {
    std::vector<float> w = weights(64, 0.1f);
    w[40] = bad;
    PackedBuilder builder(3, w.size(), packing_of(Scheme::parse("w4a16g32")));
    try {
      rtn_row(w, 2, builder);
      FAIL_CHECK("was not refused");
    } catch (const Error& e) {
      CHECK(e.parts().where == "row 2, columns 32 to 63");
    }
  }
}
