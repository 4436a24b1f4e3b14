/// The CUDA backend on a device that is missing, small or failing; captured steps.

#include <algorithm>
#include <cmath>
#include <numeric>
#include <string>
#include <vector>

#include <doctest/doctest.h>

#include "kernels/cuda/kernels.h"
#include "runtime/backend/cuda/cuda_backend.h"
#include "runtime/backend/cuda/device_plan.h"
#include "runtime/backend/cuda/steps.h"
#include "tests/simt/device_state.h"
#include "tests/support.h"
#include "tests/tiny_oq.h"
#include "tests/variants.h"
#include "tools/common/backend.h"

using namespace oq;
using namespace oq::test;

namespace {

/// A device of the test's own; the next test finds a whole one.
class Device {
 public:
  Device() : before_(state()) { state().peak = state().used; }
  ~Device() {
    state().info = before_.info;
    state().block_shared = before_.block_shared;
    state().has_gemm = before_.has_gemm;
    state().memory = before_.memory;
    state().launches_left = before_.launches_left;
    state().allocations_left = before_.allocations_left;
    state().graphs_left = before_.graphs_left;
  }
  static simt::DeviceState& state() { return simt::device_state(); }
  simt::DeviceState* operator->() { return &state(); }

 private:
  simt::DeviceState before_;
};

constexpr Decoder::Options kOptions = {.context = 300, .sequences = 2, .max_rows = 20};

/// What runs where `backend` was asked for.
std::string runs(const std::shared_ptr<const File>& file, const std::string& backend,
                 const Decoder::Options& options = kOptions) {
  return tool::make_decoder(file, {backend, 1, true}, options).backend().description();
}

bool starts_with(const std::string& text, const std::string& start) {
  return text.rfind(start, 0) == 0;
}

void check_falls_back(const std::shared_ptr<const File>& file, const std::string& why,
                      const Decoder::Options& options = kOptions) {
  CAPTURE(why);
  CHECK(starts_with(runs(file, "auto", options), "cpu, "));
  for (const char* part : {why.c_str(), "--backend cuda", "use --backend cpu"}) {
    CHECK_THROWS_WITH_AS(runs(file, "cuda", options), doctest::Contains(part), Error);
  }
}

}  // namespace

TEST_CASE("auto takes the device where it can, the CPU where it cannot; cuda says why not") {
  const TempDir dir;
  const auto file = make_tiny_oq(dir / "tiny.oq", {.scheme = "w4a16g32"});
  CHECK(starts_with(runs(file, "auto"), "cuda, emulator, sm_90"));
  CHECK(starts_with(runs(file, "cuda"), "cuda, emulator"));
  CHECK(starts_with(runs(file, "cpu"), "cpu, "));
  Device device;
  SUBCASE("no driver") {
    device->info.driver = 0;
    check_falls_back(file, "no NVIDIA driver");
  }
  SUBCASE("an old driver") {
    device->info.driver = 11080;
    check_falls_back(file, "made for CUDA 11.8, this build needs 12.0");
  }
  SUBCASE("an old device") {
    device->info.major = 7;
    check_falls_back(file, "emulator is of compute capability 7.0; 7.5 is the least");
  }
  SUBCASE("a device that this build has no kernels for") {
    device->launches_left = 0;
    CHECK(starts_with(runs(file, "auto"), "cpu, "));
    CHECK_THROWS_WITH_AS(runs(file, "cuda"), doctest::Contains("--backend cuda"), Error);
  }
  SUBCASE("a device that fails while the weights come") {
    device->launches_left = 7;
    CHECK(starts_with(runs(file, "auto"), "cpu, "));
  }
  SUBCASE("too little memory") {
    device->memory = device->used + 1000;
    check_falls_back(file, "does not fit the device's memory (expected");
  }
  SUBCASE("one range over all heads of a token") {
    for (const char* scheme : {"w4a16q8", "w4a16kv8"}) {
      check_falls_back(
          make_tiny_oq(dir / "token.oq", {.scheme = scheme, .heads_share_range = true}),
          "attention.range: one range over all heads");
    }
    // It says nothing where neither queries nor the cache are quantized.
    const auto file =
        make_tiny_oq(dir / "f16.oq", {.scheme = "w4a16kv8", .heads_share_range = true});
    Decoder::Options options = kOptions;
    options.kv_bits = 16;
    CHECK(starts_with(runs(file, "cuda", options), "cuda, "));
  }
  SUBCASE("a scheme that it has no kernels for") {
    ModelConfig config = tiny_config();
    config.experts = 3;
    config.experts_used = 2;
    check_falls_back(make_tiny_oq(dir / "tensor.oq", {.scheme = "w4a8t", .config = config}),
                     "scheme w4a8t", {.context = 300, .sequences = 2, .max_rows = 65});
  }
}

