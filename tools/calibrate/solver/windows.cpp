#include "tools/calibrate/solver/windows.h"

#include <algorithm>
#include <bit>

#include <fmt/format.h>

#include "format/error.h"

namespace oq::calibrate {
namespace {

constexpr size_t kWords = 624;
constexpr size_t kShift = 397;

uint32_t mixed(uint32_t word) { return word ^ (word >> 30); }

}  // namespace

// CPython seeds by key: the seed's 32-bit words, lowest first, without leading zero words.
PythonRandom::PythonRandom(uint64_t seed) {
  const std::array<uint32_t, 2> key = {uint32_t(seed), uint32_t(seed >> 32)};
  const size_t length = key[1] != 0 ? 2 : 1;
  state_[0] = 19650218;
  for (size_t i = 1; i < kWords; ++i) {
    state_[i] = 1812433253u * mixed(state_[i - 1]) + uint32_t(i);
  }
  size_t i = 1;
  const auto step = [&] {
    if (++i == kWords) {
      state_[0] = state_[kWords - 1];
      i = 1;
    }
  };
  for (size_t k = 0; k < kWords; ++k) {
    const size_t j = k % length;
    state_[i] = (state_[i] ^ (mixed(state_[i - 1]) * 1664525u)) + key[j] + uint32_t(j);
    step();
  }
  for (size_t k = 0; k < kWords - 1; ++k) {
    state_[i] = (state_[i] ^ (mixed(state_[i - 1]) * 1566083941u)) - uint32_t(i);
    step();
  }
  state_[0] = 0x80000000u;
}

void PythonRandom::refill() {
  for (size_t i = 0; i < kWords; ++i) {
    const uint32_t y = (state_[i] & 0x80000000u) | (state_[(i + 1) % kWords] & 0x7FFFFFFFu);
    state_[i] = state_[(i + kShift) % kWords] ^ (y >> 1) ^ ((y & 1) != 0 ? 0x9908B0DFu : 0u);
  }
  used_ = 0;
}

uint32_t PythonRandom::next() {
  if (used_ == kWords) refill();
  uint32_t y = state_[used_++];
  y ^= y >> 11;
  y ^= (y << 7) & 0x9D2C5680u;
  y ^= (y << 15) & 0xEFC60000u;
  return y ^ (y >> 18);
}

uint64_t PythonRandom::below(uint64_t n) {
  const int bits = std::bit_width(n);
  for (;;) {
    uint64_t r = 0;
    for (int have = 0; have < bits; have += 32) {  // whole words first, the top bits of the last
      r |= uint64_t(next() >> (32 - std::min(32, bits - have))) << have;
    }
    if (r < n) return r;
  }
}

int64_t PythonRandom::randint(int64_t a, int64_t b) {
  return a + int64_t(below(uint64_t(b - a) + 1));
}

std::vector<uint64_t> sample_windows(uint64_t tokens, uint64_t window, uint64_t count,
                                     uint64_t seed) {
  if (window == 0 || tokens <= window) {
    throw Error({.what = "the calibration text is too short for a window",
                 .expected = fmt::format("more than {} tokens", window),
                 .found = std::to_string(tokens),
                 .hint = "give a longer text or a shorter --window"});
  }
  PythonRandom random(seed);
  std::vector<uint64_t> starts(count);
  for (uint64_t& s : starts) s = random.below(tokens - window);
  return starts;
}

std::vector<DocumentWindow> sample_document_windows(
    uint64_t documents, const std::function<uint64_t(uint64_t)>& tokens_in, uint64_t window,
    uint64_t count, uint64_t seed) {
  const uint64_t patience = std::max<uint64_t>(1000, 20 * documents);
  PythonRandom random(seed);
  std::vector<DocumentWindow> windows;
  while (windows.size() < count) {
    uint64_t document = 0, tokens = 0;
    for (uint64_t draw = 0; tokens <= window; ++draw) {
      if (documents == 0 || draw == patience) {
        throw Error({.what = "no document is long enough for a window",
                     .expected = fmt::format("one of more than {} tokens", window),
                     .found = fmt::format("none in {} draws from {}", draw, documents),
                     .hint = "give longer documents or a shorter --window"});
      }
      document = random.below(documents);
      tokens = tokens_in(document);
    }
    windows.push_back({document, random.below(tokens - window)});
  }
  return windows;
}

}  // namespace oq::calibrate
