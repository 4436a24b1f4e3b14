#include "runtime/backend/cuda/device_plan.h"

#include <algorithm>

#include <fmt/format.h>

#include "format/bytes.h"
#include "runtime/backend/cuda/attention.h"
#include "runtime/backend/cuda/linear.h"
#include "runtime/backend/cuda/ranker.h"
#include "runtime/backend/cuda/weight.h"

namespace oq {
namespace {

/// What an allocation costs: large ones come in pages of 2 MiB, small ones share them.
uint64_t taken(uint64_t bytes) {
  constexpr uint64_t kPage = uint64_t(2) << 20, kSmall = 512;
  return round_up(bytes, bytes > kPage / 2 ? kPage : kSmall);
}

uint64_t floats(int64_t rows, int64_t cols) {
  return taken(uint64_t(rows) * round_up(uint64_t(cols), 4) * sizeof(float));
}

/// Logits of a whole batch and what ranks them, what CudaBatch holds, what linears take.
uint64_t scratch(const Plan& plan) {
  const LinearRoom linears(plan);
  return floats(plan.max_rows, plan.config.vocab) + taken(CudaBatch::device_bytes(plan.max_rows)) +
         taken(CudaRanker::device_bytes(plan.config.vocab)) + 1024 + taken(linears.codes) +
         taken(linears.batch) + taken(linears.measured);
}

/// The tables of a slice's experts.
uint64_t expert_tables(const ModelConfig& c) {
  if (c.experts == 0) return 0;
  const int64_t slots = c.experts * cuda::kExpertRows;
  const uint64_t table = uint64_t(c.experts) * sizeof(cuda::LinearArgs<cuda::PackedMatrix>);
  return floats(cuda::kExpertRows, c.experts) + floats(slots, c.mlp) + floats(slots, c.hidden) +
         4 * taken(uint64_t(slots) * 4) + uint64_t(c.blocks) * (taken(2 * table) + taken(table));
}

}  // namespace

DevicePlan DevicePlan::of(const Plan& plan) {
  DevicePlan d;
  for (const TensorInfo& t : plan.tensors) {
    if (t.kind == Kind::bytes) continue;  // a tokenizer's
    d.weights += taken(CudaUploader::device_bytes(t));
    if (t.kind == Kind::packed) d.staging = std::max(d.staging, taken(t.bytes));
  }
  const AttentionRoom room(plan);
  d.kv = uint64_t(plan.config.blocks) * (2 * taken(room.cell_bytes) + taken(room.grid_bytes));
  d.buffers = taken(room.part_bytes) + taken(room.arrived_bytes) + taken(room.rotation_bytes) +
              scratch(plan) + expert_tables(plan.config);
  for (const int64_t cols : plan.buffers) d.buffers += floats(plan.max_rows, cols);
  return d;
}

std::string DevicePlan::str() const {
  const auto gb = [](uint64_t bytes) { return fmt::format("{:.2f}", double(bytes) / 1e9); };
  return fmt::format("{} GB of device memory: {} of weights, {} of KV cache, {} of buffers",
                     gb(total()), gb(weights), gb(kv), gb(buffers + staging));
}

bool DevicePlan::fits(const cuda::DeviceMemory& memory, uint64_t more) const {
  return total() + kReserve + more <= memory.free;
}

void DevicePlan::check_fits(const cuda::DeviceMemory& memory) const {
  if (fits(memory)) return;
  throw cuda::DeviceError({.what = "the model does not fit the device's memory",
                           .where = "CUDA",
                           .expected = str(),
                           .found = fmt::format("{:.2f} GB free of {:.2f}, of which {:.2f} stay so",
                                                double(memory.free) / 1e9,
                                                double(memory.total) / 1e9, double(kReserve) / 1e9),
                           .hint = "choose a smaller --ctx, fewer --kv bits or a file of fewer "
                                   "bits, or use --backend cpu"});
}

}  // namespace oq