TEST_CASE("memory that runs out in spite of the plan is one line, or the CPU under auto") {
  const TempDir dir;
  const auto file = make_tiny_oq(dir / "tiny.oq", {.scheme = "w4a16g32"});
  Device device;
  device->allocations_left = 6;
  CHECK(starts_with(runs(file, "auto"), "cpu, "));
  device->allocations_left = 6;
  CHECK_THROWS_WITH_AS(runs(file, "cuda"), doctest::Contains("the device's memory is full"), Error);
}

TEST_CASE("without a library for matrix products long prompts go on, and that is said") {
  const TempDir dir;
  for (const char* scheme : {"w4a16g32", "w16a16"}) {
    const auto file = make_tiny_oq(dir / "tiny.oq", {.scheme = scheme});
    const Decoder::Options options{.context = 128, .sequences = 1, .max_rows = 80};
    const std::vector<int32_t> prompt(70, 9);
    const auto logits = [&](std::string& told) {
      Decoder decoder(file, make_cuda_backend(), options);
      const auto out = decoder.feed(prompt);
      told = decoder.backend().description();
      return std::vector<float>(out.begin(), out.end());
    };
    std::string told;
    const auto truth = logits(told);
    CHECK(told == "cuda, emulator, sm_90");
    Device device;
    device->has_gemm = false;
    const auto without = logits(told);
    for (const char* part : {"long prompts are slower", "cuBLAS cannot be loaded"}) {
      CHECK(told.find(part) != std::string::npos);
    }
    REQUIRE(without.size() == truth.size());
    float most = 0, worst = 0;
    for (size_t i = 0; i < truth.size(); ++i) {
      most = std::max(most, std::fabs(truth[i]));
      worst = std::max(worst, std::fabs(without[i] - truth[i]));
    }
    CHECK(most > 0.5f);
    CHECK(worst < most / 512);  // f16, as docs/cuda.md has it
  }
}

TEST_CASE("a damaged file is an error on every backend that reads all of it") {
  const TempDir dir;
  make_tiny_oq(dir / "tiny.oq", {.scheme = "w4a16g32"});
  std::string bytes = read_file(dir / "tiny.oq");
  const auto good = File::open(dir / "tiny.oq");
  bytes[good->tensor("blocks.1.up").offset + 9] ^= 1;
  write_file(dir / "bad.oq", bytes);
  const auto bad = File::open(dir / "bad.oq");
  for (const char* backend : {"auto", "cuda"}) {
    CHECK_THROWS_WITH_AS(runs(bad, backend), doctest::Contains("blocks.1.up"), Error);
  }
}

TEST_CASE("a device that fails in the middle of a run is one error") {
  const TempDir dir;
  const auto file = make_tiny_oq(dir / "tiny.oq", {.scheme = "w4a16g32"});
  Decoder decoder = tool::make_decoder(file, {"auto", 1, true}, kOptions);
  const std::vector<int32_t> tokens = {1, 2, 3};
  decoder.feed(tokens);
  Device device;
  device->launches_left = 3;
  CHECK_THROWS_WITH_AS(decoder.feed(tokens), doctest::Contains("failed while it worked"),
                       cuda::DeviceError);
}

namespace {

/// Logits of a prompt, of 8 rows at once and of one.
std::vector<float> logits_of(const std::shared_ptr<const File>& file, bool exact) {
  Decoder decoder(file, make_cuda_backend(),
                  {.context = 128, .sequences = 1, .max_rows = 70, .exact = exact});
  std::vector<float> all;
  for (const int rows : {70, 8, 1}) {
    const std::vector<int32_t> tokens(size_t(rows), 17 + rows);
    decoder.feed(tokens);
    const auto logits = decoder.logits();
    all.insert(all.end(), logits.begin(), logits.end());
  }
  return all;
}

}  // namespace

