#include "tools/calibrate/solver/gptq.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include <fmt/format.h>

#include "format/error.h"

namespace oq::calibrate {
namespace {

constexpr int64_t kLeaf = 32;  ///< columns that are corrected one by one, not through BLAS

/// A group as a stretch of places in the order of visit.
struct Stretch {
  int64_t begin, end;
  uint32_t group;
};

/// All that the slabs share; nothing in it changes.
struct Plan {
  const Matrix& w;
  const Matrix& start;
  const InverseFactor& factor;
  const GptqOptions& options;

  int64_t live = 0, cols = 0;
  int64_t leaf = kLeaf, block = 128;
  std::vector<uint32_t> group;     ///< [live] of each place
  std::vector<bool> dead;          ///< [cols] of each place
  std::vector<Stretch> stretches;  ///< groups whose grids are taken on the way; else empty

  Plan(const Matrix& w, const Matrix& start, const InverseFactor& factor,
       const GptqOptions& options, QuantizedLinear& out);

  uint32_t column(int64_t place) const { return factor.columns.order[size_t(place)]; }
};

void check_shapes(const Matrix& w, const Matrix& start, const InverseFactor& factor) {
  const auto cols = int64_t(factor.columns.order.size());
  if (w.cols() != cols || start.cols() != cols || start.rows() != w.rows() || w.rows() == 0) {
    throw Error({.what = "weights do not fit the Hessian",
                 .expected = fmt::format("{} columns", cols),
                 .found = fmt::format("{} x {} and {} x {}", w.rows(), w.cols(), start.rows(),
                                      start.cols())});
  }
  check_finite(w, "the weight");
  if (&start != &w) check_finite(start, "the reformulated weight");
}

Plan::Plan(const Matrix& w, const Matrix& start, const InverseFactor& factor,
           const GptqOptions& options, QuantizedLinear& out)
    : w(w), start(start), factor(factor), options(options) {
  live = factor.columns.live();
  cols = w.cols();
  leaf = options.joint > 1 ? options.joint : std::clamp<int64_t>(options.block, 1, kLeaf);
  block = std::max<int64_t>(1, options.block + leaf - 1) / leaf * leaf;
  block = std::max(block, leaf);
  dead.resize(size_t(cols));
  for (int64_t p = 0; p < cols; ++p) {
    dead[size_t(p)] = std::binary_search(factor.dead.begin(), factor.dead.end(), column(p));
  }
  const int64_t size = out.packing.group;
  if (options.compacted_groups && size != 0) {
    for (int64_t p = 0; p < live; ++p) out.column_group[column(p)] = uint32_t(p / size);
  }
  for (int64_t p = 0; p < live; ++p) group.push_back(out.column_group[column(p)]);
  const bool in_order = factor.columns.natural || options.compacted_groups;
  if (size == 0 || options.static_groups || !in_order || options.grids_of != nullptr) return;
  for (int64_t p = 0; p < live; ++p) {
    if (stretches.empty() || stretches.back().group != group[size_t(p)]) {
      stretches.push_back({p, p, group[size_t(p)]});
    }
    stretches.back().end = p + 1;
  }
}

/// Rows [first, last), from beginning to end, on one thread.
class Slab {
 public:
  Slab(const Plan& plan, int64_t first, int64_t last, QuantizedLinear& out)
      : plan_(plan),
        first_(first),
        rows_(last - first),
        out_(out),
        max_code_(out.packing.max_code()),
        current_(rows_, plan.cols),
        errors_(rows_, plan.block),
        rounded_(size_t(plan.leaf)) {
    gather(plan.start, current_);
  }

