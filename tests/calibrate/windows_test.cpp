#include "tools/calibrate/solver/windows.h"

#include <array>
#include <string>

#include <doctest/doctest.h>

#include "format/error.h"

namespace oq::calibrate {

// What CPython 3 prints for random.seed(s) and getrandbits(32) or randint(a, b).
TEST_CASE("the random numbers are Python's") {
  PythonRandom words(0);
  for (uint32_t expected : {3626764237u, 1654615998u, 3255389356u, 3823568514u}) {
    CHECK(words.next() == expected);
  }
  PythonRandom large(0), small(0);
  for (int64_t expected : {201979, 220500, 21225, 135746, 268055}) {
    CHECK(large.randint(0, 356316) == expected);
  }
  for (int64_t expected : {50494, 99346, 55125, 5306, 33936}) {
    CHECK(small.randint(0, 99999) == expected);
  }
}

TEST_CASE("seeds and ranges beyond 32 bits are Python's, too") {
  PythonRandom a(uint64_t(0x123456789ABCDEF0));
  CHECK(a.next() == 3646699384u);
  CHECK(a.next() == 2523371432u);
  PythonRandom b(42);
  CHECK(b.below((uint64_t(1) << 40) + 12345) == 247559453085u);
  CHECK(b.below((uint64_t(1) << 40) + 12345) == 538052153943u);
  PythonRandom c(7);
  for (int i = 0; i < 1000; ++i) c.next();  // beyond one refill of the state
  CHECK(c.next() == 3192093819u);
}

TEST_CASE("windows start where the papers' code starts them") {
  // randint(0, tokens - window - 1)
  CHECK(sample_windows(356317 + 2048, 2048, 5, 0) ==
        std::vector<uint64_t>{201979, 220500, 21225, 135746, 268055});
  CHECK(sample_windows(2049, 2048, 2, 3) == std::vector<uint64_t>{0, 0});
  CHECK_THROWS_AS(sample_windows(2048, 2048, 1, 0), Error);
  CHECK_THROWS_AS(sample_windows(100, 0, 1, 0), Error);
}

TEST_CASE("short documents are drawn again, from the same stream of numbers") {
  const auto tokens_in = [](uint64_t i) { return i % 3 == 0 ? uint64_t(500 + i) : uint64_t(64); };
  const auto windows = sample_document_windows(100, tokens_in, 64, 4, 5);
  REQUIRE(windows.size() == 4);
  const std::array<DocumentWindow, 4> expected = {{{45, 407}, {3, 430}, {99, 255}, {6, 80}}};
  for (size_t i = 0; i < 4; ++i) {
    CHECK(windows[i].document == expected[i].document);
    CHECK(windows[i].start == expected[i].start);
  }
  CHECK_THROWS_AS(sample_document_windows(0, tokens_in, 64, 1, 0), Error);
  CHECK_THROWS_AS(sample_document_windows(
                      10, [](uint64_t) { return 64; }, 64, 1, 0),
                  Error);
}

}  // namespace oq::calibrate
