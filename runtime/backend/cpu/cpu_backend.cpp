#include <algorithm>
#include <cmath>
#include <utility>

#include <fmt/format.h>

#include "kernels/cpu/kernels.h"
#include "kernels/cpu/thread_pool.h"
#include "kernels/reference/ops.h"
#include "runtime/backend/backend.h"
#include "runtime/backend/cpu/attention.h"
#include "runtime/backend/cpu/kv_cache.h"
#include "runtime/backend/cpu/linear.h"
#include "runtime/backend/cpu/mlp.h"

namespace oq {
namespace {

struct CpuBuffer final : Buffer {
  CpuBuffer(int64_t rows, int64_t cols) : data(size_t(rows * cols)), stride(cols) {}

  cpu::Rows rows() const { return {data.data(), stride}; }
  cpu::MutableRows rows() { return {data.data(), stride}; }

  std::vector<float> data;
  int64_t stride;
};

const CpuWeight& weight_of(const Weight& w) { return static_cast<const CpuWeight&>(w); }
const CpuBuffer& buffer_of(const Buffer& b) { return static_cast<const CpuBuffer&>(b); }
CpuBuffer& buffer_of(Buffer& b) { return static_cast<CpuBuffer&>(b); }

/// One row of a table in floats.
void read_row(const CpuWeight& w, int64_t row, std::span<float> out) {
  if (w.packed) return w.packed->dequantize_row(uint64_t(row), out);
  const auto convert = [&](auto type) {
    using T = decltype(type);
    const T* from = reinterpret_cast<const T*>(w.data) + row * w.cols();
    for (size_t i = 0; i < out.size(); ++i) out[i] = to_float(from[i]);
  };
  switch (w.info.kind) {
    case Kind::f16:
      return convert(f16{});
    case Kind::bf16:
      return convert(bf16{});
    default:
      return convert(0.0f);
  }
}

class CpuBackend final : public Backend {
 public:
  explicit CpuBackend(int threads)
      : kernels_(cpu::best_kernels()),
        pool_(threads),
        linears_(pool_, kernels_),
        mlps_(pool_, kernels_, linears_),
        experts_(mlps_, linears_) {}

  std::string description() const override {
    return fmt::format("cpu, {}, {} thread{}", kernels_.name, pool_.threads(),
                       pool_.threads() == 1 ? "" : "s");
  }

  std::optional<uint64_t> device_bytes() const override { return std::nullopt; }

  void configure(const Plan& plan) override {
    plan_ = plan;
    cache_ = std::make_unique<CpuKvCache>(plan_);
    attention_ = std::make_unique<CpuAttention>(pool_, kernels_, plan_.config);
    normed_ = std::make_unique<CpuBuffer>(plan_.max_rows, plan_.config.hidden);
  }

  std::unique_ptr<Weight> prepare(std::shared_ptr<const File> file,
                                  const TensorInfo& info) override {
    return std::make_unique<CpuWeight>(std::move(file), info);
  }

  std::unique_ptr<Buffer> buffer(int64_t cols) override {
    return std::make_unique<CpuBuffer>(plan_.max_rows, cols);
  }

  bool begin(const Batch& batch) override {
    batch_ = batch;
    logits_.clear();
    rotations_.clear();
    runs_.clear();
    for (int64_t row = 0; row < batch.rows(); ++row) {
      const auto i = size_t(row);
      if (row == 0 || batch.sequences[i] != batch.sequences[i - 1]) runs_.push_back(row);
    }
    runs_.push_back(batch.rows());
    return true;
  }
  bool end() override { return true; }

  void embed(const Weight& table, Buffer& x) override {
    const CpuWeight& w = weight_of(table);
    for (int64_t m = 0; m < batch_.rows(); ++m) {
      read_row(w, batch_.tokens[size_t(m)], {buffer_of(x).rows().row(m), size_t(w.cols())});
    }
  }

  void add_positions(const Weight& table, Buffer& x) override;

  void norm(const Norm& norm, Buffer& x) override {
    if (norm.weight != nullptr) norm_rows(norm, buffer_of(x), buffer_of(x));
  }

