#include "tools/calibrate/learn/head_graph.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "tools/calibrate/learn/ops.h"
#include "tools/calibrate/learn/product.h"
#include "tools/calibrate/learn/vector_math.h"
#include "tools/eval/logits.h"

namespace oq::calibrate {
namespace {

/// share * KL(softmax(p) || softmax(q)); q becomes its gradient by q, and p is used up.
double softmax_divergence(float* p, float* q, int64_t n, double share) {
  constexpr int64_t kPiece = 1024;  // summed in fp32; pieces in fp64
  const float top_p = *std::max_element(p, p + n), top_q = *std::max_element(q, q + n);
  double sum_p = 0, sum_q = 0, between = 0;
  for (int64_t first = 0; first < n; first += kPiece) {
    const int64_t m = std::min(kPiece, n - first);
    float *a = p + first, *b = q + first;
    between += double(lane_sum(m, [&](int64_t i) {
      const float x = a[i] - top_p, y = b[i] - top_q;
      a[i] = fast_exp(x);
      b[i] = fast_exp(y);
      return a[i] * (x - y);
    }));
    sum_p += double(lane_sum(m, [&](int64_t i) { return a[i]; }));
    sum_q += double(lane_sum(m, [&](int64_t i) { return b[i]; }));
  }
  const auto of_p = float(share / sum_p), of_q = float(share / sum_q);
  for (int64_t i = 0; i < n; ++i) q[i] = of_q * q[i] - of_p * p[i];
  return share * (between / sum_p + std::log(sum_q) - std::log(sum_p));
}

}  // namespace

HeadGraph::HeadGraph(const File& file, const ModelConfig& config, ThreadPool& pool)
    : config_(config),
      pool_(pool),
      head_(read_tensor(file, config.tied_head ? "embedding" : "head")) {
  if (config.final_norm) norm_ = NormWeights::load(file, config, "final_norm");
  if (config.projected()) project_ = read_tensor(file, "project_out");
}

/// What the head's linear takes.
const float* HeadGraph::head_input(const float* x, int64_t tokens) {
  const int64_t n = config_.hidden;
  if (config_.final_norm) {
    normed_.resize(size_t(tokens * n));
    normalize(pool_, norm_, config_.norm_eps, x, tokens, normed_.data());
    x = normed_.data();
  }
  if (!config_.projected()) return x;
  projected_.resize(size_t(tokens * config_.table_width()));
  multiply(pool_, {.m = tokens,
                   .n = config_.table_width(),
                   .k = n,
                   .a = {x, n},
                   .b = {project_.data(), n, true},
                   .c = projected_.data(),
                   .c_stride = config_.table_width()});
  return projected_.data();
}

void HeadGraph::make_logits(const float* input, int64_t tokens) {
  const int64_t width = config_.table_width(), vocab = config_.vocab;
  logits_.resize(size_t(tokens * vocab));
  multiply(pool_, {.m = tokens,
                   .n = vocab,
                   .k = width,
                   .a = {input, width},
                   .b = {head_.data(), width, true},
                   .c = logits_.data(),
                   .c_stride = vocab});
}

/// Leaves those of `expected` in expected_.
void HeadGraph::make_both_logits(const float* expected, const float* x, int64_t tokens) {
  make_logits(head_input(expected, tokens), tokens);
  std::swap(logits_, expected_);
  make_logits(head_input(x, tokens), tokens);
}

std::vector<double> HeadGraph::divergence(const float* expected, const float* x, int64_t tokens) {
  const int64_t n = config_.hidden, vocab = config_.vocab;
  std::vector<double> result(static_cast<size_t>(tokens));
  for (int64_t first = 0; first < tokens; first += kTokens) {
    const int64_t m = std::min(kTokens, tokens - first);
    make_both_logits(expected + first * n, x + first * n, m);
    pool_.parallel_for(m, 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t t = begin; t < end; ++t) {
        result[size_t(first + t)] = kl_divergence({expected_.data() + t * vocab, size_t(vocab)},
                                                  {logits_.data() + t * vocab, size_t(vocab)});
      }
    });
  }
  return result;
}

