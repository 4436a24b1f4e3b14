#include "runtime/backend/cpu/linear.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

#include "format/bytes.h"
#include "kernels/reference/ops.h"

namespace oq {
namespace {

constexpr int64_t kUnit = kPanelRows;  ///< rows of the smallest piece of work

cpu::DenseView dense_view(const CpuWeight& w) {
  using Type = cpu::DenseView::Type;
  const Type type = w.info.kind == Kind::f32   ? Type::f32
                    : w.info.kind == Kind::f16 ? Type::f16
                                               : Type::bf16;
  return {.type = type, .data = w.data, .rows = w.rows(), .cols = w.cols()};
}

const CpuWeight* cpu_weight(const Weight* w) { return static_cast<const CpuWeight*>(w); }

}  // namespace

CpuWeight::CpuWeight(std::shared_ptr<const File> f, const TensorInfo& i)
    : file(std::move(f)), info(i), data(file->data(info).data()) {
  if (info.kind != Kind::packed) return;
  packed = file->packed(info);
  weak.assign(packed->weak_indices().begin(), packed->weak_indices().end());
  for (uint32_t& index : weak) index = std::min(index, uint32_t(info.cols - 1));
}

void LinearRunner::take_weak(const CpuWeight& w, int64_t token, Input& input) const {
  float* row = input.live.data() + token * input.stride;
  float* weak = input.weak.data() + token * int64_t(w.weak.size());
  for (size_t i = 0; i < w.weak.size(); ++i) {
    weak[i] = row[w.weak[i]];
    row[w.weak[i]] = 0;
  }
}

void LinearRunner::quantize_by_value(const CpuWeight& w, const InputMode& mode, int64_t tokens,
                                     std::span<const int64_t> runs, Input& input) {
  std::vector<int64_t> live;
  for (int64_t k = 0, next = 0; k < w.cols(); ++k) {
    if (next < int64_t(w.weak.size()) && int64_t(w.weak[size_t(next)]) == k) {
      ++next;
    } else {
      live.push_back(k);
    }
  }
  std::vector<float> values;
  const auto quantize = [&](int64_t first, int64_t last) {
    values.clear();
    for (int64_t m = first; m < last; ++m) {
      for (int64_t k : live) values.push_back(input.live[size_t(m * input.stride + k)]);
    }
    reference::fake_quantize(values, mode.bits);
    auto value = values.begin();
    for (int64_t m = first; m < last; ++m) {
      for (int64_t k : live) input.live[size_t(m * input.stride + k)] = *value++;
    }
  };
  if (mode.per_tensor) {
    for (size_t r = 0; r + 1 < runs.size(); ++r) quantize(runs[r], runs[r + 1]);
  } else {
    for (int64_t m = 0; m < tokens; ++m) quantize(m, m + 1);
  }
}

void LinearRunner::quantize_row(const CpuWeight& w, int64_t token, Input& input) const {
  cpu::Int8Rows& q = input.int8;
  const float* row = input.live.data() + token * input.stride;
  kernels_.quantize_row(row, w.cols(), q.row_codes(token), q.row_scales(token), q.row_sums(token),
                        q.blocks);
}

void LinearRunner::quantize_to_grids(const CpuWeight& w, const InputMode& mode, int64_t tokens,
                                     std::span<const int64_t> runs, Input& input) {
  std::vector<std::pair<float, float>> ranges(size_t(tokens), {0.0f, 0.0f});
  const auto row_of = [&](int64_t m) { return input.live.data() + m * input.stride; };
  const auto fill_weak = [&](int64_t m, float value) {
    for (uint32_t k : w.weak) row_of(m)[k] = value;
  };
  uint32_t live = 0;  // the first column that is not weak
  while (live < w.weak.size() && w.weak[live] == live) ++live;
  if (int64_t(live) < w.cols()) {
    pool_.parallel_for(tokens, 8, [&](int64_t begin, int64_t end, int) {
      for (int64_t m = begin; m < end; ++m) {
        fill_weak(m, row_of(m)[live]);
        auto& [low, high] = ranges[size_t(m)];
        kernels_.range(row_of(m), w.cols(), &low, &high);
      }
    });
  }
  for (size_t r = 0; mode.per_tensor && r + 1 < runs.size(); ++r) {
    const auto first = ranges.begin() + runs[r], last = ranges.begin() + runs[r + 1];
    std::pair<float, float> all = *first;
    for (auto i = first; i != last; ++i) {
      all = {std::fmin(all.first, i->first) + 0 * i->first,  // a NaN must not get lost
             std::fmax(all.second, i->second) + 0 * i->second};
    }
    std::fill(first, last, all);
  }
  pool_.parallel_for(tokens, 8, [&](int64_t begin, int64_t end, int) {
    for (int64_t m = begin; m < end; ++m) {
      const auto& [low, high] = ranges[size_t(m)];
      const ActivationGrid grid = ActivationGrid::of(low, high, mode.bits);
      cpu::GridRows& q = input.on_grid;
      q.scales[size_t(m)] = grid.scale;
      q.shifts[size_t(m)] = grid.shift();
      fill_weak(m, grid.scale * grid.shift());  // their codes become 0
      kernels_.quantize_row_to(grid, row_of(m), w.cols(), q.row_codes(m), q.row_sums(m), q.blocks);
    }
  });
}

void LinearRunner::prepare(const CpuWeight& w, cpu::Rows x, int64_t tokens, const InputMode& mode,
                           std::span<const int64_t> runs, Input& input) {
  const int64_t cols = w.cols();
  const bool integers = mode.integers(w), scheme = mode.bits < 16;
  input.stride = int64_t(round_up(uint64_t(cols), kBlockCols));
  input.live.resize(size_t(tokens * input.stride));
  input.weak.resize(size_t(tokens) * w.weak.size());
  if (integers && scheme) input.on_grid.resize(tokens, input.stride);
  if (integers && !scheme) input.int8.resize(tokens, input.stride);
  pool_.parallel_for(tokens, 8, [&](int64_t begin, int64_t end, int) {
    for (int64_t m = begin; m < end; ++m) {
      float* row = input.live.data() + m * input.stride;
      std::copy_n(x.row(m), cols, row);
      std::fill(row + cols, row + input.stride, 0.0f);
      take_weak(w, m, input);
      if (integers && !scheme) quantize_row(w, m, input);
    }
  });
  if (scheme && integers) quantize_to_grids(w, mode, tokens, runs, input);
  if (scheme && !integers) quantize_by_value(w, mode, tokens, runs, input);
}

/// The kernel itself, on ones. What it returns is rounded to fp32; asked for the sums minus what it
/// returned, it returns what was lost.
void LinearRunner::make_live_sums(const CpuWeight& w) {
  cpu::GridRows ones;
  ones.resize(1, int64_t(round_up(uint64_t(w.cols()), kBlockCols)));
  std::fill_n(ones.codes.begin(), w.cols(), int8_t(1));
  for (uint32_t k : w.weak) ones.codes[k] = 0;
  for (int64_t b = 0; b < ones.blocks; ++b) {
    const int8_t* codes = ones.row_codes(0) + b * kBlockCols;
    ones.row_sums(0)[b] = std::accumulate(codes, codes + kBlockCols, 0);
  }
  ones.scales[0] = 1;
  const std::vector<float> nothing(w.weak.size(), 0.0f);
  w.live_sums.assign(round_up(uint64_t(w.rows()), kPanelRows), 0.0);
  std::vector<float> part(w.live_sums.size());
  for (const float shift : {0.0f, -1.0f}) {
    ones.shifts[0] = shift;
    pool_.parallel_for((w.rows() + kUnit - 1) / kUnit, 16, [&](int64_t begin, int64_t end, int) {
      kernels_.packed_grid(*w.packed, ones, w.live_sums.data(), nothing.data(), 1, begin, end,
                           {part.data(), w.rows()});
    });
    for (size_t r = 0; r < part.size(); ++r) w.live_sums[r] += double(part[r]);
  }
}

void LinearRunner::run_units(const Task& task, int64_t begin, int64_t end, int64_t tokens,
                             const InputMode& mode, bool residual, cpu::MutableRows y,
                             cpu::MutableRows out) {
  const CpuWeight& w = *task.weight;
  const Input& in = *task.input;
  const int64_t first = begin * kUnit, last = std::min(end * kUnit, w.rows());
  const cpu::MutableRows to{(residual ? out : y).data + task.column, (residual ? out : y).stride};
  if (!w.packed) {
    kernels_.dense(dense_view(w), {in.live.data(), in.stride}, tokens, first, last, to);
  } else if (mode.exact) {
    kernels_.packed_exact(*w.packed, {in.live.data(), in.stride}, in.weak.data(), tokens, begin,
                          end, to);
  } else if (mode.bits < 16) {
    kernels_.packed_grid(*w.packed, in.on_grid, w.live_sums.data(), in.weak.data(), tokens, begin,
                         end, to);
  } else {
    kernels_.packed_int8(*w.packed, in.int8, in.weak.data(), tokens, begin, end, to);
  }
  for (int64_t m = 0; m < tokens; ++m) {
    float* sum = to.row(m);
    if (task.bias != nullptr) {
      for (int64_t n = first; n < last; ++n) sum[n] += task.bias->floats()[n];
    }
    if (!residual) continue;
    float* target = y.row(m) + task.column;
    for (int64_t n = first; n < last; ++n) target[n] += sum[n];
  }
}

void LinearRunner::run(std::span<const Linear> linears, cpu::Rows x, int64_t tokens,
                       const InputMode& mode, std::span<const int64_t> runs, bool residual,
                       cpu::MutableRows y) {
  if (inputs_.size() < linears.size()) inputs_.resize(linears.size());
  tasks_.clear();
  const Input* shared = nullptr;  // the one without weak columns
  bool shared_is_packed = false;
  int64_t units = 0, column = 0;
  for (size_t i = 0; i < linears.size(); ++i) {
    const CpuWeight& w = *cpu_weight(linears[i].weight);
    const bool reuse = shared != nullptr && w.weak.empty() && shared_is_packed == bool(w.packed);
    if (!reuse) prepare(w, x, tokens, mode, runs, inputs_[i]);
    const Input* input = reuse ? shared : &inputs_[i];
    if (w.weak.empty()) {
      shared = input;
      shared_is_packed = bool(w.packed);
    }
    if (mode.bits < 16 && mode.integers(w) && w.live_sums.empty()) make_live_sums(w);
    tasks_.push_back({&w, cpu_weight(linears[i].bias), input, units, column});
    units += (w.rows() + kUnit - 1) / kUnit;
    column += w.rows();
  }
  if (residual) sums_.resize(size_t(tokens * column));
  const cpu::MutableRows out{sums_.data(), column};
  // Small enough that a thread that falls behind is helped, large enough to stream.
  const int64_t chunk = std::max<int64_t>(1, units / (16 * pool_.threads()));
  pool_.parallel_for(units, chunk, [&](int64_t begin, int64_t end, int) {
    for (size_t i = 0; i < tasks_.size(); ++i) {
      const int64_t first = tasks_[i].first_unit;
      const int64_t last = i + 1 < tasks_.size() ? tasks_[i + 1].first_unit : units;
      const int64_t from = std::max(begin, first), to = std::min(end, last);
      if (from < to) {
        run_units(tasks_[i], from - first, to - first, tokens, mode, residual, y, out);
      }
    }
  });
}

}  // namespace oq
