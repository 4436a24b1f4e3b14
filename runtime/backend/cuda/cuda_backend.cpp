#include "runtime/backend/cuda/cuda_backend.h"

#include <map>
#include <optional>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "kernels/cuda/kernels.h"
#include "runtime/backend/cuda/attention.h"
#include "runtime/backend/cuda/batch.h"
#include "runtime/backend/cuda/device_plan.h"
#include "runtime/backend/cuda/linear.h"
#include "runtime/backend/cuda/ranker.h"
#include "runtime/backend/cuda/steps.h"
#include "runtime/backend/cuda/weight.h"

namespace oq {
namespace {

using cuda::Finish;

const CudaWeight& weight_of(const Weight& w) { return static_cast<const CudaWeight&>(w); }
const CudaBuffer& buffer_of(const Buffer& b) { return static_cast<const CudaBuffer&>(b); }

/// What a block's experts need between the router and their sum.
struct ExpertTables {
  std::vector<std::vector<Linear>> into, down;  ///< of each expert: gate and up, or up; down
  CudaLinears::Table into_table, down_table;
};

class CudaBackend final : public Backend {
 public:
  CudaBackend(cuda::DeviceInfo device, CudaOptions options)
      : device_(std::move(device)),
        options_(std::move(options)),
        free_before_(cuda::device_memory().free),
        steps_(stream_, options_.captures),
        uploader_(stream_),
        linears_(stream_, device_) {
    cuda::run_nothing(stream_);  // shows a device that this build has no kernels for
    stream_.synchronize();
  }
  ~CudaBackend() override { steps_.abandon(); }  // nothing can be freed while a step is recorded

  std::string description() const override {
    const std::string notice = linears_.notice();
    return fmt::format("cuda, {}, sm_{}{}{}{}", device_.name, device_.major, device_.minor,
                       notice.empty() ? "" : "; ", notice);
  }

  std::optional<uint64_t> device_bytes() const override {
    const size_t free = cuda::device_memory().free;
    return free_before_ > free ? free_before_ - free : 0;
  }

  int64_t step_rows(const Plan& plan) const override;
  void configure(const Plan& plan) override;

  std::unique_ptr<Weight> prepare(std::shared_ptr<const File> file,
                                  const TensorInfo& info) override {
    const float deviation = options_.random ? options_.random(info) : 0.0f;
    if (deviation <= 0) return uploader_.upload(*file, info);
    std::span<const uint32_t> weak;
    if (info.kind == Kind::packed) weak = file->packed(info).weak_indices();
    return uploader_.make(info, deviation, weak);
  }

  std::unique_ptr<Buffer> buffer(int64_t cols) override {
    return std::make_unique<CudaBuffer>(plan_.max_rows, cols);
  }

  bool begin(const Batch& batch) override {
    steps_.abandon();
    uploader_.finish();
    batch_->load(batch);
    logits_read_ = false;
    logits_rows_ = 0;
    return steps_.begin(batch_->shape());
  }
  bool end() override {
    if (!steps_.end()) {
      if (options_.notice) options_.notice("cuda: steps cannot be captured, each op starts alone");
      return false;
    }
    logits_rows_ = batch_->logit_rows();
    return true;
  }

  void embed(const Weight& table, Buffer& x) override {
    look_up(weight_of(table), batch_->tokens(), false, buffer_of(x));
  }
  void add_positions(const Weight& table, Buffer& x) override {
    look_up(weight_of(table), batch_->positions(), true, buffer_of(x));
  }

  void norm(const Norm& norm, Buffer& x) override {
    if (norm.weight == nullptr) return;
    const CudaBuffer& b = buffer_of(x);
    cuda::norm_rows(stream_, {.norm = norm_args(norm),
                              .x = b.row(0),
                              .stride = b.stride,
                              .cols = weight_of(*norm.weight).cols(),
                              .tokens = batch_->rows()});
  }