  /// Returns the rows' part of the loss.
  double run() {
    if (plan_.stretches.empty()) fit_before();
    for (int64_t begin = 0; begin < plan_.live; begin += plan_.block) {
      const int64_t end = std::min(plan_.live, begin + plan_.block);
      fit_on_the_way(begin, end);
      for (int64_t leaf = begin; leaf < end; leaf += plan_.leaf) {
        const int64_t leaf_end = std::min(end, leaf + plan_.leaf);
        for (int64_t r = 0; r < rows_; ++r) round_leaf(r, begin, leaf, leaf_end);
        correct(begin, leaf, leaf_end, end);
      }
      correct(begin, begin, end, plan_.cols);
    }
    keep_weak();
    if (!std::isfinite(loss_)) {
      throw Error({.what = "weights overflow while their errors are made up for",
                   .where = fmt::format("rows {} to {}", first_, first_ + rows_ - 1),
                   .hint = "raise the damping"});
    }
    return loss_;
  }

 private:
  void gather(const Matrix& from, Matrix& to) const {
    for (int64_t r = 0; r < rows_; ++r) {
      for (int64_t p = 0; p < plan_.cols; ++p) to(r, p) = value_of(from, r, p);
    }
  }

  float value_of(const Matrix& m, int64_t r, int64_t place) const {
    return plan_.dead[size_t(place)] ? 0.0f : m(first_ + r, plan_.column(place));
  }

  /// Grids of whole rows, and static ones, from the original weights.
  void fit_before() {
    const GridOptions& grid = plan_.options.grid;
    if (const QuantizedLinear* given = plan_.options.grids_of) {
      for (int64_t r = first_; r < first_ + rows_; ++r) {
        for (int64_t g = 0; g < out_.groups; ++g) out_.grid(r, g) = given->grid(r, g);
      }
      return;
    }
    const bool whole_rows = out_.packing.group == 0;
    std::vector<std::vector<int64_t>> places(static_cast<size_t>(out_.groups));
    for (int64_t p = 0; p < plan_.live; ++p) places[plan_.group[size_t(p)]].push_back(p);
    std::vector<float> weights;
    for (int64_t g = 0; g < out_.groups; ++g) {
      if (places[size_t(g)].empty()) continue;
      for (int64_t r = 0; r < rows_; ++r) {
        weights.clear();
        for (int64_t p : places[size_t(g)]) weights.push_back(value_of(plan_.w, r, p));
        out_.grid(first_ + r, g) =
            fit_grid(weights, grid, whole_rows ? grid.row_steps : grid.group_steps);
      }
    }
  }

  /// Grids of the groups that begin in this block, from the weights as they stand before it.
  void fit_on_the_way(int64_t begin, int64_t end) {
    std::vector<float> weights;
    for (const Stretch& s : plan_.stretches) {
      if (s.begin < begin || s.begin >= end) continue;
      const bool original = plan_.options.first_from_original && s.begin == 0;
      for (int64_t r = 0; r < rows_; ++r) {
        weights.clear();
        for (int64_t p = s.begin; p < s.end; ++p) {
          weights.push_back(original ? value_of(plan_.w, r, p) : current_(r, p));
        }
        out_.grid(first_ + r, s.group) =
            fit_grid(weights, plan_.options.grid, plan_.options.grid.group_steps);
      }
    }
  }

  /// Rounds places [begin, end) of one row, each with the corrections of those before it (of
  /// those before its `joint`), and notes the errors e = (w - q) / U_ii.
  void round_leaf(int64_t r, int64_t block, int64_t begin, int64_t end) {
    float* row = current_.row(r).data();
    float* errors = errors_.row(r).data();
    const Matrix& u = plan_.factor.upper;
    const int64_t joint = std::max(1, plan_.options.joint);
    for (int64_t first = begin; first < end; first += joint) {
      const int64_t last = std::min(end, first + joint);
      for (int64_t p = first; p < last; ++p) rounded_[size_t(p - begin)] = round_place(r, p);
      for (int64_t p = first; p < last; ++p) {
        const float* factor = u.data() + p * plan_.cols;
        const float e = (row[p] - rounded_[size_t(p - begin)]) / factor[p];
        errors[p - block] = e;
        loss_ += double(e) * double(e);
        for (int64_t i = p + 1; i < end; ++i) row[i] -= e * factor[i];
      }
    }
  }

