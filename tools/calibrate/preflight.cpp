#include "tools/calibrate/preflight.h"

#include <algorithm>
#include <chrono>

#include <fmt/format.h>

#include "format/memory.h"
#include "tools/calibrate/block.h"
#include "tools/calibrate/hidden_states.h"
#include "tools/calibrate/methods/block_search.h"
#include "tools/calibrate/methods/method.h"
#include "tools/calibrate/methods/output_judge.h"
#include "tools/calibrate/solver/linalg.h"

namespace oq::calibrate {
namespace {

/// Floating-point operations per second of a product like a block's.
double blas_speed(int threads) {
  using Clock = std::chrono::steady_clock;
  constexpr int64_t n = 768;
  ThreadPool pool(threads);
  const BlasThreads blas(pool.threads());
  const std::vector<float> a(n * n, 1.0f);
  std::vector<float> c(n * n);
  double best = 0;
  for (int i = 0; i < 4; ++i) {
    const auto start = Clock::now();
    gemm({.m = n,
          .n = n,
          .k = n,
          .alpha = 1,
          .a = a.data(),
          .a_stride = n,
          .b = a.data(),
          .b_stride = n,
          .beta = 0,
          .c = c.data(),
          .c_stride = n});
    const std::chrono::duration<double> time = Clock::now() - start;
    best = std::max(best, 2.0 * n * n * n / time.count());
  }
  return best;
}

struct BlockSize {
  double weights = 0, squares = 0, largest_square = 0;
  int64_t linears = 0;
};

/// Sizes of a block's linears, and of the Hessians of their inputs.
BlockSize block_size(const File& file, const ModelConfig& config) {
  BlockSize size;
  for (const auto& group : input_groups(config)) {
    double square = 0;
    for (const std::string& name : group) {
      const TensorInfo& t = file.tensor("blocks.0." + name);
      size.weights += double(t.elements());
      ++size.linears;
      square = double(t.cols) * double(t.cols);
    }
    size.squares += square;
    size.largest_square = std::max(size.largest_square, square);
  }
  return size;
}

/// How a method works on a block.
struct Work {
  double passes = 0;        ///< of all windows through the block, forwards
  double products = 0;      ///< of all inputs with themselves, for second moments
  double heads = 0;         ///< likewise through the head
  double last_heads = 0;    ///< likewise, by the last block alone
  double tables = 0;        ///< heads that are held in fp32
  double weight_bytes = 0;  ///< a weight takes: in fp32 as often as it is held, and as a candidate
  double matrices = 0;      ///< of second moments of one input, held at once
};

Work learning_work(const Options& o) {
  const bool again = aims_at_own_targets(o) || o.learning.attention_share > 0;
  // A step goes forwards and, at twice the cost, backwards; the unquantized model goes along.
  Work w{.weight_bytes = 4 * 6};
  w.passes = 3.0 * double(o.learning.epochs) + 1 + (observes_inputs(o) ? 1 : 0) + (again ? 1 : 0);
  if (o.parameters.empty() && !o.learning.faithful) {  // by the last block, for each target
    w.last_heads = (aims_at_own_targets(o) ? 6.0 : 3.0) * double(o.learning.epochs);
    w.tables = 1;
  }
  return w;
}

/// Whether choices are judged by what the model predicts.
bool judges(const Options& o, int64_t windows) {
  return o.method == "auto" && held_out_windows(windows) > 0;
}

/// Both blocks are kept while each is learned or searched, with their candidates.
Work auto_work(const Options& o, int64_t blocks, int64_t linears, int64_t windows) {
  const AutoCandidates n = auto_candidates(o);
  const AutoPasses passes = auto_passes(o, blocks, linears, windows);
  const double integers = o.scheme.activation_bits < 16 ? 1 : 0;
  Work w = learning_work(o);
  w.passes += passes.before + passes.after;
  w.products = 2 * (1 + 2 * integers);
  w.matrices = 1 + 2 * integers;
  if (judges(o, windows)) {
    w.heads += judged_share(windows) * 2 * 2;
    w.tables += 1;
  }
  // A search runs on a copy; judging takes two, and what is behind them.
  const double before = 4 * 3 + double(n.widths * n.plain);
  const double learning = w.weight_bytes + 4 * 2 + double(n.plain);
  const double after = 4 * (judges(o, windows) ? 6 : 4) + double(n.plain + n.learned);
  w.weight_bytes = std::max({before, learning, after});
  return w;
}

Work work_of(const Options& o, int64_t blocks, int64_t linears, int64_t windows) {
  if (o.method == "auto") return auto_work(o, blocks, linears, windows);
  if (learns(o.method)) return learning_work(o);
  if (o.method == "awrq") return {.passes = 1, .products = 3, .weight_bytes = 4 * 3, .matrices = 2};
  const bool solver = reads(o.method, "--damp");
  return {.passes = solver ? 1.0 : 0.0,
          .products = solver ? 1.0 : 0.0,
          .weight_bytes = 4 * 3,
          .matrices = solver ? 1.0 : 0.0};
}

}  // namespace

Preflight preflight(const File& file, const ModelConfig& config, const Options& o,
                    int64_t windows) {
  const BlockSize block = block_size(file, config);
  const double tokens = double(windows) * double(o.window);
  const double used = config.experts > 0 ? double(config.experts_used) / double(config.experts) : 1;
  const bool learned = learns(o.method);
  const Work work = work_of(o, config.blocks, block.linears, windows);
  const double passes = windows == 0 ? 0 : 1 + (o.smooth ? 1 : 0) + work.passes;
  Preflight p;
  const double attention = 2.0 * double(o.window) * double(config.q_width());
  const double head = 2 * double(config.vocab) * double(config.table_width());
  const double of_block = passes * (2 * block.weights * used + attention) +
                          work.products * block.squares * used + work.heads * head;
  p.flops = tokens * (double(config.blocks) * of_block + work.last_heads * head);
  if (of_block > 0) p.last_block = 1 + work.last_heads * head / of_block;
  p.seconds = p.flops / blas_speed(o.threads);

  // Inputs, targets, own targets; attention maps.
  std::vector<uint64_t> states(learned ? (aims_at_own_targets(o) ? 3 : 2) : 1,
                               HiddenStates::bytes(windows, o.window, config.hidden));
  if (o.learning.attention_share > 0) {
    states.push_back(HiddenStates::bytes(windows, o.window, o.window));
  }
  p.available = available_memory();
  p.hidden_memory_limit = p.available / 4 / states.size();
  uint64_t in_memory = 0, on_disk = 0;
  for (const uint64_t bytes : states) {
    (bytes > p.hidden_memory_limit ? on_disk : in_memory) += bytes;
  }
  const double row =
      4.0 * (learned ? 3 : 1) *
      double(config.q_width() + 2 * config.kv_width() + 4 * config.hidden + 3 * config.mlp);
  const double table = 4.0 * double(config.vocab) * double(config.table_width());
  // Moments of as many inputs as moment_batches takes together, and factors of one.
  const double moments =
      work.matrices * (std::min(block.squares, 2 * block.largest_square) + block.largest_square);
  double working = work.weight_bytes * block.weights + 4 * moments + row * double(o.window);
  const double logits = 2 * 4.0 * double(HeadGraph::kTokens) * double(config.vocab);
  working += work.tables * (table + logits);
  if (judges(o, windows)) {  // full precision's hidden states behind all blocks, and two others
    working += 3 * double(HiddenStates::bytes(held_out_windows(windows), o.window, config.hidden));
  }
  p.memory = uint64_t(std::max(working, table)) + in_memory;
  const double bits = o.scheme.quantizes_weights() ? o.scheme.weight_bits + 1 : 16;
  p.disk = uint64_t(2 * block.weights * double(config.blocks) * bits / 8) +
           file.tensor("embedding").bytes * 2 + on_disk;
  return p;
}

std::string Preflight::text() const {
  return fmt::format(
      "about {:.1f} GB of memory ({:.1f} available), {:.1f} GB of disk, {:.1e} "
      "floating-point operations: {:.0f} minutes or more",
      double(memory) / 1e9, double(available) / 1e9, double(disk) / 1e9, flops, seconds / 60);
}

void Preflight::check(const std::filesystem::path& output) const {
  std::error_code unknown;
  const auto folder = std::filesystem::absolute(output).parent_path();
  const auto space = std::filesystem::space(folder, unknown);
  if (!unknown && space.available < disk) {
    throw Error({.what = "there is not enough room on the disk",
                 .where = folder.string(),
                 .expected = fmt::format("{} MiB", disk >> 20),
                 .found = fmt::format("{} MiB", space.available >> 20),
                 .hint = "make room, or write to another disk"});
  }
  if (available > 0 && memory > available) {
    throw Error({.what = "there is not enough memory",
                 .where = "calibration",
                 .expected = fmt::format("{} MiB", memory >> 20),
                 .found = fmt::format("{} MiB", available >> 20),
                 .hint = "take a shorter --window, or a machine with more"});
  }
}

}  // namespace oq::calibrate
