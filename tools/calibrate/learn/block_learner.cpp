#include "tools/calibrate/learn/block_learner.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <set>

#include <fmt/format.h>

#include "tools/calibrate/learn/f16_fold.h"
#include "tools/calibrate/learn/loss.h"
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

/// Whether shifts are given. OmniQuant's first code learned them also where only weights are
/// quantized.
bool holds_shifts(const BlockParameters* given) {
  if (given == nullptr) return false;
  return std::any_of(given->begin(), given->end(), [](const auto& entry) {
    const auto values = entry.second.values();
    return entry.first.ends_with(".shift") &&
           std::any_of(values.begin(), values.end(), [](float v) { return v != 0; });
  });
}

}  // namespace

Recipe Recipe::of(const Options& options) {
  const bool own_way = !options.learning.faithful;
  return {.relative = own_way,
          .decays = own_way,
          .bounds = own_way ? WeightQuantizer::Bounds::apart : WeightQuantizer::Bounds::together,
          .own_targets = aims_at_own_targets(options),
          .down = own_way,
          .predictions = own_way};
}

BlockLearner::BlockLearner(BlockJob& job, BlockGraph& graph, const Recipe& recipe)
    : job_(job), options_(job.options()), recipe_(recipe), graph_(graph), original_(job.weights()) {
  const Learning& o = options_.learning;
  if (o.transform) {
    transformation_ = std::make_unique<Transformation>(
        job.config(), original_,
        Transformation::Kinds{.shifts = options_.scheme.quantizes_activations() ||
                                        holds_shifts(job.known().parameters),
                              .free_rope = o.faithful,
                              .down = recipe_.down});
    folded_ = original_;
  }
  executed_ = original_;
  for (auto& [name, l] : executed_.linears) {
    l.input_bits = options_.scheme.activation_bits;
    l.weak = form(name).weak;
  }
  gradients_ = BlockGraph::of_shape(original_);
}

void BlockLearner::run() {
  if (const BlockParameters* given = job_.known().parameters) {
    set_up(false);
    apply(*given);
  } else {
    start();
    set_up(options_.tuning == Tuning::mse);
    learn();
  }
  store();
}

void BlockLearner::learn() {
  for (const Slot& s : slots()) {
    optimizer_.add(job_.full_name(s.name), s.values, s.gradient, s.rate, s.least);
  }
  make_targets();
  const Learning& o = options_.learning;
  const int64_t windows = job_.windows(), batches = (windows + o.batch - 1) / o.batch;
  int64_t step = 0;
  for (int64_t epoch = 0; epoch < o.epochs; ++epoch) {
    double loss = 0;
    for (int64_t i = 0; i < batches; ++i) {
      const int64_t first = i * windows / batches, end = (i + 1) * windows / batches;
      const double done = double(step++) / double(o.epochs * batches);
      const double rates = recipe_.decays ? 0.5 * (1 + std::cos(std::numbers::pi * done)) : 1;
      const double batch_loss = learn_from(first, end, rates);
      if (!std::isfinite(batch_loss)) {
        throw Error({.what = "the loss is not finite",
                     .where = fmt::format("{}, epoch {}, calibration window {}",
                                          job_.full_name("output"), epoch + 1, first),
                     .hint = "lower --lwc-lr and --let-lr, or leave out --let"});
      }
      loss += batch_loss * double(end - first) / double(windows);
    }
    job_.add_loss(loss);
    job_.progress(double(epoch + 1) / double(o.epochs + 1),
                  fmt::format("epoch {} of {}, loss {:.3e}", epoch + 1, o.epochs, loss));
  }
}

/// What the inputs say of where to start: their ranges of transformations, their squares of grids.
void BlockLearner::start() {
  const bool balances = starts_from_inputs(options_);
  const BlockParameters* ranges = job_.known().ranges;
  if (observes_inputs(options_)) inputs_.observe(job_);
  if (ranges != nullptr) inputs_.take_ranges(original_, *ranges);
  // Otherwise they start at 1: there is nothing to move out of activations.
  if (!transforms() || !balances) return;
  const InputMaxima largest = inputs_.largest();
  for (Pair& pair : transformation_->pairs()) start_pair(pair, largest);
}