  void linear(const Linear& l, const Buffer& in, Buffer& out) override {
    linears_.run({&l, 1}, buffer_of(in).rows(), batch_.rows(), {.exact = plan_.exact}, runs_, false,
                 buffer_of(out).rows());
  }

  void norm_linears(const Norm& norm, const Buffer& x, std::span<const Linear> linears,
                    Buffer& out) override {
    linears_.run(linears, normed(norm, x), batch_.rows(), block_inputs(), runs_, false,
                 buffer_of(out).rows());
  }

  void rope_append(int64_t layer, const Weight* inv_freq, Buffer& qkv) override;

  void attention(int64_t layer, const Weight* alibi, const Buffer& qkv, Buffer& out) override {
    const float* bias = alibi == nullptr ? nullptr : weight_of(*alibi).floats();
    attention_->run(*cache_, layer, bias, batch_, runs_, buffer_of(qkv).rows(),
                    buffer_of(out).rows());
  }

  void norm_mlp(const Norm& norm, const Buffer& x, const Mlp& mlp, Buffer& out) override {
    mlps_.run(mlp, normed(norm, x), batch_.rows(), block_inputs(), runs_, buffer_of(out).rows());
  }

  void linear_residual(const Linear& l, const Buffer& in, Buffer& x) override {
    linears_.run({&l, 1}, buffer_of(in).rows(), batch_.rows(), block_inputs(), runs_, true,
                 buffer_of(x).rows());
  }

  void norm_experts(const Norm& norm, const Experts& experts, Buffer& x) override {
    experts_.run(experts, normed(norm, x), batch_.rows(), block_inputs(), runs_,
                 buffer_of(x).rows());
  }

  void head(const Norm& norm, const Linear& head, const Buffer& x) override;

  std::span<const float> read_logits(int64_t i) override {
    const auto vocab = size_t(plan_.config.vocab);
    if (i < 0 || size_t(i) >= logits_.size() / vocab) {
      throw Error({.what = "the last step left no such logits",
                   .where = "cpu backend",
                   .expected = fmt::format("below {}", logits_.size() / vocab),
                   .found = std::to_string(i)});
    }
    return std::span(logits_).subspan(size_t(i) * vocab, vocab);
  }

  const Ranking& rank(int64_t i, const RankRequest& request) override {
    rank_logits(read_logits(i), request, ranking_);
    return ranking_;
  }

 private:
  InputMode block_inputs() const {
    return {.exact = plan_.exact,
            .bits = plan_.scheme.activation_bits,
            .per_tensor = plan_.scheme.per_tensor};
  }

  void norm_row(const Norm& norm, const float* x, int64_t n, float* out) const {
    const float* weight = weight_of(*norm.weight).floats();
    if (norm.bias == nullptr) return kernels_.rms_norm(x, weight, norm.eps, n, out);
    kernels_.layer_norm(x, weight, weight_of(*norm.bias).floats(), norm.eps, n, out);
  }

  void norm_rows(const Norm& norm, const CpuBuffer& from, CpuBuffer& to) {
    pool_.parallel_for(batch_.rows(), 8, [&](int64_t begin, int64_t end, int) {
      for (int64_t m = begin; m < end; ++m) {
        norm_row(norm, from.rows().row(m), from.stride, to.rows().row(m));
      }
    });
  }

  /// norm(x), valid until the next call.
  cpu::Rows normed(const Norm& norm, const Buffer& x) {
    if (norm.weight == nullptr) return buffer_of(x).rows();
    norm_rows(norm, buffer_of(x), *normed_);
    return std::as_const(*normed_).rows();
  }

  void make_rotations(const CpuWeight& inv_freq);
  void rotate(float* head, int64_t row) const;