  void linear(const Linear& l, const Buffer& in, Buffer& out) override {
    run({&l, 1}, {}, 16, buffer_of(in), Finish::store, buffer_of(out));
  }
  void norm_linears(const Norm& norm, const Buffer& x, std::span<const Linear> linears,
                    Buffer& out) override {
    run(linears, norm, block_bits(), buffer_of(x), Finish::store, buffer_of(out));
  }
  void linear_residual(const Linear& l, const Buffer& in, Buffer& x) override {
    run({&l, 1}, {}, block_bits(), buffer_of(in), Finish::add, buffer_of(x));
  }
  void norm_mlp(const Norm& norm, const Buffer& x, const Mlp& mlp, Buffer& out) override {
    activation_ = mlp.activation;
    const Linear both[] = {mlp.gate, mlp.up};
    run(std::span(both).subspan(mlp.gate.weight == nullptr ? 1 : 0), norm, block_bits(),
        buffer_of(x), Finish::activate, buffer_of(out));
  }

  /// Both belong to one kernel: a block that attends to a stretch of positions appends those of
  /// its own. So the rotation waits for `attention`, which follows.
  void rope_append(int64_t, const Weight* inv_freq, Buffer&) override {
    inv_freq_ = inv_freq == nullptr ? nullptr : &weight_of(*inv_freq);
  }
  void attention(int64_t layer, const Weight* alibi, const Buffer& qkv, Buffer& out) override {
    const CudaBuffer &from = buffer_of(qkv), &to = buffer_of(out);
    attention_->run(layer, *batch_, inv_freq_, alibi == nullptr ? nullptr : &weight_of(*alibi),
                    from.row(0), from.stride, to.row(0), to.stride);
  }

  void norm_experts(const Norm& norm, const Experts& experts, Buffer& x) override;
  void head(const Norm& norm, const Linear& head, const Buffer& x) override;
  std::span<const float> read_logits(int64_t i) override;
  const Ranking& rank(int64_t i, const RankRequest& request) override;

 private:
  int block_bits() const { return plan_.scheme.activation_bits; }

  cuda::InputArgs input(const CudaBuffer& x, int first, int tokens, const Norm& norm,
                        int bits) const {
    return {.x = x.row(first),
            .stride = x.stride,
            .tokens = tokens,
            .rows = nullptr,
            .norm = norm_args(norm),
            .bits = bits,
            .count = nullptr,
            .expert_stride = 0,
            .per_tensor = plan_.scheme.per_tensor,
            .runs = batch_->runs() + first};
  }
  cuda::OutputArgs output(const CudaBuffer& y, int first, Finish finish) const {
    return {.finish = finish,
            .y = y.row(first),
            .stride = y.stride,
            .activation = activation_,
            .expert_stride = 0};
  }

  void run(std::span<const Linear> linears, const Norm& norm, int bits, const CudaBuffer& in,
           Finish finish, const CudaBuffer& out) {
    linears_.run(linears, input(in, 0, batch_->rows(), norm, bits), output(out, 0, finish));
  }

  void look_up(const CudaWeight& table, const int32_t* index, bool add, const CudaBuffer& x) {
    std::visit(
        [&](const auto& matrix) {
          using Matrix = std::decay_t<decltype(matrix)>;
          cuda::lookup(stream_, cuda::LookupArgs<Matrix>{matrix, index, batch_->rows(), add,
                                                         x.row(0), x.stride});
        },
        table.matrix);
  }

  void check_row(int64_t i) const;
  ExpertTables& tables_of(const Experts& experts);
  void make_expert_room(const Experts& experts);
  void run_experts(const Norm& norm, const Experts& experts, const CudaBuffer& x,
                   const CudaBatch::Slice& slice);