TEST_CASE("a device of compute capability 7.5 has less shared memory, and computes the same bits") {
  const TempDir dir;
  ModelConfig config = tiny_config();
  config.blocks = config.kv_heads = 1;
  config.heads = 2;
  config.hidden = 24;
  config.head_dim = 8;
  config.rope_dim = 4;
  config.mlp = 1700;  // activations of 8 rows take more than such a device has
  ModelConfig experts = config;
  experts.mlp = 40;
  experts.experts = 3;
  experts.experts_used = 2;
  for (const TinyOq& tiny :
       {TinyOq{.scheme = "w16a16", .config = config},
        TinyOq{.scheme = "w4a16g32", .config = config},
        TinyOq{.scheme = "w2*a16", .config = config}, TinyOq{.scheme = "w2a8", .config = config},
        TinyOq{.scheme = "w4a16", .config = experts}}) {
    const auto file = make_tiny_oq(dir / "tiny.oq", tiny);
    for (const bool exact : {true, false}) {
      const auto truth = logits_of(file, exact);
      Device device;
      device->info.major = 7;
      device->info.minor = 5;
      device->block_shared = 64 << 10;
      CAPTURE(tiny.scheme);
      CAPTURE(exact);
      CHECK(logits_of(file, exact) == truth);
    }
  }
  Device device;
  cuda::KvArgs kv{};
  kv.dim = 128;
  for (const auto type : {cuda::KvType::f32, cuda::KvType::f16}) {
    kv.type = type;
    device->block_shared = 99 << 10;
    CHECK(cuda::can_flash(cuda::Stream(), kv));
    device->block_shared = 64 << 10;
    CHECK(cuda::can_flash(cuda::Stream(), kv) == (type == cuda::KvType::f16));
  }
}

TEST_CASE("a step has as many rows as there is room for, where nobody says how many") {
  const TempDir dir;
  ModelConfig config = tiny_config();
  config.context = 4096;
  const auto file = make_tiny_oq(dir / "tiny.oq", {.scheme = "w4a16g32", .config = config});
  Device device;
  const auto rows = [&](Decoder::Options options) {
    return Decoder(file, make_cuda_backend({.captures = false}), options).max_rows();
  };
  CHECK(rows({.context = 4096}) == 2048);
  CHECK(rows({.context = 700}) == 700);
  CHECK(rows({.context = 4096, .max_rows = 40}) == 40);
  device->memory = DevicePlan::kReserve + DevicePlan::kLibrary + (size_t(7) << 20);
  const int64_t fewer = rows({.context = 4096});
  CHECK(fewer < 2048);
  CHECK(fewer >= 256);
}

namespace {

/// A decoder's peak against its plan, in a step that takes all there is: every row, all logits.
void check_plan(const TinyOq& tiny, int kv_bits, int32_t rows) {
  const TempDir dir;
  const auto file = make_tiny_oq(dir / "tiny.oq", tiny);
  const ModelConfig& config = tiny.config;
  Decoder::Options options = kOptions;
  options.kv_bits = kv_bits;
  options.max_rows = rows;
  Device device;
  const size_t before = device->used;
  std::string told;
  size_t told_at = 0;
  const auto notice = [&](const std::string& text) {
    told = text;
    told_at = device->used;
  };
  Decoder decoder(file, make_cuda_backend({.notice = notice}), options);
  CHECK(told_at == before);
  CHECK(told.find("cuda, emulator, sm_90: ") == 0);
  CHECK(told.find(" GB of device memory: ") != std::string::npos);
  for (const int32_t n : {rows, std::min(rows, 64), 8, 1}) {
    std::vector<int32_t> tokens(size_t(n), 3), all(size_t(n), 0), sequences(size_t(n), 0);
    std::iota(all.begin(), all.end(), 0);
    decoder.truncate(0);
    decoder.step({tokens, all, sequences, all});
  }

  Plan plan{.config = config, .scheme = Scheme::parse(tiny.scheme)};
  plan.context = options.context;
  plan.sequences = options.sequences;
  plan.max_rows = options.max_rows;
  plan.kv_bits = options.kv_bits;
  plan.tensors = file->tensors();
  plan.buffers = {config.hidden, config.q_width() + 2 * config.kv_width(), config.q_width(),
                  config.mlp};
  const DevicePlan reckoned = DevicePlan::of(plan);
  const uint64_t taken = device->peak - before;
  CAPTURE(tiny.scheme);
  CAPTURE(config.experts);
  CAPTURE(kv_bits);
  CAPTURE(rows);
  CAPTURE(reckoned.total());
  CAPTURE(taken);
  CHECK(taken <= reckoned.total());
  CHECK(reckoned.total() < taken + taken / 3);
  // The least that is enough is enough, and a byte less is not.
  const size_t reserve = DevicePlan::kReserve;
  CHECK_NOTHROW(reckoned.check_fits({reckoned.total() + reserve, size_t(1) << 40}));
  CHECK_THROWS_WITH_AS(reckoned.check_fits({reckoned.total() + reserve - 1, size_t(1) << 40}),
                       doctest::Contains("choose a smaller --ctx"), cuda::DeviceError);
}

}  // namespace

