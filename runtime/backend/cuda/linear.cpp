#include "runtime/backend/cuda/linear.h"

#include <algorithm>
#include <limits>
#include <map>

#include "format/bytes.h"

namespace oq {
namespace {

/// Rows beyond which weights become f16 and cuBLAS multiplies. Not measured: 64 rows are one block
/// of the other engine, which reads all weights again for every further 64.
constexpr int kTilesAtMost = 64;

const CudaWeight& weight_of(const Linear& l) { return static_cast<const CudaWeight&>(*l.weight); }
const CudaWeight* cuda_weight(const Weight* w) { return static_cast<const CudaWeight*>(w); }

bool same_kernel(const CudaWeight& a, const CudaWeight& b) {
  if (a.matrix.index() != b.matrix.index()) return false;
  if (const auto* d = std::get_if<cuda::DenseMatrix>(&a.matrix)) {
    return d->type == std::get<cuda::DenseMatrix>(b.matrix).type;
  }
  const auto& p = std::get<cuda::PackedMatrix>(a.matrix);
  const auto& q = std::get<cuda::PackedMatrix>(b.matrix);
  return p.field_bits == q.field_bits && p.five_levels == q.five_levels;
}

bool same_kernel(const TensorInfo& a, const TensorInfo& b) {
  return a.kind == b.kind &&
         (a.kind != Kind::packed ||
          (a.packing.bits == b.packing.bits && a.packing.five_levels == b.packing.five_levels));
}

/// A block's experts are one launch, so what leads into them must be of one kind, and what leads
/// out.
void refuse_mixed_experts(const Plan& plan) {
  std::map<std::string, const TensorInfo*> first;
  for (const TensorInfo& t : plan.tensors) {
    const size_t expert = t.name.find(".experts.");
    if (expert == std::string::npos) continue;
    const std::string key = t.name.substr(0, expert) + (t.name.ends_with(".down") ? " out" : " in");
    const TensorInfo& other = *first.emplace(key, &t).first->second;
    if (same_kernel(t, other)) continue;
    throw cuda::DeviceError({.what = "experts of one block are stored in two ways",
                             .where = t.name,
                             .expected = "as " + other.name,
                             .hint = "use --backend cpu"});
  }
}

int weak_columns(const cuda::PackedMatrix& m) { return m.weak_columns; }
int weak_columns(const cuda::DenseMatrix&) { return 0; }

template <class Matrix>
cuda::LinearArgs<Matrix> args_of(const Linear& l, int column) {
  const CudaWeight* bias = cuda_weight(l.bias);
  return {std::get<Matrix>(weight_of(l).matrix), bias == nullptr ? nullptr : bias->floats(),
          column};
}

/// `library`: there is one for matrix products.
cuda::BatchHow how_of(const cuda::PackedArgs& args, bool precise, bool library = true) {
  const bool gemm = library && !precise && args.experts == nullptr && args.in.tokens > kTilesAtMost;
  return {gemm ? cuda::BatchEngine::gemm : cuda::BatchEngine::tiles, precise};
}

/// The largest call that a tensor of the plan can be part of.
struct PlannedLinear {
  cuda::PackedArgs args{};

  PlannedLinear(const Plan& plan, const TensorInfo& t) {
    const ModelConfig& c = plan.config;
    const bool expert = t.name.find(".experts.") != std::string::npos;
    // What reads a block's input does so beside others: q, k, v; gate and up.
    args.count = int64_t(t.cols) != c.hidden ? 1 : !expert ? cuda::kMaxLinears : c.gated ? 2 : 1;
    const auto matrix = cuda::shape_of(PackedLayout::of(t.rows, t.cols, t.packing));
    for (int l = 0; l < args.count; ++l) args.linears[l].matrix = matrix;
    args.weak_columns = matrix.weak_columns;
    args.expert_count = expert ? int(c.experts) : 0;
    args.experts = expert ? args.linears : nullptr;
    args.in.tokens =
        int(expert ? std::min<int64_t>(plan.max_rows, cuda::kExpertRows) : plan.max_rows);
  }
  PlannedLinear(const PlannedLinear&) = delete;  // `experts` points into it

  size_t code_bytes() const { return CudaIntegers::code_bytes(args); }

