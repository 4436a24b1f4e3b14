/// Which options a budget buys, against all choices there are.

#include "tools/calibrate/solver/allocation.h"

#include <limits>
#include <random>

#include <doctest/doctest.h>

#include "format/error.h"

using namespace oq;
using namespace oq::calibrate;

namespace {

using Items = std::vector<std::vector<Price>>;

Price total(const Items& items, const std::vector<size_t>& chosen) {
  Price sum;
  for (size_t i = 0; i < items.size(); ++i) {
    sum.bytes += items[i][chosen[i]].bytes;
    sum.error += items[i][chosen[i]].error;
  }
  return sum;
}

/// The least error of all choices within the budget.
double least_error(const Items& items, uint64_t budget) {
  double least = std::numeric_limits<double>::infinity();
  std::vector<size_t> chosen(items.size());
  for (;;) {
    const Price sum = total(items, chosen);
    if (sum.bytes <= budget) least = std::min(least, sum.error);
    size_t i = 0;
    while (i < items.size() && ++chosen[i] == items[i].size()) chosen[i++] = 0;
    if (i == items.size()) return least;
  }
}

}  // namespace

TEST_CASE("an allocation keeps to its budget, and is the best of what it spends") {
  std::mt19937 rng(3);
  for (int round = 0; round < 60; ++round) {
    Items items(5);
    uint64_t cheapest = 0, dearest = 0;
    for (auto& options : items) {
      uint64_t least = 1000, most = 0;
      for (int k = 0; k < 4; ++k) {
        options.push_back({10 + rng() % 90, double(rng() % 1000)});
        least = std::min(least, options.back().bytes);
        most = std::max(most, options.back().bytes);
      }
      cheapest += least;
      dearest += most;
    }
    double before = std::numeric_limits<double>::infinity();
    int exact = 0;
    for (uint64_t budget = cheapest; budget <= dearest; ++budget) {
      const Price sum = total(items, allocate(items, budget));
      REQUIRE(sum.bytes <= budget);
      const double best = least_error(items, budget);
      CHECK(sum.error >= best);
      exact += sum.error == best ? 1 : 0;
      before = std::min(before, sum.error);
    }
    CHECK(before == least_error(items, dearest));  // with everything, the best of each
    CHECK(exact > 0);
    CHECK_THROWS_WITH_AS(allocate(items, cheapest - 1), doctest::Contains("cheapest"), Error);
  }
}

TEST_CASE("steps up are taken in the order of what they save for each byte") {
  // Bits 2, 3, 4 of a small sensitive item and of a large dull one.
  const Items items = {{{20, 100}, {30, 10}, {40, 1}}, {{200, 30}, {300, 12}, {400, 9}}};
  CHECK(allocate(items, 220) == std::vector<size_t>{0, 0});
  CHECK(allocate(items, 230) == std::vector<size_t>{1, 0});
  CHECK(allocate(items, 240) == std::vector<size_t>{2, 0});
  CHECK(allocate(items, 339) == std::vector<size_t>{2, 0});
  CHECK(allocate(items, 340) == std::vector<size_t>{2, 1});
}