TEST_CASE("the plan of device memory is told first, holds, and is not much too large") {
  ModelConfig experts = tiny_config();
  experts.experts = 5;
  experts.experts_used = 2;
  for (const ModelConfig& config : {tiny_config(), experts}) {
    for (const int kv_bits : {16, 4}) {
      check_plan({.scheme = "w4a16g32", .config = config}, kv_bits, 20);
    }
    check_plan({.scheme = "w4a16g32", .weak_columns = 3, .config = config}, 8, 80);
    check_plan({.scheme = "w4a8g32", .config = config}, 16, 70);
    check_plan({.scheme = "w4a8t", .weak_columns = 3, .config = config}, 16, 40);
    check_plan({.scheme = "w16a16", .config = config}, 16, 70);
    check_plan({.scheme = "w16a8t", .config = config}, 16, 40);
  }
}

TEST_CASE("a step is run, then captured, then replayed without its kernels being asked for") {
  const TempDir dir;
  const auto file = make_tiny_oq(dir / "tiny.oq", {.scheme = "w4a16g32"});
  Decoder decoder(file, make_cuda_backend(), kOptions);
  const auto asked = [&](int32_t token) {
    uint64_t before = 0, after = 0;
    for (const cuda::Reached& r : cuda::reached()) before += r.runs;
    decoder.feed({&token, 1});
    for (const cuda::Reached& r : cuda::reached()) after += r.runs;
    return after - before;
  };
  CHECK(asked(1) > 5);
  CHECK(asked(2) > 5);
  for (int32_t token : {3, 4, 5}) CHECK(asked(token) == 0);
  {  // a step that fails leaves no trace in the others
    const std::vector<int32_t> two = {1, 2};
    decoder.feed(two);
    Device device;
    device->launches_left = 2;
    CHECK_THROWS_AS(decoder.feed(two), cuda::DeviceError);
  }
  CHECK(asked(6) == 0);
}

TEST_CASE("a model whose weights are made on the device decodes, and is the same every time") {
  const TempDir dir;
  ModelConfig experts = tiny_config();
  experts.experts = 3;
  experts.experts_used = 2;
  const auto file =
      make_tiny_oq(dir / "tiny.oq", {.scheme = "w3a16g64", .weak_columns = 2, .config = experts});
  const auto random = [](const TensorInfo& t) { return t.kind == Kind::f32 ? 0.0f : 0.1f; };
  const auto logits = [&](CudaOptions options) {
    Decoder decoder(file, make_cuda_backend(std::move(options)), kOptions);
    CHECK(decoder.backend().device_bytes().value_or(0) > 0);
    const std::vector<int32_t> tokens = {1, 2, 3};
    const auto out = decoder.feed(tokens);
    return std::vector<float>(out.begin(), out.end());
  };
  const auto made = logits({.random = random});
  CHECK(made == logits({.random = random}));
  CHECK(made != logits({}));
  for (const float x : made) CHECK(std::isfinite(x));
}

