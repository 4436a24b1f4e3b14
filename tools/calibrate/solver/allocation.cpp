#include "tools/calibrate/solver/allocation.h"

#include <algorithm>

#include <fmt/format.h>

#include "format/error.h"

namespace oq::calibrate {
namespace {

/// Error that a byte more saves, from a to b. PRECOND: b has more bytes.
double worth(const Price& a, const Price& b) {
  return (a.error - b.error) / double(b.bytes - a.bytes);
}

/// Options on the lower convex hull, by ascending bytes and falling error.
std::vector<size_t> hull(const std::vector<Price>& options) {
  std::vector<size_t> order(options.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    const Price &x = options[a], &y = options[b];
    return x.bytes != y.bytes ? x.bytes < y.bytes : x.error < y.error;
  });
  std::vector<size_t> kept;
  for (size_t i : order) {
    if (!kept.empty() && options[i].error >= options[kept.back()].error) continue;
    while (kept.size() >= 2 && worth(options[kept[kept.size() - 2]], options[kept.back()]) <=
                                   worth(options[kept.back()], options[i])) {
      kept.pop_back();
    }
    kept.push_back(i);
  }
  return kept;
}

}  // namespace

std::vector<size_t> allocate(std::span<const std::vector<Price>> items, uint64_t budget) {
  std::vector<std::vector<size_t>> hulls;
  std::vector<size_t> at(items.size(), 0), chosen;
  uint64_t used = 0;
  for (const std::vector<Price>& options : items) {
    hulls.push_back(hull(options));
    used += options[hulls.back().front()].bytes;
  }
  if (used > budget) {
    throw Error({.what = "the budget is below what the cheapest options take",
                 .expected = fmt::format("{} bytes or more", used),
                 .found = std::to_string(budget)});
  }
  for (;;) {
    size_t best = items.size();
    double most = 0;
    for (size_t i = 0; i < items.size(); ++i) {
      if (at[i] + 1 == hulls[i].size()) continue;
      const Price &now = items[i][hulls[i][at[i]]], &next = items[i][hulls[i][at[i] + 1]];
      if (next.bytes - now.bytes > budget - used || worth(now, next) <= most) continue;
      most = worth(now, next);
      best = i;
    }
    if (best == items.size()) break;
    used += items[best][hulls[best][at[best] + 1]].bytes - items[best][hulls[best][at[best]]].bytes;
    ++at[best];
  }
  for (size_t i = 0; i < items.size(); ++i) {
    size_t choice = hulls[i][at[i]];
    const uint64_t others = used - items[i][choice].bytes;
    for (size_t k = 0; k < items[i].size(); ++k) {
      const Price &now = items[i][choice], &other = items[i][k];
      if (others + other.bytes <= budget && other.error < now.error) choice = k;
    }
    used = others + items[i][choice].bytes;
    chosen.push_back(choice);
  }
  return chosen;
}

}  // namespace oq::calibrate