/// q and k start at 1. The reference looks at one linear of those that share an input, and at one
/// query head of those that share a KV head.
void BlockLearner::start_pair(Pair& pair, const InputMaxima& inputs) const {
  const bool faithful = options_.learning.faithful;
  Pair seen = pair;
  std::erase_if(seen.uses, [&](const Pair::Use& use) {
    return use.where != Where::columns || (faithful && !represents(use.tensor));
  });
  pair.scale = smoothing_scale(seen, original_, inputs, options_.alpha, 1e-5,
                               faithful ? Sharing::first : Sharing::largest);
  for (float& v : pair.scale) v = std::max(v, Pair::kLeast);
  if (!pair.shift.empty()) start_shift(pair, seen.uses.back());
}

/// At the middle of the inputs' range; of columns that share a channel, at the mean of theirs.
void BlockLearner::start_shift(Pair& pair, const Pair::Use& columns) const {
  const std::vector<float>& middle = inputs_.middle(columns.tensor);
  std::vector<float> count(pair.shift.size());
  for (size_t i = 0; i < middle.size(); ++i) {
    const uint32_t channel = columns.channel_of(i);
    pair.shift[channel] += (middle[i] - pair.shift[channel]) / ++count[channel];
  }
}

Form BlockLearner::form(const std::string& name) const {
  const auto own = recipe_.forms.find(name);
  return own != recipe_.forms.end() ? own->second : Form{.bits = options_.scheme.weight_bits};
}

WeightQuantizer BlockLearner::quantizer(const std::string& name, const LinearWeights& l) const {
  const Form f = form(name);
  WeightQuantizer quantizer(l.out(), l.in(), packing_of(options_.scheme, f.bits), true,
                            recipe_.bounds);
  quantizer.keep_weak(f.weak, options_.weak_bf16);
  return quantizer;
}

void BlockLearner::set_up(bool search) {
  const Learning& o = options_.learning;
  if (transforms()) transformation_->fold(job_.pool(), original_, folded_);
  for (const auto& [name, l] : base().linears) {
    Learned learned{.quantizer = quantizer(name, l)};
    const int64_t groups = learned.quantizer.groups();
    const GridOptions grid{.packing = learned.quantizer.packing(), .tuning = options_.tuning};
    if (o.clip) {
      learned.clipping =
          search ? learned.quantizer.searched(job_.pool(), l.weight, grid,
                                              inputs_.importance(name, transformation_.get()))
                 : Clipping(l.out(), groups, Clipping::kStart);
      learned.gradient = Clipping(l.out(), groups, 0);
    }
    if (recipe_.compensation && name.ends_with("down")) {
      learned.compensation = Compensation(l.out(), l.in());
    }
    learned_.emplace(name, std::move(learned));
  }
}

std::vector<BlockLearner::Slot> BlockLearner::slots() {
  const Learning& o = options_.learning;
  std::vector<Slot> slots;
  const auto add = [&](Slot slot) {
    if (!slot.values.empty()) slots.push_back(std::move(slot));
  };
  for (auto& [name, l] : learned_) {
    add({name + ".upper", l.clipping.upper.rows(), l.clipping.upper.values(),
         l.gradient.upper.values(), o.clip_rate});
    add({name + ".lower", l.clipping.lower.rows(), l.clipping.lower.values(),
         l.gradient.lower.values(), o.clip_rate});
    Compensation& c = l.compensation;
    add({name + ".rows", 1, c.a, c.d_a, kCompensationRate});
    add({name + ".columns", 1, c.b, c.d_b, kCompensationRate});
  }
  if (!transforms()) return slots;
  for (size_t i = 0; i < transformation_->pairs().size(); ++i) {
    Pair& p = transformation_->pairs()[i];
    const Transformation::Gradient& g = transformation_->gradients()[i];
    add({p.name + ".scale", 1, p.scale, g.scale, o.transform_rate, Pair::kLeast});
    add({p.name + ".shift", 1, p.shift, g.shift, o.transform_rate});
  }
  return slots;
}

