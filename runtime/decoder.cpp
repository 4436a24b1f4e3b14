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
  const Metadata& m = file_->metadata();
  plan_.config = ModelConfig::load(*file_);
  plan_.scheme = with_place(file_->path().string(), [&] {
    return Scheme::parse(m.get_or<std::string>("scheme", "w16a16"));
  });
  plan_.context =
      options.context > 0 ? options.context : std::min(plan_.config.context, kDefaultContext);
  plan_.sequences = options.sequences;
  plan_.max_rows = std::min(options.max_rows, plan_.context * plan_.sequences);
  plan_.exact = options.exact;
  if (options.sequences < 1 || options.max_rows < 1) {
    throw Error({.what = "a decoder needs a sequence and a row", .where = "decoder options"});
  }
  if (plan_.context > plan_.config.context) {
    throw Error({.what = "context is longer than the model was made for",
                 .where = file_->path().string(),
                 .expected = fmt::format("at most {}", plan_.config.context),
                 .found = std::to_string(plan_.context),
                 .hint = "choose a smaller --ctx (oq-eval: --window; oq-bench: -p and -n)"});
  }
  check_tensors(*file_, plan_.config);
  backend_->configure(plan_);
  load_weights();
  const ModelConfig& c = plan_.config;
  x_ = backend_->buffer(c.hidden);
  qkv_ = backend_->buffer(c.q_width() + 2 * c.kv_width());
  attn_ = backend_->buffer(c.q_width());
  mlp_ = backend_->buffer(c.mlp);
  lengths_.assign(size_t(plan_.sequences), 0);
}

const Weight* Decoder::weight(const std::string& name) {
  const TensorInfo& info = file_->tensor(name);
  if (name == "embedding") {
    bytes_per_token_ += info.bytes / info.rows;
  } else {
    bytes_per_token_ += info.bytes;
  }
  weights_.push_back(backend_->prepare(file_, info));
  return weights_.back().get();
}

Linear Decoder::linear(const std::string& name, bool bias) {
  return {.weight = weight(name), .bias = bias ? weight(name + ".bias") : nullptr};
}

void Decoder::load_weights() {
  const ModelConfig& c = plan_.config;
  const auto norm = [&](const std::string& name) {
    return Norm{.weight = weight(name), .eps = float(c.norm_eps)};
  };
  embedding_ = weight("embedding");
  if (c.rope_dim > 0) inv_freq_ = weight("rope.inv_freq");
  for (int64_t b = 0; b < c.blocks; ++b) {
    const std::string p = fmt::format("blocks.{}.", b);
    Block block;
    block.attn_norm = norm(p + "attn_norm");
    for (const char* name : {"q", "k", "v"}) block.qkv.push_back(linear(p + name, c.qkv_bias));
    block.o = linear(p + "o", c.o_bias);
    block.mlp_norm = norm(p + "mlp_norm");
    block.gate = linear(p + "gate", c.mlp_bias);
    block.up = linear(p + "up", c.mlp_bias);
    block.down = linear(p + "down", c.mlp_bias);
    blocks_.push_back(std::move(block));
  }
  final_norm_ = norm("final_norm");
  if (c.tied_head) {
    head_ = {.weight = embedding_, .bias = nullptr};
    bytes_per_token_ += file_->tensor("embedding").bytes;
  } else {
    head_ = linear("head", false);
  }
}

void Decoder::forward(const Block& block, int64_t layer) {
  backend_->norm_linears(block.attn_norm, *x_, block.qkv, *qkv_);
  backend_->rope_append(layer, inv_freq_, *qkv_);
  backend_->attention(layer, *qkv_, *attn_);
  backend_->linear_residual(block.o, *attn_, *x_);
  backend_->norm_gated(block.mlp_norm, *x_, block.gate, block.up, plan_.config.activation, *mlp_);
  backend_->linear_residual(block.down, *mlp_, *x_);
}

void Decoder::step(const Batch& batch) {
  std::vector<int64_t> lengths = lengths_after(batch);
  backend_->begin(batch);
  backend_->embed(*embedding_, *x_);
  for (size_t i = 0; i < blocks_.size(); ++i) forward(blocks_[i], int64_t(i));
  if (!batch.logit_rows.empty()) backend_->head(final_norm_, head_, *x_);
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

std::span<const float> Decoder::feed(std::span<const int32_t> tokens, int32_t sequence) {
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
  return logits(0);
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
  return uint64_t(c.blocks) * 2 * uint64_t(c.kv_width()) * uint64_t(position + 1) *
         (plan_.exact ? 4 : 2);
}

}  // namespace oq