  float round_place(int64_t r, int64_t place) {
    const bool original = plan_.options.first_from_original && place < plan_.options.joint;
    const float w = original ? value_of(plan_.w, r, place) : current_(r, place);
    const Grid& grid = out_.grid(first_ + r, plan_.group[size_t(place)]);
    const uint8_t code = grid.code(w, max_code_);
    out_.codes[size_t((first_ + r) * plan_.cols + plan_.column(place))] = code;
    return grid.value(code);
  }

  /// Makes up in places [end, limit) for the errors of [begin, end), which lie in `block`.
  void correct(int64_t block, int64_t begin, int64_t end, int64_t limit) {
    gemm({.m = rows_,
          .n = limit - end,
          .k = end - begin,
          .alpha = -1,
          .a = errors_.data() + (begin - block),
          .a_stride = errors_.cols(),
          .b = plan_.factor.upper.data() + begin * plan_.cols + end,
          .b_stride = plan_.cols,
          .beta = 1,
          .c = current_.data() + end,
          .c_stride = plan_.cols});
  }

  void keep_weak() {
    const size_t count = out_.weak.size();
    for (int64_t p = plan_.live; p < plan_.cols; ++p) {
      const auto at = std::lower_bound(out_.weak.begin(), out_.weak.end(), plan_.column(p));
      const auto i = size_t(at - out_.weak.begin());
      for (int64_t r = 0; r < rows_; ++r) {
        out_.weak_weights[size_t(first_ + r) * count + i] =
            weak_value(current_(r, p), plan_.options.grid, first_ + r, plan_.column(p));
      }
    }
  }

  const Plan& plan_;
  int64_t first_, rows_;
  QuantizedLinear& out_;
  int max_code_;
  Matrix current_;              ///< [rows][cols] in places, corrected up to here
  Matrix errors_;               ///< [rows][block]
  std::vector<float> rounded_;  ///< [leaf] what the row's places became
  double loss_ = 0;
};

}  // namespace

GptqResult gptq(ThreadPool& pool, const Matrix& w, const InverseFactor& factor,
                const GptqOptions& options, const Matrix* start) {
  check_shapes(w, start != nullptr ? *start : w, factor);
  const auto& order = factor.columns.order;
  std::vector<uint32_t> weak(order.end() - factor.columns.weak, order.end());
  std::sort(weak.begin(), weak.end());
  if (const QuantizedLinear* given = options.grids_of) {
    Packing same = given->packing;
    same.weak_columns = options.grid.packing.weak_columns;  // which have no part in grids
    same.weak_bf16 = options.grid.packing.weak_bf16;
    if (given->rows != w.rows() || given->cols != w.cols() || same != options.grid.packing) {
      throw Error({.what = "the grids are those of another linear",
                   .expected = fmt::format("{} x {}", w.rows(), w.cols()),
                   .found = fmt::format("{} x {}", given->rows, given->cols)});
    }
  }
  GptqResult result{QuantizedLinear(w.rows(), w.cols(), options.grid.packing, weak)};
  const Plan plan(w, start != nullptr ? *start : w, factor, options, result.linear);

  const BlasThreads single(1);
  const int64_t slab = slab_rows(w.rows()), slabs = (w.rows() + slab - 1) / slab;
  std::vector<double> losses(static_cast<size_t>(slabs));
  pool.parallel_for(slabs, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t s = begin; s < end; ++s) {
      const int64_t last = std::min(w.rows(), (s + 1) * slab);
      losses[size_t(s)] = Slab(plan, s * slab, last, result.linear).run();
    }
  });
  result.loss = std::accumulate(losses.begin(), losses.end(), 0.0);
  return result;
}

}  // namespace oq::calibrate