  cuda::DeviceInfo device_;
  CudaOptions options_;
  size_t free_before_;
  cuda::Stream stream_;
  CudaSteps steps_;
  CudaUploader uploader_;
  CudaLinears linears_;
  Plan plan_;
  std::unique_ptr<CudaBatch> batch_;
  std::unique_ptr<CudaAttention> attention_;
  const CudaWeight* inv_freq_ = nullptr;
  Activation activation_ = Activation::silu;
  // Experts: of one slice, [experts][64 rows].
  std::map<const Weight*, ExpertTables> experts_;  ///< by router
  std::unique_ptr<CudaBuffer> router_, hidden_, expert_out_;
  cuda::Memory rows_, count_, slot_, weight_;
  std::unique_ptr<CudaBuffer> logits_;
  int logits_rows_ = 0, logits_room_ = 0;
  bool logits_read_ = false;
  std::vector<float> host_logits_;
  CudaRanker ranker_{stream_};
  Ranking ranking_;
};

/// A batch is a range per tensor, and experts take their rows in slices.
bool ranges_cross_slices(const Plan& plan) {
  const Scheme& s = plan.scheme;
  return s.activation_bits < 16 && s.per_tensor && plan.config.experts > 0;
}

/// A step reads all weights, and where they become f16 for cuBLAS writes them and reads them again:
/// the more rows share that the better, as long as there is room for them.
int64_t CudaBackend::step_rows(const Plan& plan) const {
  if (ranges_cross_slices(plan)) return cuda::kExpertRows;
  Plan tried = plan;
  for (const int64_t rows : {2048, 1024, 512}) {
    tried.max_rows = std::min(rows, plan.context * plan.sequences);
    const DevicePlan memory = DevicePlan::of(tried);  // configure() counts again, behind cuBLAS
    if (memory.fits(cuda::device_memory(), DevicePlan::kLibrary)) return rows;
  }
  return Backend::step_rows(plan);
}

void CudaBackend::configure(const Plan& plan) {
  plan_ = plan;
  const Scheme& scheme = plan.scheme;
  if (ranges_cross_slices(plan) && plan.max_rows > cuda::kExpertRows) {
    throw cuda::DeviceError(
        {.what = "per-tensor activation quantization of experts in larger batches "
                 "is not in the CUDA backend",
         .where = "scheme " + scheme.str(),
         .expected = fmt::format("batches of at most {} rows", cuda::kExpertRows),
         .found = std::to_string(plan.max_rows),
         .hint = "use --backend cpu"});
  }
  if (scheme.heads_share_range && (scheme.query_bits < 16 || plan.kv_bits <= 8)) {
    throw cuda::DeviceError(
        {.what = "one range over all heads of a token is not in the CUDA backend",
         .where = "attention.range",
         .expected = "head",
         .found = "token",
         .hint = "use --backend cpu"});
  }
  linears_.check(plan);
  const DevicePlan memory = DevicePlan::of(plan);
  if (options_.notice) options_.notice(description() + ": " + memory.str());
  memory.check_fits(cuda::device_memory());
  batch_ = std::make_unique<CudaBatch>(stream_, plan.max_rows, plan.context);
  attention_ = std::make_unique<CudaAttention>(stream_, plan);
  linears_.configure(plan);
  uploader_.reserve(memory.staging);
}

ExpertTables& CudaBackend::tables_of(const Experts& experts) {
  ExpertTables& t = experts_[experts.router];
  if (!t.into.empty()) return t;
  for (const Mlp& mlp : experts.mlps) {
    t.into.push_back({});
    if (mlp.gate.weight != nullptr) t.into.back().push_back(mlp.gate);
    t.into.back().push_back(mlp.up);
    t.down.push_back({mlp.down});
  }
  return t;
}

void CudaBackend::make_expert_room(const Experts& experts) {
  if (router_ != nullptr) return;
  const auto n = int64_t(experts.mlps.size());
  constexpr int64_t kRows = cuda::kExpertRows;
  router_ = std::make_unique<CudaBuffer>(kRows, n);
  hidden_ = std::make_unique<CudaBuffer>(n * kRows, plan_.config.mlp);
  expert_out_ = std::make_unique<CudaBuffer>(n * kRows, plan_.config.hidden);
  for (cuda::Memory* m : {&rows_, &count_, &slot_, &weight_})
    *m = cuda::Memory(size_t(n * kRows) * 4);
}

/// The router's logits, its choice, and the chosen experts, without asking the host: a block
/// whose expert nobody chose leaves at once.
void CudaBackend::run_experts(const Norm& norm, const Experts& experts, const CudaBuffer& x,
                              const CudaBatch::Slice& s) {
  ExpertTables& tables = tables_of(experts);
  const auto n = int(experts.mlps.size());
  const Linear router{.weight = experts.router, .bias = nullptr};
  linears_.run({&router, 1}, input(x, s.first, s.rows, norm, 16),
               output(*router_, 0, Finish::store));
  cuda::route(stream_, {.logits = router_->row(0),
                        .stride = router_->stride,
                        .tokens = s.rows,
                        .experts = n,
                        .used = int(experts.used),
                        .rows = rows_.as<int32_t>(),
                        .count = count_.as<int32_t>(),
                        .slot = slot_.as<int32_t>(),
                        .weight = weight_.as<float>()});
  activation_ = experts.mlps.front().activation;
  cuda::InputArgs in = input(x, s.first, s.rows, norm, block_bits());
  in.rows = in.run_rows = rows_.as<int32_t>();
  in.count = count_.as<int32_t>();
  cuda::OutputArgs hidden = output(*hidden_, 0, Finish::activate);
  hidden.expert_stride = int64_t(cuda::kExpertRows) * hidden_->stride;
  linears_.run_experts(tables.into, tables.into_table, in, hidden);
  in = input(*hidden_, 0, s.rows, {}, block_bits());
  in.runs = batch_->runs() + s.first;
  in.run_rows = rows_.as<int32_t>();
  in.count = count_.as<int32_t>();
  in.expert_stride = hidden.expert_stride;
  cuda::OutputArgs out = output(*expert_out_, 0, Finish::store);
  out.expert_stride = int64_t(cuda::kExpertRows) * expert_out_->stride;
  linears_.run_experts(tables.down, tables.down_table, in, out);
  cuda::combine(stream_, {.out = expert_out_->row(0),
                          .expert_stride = out.expert_stride,
                          .out_stride = expert_out_->stride,
                          .tokens = s.rows,
                          .experts = n,
                          .cols = int(plan_.config.hidden),
                          .slot = slot_.as<int32_t>(),
                          .weight = weight_.as<float>(),
                          .x = x.row(s.first),
                          .stride = x.stride});
}

void CudaBackend::norm_experts(const Norm& norm, const Experts& experts, Buffer& x) {
  make_expert_room(experts);
  for (const CudaBatch::Slice& s : batch_->slices()) run_experts(norm, experts, buffer_of(x), s);
}

void CudaBackend::head(const Norm& norm, const Linear& head, const Buffer& x) {
  const int rows = batch_->logit_rows();
  if (rows > logits_room_) {
    steps_.forget();
    logits_ = nullptr;
    logits_ = std::make_unique<CudaBuffer>(rows, plan_.config.vocab);
    logits_room_ = rows;
  }
  if (rows == 0) return;
  cuda::InputArgs in = input(buffer_of(x), 0, rows, norm, 16);
  in.rows = batch_->logit_list();
  linears_.run({&head, 1}, in, output(*logits_, 0, Finish::store));
}

void CudaBackend::check_row(int64_t i) const {
  if (i < 0 || i >= logits_rows_) {
    throw Error({.what = "the last step left no such logits",
                 .where = "cuda backend",
                 .expected = fmt::format("below {}", logits_rows_),
                 .found = std::to_string(i)});
  }
}

std::span<const float> CudaBackend::read_logits(int64_t i) {
  check_row(i);
  const auto stride = size_t(logits_->stride);
  if (!logits_read_) {
    host_logits_.resize(size_t(logits_rows_) * stride);
    cuda::download(stream_, host_logits_.data(), logits_->row(0),
                   host_logits_.size() * sizeof(float));
    logits_read_ = true;
  }
  return std::span(host_logits_).subspan(size_t(i) * stride, size_t(plan_.config.vocab));
}

const Ranking& CudaBackend::rank(int64_t i, const RankRequest& request) {
  check_row(i);
  if (logits_read_ || !CudaRanker::can_rank(request.vocab)) {
    rank_logits(read_logits(i), request, ranking_);
  } else {
    ranker_.run(logits_->row(i), request, ranking_);
  }
  return ranking_;
}

}  // namespace

std::unique_ptr<Backend> make_cuda_backend(CudaOptions options) {
  std::string why;
  std::optional<cuda::DeviceInfo> device = cuda::find_device(why);
  if (!device) {
    throw cuda::DeviceError(
        {.what = "no CUDA device can be used", .found = why, .hint = "use --backend cpu"});
  }
  return std::make_unique<CudaBackend>(std::move(*device), std::move(options));
}

}  // namespace oq
