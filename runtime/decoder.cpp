#include "runtime/decoder.h"

#include <algorithm>
#include <utility>

#include <fmt/format.h>

namespace oq {

namespace {

constexpr int64_t kDefaultContext = 8192;

}  // namespace

Decoder::Decoder(std::shared_ptr<const File> file, std::unique_ptr<Backend> backend,
                 Options options)
    : file_(std::move(file)), backend_(std::move(backend)) {
  plan_.config = ModelConfig::load(*file_);
  plan_.scheme = Scheme::load(*file_);
  plan_.context =
      options.context > 0 ? options.context : std::min(plan_.config.context, kDefaultContext);
  plan_.sequences = options.sequences;
  plan_.exact = options.exact;
  plan_.pages = file_->pages();
  plan_.kv_bits = options.kv_bits;
  if (plan_.kv_bits == 0) plan_.kv_bits = plan_.scheme.kv_bits;
  if (options.kv_bits == 0 && plan_.kv_bits == 16 && plan_.exact) plan_.kv_bits = 32;
  if (options.sequences < 1 || options.max_rows < 0) {
    throw Error({.what = "a decoder needs a sequence and rows", .where = "decoder options"});
  }
  if (const int kv = plan_.kv_bits; (kv < 2 || kv > 8) && kv != 16 && kv != 32) {
    throw Error({.what = "a KV cache has no such width",
                 .where = "decoder options",
                 .expected = "2 to 8, 16 or 32 bits",
                 .found = std::to_string(kv)});
  }
  if (plan_.context > plan_.config.context) {
    throw Error({.what = "context is longer than the model was made for",
                 .where = file_->path().string(),
                 .expected = fmt::format("at most {}", plan_.config.context),
                 .found = std::to_string(plan_.context),
                 .hint = "choose a smaller --ctx (oq-eval: --window; oq-bench: -p, -n and -d)"});
  }
  check_tensors(*file_, plan_.config);
  const ModelConfig& c = plan_.config;
  plan_.tensors = file_->tensors();
  plan_.buffers = {c.hidden, c.q_width() + 2 * c.kv_width(), c.q_width(), c.mlp};
  if (c.projected()) plan_.buffers.push_back(c.embedding_width);
  const int64_t rows = options.max_rows > 0 ? options.max_rows : backend_->step_rows(plan_);
  plan_.max_rows = std::min(rows, plan_.context * plan_.sequences);
  backend_->configure(plan_);
  load_weights();
  std::unique_ptr<Buffer>* const buffers[] = {&x_, &qkv_, &attn_, &mlp_, &embedded_};
  for (size_t i = 0; i < plan_.buffers.size(); ++i) {
    *buffers[i] = backend_->buffer(plan_.buffers[i]);
  }
  lengths_.assign(size_t(plan_.sequences), 0);
}

const Weight* Decoder::weight(const std::string& name, double share) {
  const TensorInfo& info = file_->tensor(name);
  bytes_per_token_ += share * double(info.bytes);
  weights_.push_back(backend_->prepare(file_, info));
  return weights_.back().get();
}

Linear Decoder::linear(const std::string& name, bool bias, double share) {
  return {.weight = weight(name, share), .bias = bias ? weight(name + ".bias", share) : nullptr};
}

Norm Decoder::norm(const std::string& name) {
  const bool layer_norm = plan_.config.norm == NormKind::layer;
  return {.weight = weight(name),
          .bias = layer_norm ? weight(name + ".bias") : nullptr,
          .eps = float(plan_.config.norm_eps)};
}

Mlp Decoder::mlp(const std::string& prefix, double share) {
  const ModelConfig& c = plan_.config;
  Mlp mlp{.gate = {}, .up = {}, .down = {}, .activation = c.activation};
  if (c.gated) mlp.gate = linear(prefix + "gate", c.mlp_bias, share);
  mlp.up = linear(prefix + "up", c.mlp_bias, share);
  mlp.down = linear(prefix + "down", c.mlp_bias, share);
  return mlp;
}

Decoder::Block Decoder::load_block(const std::string& p) {
  const ModelConfig& c = plan_.config;
  Block b;
  (c.post_norm ? b.attn_post_norm : b.attn_norm) = norm(p + "attn_norm");
  for (const char* name : {"q", "k", "v"}) b.qkv.push_back(linear(p + name, c.qkv_bias));
  b.o = linear(p + "o", c.o_bias);
  (c.post_norm ? b.mlp_post_norm : b.mlp_norm) = c.shared_norm ? b.attn_norm : norm(p + "mlp_norm");
  if (c.experts == 0) {
    b.mlp = mlp(p);
    return b;
  }
  b.experts.router = weight(p + "router");
  b.experts.used = c.experts_used;
  const double share = double(c.experts_used) / double(c.experts);
  for (int64_t e = 0; e < c.experts; ++e) {
    b.experts.mlps.push_back(mlp(fmt::format("{}experts.{}.", p, e), share));
  }
  return b;
}

void Decoder::load_weights() {
  const ModelConfig& c = plan_.config;
  embedding_ = weight("embedding", 1.0 / double(c.vocab));
  if (c.projected()) project_in_ = linear("project_in", false);
  if (c.positions == PositionKind::learned) {
    positions_ = weight("positions", 1.0 / double(c.context));
  }
  if (c.embedding_norm) embedding_norm_ = norm("embedding_norm");
  if (c.positions == PositionKind::rope) inv_freq_ = weight("rope.inv_freq");
  if (c.positions == PositionKind::alibi) alibi_ = weight("alibi", 0);  // stays in the caches
  for (int64_t b = 0; b < c.blocks; ++b)
    blocks_.push_back(load_block(fmt::format("blocks.{}.", b)));
  if (c.final_norm) final_norm_ = norm("final_norm");
  if (c.projected()) project_out_ = linear("project_out", false);
  if (c.tied_head) {
    head_ = {.weight = embedding_, .bias = nullptr};
    bytes_per_token_ += double(file_->tensor("embedding").bytes);
  } else {
    head_ = linear("head", false);
  }
}

void Decoder::embed() {
  const ModelConfig& c = plan_.config;
  backend_->embed(*embedding_, c.projected() ? *embedded_ : *x_);
  if (c.projected()) backend_->linear(project_in_, *embedded_, *x_);
  if (positions_ != nullptr) backend_->add_positions(*positions_, *x_);
  if (c.embedding_norm) backend_->norm(embedding_norm_, *x_);
}

void Decoder::forward(const Block& b, int64_t layer) {
  const bool parallel = plan_.config.parallel;
  backend_->norm_linears(b.attn_norm, *x_, b.qkv, *qkv_);
  backend_->rope_append(layer, inv_freq_, *qkv_);
  backend_->attention(layer, alibi_, *qkv_, *attn_);
  if (parallel) backend_->norm_mlp(b.mlp_norm, *x_, b.mlp, *mlp_);
  backend_->linear_residual(b.o, *attn_, *x_);
  backend_->norm(b.attn_post_norm, *x_);
  if (b.experts.used > 0) {
    backend_->norm_experts(b.mlp_norm, b.experts, *x_);
  } else {
    if (!parallel) backend_->norm_mlp(b.mlp_norm, *x_, b.mlp, *mlp_);
    backend_->linear_residual(b.mlp.down, *mlp_, *x_);
  }
  backend_->norm(b.mlp_post_norm, *x_);
}

void Decoder::head() {
  if (!plan_.config.projected()) return backend_->head(final_norm_, head_, *x_);
  backend_->norm(final_norm_, *x_);
  backend_->linear(project_out_, *x_, *embedded_);
  backend_->head({}, head_, *embedded_);
}

void Decoder::step(const Batch& batch) {
  std::vector<int64_t> lengths = lengths_after(batch);
  do {
    if (backend_->begin(batch)) {
      embed();
      for (size_t i = 0; i < blocks_.size(); ++i) forward(blocks_[i], int64_t(i));
      if (!batch.logit_rows.empty()) head();
    }
  } while (!backend_->end());
  lengths_ = std::move(lengths);
}

std::vector<int64_t> Decoder::lengths_after(const Batch& batch) const {
  const auto bad = [](const char* what, int64_t low, int64_t high, int64_t found) {
    return Error({.what = what,
                  .where = "decoder step",
                  .expected = fmt::format("{}..{}", low, high),
                  .found = std::to_string(found)});
  };
  const int64_t rows = batch.rows();
  if (rows < 1 || rows > plan_.max_rows) throw bad("bad number of tokens", 1, plan_.max_rows, rows);
  if (batch.positions.size() != size_t(rows) || batch.sequences.size() != size_t(rows)) {
    throw Error(
        {.what = "positions and sequences must be as many as tokens", .where = "decoder step"});
  }
  std::vector<int64_t> lengths = lengths_;
  std::vector<bool> begun(lengths.size());  // sequences that have had a row
  for (size_t i = 0; i < size_t(rows); ++i) {
    const int64_t sequence = batch.sequences[i], position = batch.positions[i];
    if (sequence < 0 || sequence >= plan_.sequences) {
      throw bad("no such sequence", 0, plan_.sequences - 1, sequence);
    }
    if (position >= plan_.context) {
      throw Error({.what = "context is full",
                   .where = fmt::format("sequence {}", sequence),
                   .expected = fmt::format("at most {} tokens", plan_.context),
                   .found = std::to_string(position + 1),
                   .hint = "shorten the text or choose a larger --ctx"});
    }
    int64_t& length = lengths[size_t(sequence)];
    const int64_t lowest = begun[size_t(sequence)] ? length : 0;
    if (position < lowest || position > length) {
      throw bad("position leaves a gap or goes back inside a step", lowest, length, position);
    }
    begun[size_t(sequence)] = true;
    const int64_t token = batch.tokens[i];
    if (token < 0 || token >= plan_.config.vocab) {
      throw bad("token is not in the vocabulary", 0, plan_.config.vocab - 1, token);
    }
    length = position + 1;
  }
  int64_t last = -1;
  for (int64_t row : batch.logit_rows) {
    if (row <= last || row >= rows) throw bad("bad row for logits", last + 1, rows - 1, row);
    last = row;
  }
  return lengths;
}

int32_t Decoder::sample(Sampler& sampler, int64_t vocab, int64_t i) {
  RankRequest{.vocab = vocab}.check(plan_.config.vocab);
  if (const auto request = sampler.request(vocab)) {
    if (const auto id = sampler.sample_ranked(backend_->rank(i, *request))) return *id;
  }
  return sampler.sample(backend_->read_logits(i).first(size_t(vocab)));
}

const Ranking& Decoder::rank(const RankRequest& request, int64_t i) {
  request.check(plan_.config.vocab);
  return backend_->rank(i, request);
}

void Decoder::append(std::span<const int32_t> tokens, int32_t sequence) {
  if (tokens.empty()) {
    throw Error({.what = "there are no tokens to feed",
                 .where = "decoder",
                 .hint = "give a prompt that is not empty"});
  }
  if (length(sequence) + int64_t(tokens.size()) > plan_.context) {
    throw Error({.what = "text does not fit the context",
                 .where = "decoder",
                 .expected = fmt::format("at most {} tokens, {} of them in use", plan_.context,
                                         length(sequence)),
                 .found = fmt::format("{} more", tokens.size()),
                 .hint = "shorten the text or choose a larger --ctx"});
  }
  std::vector<int32_t> positions, sequences;
  while (!tokens.empty()) {
    const size_t n = std::min(tokens.size(), size_t(plan_.max_rows));
    positions.resize(n);
    for (size_t i = 0; i < n; ++i) positions[i] = int32_t(length(sequence)) + int32_t(i);
    sequences.assign(n, sequence);
    const auto last = int32_t(n - 1);
    const bool ends = n == tokens.size();
    step({.tokens = tokens.first(n),
          .positions = positions,
          .sequences = sequences,
          .logit_rows = ends ? std::span(&last, 1) : std::span<const int32_t>()});
    tokens = tokens.subspan(n);
  }
}

void Decoder::truncate(int64_t length, int32_t sequence) {
  const int64_t now = this->length(sequence);
  lengths_[size_t(sequence)] = std::clamp<int64_t>(length, 0, now);
}

int64_t Decoder::length(int32_t sequence) const {
  if (sequence < 0 || sequence >= plan_.sequences) {
    throw Error({.what = "no such sequence",
                 .where = "decoder",
                 .expected = fmt::format("0..{}", plan_.sequences - 1),
                 .found = std::to_string(sequence)});
  }
  return lengths_[size_t(sequence)];
}

uint64_t Decoder::kv_bytes(int64_t position) const {
  const ModelConfig& c = plan_.config;
  const int64_t seen = c.window > 0 ? std::min(position + 1, c.window) : position + 1;
  return uint64_t(c.blocks) * 2 * uint64_t(c.kv_heads) * uint64_t(seen) * plan_.kv_head_bytes();
}

}  // namespace oq