/// Every one of the block's tensors from `given`, which holds no other, but shifts of 0.
void BlockLearner::apply(const BlockParameters& given) {
  std::set<std::string_view> used;
  for (const Slot& s : slots()) {
    const auto found = given.find(s.name);
    const auto cols = int64_t(s.values.size()) / s.rows;
    if (found == given.end() || found->second.rows() != s.rows || found->second.cols() != cols) {
      throw Error({.what = "the learned parameters do not fit",
                   .where = job_.full_name(s.name),
                   .expected = fmt::format("[{}, {}]", s.rows, cols),
                   .found = found == given.end() ? "none"
                                                 : fmt::format("[{}, {}]", found->second.rows(),
                                                               found->second.cols()),
                   .hint = "they are of another model, scheme or method"});
    }
    const Matrix& m = found->second;
    if (s.name.ends_with(".scale") &&
        !std::all_of(m.values().begin(), m.values().end(), [](float v) { return v != 0; })) {
      throw Error({.what = "a scale is 0", .where = job_.full_name(s.name)});
    }
    std::copy(m.values().begin(), m.values().end(), s.values.begin());
    used.insert(found->first);
  }
  for (const auto& [name, m] : given) {
    const bool changes =
        std::any_of(m.values().begin(), m.values().end(), [](float v) { return v != 0; });
    if (used.count(name) == 1 || (name.ends_with(".shift") && !changes)) continue;
    throw Error({.what = "is no parameter of this block",
                 .where = job_.full_name(name),
                 .hint = "it was learned with another method or with other options"});
  }
}

void BlockLearner::make_targets() {
  const auto size = size_t(job_.tokens() * job_.config().hidden);
  for (auto* v : {&output_, &d_output_, &d_input_}) v->resize(size);
  const auto map_size = size_t(job_.tokens() * job_.tokens());
  if (recipe_.attention > 0) {
    maps_ = job_.states(job_.tokens());
    for (auto* v : {&map_, &d_map_}) v->resize(map_size);
  }
  if (recipe_.predictions && job_.index() + 1 == job_.config().blocks) {
    head_ = std::make_unique<HeadGraph>(job_.runner().file(), job_.config(), job_.pool());
  }
  if (recipe_.own_targets) own_targets_ = job_.states(job_.config().hidden);
  if (!own_targets_ && !maps_) return;
  for (int64_t w = 0; w < job_.windows(); ++w) {
    graph_.forward(original_, {}, job_.input(w).data(), job_.tokens(),
                   own_targets_ ? own_targets_->window(w).data() : output_.data(),
                   maps_ ? maps_->window(w).data() : nullptr, job_.sight(w));
  }
}

/// What becomes codes.
const Matrix& BlockLearner::source(const std::string& name, const Learned& learned) const {
  return learned.compensation.empty() ? base().linears.at(name).weight
                                      : learned.compensation.compensated;
}

/// executed_ from what was learned so far.
void BlockLearner::make_weights() {
  if (transforms()) transformation_->fold(job_.pool(), original_, folded_);
  quantize_weights();
}

/// executed_ from base().
void BlockLearner::quantize_weights() {
  executed_.attn_norm = base().attn_norm;
  executed_.mlp_norm = base().mlp_norm;
  executed_.router = base().router;
  for (auto& [name, learned] : learned_) {
    const LinearWeights& from = base().linears.at(name);
    LinearWeights& to = executed_.linears.at(name);
    to.bias = from.bias;
    if (!learned.compensation.empty()) learned.compensation.forward(job_.pool(), from.weight);
    const Matrix& w = source(name, learned);
    with_place(job_.full_name(name), [&, &learned = learned] {
      learned.quantizer.forward(job_.pool(), w, learned.clipping, to.weight);
    });
  }
}

