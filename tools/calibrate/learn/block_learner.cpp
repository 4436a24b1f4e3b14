#include "tools/calibrate/learn/block_learner.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include <fmt/format.h>

#include "tools/calibrate/learn/loss.h"
#include "tools/calibrate/learn/vector_math.h"
#include "tools/calibrate/solver/awrq.h"
#include "tools/calibrate/solver/hessian.h"

namespace oq::calibrate {
namespace {

using Where = Pair::Use::Where;

constexpr double kCompensationRate = 1e-2;  ///< ABQ's

/// The linear that speaks for a pair in the reference's initialization.
bool represents(const std::string& linear) {
  return linear == "q" || linear == "o" || linear.ends_with("up") || linear.ends_with("down");
}

void fill_zero(BlockWeights& g) {
  for (NormWeights* norm : {&g.attn_norm, &g.mlp_norm}) {
    std::fill(norm->weight.begin(), norm->weight.end(), 0.0f);
    std::fill(norm->bias.begin(), norm->bias.end(), 0.0f);
  }
  std::fill(g.router.begin(), g.router.end(), 0.0f);
  for (auto& [name, l] : g.linears) {
    std::fill(l.weight.values().begin(), l.weight.values().end(), 0.0f);
    std::fill(l.bias.begin(), l.bias.end(), 0.0f);
  }
}

void add_middle(const float* x, int64_t rows, int64_t cols, std::vector<float>& middle) {
  std::vector<float> now(static_cast<size_t>(cols));
  for (int64_t k = 0; k < cols; ++k) {
    float low = x[k], high = x[k];
    for (int64_t t = 1; t < rows; ++t) {
      low = std::min(low, x[t * cols + k]);
      high = std::max(high, x[t * cols + k]);
    }
    now[size_t(k)] = (low + high) / 2;
  }
  if (middle.empty()) middle = now;
  for (size_t k = 0; k < now.size(); ++k) middle[k] = 0.99f * middle[k] + 0.01f * now[k];
}

void round_to_f16(BlockWeights& w) {
  for (auto& [name, l] : w.linears) {
    for (float& v : l.weight.values()) v = to_float(to_f16(v));
  }
}

}  // namespace

void BlockLearner::Learned::compensate(ThreadPool& pool, const Matrix& w) {
  pool.parallel_for(w.rows(), 8, [&](int64_t begin, int64_t end, int) {
    for (int64_t r = begin; r < end; ++r) {
      const float* from = w.row(r).data();
      float* to = compensated.row(r).data();
      for (int64_t k = 0; k < w.cols(); ++k) to[k] = from[k] + a[size_t(r)] * b[size_t(k)];
    }
  });
}

void BlockLearner::Learned::compensation_backward(const Matrix& gradient) {
  std::fill(d_b.begin(), d_b.end(), 0.0f);
  for (int64_t r = 0; r < gradient.rows(); ++r) {
    const float* g = gradient.row(r).data();
    d_a[size_t(r)] = lane_sum(gradient.cols(), [&](int64_t k) { return g[k] * b[size_t(k)]; });
    for (size_t k = 0; k < d_b.size(); ++k) d_b[k] += g[k] * a[size_t(r)];
  }
}

BlockLearner::BlockLearner(BlockJob& job, BlockGraph& graph, const Recipe& recipe)
    : job_(job), options_(job.options()), recipe_(recipe), graph_(graph), original_(job.weights()) {
  const Learning& o = options_.learning;
  if (o.transform) {
    const Scheme& s = options_.scheme;
    const bool activations = s.activation_bits < 16 || s.query_bits < 16 || s.kv_bits < 16;
    transformation_ = std::make_unique<Transformation>(
        job.config(), original_,
        Transformation::Kinds{
            .shifts = activations, .free_rope = o.faithful, .down = recipe_.down});
    folded_ = original_;
  }
  executed_ = original_;
  for (auto& [name, l] : executed_.linears) l.input_bits = options_.scheme.activation_bits;
  gradients_ = BlockGraph::of_shape(original_);
}

void BlockLearner::run() {
  if (transforms()) {
    observe_inputs();
    const bool balances = options_.scheme.activation_bits < 16 || options_.learning.faithful;
    for (Pair& pair : transformation_->pairs()) {
      if (balances) start_pair(pair);  // otherwise 1: there is nothing to move out of activations
    }
  }
  set_up_learning();
  make_targets();
  const Learning& o = options_.learning;
  for (int64_t epoch = 0; epoch < o.epochs; ++epoch) {
    double loss = 0;
    for (int64_t first = 0; first < job_.windows(); first += o.batch) {
      const int64_t end = std::min(job_.windows(), first + o.batch);
      const double batch_loss = learn_from(first, end);
      if (!std::isfinite(batch_loss)) {
        throw Error({.what = "the loss is not finite",
                     .where = fmt::format("{}, epoch {}, calibration window {}",
                                          job_.full_name("output"), epoch + 1, first),
                     .hint = "lower --lwc-lr and --let-lr, or leave out --let"});
      }
      loss += batch_loss * double(end - first) / double(job_.windows());
    }
    job_.add_loss(loss);
    job_.progress(double(epoch + 1) / double(o.epochs + 1),
                  fmt::format("epoch {} of {}, loss {:.3e}", epoch + 1, o.epochs, loss));
  }
  store();
}

void BlockLearner::observe_inputs() {
  job_.observe(
      [&](const std::vector<std::string>& group, const float* x, int64_t rows, int64_t cols) {
        InputStats& s = inputs_[group.front()];
        if (s.largest.empty()) s.largest.resize(size_t(cols));
        update_channel_max({x, size_t(rows * cols)}, s.largest);
        add_middle(x, rows, cols, s.middle);
        for (const std::string& name : group) inputs_[name] = s;
      });
}

/// s = max|x|^alpha / max|w|^(1 - alpha) by channel, the largest of the columns that share it; the
/// shift is the middle of the inputs' range. q and k start at 1.
void BlockLearner::start_pair(Pair& pair) const {
  const bool faithful = options_.learning.faithful;
  std::vector<float> inputs, weights, middle;
  const Pair::Use* columns = nullptr;
  for (const Pair::Use& use : pair.uses) {
    if (use.where != Where::columns || (faithful && !represents(use.tensor))) continue;
    columns = &use;
    const Matrix& w = original_.linears.at(use.tensor).weight;
    inputs.resize(size_t(w.cols()));
    weights.resize(size_t(w.cols()));
    update_channel_max(w.values(), weights);
    const auto seen = inputs_.find(use.tensor);
    if (seen == inputs_.end()) continue;  // an expert that no token chose
    update_channel_max(seen->second.largest, inputs);
    middle = seen->second.middle;
  }
  if (columns == nullptr) return;
  const std::vector<float> s = smoothing_scales(inputs, weights, options_.alpha, 1e-5);
  std::vector<float> count(pair.scale.size());
  std::fill(pair.scale.begin(), pair.scale.end(), 0.0f);
  for (size_t i = 0; i < s.size(); ++i) {
    const size_t channel = columns->channel.empty() ? i : columns->channel[i];
    const bool first = count[channel]++ == 0;
    if (first || !faithful) pair.scale[channel] = std::max(pair.scale[channel], s[i]);
    if (!pair.shift.empty()) {
      pair.shift[channel] += (middle[i] - pair.shift[channel]) / count[channel];
    }
  }
  for (float& v : pair.scale) v = std::max(v, Pair::kLeast);
}

void BlockLearner::set_up_learning() {
  const Learning& o = options_.learning;
  const bool search = options_.tuning == Tuning::mse;
  const GridOptions grid{.packing = packing_of(options_.scheme), .tuning = options_.tuning};
  if (transforms()) transformation_->fold(job_.pool(), original_, folded_);
  for (const auto& [name, l] : base().linears) {
    WeightQuantizer quantizer(l.out(), l.in(), packing_of(options_.scheme));
    const int64_t groups = quantizer.groups();
    Learned learned{.quantizer = std::move(quantizer)};
    if (o.clip) {
      learned.clipping = search ? learned.quantizer.searched(job_.pool(), l.weight, grid)
                                : Clipping(l.out(), groups, Clipping::kStart);
      learned.gradient = Clipping(l.out(), groups, 0);
    }
    if (recipe_.compensation && name.ends_with("down")) {
      learned.a.resize(size_t(l.out()));
      learned.b.assign(size_t(l.in()), 1.0f);
      learned.d_a.resize(learned.a.size());
      learned.d_b.resize(learned.b.size());
      learned.compensated = l.weight;
    }
    learned_.emplace(name, std::move(learned));
  }
  for (auto& [name, l] : learned_) {
    const std::string full = job_.full_name(name);
    optimizer_.add(full + ", upper clipping", l.clipping.upper.values(), l.gradient.upper.values(),
                   o.clip_rate);
    optimizer_.add(full + ", lower clipping", l.clipping.lower.values(), l.gradient.lower.values(),
                   o.clip_rate);
    optimizer_.add(full + ", compensation", l.a, l.d_a, kCompensationRate);
    optimizer_.add(full + ", compensation", l.b, l.d_b, kCompensationRate);
  }
  if (!transforms()) return;
  for (size_t i = 0; i < transformation_->pairs().size(); ++i) {
    Pair& p = transformation_->pairs()[i];
    const Transformation::Gradient& g = transformation_->gradients()[i];
    optimizer_.add(job_.full_name(p.name) + ", scale", p.scale, g.scale, o.transform_rate,
                   Pair::kLeast);
    optimizer_.add(job_.full_name(p.name) + ", shift", p.shift, g.shift, o.transform_rate);
  }
}

void BlockLearner::make_targets() {
  const auto size = size_t(job_.tokens() * job_.config().hidden);
  for (auto* v : {&output_, &d_output_, &d_input_}) v->resize(size);
  const auto map_size = size_t(job_.tokens() * job_.tokens());
  if (recipe_.attention) {
    maps_ = job_.states(job_.tokens());
    for (auto* v : {&map_, &d_map_}) v->resize(map_size);
  }
  if (recipe_.own_targets) own_targets_ = job_.states(job_.config().hidden);
  if (!own_targets_ && !maps_) return;
  for (int64_t w = 0; w < job_.windows(); ++w) {
    graph_.forward(original_, {}, job_.input(w).data(), job_.tokens(),
                   own_targets_ ? own_targets_->window(w).data() : output_.data(),
                   maps_ ? maps_->window(w).data() : nullptr);
  }
}

/// What becomes codes.
const Matrix& BlockLearner::source(const std::string& name, const Learned& learned) const {
  return learned.a.empty() ? base().linears.at(name).weight : learned.compensated;
}

/// executed_ from what was learned so far.
void BlockLearner::make_weights() {
  if (transforms()) transformation_->fold(job_.pool(), original_, folded_);
  executed_.attn_norm = base().attn_norm;
  executed_.mlp_norm = base().mlp_norm;
  executed_.router = base().router;
  for (auto& [name, learned] : learned_) {
    const LinearWeights& from = base().linears.at(name);
    LinearWeights& to = executed_.linears.at(name);
    to.bias = from.bias;
    if (!learned.a.empty()) learned.compensate(job_.pool(), from.weight);
    const Matrix& w = source(name, learned);
    with_place(job_.full_name(name), [&, &learned = learned] {
      learned.quantizer.forward(job_.pool(), w, learned.clipping, to.weight);
    });
  }
}

/// One step from windows first .. end; returns their mean loss.
double BlockLearner::learn_from(int64_t first, int64_t end) {
  make_weights();
  fill_zero(gradients_);
  double loss = 0;
  for (int64_t w = first; w < end; ++w) loss += learn_window(w, 1.0 / double(end - first));
  if (!std::isfinite(loss)) return loss;
  for (auto& [name, learned] : learned_) {
    Matrix& gradient = gradients_.linears.at(name).weight;
    const bool compensated = !learned.a.empty();
    learned.quantizer.backward(job_.pool(), source(name, learned), learned.clipping, gradient,
                               learned.gradient, transforms() || compensated);
    if (compensated) learned.compensation_backward(gradient);
  }
  if (transforms()) transformation_->backward(job_.pool(), folded_, gradients_);
  optimizer_.step();
  return loss;
}

double BlockLearner::learn_window(int64_t window, double share) {
  graph_.forward(executed_, options_.scheme, job_.input(window).data(), job_.tokens(),
                 output_.data(), maps_ ? map_.data() : nullptr);
  std::fill(d_output_.begin(), d_output_.end(), 0.0f);
  std::fill(d_map_.begin(), d_map_.end(), 0.0f);
  double loss = towards(job_.target(window), share);
  if (own_targets_) loss += towards(own_targets_->window(window), share);
  if (maps_) loss += map_divergence(map_, maps_->window(window), job_.tokens(), share, d_map_);
  graph_.backward(executed_, d_output_.data(), gradients_, transforms() ? d_input_.data() : nullptr,
                  maps_ ? d_map_.data() : nullptr);
  return loss;
}

double BlockLearner::towards(std::span<const float> target, double share) {
  const int64_t cols = job_.config().hidden;
  double loss = recipe_.relative ? relative_error(output_, target, cols, share, d_output_)
                                 : squared_error(output_, target, share, d_output_);
  if (recipe_.cosine) {
    loss += log_cosine(output_, target, cols, share, d_output_);
  }
  return loss;
}

void BlockLearner::store() {
  make_weights();
  if (recipe_.f16_folds && transforms()) {
    round_to_f16(folded_);
    for (auto& [name, learned] : learned_) {
      if (!learned.a.empty()) learned.compensate(job_.pool(), folded_.linears.at(name).weight);
      learned.quantizer.forward(job_.pool(), source(name, learned), learned.clipping,
                                executed_.linears.at(name).weight);
    }
  }
  for (const auto& [name, learned] : learned_) {
    const Matrix& w = source(name, learned);
    LinearReport report{.name = job_.full_name(name), .output_error = NAN};
    report.weight_error = relative_weight_error(w, executed_.linears.at(name).weight);
    job_.store(name, learned.quantizer.finish(w), std::move(report));
  }
  job_.weights() = std::move(executed_);
}

}  // namespace oq::calibrate