  const cpu::Kernels& kernels_;
  ThreadPool pool_;
  LinearRunner linears_;
  MlpRunner mlps_;
  ExpertRunner experts_;
  Plan plan_;
  std::unique_ptr<CpuKvCache> cache_;
  std::unique_ptr<CpuAttention> attention_;
  std::unique_ptr<CpuBuffer> normed_;
  std::vector<float> head_in_, logits_;
  Ranking ranking_;
  Batch batch_;
  std::vector<int64_t> runs_;     ///< first rows of consecutive rows of one sequence, and the end
  std::vector<float> rotations_;  ///< [rows][rope_dim / 2] cosines, then as many sines
};

void CpuBackend::add_positions(const Weight& table, Buffer& x) {
  const CpuWeight& w = weight_of(table);
  std::vector<float> row(size_t(w.cols()));
  for (int64_t m = 0; m < batch_.rows(); ++m) {
    read_row(w, batch_.positions[size_t(m)], row);
    float* to = buffer_of(x).rows().row(m);
    for (size_t i = 0; i < row.size(); ++i) to[i] += row[i];
  }
}

/// Cosines and sines of the batch's positions, shared by all heads and layers.
void CpuBackend::make_rotations(const CpuWeight& inv_freq) {
  const int64_t half = inv_freq.cols();
  const double factor = plan_.config.rope_attention_factor;
  rotations_.resize(size_t(2 * batch_.rows() * half));
  for (int64_t m = 0; m < batch_.rows(); ++m) {
    float* cosines = rotations_.data() + 2 * m * half;
    for (int64_t i = 0; i < half; ++i) {
      const double angle = double(batch_.positions[size_t(m)]) * double(inv_freq.floats()[i]);
      cosines[i] = float(std::cos(angle) * factor);
      cosines[half + i] = float(std::sin(angle) * factor);
    }
  }
}

void CpuBackend::rotate(float* head, int64_t row) const {
  const int64_t half = plan_.config.rope_dim / 2;
  const float* cosines = rotations_.data() + 2 * row * half;
  const float* sines = cosines + half;
  for (int64_t i = 0; i < half; ++i) {
    const float a = head[i], b = head[i + half];
    head[i] = a * cosines[i] - b * sines[i];
    head[i + half] = b * cosines[i] + a * sines[i];
  }
}

void CpuBackend::rope_append(int64_t layer, const Weight* inv_freq, Buffer& qkv) {
  const ModelConfig& c = plan_.config;
  const Scheme& scheme = plan_.scheme;
  const int64_t range = scheme.range_width(c.heads, c.head_dim);
  if (inv_freq != nullptr && rotations_.empty()) make_rotations(weight_of(*inv_freq));
  const cpu::MutableRows rows = buffer_of(qkv).rows();
  pool_.parallel_for(batch_.rows(), 8, [&](int64_t begin, int64_t end, int) {
    for (int64_t m = begin; m < end; ++m) {
      float* q = rows.row(m);
      float* k = q + c.q_width();
      float* v = k + c.kv_width();
      for (int64_t h = 0; h < c.heads + c.kv_heads && inv_freq != nullptr; ++h) {
        rotate(q + h * c.head_dim, m);  // k's heads follow q's
      }
      for (float* from = q; from < k && scheme.query_bits < 16; from += range) {
        reference::fake_quantize({from, size_t(range)}, scheme.query_bits);
      }
      cache_->append(layer, batch_.sequences[size_t(m)], batch_.positions[size_t(m)], k, v);
    }
  });
}

void CpuBackend::head(const Norm& norm, const Linear& head, const Buffer& x) {
  const CpuBuffer& from = buffer_of(x);
  const auto rows = int64_t(batch_.logit_rows.size());
  head_in_.resize(size_t(rows * from.stride));
  for (int64_t i = 0; i < rows; ++i) {
    const float* row = from.rows().row(batch_.logit_rows[size_t(i)]);
    float* out = head_in_.data() + i * from.stride;
    if (norm.weight == nullptr) {
      std::copy_n(row, from.stride, out);
    } else {
      norm_row(norm, row, from.stride, out);
    }
  }
  logits_.resize(size_t(rows * plan_.config.vocab));
  linears_.run({&head, 1}, {head_in_.data(), from.stride}, rows, {.exact = plan_.exact}, {}, false,
               {logits_.data(), plan_.config.vocab});
}

}  // namespace

std::unique_ptr<Backend> make_cpu_backend(int threads) {
  return std::make_unique<CpuBackend>(threads);
}

}  // namespace oq
