#include "tools/calibrate/learn/f16_fold.h"

#include "tools/calibrate/learn/vector_math.h"

namespace oq::calibrate {
namespace {

using Where = Pair::Use::Where;

void round(std::span<float> values) {
  for (float& v : values) v = as_f16(v);
}

void round(ThreadPool& pool, BlockWeights& block) {
  for (NormWeights* norm : {&block.attn_norm, &block.mlp_norm}) {
    round(norm->weight);
    round(norm->bias);
  }
  round(block.router);
  for (auto& entry : block.linears) {
    LinearWeights& l = entry.second;
    round(l.bias);
    pool.parallel_for(l.out(), 8, [&](int64_t begin, int64_t end, int) {
      for (int64_t r = begin; r < end; ++r) round(l.weight.row(r));
    });
  }
}

/// A pair's numbers, by column or row of one that uses it.
struct Sides {
  std::vector<float> scale, shift;  ///< shift: empty where the pair has none
  bool divides;

  Sides(const Pair& pair, const Pair::Use& use, int64_t n) : divides(use.divides) {
    for (int64_t i = 0; i < n; ++i) {
      const uint32_t channel = use.channel_of(size_t(i));
      scale.push_back(as_f16(pair.scale[channel]));
      if (!pair.shift.empty()) shift.push_back(as_f16(pair.shift[channel]));
    }
  }

  float scaled(float v, size_t i) const { return as_f16(divides ? v / scale[i] : v * scale[i]); }
  /// Of a bias before the inputs that the pair shifts.
  float moved(float bias, size_t i) const {
    return scaled(shift.empty() ? bias : as_f16(bias - shift[i]), i);
  }
};

void fold_norm(const Sides& sides, NormWeights& norm) {
  for (size_t i = 0; i < norm.weight.size(); ++i) norm.weight[i] = sides.scaled(norm.weight[i], i);
  for (size_t i = 0; i < norm.bias.size(); ++i) norm.bias[i] = sides.moved(norm.bias[i], i);
}

void fold_columns(ThreadPool& pool, const Sides& sides, LinearWeights& l) {
  const bool moves = !l.bias.empty() && !sides.shift.empty();
  pool.parallel_for(l.out(), 8, [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r) {
      float* w = l.weight.row(r).data();
      if (moves) {
        const float sum =
            lane_sum(l.in(), [&](int64_t k) { return w[k] * sides.shift[size_t(k)]; });
        l.bias[size_t(r)] = as_f16(l.bias[size_t(r)] + as_f16(sum));
      }
      for (int64_t k = 0; k < l.in(); ++k) w[k] = sides.scaled(w[k], size_t(k));
    }
  });
}

void fold_rows(ThreadPool& pool, const Sides& sides, LinearWeights& l) {
  for (size_t r = 0; r < l.bias.size(); ++r) l.bias[r] = sides.moved(l.bias[r], r);
  pool.parallel_for(l.out(), 8, [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r) {
      for (float& v : l.weight.row(r)) v = sides.scaled(v, size_t(r));
    }
  });
}

void fold_router(const Sides& sides, std::vector<float>& router) {
  for (size_t i = 0; i < router.size(); ++i) {
    router[i] = sides.scaled(router[i], i % sides.scale.size());
  }
}

}  // namespace

void fold_in_f16(ThreadPool& pool, std::span<const Pair> pairs, BlockWeights& block) {
  round(pool, block);
  for (const Pair& pair : pairs) {
    for (const Pair::Use& use : pair.uses) {
      if (use.where == Where::norm) {
        NormWeights& norm = use.tensor == "attn_norm" ? block.attn_norm : block.mlp_norm;
        fold_norm({pair, use, int64_t(norm.weight.size())}, norm);
      } else if (use.where == Where::router) {
        fold_router({pair, use, int64_t(pair.scale.size())}, block.router);
      } else {
        LinearWeights& l = block.linears.at(use.tensor);
        const bool columns = use.where == Where::columns;
        (columns ? fold_columns : fold_rows)(pool, {pair, use, columns ? l.in() : l.out()}, l);
      }
    }
  }
}

}  // namespace oq::calibrate
