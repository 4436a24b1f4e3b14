#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "format/file.h"
#include "format/half.h"
#include "format/scheme.h"
#include "runtime/config.h"
#include "runtime/ranking.h"

namespace oq {

/// Tokens that go through the decoder together: a prompt's, or one of each of many sequences.
/// All spans but the last have one element per token, called a row.
struct Batch {
  std::span<const int32_t> tokens;
  std::span<const int32_t> positions;   ///< in its sequence; a row sees positions up to its own
  std::span<const int32_t> sequences;   ///< slots of the KV cache
  std::span<const int32_t> logit_rows;  ///< rows whose logits are wanted, ascending

  int64_t rows() const { return int64_t(tokens.size()); }
};

/// What a backend must make room for.
struct Plan {
  ModelConfig config;
  Scheme scheme;        ///< how activations and queries are quantized
  int64_t context = 0;  ///< positions per sequence
  int64_t sequences = 1;
  int64_t max_rows = 1;  ///< of a batch
  bool exact = false;    ///< packed weights meet fp32 activations, not integers
  int kv_bits = 16;      ///< the KV cache: 32 and 16 are floats, 2..8 codes in bytes (KvGrid)
  Pages pages = Pages::ordinary;  ///< that the KV cache lies on, where the backend has a choice
  std::span<const TensorInfo> tensors = {};  ///< that may be prepared; the file keeps them
  std::vector<int64_t> buffers = {};         ///< columns of those that will be asked for

  /// Of one position's keys, or of its values, of one KV head.
  uint64_t kv_head_bytes() const {
    const auto n = uint64_t(config.head_dim);
    return kv_bits > 8 ? n * uint64_t(kv_bits / 8) : n + 2 * sizeof(f16);
  }
};

/// Weights in the form that a backend computes with, and activations of up to max_rows rows.
/// Opaque: only the backend that made one looks inside.
class Weight {
 public:
  virtual ~Weight() = default;
};
class Buffer {
 public:
  virtual ~Buffer() = default;
};

struct Linear {
  const Weight* weight = nullptr;
  const Weight* bias = nullptr;  ///< or none
};

/// RMSNorm, or LayerNorm where there is a bias; without a weight, nothing: x as it is.
struct Norm {
  const Weight* weight = nullptr;
  const Weight* bias = nullptr;
  float eps = 0;
};

/// down(activation(gate(x)) * up(x)); without a gate, down(activation(up(x))).
struct Mlp {
  Linear gate, up, down;
  Activation activation = Activation::silu;
};

/// MLPs of which a router chooses `used` for each token: their sum, weighed by the softmax of the
/// chosen logits.
struct Experts {
  const Weight* router = nullptr;  ///< [experts, hidden]
  std::vector<Mlp> mlps;
  int64_t used = 0;
};

/// What a decoder is written against. Ops are enqueued in order and may run later; only
/// `read_logits` and `rank` wait. Between `begin` and `end` the same ops come in the same order for
/// all batches of as many rows and logit_rows, so that a backend may capture a step and replay it.
/// One thread at a time. Failures throw oq::Error.
class Backend {
 public:
  virtual ~Backend() = default;

  /// What runs, for people: "cpu, avx2, 2 threads".
  virtual std::string description() const = 0;

  /// What it has taken of a device's memory, as the device tells it: of a device that others use
  /// too, what they took or gave back meanwhile counts with it. Nothing: it runs on the host.
  virtual std::optional<uint64_t> device_bytes() const = 0;

  /// Rows of a step that make long prompts fast, for a plan that is whole but for max_rows.
  virtual int64_t step_rows(const Plan&) const { return 256; }

  /// Must come first, once. Takes no memory that it could know to be missing: it throws instead.
  virtual void configure(const Plan& plan) = 0;
  /// The backend keeps `file` alive as long as it needs its bytes.
  virtual std::unique_ptr<Weight> prepare(std::shared_ptr<const File> file,
                                          const TensorInfo& info) = 0;
  virtual std::unique_ptr<Buffer> buffer(int64_t cols) = 0;

  /// Starts a step: tokens, positions and sequences of the rows that the ops below work on. The
  /// batch's spans live until `end`; a backend that runs ops later copies them here. False: it has
  /// the ops of such a batch from an earlier step, and `end` alone must follow.
  virtual bool begin(const Batch& batch) = 0;

  /// x = rows of the table, one for each token.
  virtual void embed(const Weight& table, Buffer& x) = 0;

  /// x += rows of the table, one for each token's position.
  virtual void add_positions(const Weight& table, Buffer& x) = 0;

  /// x = norm(x).
  virtual void norm(const Norm& norm, Buffer& x) = 0;

  /// out = l(in), which is no linear of a block: the scheme's activation quantization stays out.
  virtual void linear(const Linear& l, const Buffer& in, Buffer& out) = 0;

  /// out = [l(norm(x)) for each linear], side by side.
  virtual void norm_linears(const Norm& norm, const Buffer& x, std::span<const Linear> linears,
                            Buffer& out) = 0;

  /// Rotates q and k inside qkv = [q | k | v], where there are frequencies, and appends k and v to
  /// the cache of `layer`.
  virtual void rope_append(int64_t layer, const Weight* inv_freq, Buffer& qkv) = 0;

  /// out = softmax(q k / sqrt(head_dim) + alibi) v over what the row sees of its sequence. `alibi`
  /// is [heads, context] or nullptr.
  virtual void attention(int64_t layer, const Weight* alibi, const Buffer& qkv, Buffer& out) = 0;

  /// out = what mlp.down takes, of norm(x).
  virtual void norm_mlp(const Norm& norm, const Buffer& x, const Mlp& mlp, Buffer& out) = 0;

  /// x += l(in).
  virtual void linear_residual(const Linear& l, const Buffer& in, Buffer& x) = 0;

  /// x += experts(norm(x)); of experts that nobody chose no weight is read.
  virtual void norm_experts(const Norm& norm, const Experts& experts, Buffer& x) = 0;

  /// Logits of the batch's logit_rows: head(norm(x)).
  virtual void head(const Norm& norm, const Linear& head, const Buffer& x) = 0;

  /// The step's last op has been enqueued. False: the step could not be captured and has not run;
  /// it begins anew, with the same batch.
  [[nodiscard]] virtual bool end() = 0;

  /// Logits of logit_rows[i], vocab of them; valid until the next `begin`. Throws when the last
  /// step asked for fewer.
  virtual std::span<const float> read_logits(int64_t i) = 0;

  /// What `request` asks of the same logits: few numbers, where read_logits gives all of them.
  /// Valid until the next call. Throws when the last step asked for fewer rows. PRECOND:
  /// request.check passes a row of vocab logits.
  virtual const Ranking& rank(int64_t i, const RankRequest& request) = 0;
};

/// `threads` 0: one per usable core.
std::unique_ptr<Backend> make_cpu_backend(int threads);

}  // namespace oq