double HeadGraph::divergence_loss(const float* expected, const float* x, int64_t tokens,
                                  double share, float* d_x) {
  const int64_t n = config_.hidden, vocab = config_.vocab;
  d_input_.resize(size_t(tokens * config_.table_width()));
  losses_.resize(size_t(tokens));
  for (int64_t first = 0; first < tokens; first += kTokens) {
    const int64_t m = std::min(kTokens, tokens - first);
    make_both_logits(expected + first * n, x + first * n, m);
    pool_.parallel_for(m, 1, [&](int64_t begin, int64_t end, int) {
      for (int64_t t = begin; t < end; ++t) {
        losses_[size_t(first + t)] =
            softmax_divergence(expected_.data() + t * vocab, logits_.data() + t * vocab, vocab,
                               share / double(tokens));
      }
    });
    backward_logits(first, m);
  }
  backward(x, tokens, d_x);
  return std::accumulate(losses_.begin(), losses_.end(), 0.0);
}

double HeadGraph::loss(const float* x, std::span<const int32_t> window, float* d_x) {
  const auto tokens = int64_t(window.size());
  const int64_t width = config_.table_width();
  const float* input = head_input(x, tokens);
  d_input_.assign(d_x != nullptr ? size_t(tokens * width) : 0, 0);
  double sum = 0;
  for (int64_t first = 0; first + 1 < tokens; first += kTokens) {
    const int64_t m = std::min(kTokens, tokens - 1 - first);
    make_logits(input + first * width, m);
    sum += chunk(window.subspan(size_t(first + 1), size_t(m)), first, 1.0 / double(tokens - 1),
                 d_x != nullptr);
  }
  if (d_x == nullptr) return sum;
  std::fill_n(d_x, tokens * config_.hidden, 0.0f);
  backward(x, tokens, d_x);
  return sum;
}

/// The loss of the tokens from `first` on, whose logits are there; `backward` makes these the
/// softmax minus what came next, and takes that through the head.
double HeadGraph::chunk(std::span<const int32_t> next, int64_t first, double share, bool backward) {
  const int64_t vocab = config_.vocab;
  losses_.assign(next.size(), 0);
  pool_.parallel_for(int64_t(next.size()), 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) {
      float* row = logits_.data() + t * vocab;
      const float most = *std::max_element(row, row + vocab);
      double sum = 0;
      for (int64_t v = 0; v < vocab; ++v) sum += std::exp(double(row[v]) - double(most));
      const double log_sum = double(most) + std::log(sum);
      losses_[size_t(t)] = share * (log_sum - double(row[next[size_t(t)]]));
      if (!backward) continue;
      for (int64_t v = 0; v < vocab; ++v) {
        row[v] = float(share * std::exp(double(row[v]) - log_sum));
      }
      row[next[size_t(t)]] -= float(share);
    }
  });
  if (backward) backward_logits(first, int64_t(next.size()));
  return std::accumulate(losses_.begin(), losses_.end(), 0.0);
}

/// The gradient by logits, which is in their place, through the head.
void HeadGraph::backward_logits(int64_t first, int64_t tokens) {
  const int64_t width = config_.table_width(), vocab = config_.vocab;
  multiply(pool_, {.m = tokens,
                   .n = width,
                   .k = vocab,
                   .a = {logits_.data(), vocab},
                   .b = {head_.data(), width},
                   .c = d_input_.data() + first * width,
                   .c_stride = width});
}

/// And from there through projection and norm: added to d_x.
void HeadGraph::backward(const float* x, int64_t tokens, float* d_x) {
  const int64_t n = config_.hidden, width = config_.table_width();
  const float* d = d_input_.data();
  if (config_.projected()) {
    d_normed_.resize(size_t(tokens * n));
    multiply(pool_, {.m = tokens,
                     .n = n,
                     .k = width,
                     .a = {d, width},
                     .b = {project_.data(), n},
                     .c = d_normed_.data(),
                     .c_stride = n});
    d = d_normed_.data();
  }
  if (!config_.final_norm) {
    for (int64_t i = 0; i < tokens * n; ++i) d_x[i] += d[i];
    return;
  }
  NormBackward{.rms = norm_.bias.empty(),
               .eps = float(config_.norm_eps),
               .n = n,
               .weight = norm_.weight.data(),
               .d_weight = nullptr,
               .d_bias = nullptr}
      .run(pool_, x, d, tokens, d_x);
}

}  // namespace oq::calibrate