TEST_CASE("a decoded token takes 5 launches a block, with experts 8") {
  const TempDir dir;
  for (const ModelConfig& variant : variant_configs()) {
    for (const char* scheme : {"w4a16g32", "w4a8g32", "w4a8t", "w16a16"}) {
      for (const uint32_t weak : {0u, 3u}) {
        if (weak > 0 && std::string(scheme) != "w4a8g32") continue;
        const auto launches = [&](int64_t blocks) {
          TinyOq tiny{.scheme = scheme, .weak_columns = weak, .config = variant};
          tiny.config.blocks = blocks;
          Decoder decoder(make_tiny_oq(dir / "tiny.oq", tiny), make_cuda_backend(), kOptions);
          const int32_t token = 5;
          decoder.feed({&token, 1});
          const uint64_t before = Device::state().launches;
          decoder.feed({&token, 1});
          return Device::state().launches - before;
        };
        CAPTURE(scheme);
        CAPTURE(weak);
        CAPTURE(variant.experts);
        CAPTURE(variant.post_norm);
        // OPT-350m's norms stand behind the sums that they norm: two launches of their own.
        const uint64_t most = variant.experts > 0 ? 8 : variant.post_norm ? 7 : 5;
        CHECK(launches(2) - launches(1) == most);
      }
    }
  }
}

TEST_CASE("a step that never ended is forgotten") {
  cuda::Stream stream;
  CudaSteps steps(stream, true);
  const uint32_t word = 1;
  for (int i = 0; i < 3; ++i) {
    CHECK(steps.begin({1, 1}));
    if (i > 0) CHECK_THROWS_AS(cuda::uploaded(stream, std::span(&word, 1)), cuda::DeviceError);
    if (i == 0) CHECK(steps.end());
    steps.abandon();
    CHECK_NOTHROW(cuda::uploaded(stream, std::span(&word, 1)));
  }
  CHECK(steps.begin({1, 1}));
  CHECK(steps.end());
  CHECK(!steps.begin({1, 1}));
  CHECK(steps.end());
}

TEST_CASE("where graphs cannot be made, steps go on without them, to the same bits") {
  const TempDir dir;
  const auto file = make_tiny_oq(dir / "tiny.oq", {.scheme = "w4a16g32"});
  std::vector<std::string> notices;
  const auto logits = [&](int graphs) {
    Device device;
    device->graphs_left = graphs;
    CudaOptions options;
    options.notice = [&](const std::string& line) { notices.push_back(line); };
    Decoder decoder(file, make_cuda_backend(std::move(options)), kOptions);
    std::vector<float> all;
    for (const std::vector<int32_t>& tokens :
         {std::vector<int32_t>{1}, {2}, {3}, {4, 5}, {6, 7}, {8}, {9, 1}, {2}}) {
      const auto out = decoder.feed(tokens);
      all.insert(all.end(), out.begin(), out.end());
    }
    return all;
  };
  const auto captured = logits(-1);
  const size_t usual = notices.size();
  for (const int graphs : {0, 1}) {
    notices.clear();
    CHECK(logits(graphs) == captured);
    REQUIRE(notices.size() == usual + 1);  // it says so once
    CHECK(notices.back().find("cannot be captured") != std::string::npos);
  }
}

TEST_CASE("a recording runs when it is replayed, and refuses what cannot be captured") {
  cuda::Stream stream;
  const std::vector<uint32_t> words = {1, 2, 4, 8};
  const cuda::Memory from = cuda::uploaded(stream, std::span<const uint32_t>(words));
  const cuda::Memory to(16);
  cuda::clear(stream, to.data(), 16);
  const auto read = [&] {
    std::vector<uint32_t> out(4);
    cuda::download(stream, out.data(), to.data(), 16);
    return out;
  };
  cuda::Graph graph;
  {
    cuda::Recording recording(stream);
    cuda::copy_memory(stream, {from.data(), to.data(), 16, 1});
    CHECK_THROWS_AS(stream.synchronize(), cuda::DeviceError);
    CHECK_THROWS_AS(read(), cuda::DeviceError);
    graph = recording.finish();
  }
  CHECK(read() == std::vector<uint32_t>(4, 0));
  stream.replay(graph);
  CHECK(read() == words);
  {
    const cuda::Recording forgotten(stream);
    cuda::clear(stream, to.data(), 16);
  }
  CHECK(read() == words);
  cuda::clear(stream, to.data(), 16);
  CHECK(read() == std::vector<uint32_t>(4, 0));
}