/// One step, at a share of the rates, from windows first .. end; returns their mean loss.
double BlockLearner::learn_from(int64_t first, int64_t end, double rates) {
  make_weights();
  fill_zero(gradients_);
  double loss = 0;
  for (int64_t w = first; w < end; ++w) loss += learn_window(w, 1.0 / double(end - first));
  if (!std::isfinite(loss)) return loss;
  for (auto& [name, learned] : learned_) {
    Matrix& gradient = gradients_.linears.at(name).weight;
    const bool compensated = !learned.compensation.empty();
    learned.quantizer.backward(job_.pool(), source(name, learned), learned.clipping, gradient,
                               learned.gradient, transforms() || compensated);
    if (compensated) learned.compensation.backward(gradient);
  }
  if (transforms()) transformation_->backward(job_.pool(), folded_, gradients_);
  optimizer_.step(rates);
  return loss;
}

double BlockLearner::learn_window(int64_t window, double share) {
  graph_.forward(executed_, options_.scheme, job_.input(window).data(), job_.tokens(),
                 output_.data(), maps_ ? map_.data() : nullptr, job_.sight(window));
  std::fill(d_output_.begin(), d_output_.end(), 0.0f);
  std::fill(d_map_.begin(), d_map_.end(), 0.0f);
  double loss = towards(job_.target(window), share);
  if (own_targets_) loss += towards(own_targets_->window(window), share);
  if (maps_) {
    loss += map_divergence(map_, maps_->window(window), job_.tokens(), recipe_.attention * share,
                           d_map_);
  }
  graph_.backward(executed_, d_output_.data(), gradients_, transforms() ? d_input_.data() : nullptr,
                  maps_ ? d_map_.data() : nullptr);
  return loss;
}

double BlockLearner::towards(std::span<const float> target, double share) {
  const int64_t cols = job_.config().hidden;
  if (head_) {
    return head_->divergence_loss(target.data(), output_.data(), job_.tokens(), share,
                                  d_output_.data());
  }
  double loss = recipe_.relative ? relative_error(output_, target, cols, share, d_output_)
                                 : squared_error(output_, target, share, d_output_);
  if (recipe_.cosine) {
    loss += log_cosine(output_, target, cols, share, d_output_);
  }
  return loss;
}

/// base() as OmniQuant's code makes it for good, and quantizers that go on like it. Learning is
/// over: gradients give their memory to it.
void BlockLearner::fold_in_f16() {
  gradients_ = {};
  folded_ = original_;
  std::span<const Pair> pairs;
  if (transforms()) pairs = transformation_->pairs();
  calibrate::fold_in_f16(job_.pool(), pairs, folded_);
  for (auto& [name, learned] : learned_) {
    check_finite(folded_.linears.at(name).weight, job_.full_name(name) + " in f16");
    learned.quantizer.use_f16();
  }
}

void BlockLearner::store() {
  if (recipe_.f16) {
    fold_in_f16();
    quantize_weights();
  } else {
    make_weights();
  }
  for (const auto& [name, learned] : learned_) {
    const Matrix& w = source(name, learned);
    LinearReport report{.name = job_.full_name(name), .output_error = NAN};
    report.weight_error = relative_weight_error(w, executed_.linears.at(name).weight);
    QuantizedLinear q = learned.quantizer.finish(w);
    report.weak_columns = int64_t(q.weak.size());
    job_.store(name, std::move(q), std::move(report));
  }
  for (const Slot& s : slots()) {
    const auto cols = int64_t(s.values.size()) / s.rows;
    job_.keep(s.name, Matrix(s.rows, cols, {s.values.begin(), s.values.end()}));
  }
  job_.weights() = std::move(executed_);
}

}  // namespace oq::calibrate