  /// Of any number of rows: fewer may take more, for the columns are cut into more splits.
  size_t batch_bytes(const Plan& plan) const {
    size_t most = 0;
    cuda::PackedArgs part = args;
    for (int tokens = kTilesAtMost; part.in.tokens > cuda::kMaxTokens; tokens += kTilesAtMost) {
      part.in.tokens = std::min(tokens, args.in.tokens);
      most = std::max(most, cuda::batch_bytes(part, how_of(part, plan.exact)));
      if (tokens >= args.in.tokens) break;
    }
    return most;
  }
};

bool is_block_linear(const TensorInfo& t) { return t.name.starts_with("blocks.") && t.rows > 1; }

/// Dense weights as they will lie in device memory. Sizes beyond what kernels count with are
/// refused when they are uploaded, and are cut here.
cuda::DenseMatrix planned_matrix(const TensorInfo& t) {
  constexpr uint64_t kMost = std::numeric_limits<int>::max() / 2;
  const uint64_t bytes = t.kind == Kind::f32 ? 4 : 2;
  const uint64_t rows = std::min(t.rows, kMost), cols = std::min(t.cols, kMost);
  return {.type = t.kind == Kind::f32   ? cuda::Dense::f32
                  : t.kind == Kind::f16 ? cuda::Dense::f16
                                        : cuda::Dense::bf16,
          .rows = int(rows),
          .cols = int(cols),
          .stride = int(round_up(cols, 16 / bytes)),
          .data = nullptr};
}

bool is_product(const cuda::DenseArgs& args, bool precise, bool library = true) {
  return library && !precise && args.experts == nullptr && args.in.tokens > cuda::kMaxTokens &&
         args.linears[0].matrix.type == cuda::Dense::f16;
}

/// Of batches of any number of rows: they go at so many rows of weights at once that fewer may take
/// a little more.
size_t dense_batch_bytes(const Plan& plan, const TensorInfo& t) {
  cuda::DenseArgs args{};
  args.count = 1;
  args.linears[0].matrix = planned_matrix(t);
  size_t most = 0;
  for (int64_t tokens = plan.max_rows; tokens > cuda::kMaxTokens; tokens -= cuda::kMaxTokens) {
    args.in.tokens = int(tokens);
    if (is_product(args, plan.exact)) most = std::max(most, cuda::batch_bytes(args));
  }
  return most;
}

/// Of codes' values for a block's dense weights.
size_t value_bytes(const Plan& plan, const TensorInfo& t) {
  cuda::DenseArgs args{};
  args.count = 1;
  args.linears[0].matrix = planned_matrix(t);
  args.in.tokens = int(plan.max_rows);
  if (t.name.find(".experts.") != std::string::npos) {
    args.experts = args.linears;
    args.expert_count = int(plan.config.experts);
  }
  return CudaIntegers::value_bytes(args);
}

}  // namespace

cuda::NormArgs norm_args(const Norm& norm) {
  if (norm.weight == nullptr) return {};
  const CudaWeight &weight = *cuda_weight(norm.weight), *bias = cuda_weight(norm.bias);
  return {.kind = bias == nullptr ? cuda::NormKind::rms : cuda::NormKind::layer,
          .weight = weight.floats(),
          .bias = bias == nullptr ? nullptr : bias->floats(),
          .eps = norm.eps,
          .weight_peak = weight.peak,
          .bias_peak = bias == nullptr ? 0.0f : bias->peak};
}

LinearRoom::LinearRoom(const Plan& plan) {
  for (const TensorInfo& t : plan.tensors) {
    if (t.kind == Kind::bytes) continue;
    const bool quantized = is_block_linear(t) && plan.scheme.activation_bits < 16;
    if (t.kind != Kind::packed) {
      if (quantized) codes = std::max<uint64_t>(codes, value_bytes(plan, t));
      if (t.name != "positions") batch = std::max<uint64_t>(batch, dense_batch_bytes(plan, t));
      continue;
    }
    const PlannedLinear linear(plan, t);
    if (quantized) {
      codes = std::max<uint64_t>(codes, linear.code_bytes());
      const auto widest = uint64_t(std::max(plan.config.hidden, plan.config.mlp));
      measured = uint64_t(plan.max_rows) * round_up(widest, 4) * sizeof(float);
    } else {
      batch = std::max<uint64_t>(batch, linear.batch_bytes(plan));
    }
  }
}

std::string CudaLinears::notice() const {
  const std::string& engines = integers_.notice();
  return engines + (engines.empty() || missing_.empty() ? "" : "; ") + missing_;
}

void CudaLinears::check(const Plan& plan) {
  refuse_mixed_experts(plan);
  if (plan.exact || plan.max_rows <= cuda::kMaxTokens) return;
  try {
    space_.gemm = std::make_unique<cuda::Gemm>(stream_);
  } catch (const cuda::DeviceError& e) {
    missing_ = std::string("long prompts are slower, for ") + e.what();
  }
}

void CudaLinears::configure(const Plan& plan) {
  precise_ = plan.exact;
  integers_.reserve(LinearRoom(plan).codes);
}

/// Integers where the scheme quantizes what comes in; else decode's kernels for up to 8 rows, then
/// tensor cores on packed weights, then cuBLAS.
template <>
void CudaLinears::start(const cuda::PackedArgs& args) {
  if (args.in.bits < 16) return integers_.run(args);
  if (args.in.tokens <= cuda::kMaxTokens) return cuda::packed_linears(stream_, args);
  cuda::batch_linears(stream_, args, how_of(args, precise_, space_.gemm != nullptr), space_);
}
/// More than eight rows of f16 weights by cuBLAS, others eight at a time.
template <>
void CudaLinears::start(const cuda::DenseArgs& args) {
  if (args.in.bits < 16) return start(integers_.on_grid(args));
  if (is_product(args, precise_, space_.gemm != nullptr)) {
    return cuda::batch_linears(stream_, args, space_);
  }
  cuda::DenseArgs part = args;
  for (int first = 0; first < args.in.tokens; first += cuda::kMaxTokens) {
    part.in.tokens = std::min(cuda::kMaxTokens, args.in.tokens - first);
    part.in.first = first;
    part.out.y = args.out.y + int64_t(first) * args.out.stride;
    cuda::dense_linears(stream_, part);
  }
}

template <class Matrix>
void CudaLinears::run_kind(std::span<const Linear> linears, int column, const cuda::InputArgs& in,
                           const cuda::OutputArgs& out) {
  cuda::LinearsArgs<Matrix> args{.in = in,
                                 .out = out,
                                 .count = int(linears.size()),
                                 .linears = {},
                                 .experts = nullptr,
                                 .expert_count = 0};
  for (size_t i = 0; i < linears.size(); ++i) {
    args.linears[i] = args_of<Matrix>(linears[i], column);
    args.weak_columns = std::max(args.weak_columns, weak_columns(args.linears[i].matrix));
    if (out.finish != cuda::Finish::activate) column += args.linears[i].matrix.rows;
  }
  start(args);
}

void CudaLinears::run(std::span<const Linear> linears, const cuda::InputArgs& in,
                      const cuda::OutputArgs& out) {
  int column = 0;
  for (size_t from = 0; from < linears.size();) {
    size_t to = from + 1;
    while (to < linears.size() && to - from < size_t(cuda::kMaxLinears) &&
           same_kernel(weight_of(linears[from]), weight_of(linears[to]))) {
      ++to;
    }
    const auto part = linears.subspan(from, to - from);
    cuda::OutputArgs to_y = out;
    const bool activate = out.finish == cuda::Finish::activate;
    // Up, where it is of another kind than gate.
    if (activate && from > 0) to_y.finish = cuda::Finish::multiply;
    if (std::holds_alternative<cuda::PackedMatrix>(weight_of(part.front()).matrix)) {
      run_kind<cuda::PackedMatrix>(part, column, in, to_y);
    } else {
      run_kind<cuda::DenseMatrix>(part, column, in, to_y);
    }
    for (const Linear& l : part) column += activate ? 0 : weight_of(l).rows();
    from = to;
  }
}

template <class Matrix>
void CudaLinears::run_expert_kind(std::span<const std::vector<Linear>> experts, Table& table,
                                  const cuda::InputArgs& in, const cuda::OutputArgs& out) {
  const std::vector<Linear>& first = experts.front();
  if (!table.ready) {
    std::vector<cuda::LinearArgs<Matrix>> all;
    for (const auto& expert : experts) {
      for (const Linear& l : expert) {
        all.push_back(args_of<Matrix>(l, 0));
        table.weak_columns = std::max(table.weak_columns, weak_columns(all.back().matrix));
      }
    }
    table.memory = cuda::uploaded(stream_, std::span<const cuda::LinearArgs<Matrix>>(all));
    table.ready = true;
  }
  cuda::LinearsArgs<Matrix> args{.in = in,
                                 .out = out,
                                 .count = int(first.size()),
                                 .linears = {},
                                 .experts = table.memory.as<cuda::LinearArgs<Matrix>>(),
                                 .expert_count = int(experts.size())};
  args.weak_columns = table.weak_columns;
  for (size_t i = 0; i < first.size(); ++i) args.linears[i] = args_of<Matrix>(first[i], 0);
  if constexpr (std::is_same_v<Matrix, cuda::PackedMatrix>) {
    for (const auto& expert : experts) {
      for (size_t i = 0; i < first.size(); ++i) {
        int& most = args.linears[i].matrix.weak_columns;
        most = std::max(most, std::get<Matrix>(weight_of(expert[i]).matrix).weak_columns);
      }
    }
  }
  start(args);
}

void CudaLinears::run_experts(std::span<const std::vector<Linear>> experts, Table& table,
                              const cuda::InputArgs& in, const cuda::OutputArgs& out) {
  if (std::holds_alternative<cuda::PackedMatrix>(weight_of(experts[0][0]).matrix)) {
    run_expert_kind<cuda::PackedMatrix>(experts, table, in, out);
  } else {
    run_expert_kind<cuda::DenseMatrix>(experts, table, in, out);
  }
}

}  // namespace oq
