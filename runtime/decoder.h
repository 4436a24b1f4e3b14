#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <vector>

#include "runtime/backend/backend.h"
#include "runtime/sampler.h"

namespace oq {

/// A model that decodes: the weights of one .oq file on one backend, and a KV cache of
/// `sequences` sequences. Prefill and decode are the same call with more or fewer rows.
/// One thread at a time. Failures throw oq::Error.
class Decoder {
 public:
  struct Options {
    int64_t context = 0;  ///< positions per sequence; 0: the model's own, at most 8192
    int64_t sequences = 1;
    int64_t max_rows = 0;  ///< tokens of one step; `feed` splits what is longer; 0: the backend's
    bool exact = false;    ///< packed weights meet fp32 activations, not integers
    int kv_bits = 0;       ///< of the KV cache: 2..8, 16 or 32; 0: what the scheme says, where
                           ///< that is 16, 32 if exact
  };

  Decoder(std::shared_ptr<const File> file, std::unique_ptr<Backend> backend, Options options);

  const ModelConfig& config() const { return plan_.config; }
  const Backend& backend() const { return *backend_; }
  int64_t context() const { return plan_.context; }
  int64_t max_rows() const { return plan_.max_rows; }
  int kv_bits() const { return plan_.kv_bits; }

  /// One pass of the batch through the model. A sequence's first row in the batch may stand at any
  /// position up to the sequence's length: a smaller one goes back, and what came after is
  /// forgotten. Each further row takes the next position. A refused batch changes nothing.
  void step(const Batch& batch);

  /// The logits that the last step's logit_rows[i] asked for; valid until the next step.
  std::span<const float> logits(int64_t i = 0) { return backend_->read_logits(i); }

  /// The token that `sampler` draws from the first `vocab` of those logits: 1..config().vocab. A
  /// device ranks them itself where the sampler can do with few.
  int32_t sample(Sampler& sampler, int64_t vocab, int64_t i = 0);
  /// The likeliest of those logits, valid until the next call. Throws where
  /// request.check(config().vocab) does.
  const Ranking& rank(const RankRequest& request, int64_t i = 0);

  /// Appends `tokens` to a sequence, in steps of up to max_rows; the last leaves the logits after
  /// the last token.
  void append(std::span<const int32_t> tokens, int32_t sequence = 0);
  /// The same, and returns them.
  std::span<const float> feed(std::span<const int32_t> tokens, int32_t sequence = 0) {
    append(tokens, sequence);
    return logits(0);
  }

  int64_t length(int32_t sequence = 0) const;
  /// Forgets everything from position `length` on.
  void truncate(int64_t length, int32_t sequence = 0);

  /// Bytes of weights that one token reads: every tensor once, but of tables one row, and of the
  /// experts those that are chosen.
  uint64_t bytes_per_token() const { return uint64_t(bytes_per_token_); }
  /// Bytes of the KV cache that a token at `position` reads.
  uint64_t kv_bytes(int64_t position) const;

 private:
  struct Block {
    Norm attn_norm, mlp_norm;            ///< before attention and MLP,
    Norm attn_post_norm, mlp_post_norm;  ///< or after their sums; the others are empty
    std::vector<Linear> qkv;
    Linear o;
    Mlp mlp;  ///< or
    Experts experts;
  };

  /// The sequences' lengths once `batch` has run; throws when it cannot.
  std::vector<int64_t> lengths_after(const Batch& batch) const;
  void load_weights();
  Block load_block(const std::string& prefix);
  void embed();
  void forward(const Block& block, int64_t layer);
  void head();
  /// `share`: of it that a token reads, on average.
  const Weight* weight(const std::string& name, double share = 1);
  Norm norm(const std::string& name);
  Linear linear(const std::string& name, bool bias, double share = 1);
  Mlp mlp(const std::string& prefix, double share = 1);

  std::shared_ptr<const File> file_;
  std::unique_ptr<Backend> backend_;
  Plan plan_;
  std::vector<std::unique_ptr<Weight>> weights_;  ///< owns what the pointers below look at
  const Weight* embedding_ = nullptr;
  const Weight* positions_ = nullptr;  ///< each of these only where the model has it
  const Weight* inv_freq_ = nullptr;
  const Weight* alibi_ = nullptr;
  Linear project_in_, project_out_;
  Norm embedding_norm_, final_norm_;
  std::vector<Block> blocks_;
  Linear head_;
  std::unique_ptr<Buffer> embedded_;  ///< only where it is projected
  std::unique_ptr<Buffer> x_, qkv_, attn_, mlp_;
  std::vector<int64_t> lengths_;
  double bytes_per_token_ = 0;
};

}  // namespace oq
