#pragma once

#include <array>
#include <cstdint>
#include <functional>
#include <vector>

namespace oq::calibrate {

/// Python's `random.Random`: MT19937 (Matsumoto and Nishimura 1998) with CPython's seeding and
/// bounded draws, so that a seed names the same calibration windows as in the papers' code.
class PythonRandom {
 public:
  explicit PythonRandom(uint64_t seed);

  uint32_t next();                        ///< 32 bits
  uint64_t below(uint64_t n);             ///< uniform in [0, n); PRECOND: n > 0
  int64_t randint(int64_t a, int64_t b);  ///< uniform in [a, b]; PRECOND: a <= b, b - a < 2^63

 private:
  void refill();

  std::array<uint32_t, 624> state_;
  size_t used_ = 624;
};

/// Where `count` windows of `window` tokens start in one stream of `tokens`:
/// randint(0, tokens - window - 1) each. Windows may overlap. Throws oq::Error when the text is too
/// short for one.
std::vector<uint64_t> sample_windows(uint64_t tokens, uint64_t window, uint64_t count,
                                     uint64_t seed);

struct DocumentWindow {
  uint64_t document, start;
};

/// The same from separate documents (C4's rule): draw a document, and again until it is longer than
/// a window, then a start in it; one stream of draws. `tokens_in(i)` may be asked for a document
/// several times. Throws oq::Error when there is no document, or no long one turns up in
/// max(1000, 20 * documents) draws.
std::vector<DocumentWindow> sample_document_windows(
    uint64_t documents, const std::function<uint64_t(uint64_t)>& tokens_in, uint64_t window,
    uint64_t count, uint64_t seed);

}  // namespace oq::calibrate
