/// Linears on codes of x, by both engines, against the reference; codes and sums bit for bit.

#include "kernels/cuda/integer.h"

#include <cstring>

#include "kernels/activation_grid.h"
#include "kernels/reference/ops.h"
#include "tests/cuda/on_device.h"
#include "tests/kernels/packed_cases.h"

using namespace oq;
using namespace oq::test;
using cuda::Engine;

namespace {

/// Those that the device runs.
std::vector<Engine> engines() {
  if (runs_planes()) return {Engine::bytes, Engine::planes};
  return {Engine::bytes};
}

/// Live columns of rows [first, last) put onto one grid.
void put_on_grid(std::vector<float>& x, const std::vector<bool>& weak, int first, int last,
                 int bits) {
  const size_t cols = weak.size();
  std::vector<float> live;
  for (size_t i = size_t(first) * cols; i < size_t(last) * cols; ++i) {
    if (!weak[i % cols]) live.push_back(x[i]);
  }
  reference::fake_quantize(live, bits);
  auto value = live.begin();
  for (size_t i = size_t(first) * cols; i < size_t(last) * cols; ++i) {
    if (!weak[i % cols]) x[i] = *value++;
  }
}

std::vector<bool> weak_of(const PackedBuilder& b) {
  std::vector<bool> weak(b.layout().cols, false);
  for (uint32_t k : b.view().weak_indices()) weak[k] = true;
  return weak;
}

/// One linear on the device, and what its input became there.
class OneLinear {
 public:
  OneLinear(cuda::Stream& stream, const PackedBuilder& b, Engine engine, int bits)
      : stream_(stream), w_(stream, b), engine_(engine), bits_(bits) {}

  /// `runs` of rows, where the range is per tensor; `norm` before it. Fused too, up to 8 tokens:
  /// the same bits.
  std::vector<float> run(const std::vector<float>& x, int tokens,
                         const std::vector<int32_t>& runs = {}, const cuda::NormArgs& norm = {}) {
    const DeviceRows in(stream_, tokens, w_.matrix.cols, x), out(stream_, tokens, w_.matrix.rows);
    const cuda::Memory run_list =
        runs.empty() ? cuda::Memory() : cuda::uploaded(stream_, std::span<const int32_t>(runs));
    cuda::PackedArgs args{.in = plain_input(in, tokens),
                          .out = output_to(out, cuda::Finish::store),
                          .count = 1,
                          .linears = {{w_.matrix, nullptr, 0}},
                          .experts = nullptr,
                          .expert_count = 0,
                          .weak_columns = w_.matrix.weak_columns};
    args.in.bits = bits_;
    args.in.norm = norm;
    args.in.per_tensor = !runs.empty();
    args.in.runs = run_list.as<int32_t>();
    const int strips = w_.matrix.strips(), weak = w_.matrix.weak_columns;
    memory_ = cuda::Memory(cuda::quantized_bytes(1, tokens, strips, weak));
    rows_ = cuda::quantized_rows(memory_.data(), weak > 0, 1, tokens, strips, weak);
    const cuda::IntegerArgs call{.engine = engine_, .linears = args, .rows = rows_};
    cuda::quantize(stream_, call);
    cuda::integer_linears(stream_, call);
    const auto got = out.read();
    REQUIRE(cuda::can_fuse(stream_, args) == (tokens <= cuda::kMaxTokens));
    if (tokens <= cuda::kMaxTokens) check_fused(args, out, got);
    return got;
  }

  /// What the device's memory says of row m, column k, after a run.
  uint32_t code(int m, int k) const {
    const int strip = k / 128, in_strip = k % 128, q = in_strip % 8 / 2, half = in_strip % 2;
    const int e = in_strip / 8, planes = cuda::activation_planes(bits_);
    const int words = engine_ == Engine::bytes ? 32 : 4 * planes;
    const uint32_t* row = host<uint32_t>(rows_.codes) + (int64_t(strip) * rows_.room + m) * words;
    if (engine_ == Engine::bytes) return row[8 * q + e % 8] >> (16 * half + e / 8 * 8) & 0xFFu;
    uint32_t code = 0;
    for (int i = 0; i < planes; ++i) code |= (row[4 * i + q] >> (16 * half + e) & 1u) << i;
    return code;
  }
  int32_t sums(int m, int block) const {
    return host<int32_t>(rows_.sums)[(int64_t(block / 4) * rows_.room + m) * 4 + block % 4];
  }
  cuda::TokenGrid grid(int m) const { return host<cuda::TokenGrid>(rows_.grids)[m]; }
  void read_back() {
    host_.resize(memory_.bytes());
    cuda::download(stream_, host_.data(), memory_.data(), memory_.bytes());
  }

 private:
  void check_fused(const cuda::PackedArgs& args, const DeviceRows& out,
                   const std::vector<float>& truth) {
    cuda::clear(stream_, out.data(), size_t(args.in.tokens) * size_t(out.stride()) * 4);
    cuda::integer_linears(stream_, {.engine = engine_, .linears = args, .rows = {}, .fused = true});
    const auto got = out.read();
    REQUIRE(std::memcmp(got.data(), truth.data(), truth.size() * sizeof(float)) == 0);  // NaNs too
  }

  template <class T>
  const T* host(const T* device) const {
    const auto at = reinterpret_cast<const std::byte*>(device) - memory_.data();
    return reinterpret_cast<const T*>(host_.data() + at);
  }

  cuda::Stream& stream_;
  DevicePacked w_;
  Engine engine_;
  int bits_;
  cuda::Memory memory_;
  cuda::QuantizedRows rows_{};
  std::vector<std::byte> host_;
};

void check_case(cuda::Stream& stream, const PackedCase& c, int bits, int tokens) {
  Rng rng(uint32_t(c.cols * 31 + c.packing.bits));
  const PackedBuilder b = random_packed(rng, c);
  const auto weak = weak_of(b);
  auto x = random_floats(rng, size_t(tokens) * c.cols, 0.3f);
  for (size_t i = 0; i < x.size(); ++i) {
    if (weak[i % c.cols]) x[i] *= 300;  // which no range may see
  }
  const auto got = OneLinear(stream, b, Engine::bytes, bits).run(x, tokens);
  if (runs_planes()) {  // the same bits
    CHECK(OneLinear(stream, b, Engine::planes, bits).run(x, tokens) == got);
  }
  for (int m = 0; m < tokens; ++m) put_on_grid(x, weak, m, m + 1, bits);
  const auto truth = linear_truth(b, x, tokens);
  CAPTURE(int(c.packing.bits));
  CAPTURE(c.packing.five_levels);
  CAPTURE(c.cols);
  CAPTURE(bits);
  CAPTURE(tokens);
  const double most = c.packing.weak_columns > 0 ? 100 : 1;
  const double atol = 4e-6 * std::sqrt(double(c.cols)) * c.packing.max_code() * 0.1 * most;
  CHECK_CLOSE(got, truth, atol, 2e-6, 1e-12);
}

/// Weights and x whose products are whole numbers: scales are 1.
PackedBuilder whole_packed(Rng& rng, PackedCase c, Codes codes) {
  PackedBuilder b = random_packed(rng, c, codes);
  for (uint64_t r = 0; r < c.rows; ++r) {
    for (uint64_t g = 0; g < b.layout().groups; ++g) b.set_scale(r, g, to_f16(1.0f));
  }
  return b;
}

}  // namespace

TEST_CASE("both engines equal the reference at every width, shape, zero mode and group") {
  cuda::Stream stream;
  std::vector<PackedCase> list = packed_cases();
  list.push_back({17, 2500, {.bits = 4, .group = 128, .weak_columns = 40}});
  list.push_back({5, 3500, {.bits = 2, .five_levels = true, .group = 256}});
  int turn = 0;
  for (const PackedCase& c : list) {
    const int tokens[] = {1, 3, 8, 2, 11, 5, 4};
    check_case(stream, c, 2 + turn * 2 % 7, tokens[turn % 7]);
    turn += turn % 8 == 7 ? 2 : 1;  // every width and shape comes by others
  }
}

TEST_CASE("a norm before the codes gives the same bits fused, apart and by both engines") {
  cuda::Stream stream;
  Rng rng(23);
  constexpr int kCols = 1031;
  const PackedBuilder b = random_packed(rng, {19, kCols, {.bits = 4, .group = 128}});
  const cuda::Memory weight =
      cuda::uploaded(stream, std::span<const float>(random_floats(rng, kCols, 1.0f, 0.5f)));
  const cuda::Memory bias =
      cuda::uploaded(stream, std::span<const float>(random_floats(rng, kCols, 0.7f)));
  for (const cuda::NormKind kind : {cuda::NormKind::rms, cuda::NormKind::layer}) {
    const bool layer = kind == cuda::NormKind::layer;
    const cuda::NormArgs norm{.kind = kind,
                              .weight = weight.as<float>(),
                              .bias = layer ? bias.as<float>() : nullptr,
                              .eps = 1e-5f,
                              .weight_peak = 4,
                              .bias_peak = 4};
    for (const int bits : {3, 8}) {
      CAPTURE(bits);
      CAPTURE(layer);
      const auto x = random_floats(rng, 8 * kCols, 3.0f, 1.0f);
      const auto got = OneLinear(stream, b, Engine::bytes, bits).run(x, 8, {}, norm);
      if (!runs_planes()) continue;
      CHECK(OneLinear(stream, b, Engine::planes, bits).run(x, 8, {}, norm) == got);
    }
  }
}

TEST_CASE("every pair of widths, both engines") {
  cuda::Stream stream;
  for (int a = 2; a <= 8; ++a) {
    for (uint8_t w = 2; w <= 8; ++w) {
      check_case(stream, {19, 173, {.bits = w, .group = 128}}, a, 1 + (w * 3 + a * 5) % 8);
      if (a == w) check_case(stream, {19, 301, {.bits = w, .group = 96}}, a, 35 + a);
    }
    check_case(stream, {11, 400, {.bits = 2, .five_levels = true, .weak_columns = 9}}, a, 30 + a);
    check_case(stream, {11, 400, {.bits = 2, .five_levels = true, .group = 128}}, a, 1 + a);
    check_case(stream, {11, 400, {.bits = 2, .five_levels = true, .group = 96}}, a, 1 + a);
  }
}

TEST_CASE("codes, their sums and grids are those of the CPU, bit for bit, in both layouts") {
  cuda::Stream stream;
  Rng rng(5);
  constexpr int kCols = 333, kTokens = 3;
  const PackedBuilder b = random_packed(rng, {8, kCols, {.bits = 3, .weak_columns = 21}});
  const auto weak = weak_of(b);
  auto x = random_floats(rng, kTokens * kCols, -0.4f, 2.0f);
  for (int k = 0; k < kCols; ++k) x[size_t(kCols + k)] = 900.0f + float(k % 7);  // far from 0
  for (int bits = 2; bits <= 8; ++bits) {
    for (Engine engine : engines()) {
      OneLinear linear(stream, b, engine, bits);
      linear.run(x, kTokens);
      linear.read_back();
      for (int m = 0; m < kTokens; ++m) {
        float low = INFINITY, high = -INFINITY;
        for (int k = 0; k < kCols; ++k) {
          if (weak[size_t(k)]) continue;
          low = std::min(low, x[size_t(m * kCols + k)]);
          high = std::max(high, x[size_t(m * kCols + k)]);
        }
        const ActivationGrid grid = ActivationGrid::of(low, high, bits);
        REQUIRE(linear.grid(m).scale == grid.scale);
        REQUIRE(linear.grid(m).zero == grid.zero);
        std::vector<int32_t> sums(12, 0);
        for (int k = 0; k < 384; ++k) {
          const bool live = k < kCols && !weak[size_t(k)];
          const auto code = live ? uint32_t(grid.code(x[size_t(m * kCols + k)])) : 0u;
          REQUIRE(linear.code(m, k) == code);
          sums[size_t(k / 32)] += int32_t(code) + (live ? 1 << 16 : 0);
        }
        for (int block = 0; block < 12; ++block)
          REQUIRE(linear.sums(m, block) == sums[size_t(block)]);
      }
    }
  }
}

TEST_CASE("integer sums are exact, extreme codes and zero points far outside included") {
  cuda::Stream stream;
  for (Codes kind : {Codes::random, Codes::largest, Codes::zero}) {
    for (uint8_t w : {2, 3, 4, 5, 6, 7, 8}) {
      for (int bits : {2, 4, 5, 8}) {
        Rng rng(uint32_t(w * 10 + bits));
        // Groups that end with a strip, and groups that do not.
        const PackedCase c{18, 256, {.bits = w, .group = w % 2 == 0 ? 128u : 96u}};
        const PackedBuilder b = whole_packed(rng, c, kind);
        const int top = (1 << bits) - 1;
        for (const int zero : {0, top / 2, 3 * top, -2 * top}) {  // of x: its range may miss 0
          constexpr int kTokens = 3;
          std::vector<float> x(kTokens * 256);
          for (size_t i = 0; i < x.size(); ++i) {
            const bool largest = kind == Codes::largest && i % 256 > 1;
            const int code = i % 256 == 0              ? 0
                             : i % 256 == 1 || largest ? top
                                                       : int(rng() % uint32_t(top + 1));
            x[i] = float(code - zero);
          }
          const auto truth = linear_truth(b, x, kTokens);
          for (Engine engine : engines()) {
            const auto got = OneLinear(stream, b, engine, bits).run(x, kTokens);
            for (size_t i = 0; i < got.size(); ++i) {
              CAPTURE(int(w));
              CAPTURE(bits);
              CAPTURE(zero);
              CAPTURE(int(engine));
              CAPTURE(int(kind));
              if (std::fabs(truth[i]) < 0x1p24f) REQUIRE(got[i] == truth[i]);
            }
          }
        }
      }
    }
  }
}

TEST_CASE("the largest sums that 32 bits must hold: zero points of 16 bits, all codes at the top") {
  cuda::Stream stream;
  Rng rng(2);
  for (const int zero : {-32768, 32767}) {
    const PackedCase c{
        16, 256, {.bits = 8, .zero_mode = ZeroMode::constant, .zero = int16_t(zero), .group = 128}};
    const PackedBuilder b = whole_packed(rng, c, Codes::largest);
    std::vector<float> x(256, 255.0f);
    x[7] = 0;
    const auto truth = linear_truth(b, x, 1);
    for (Engine engine : engines()) {
      CHECK_CLOSE(OneLinear(stream, b, engine, 8).run(x, 1), truth, 0.0, 2e-7, 1e-13);
    }
  }
}

TEST_CASE("per tensor, a run of rows shares one range, and another run has its own") {
  cuda::Stream stream;
  Rng rng(7);
  const PackedCase c{20, 200, {.bits = 4, .group = 64, .weak_columns = 5}};
  const PackedBuilder b = random_packed(rng, c);
  const auto weak = weak_of(b);
  const std::vector<int32_t> runs = {0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2};
  const int tokens = int(runs.size());
  for (Engine engine : engines()) {
    for (int bits : {4, 8}) {
      auto x = random_floats(rng, size_t(tokens) * c.cols, 0.3f);
      for (int m = 0; m < tokens; ++m) {
        for (size_t k = 0; k < c.cols; ++k) x[size_t(m) * c.cols + k] *= float(1 + m);
      }
      const auto got = OneLinear(stream, b, engine, bits).run(x, tokens, runs);
      put_on_grid(x, weak, 0, 3, bits);
      put_on_grid(x, weak, 3, 12, bits);
      put_on_grid(x, weak, 12, 13, bits);
      const auto truth = linear_truth(b, x, tokens);
      CHECK_CLOSE(got, truth, 1e-3, 2e-6, 1e-12);
    }
  }
}

TEST_CASE("an input that is no number, constant, or all weak goes through both engines") {
  cuda::Stream stream;
  Rng rng(9);
  const PackedBuilder b = random_packed(rng, {16, 150, {.bits = 4, .group = 64}});
  const PackedBuilder all_weak = random_packed(rng, {16, 64, {.bits = 4, .weak_columns = 64}});
  for (Engine engine : engines()) {
    for (float bad : {NAN, INFINITY, -INFINITY}) {
      auto x = random_floats(rng, 150);
      x[40] = bad;
      for (float y : OneLinear(stream, b, engine, 4).run(x, 1)) CHECK_FALSE(std::isfinite(y));
      const auto of_run = OneLinear(stream, b, engine, 4)
                              .run(
                                  [&] {
                                    auto two = random_floats(rng, 150);
                                    two.insert(two.end(), x.begin(), x.end());
                                    return two;
                                  }(),
                                  2, {0, 0});
      for (float y : of_run) CHECK_FALSE(std::isfinite(y));
    }
    for (float same : {0.0f, 3.0f, -0.5f}) {
      std::vector<float> x(150, same);
      const auto got = OneLinear(stream, b, engine, 8).run(x, 1);
      put_on_grid(x, std::vector<bool>(150, false), 0, 1, 8);
      CHECK_CLOSE(got, linear_truth(b, x, 1), 1e-4, 1e-5, 1e-11);
    }
    const auto x = random_floats(rng, 64);
    CHECK_CLOSE(OneLinear(stream, all_weak, engine, 8).run(x, 1), linear_truth(all_weak, x, 1),
                1e-4, 1e-5, 1e-11);
  }
}

TEST_CASE("a flipped code of x or of the weights is noticed") {
  cuda::Stream stream;
  Rng rng(3);
  const PackedBuilder b = random_packed(rng, {16, 160, {.bits = 3, .group = 64}});
  auto x = random_floats(rng, 160, 0.5f, 0.3f);
  for (Engine engine : engines()) {
    const auto good = OneLinear(stream, b, engine, 4).run(x, 1);
    PackedBuilder flipped = b;
    std::vector<uint8_t> codes(b.layout().padded_cols);
    b.view().unpack_row(3, codes);
    codes.resize(160);
    codes[77] ^= 1;
    flipped.set_codes(3, codes);
    const auto bad = OneLinear(stream, flipped, engine, 4).run(x, 1);
    for (size_t r = 0; r < 16; ++r) CHECK((bad[r] == good[r]) == (r != 3));
    auto moved = x;
    moved[20] +=
        (*std::max_element(x.begin(), x.end()) - *std::min_element(x.begin(), x.end())) / 15;
    CHECK_FALSE(compare(OneLinear(stream, b, engine, 4).run(moved, 1), good, 1e-4, 1e-5).close);
  }
}

TEST_CASE("rows behind a norm and on their grids, as floats for weights that are not packed") {
  cuda::Stream stream;
  Rng rng(13);
  constexpr int kCols = 203, kTokens = 13;
  const auto x = random_floats(rng, size_t(kTokens * kCols), 0.4f, 30.0f);
  const auto scale = random_floats(rng, kCols, 1.0f, 0.4f), shift = random_floats(rng, kCols, 0.2f);
  const std::vector<int32_t> runs = {4, 4, 4, 5, 5, 5, 5, 5, 5, 5, 5, 5, 9};
  const cuda::Memory weight = cuda::uploaded(stream, std::span<const float>(scale));
  const cuda::Memory bias = cuda::uploaded(stream, std::span<const float>(shift));
  const cuda::Memory run_list = cuda::uploaded(stream, std::span<const int32_t>(runs));
  const cuda::Memory stats(kTokens * sizeof(cuda::RowStats));
  const DeviceRows in(stream, kTokens, kCols, x);
  for (auto kind : {cuda::NormKind::none, cuda::NormKind::rms, cuda::NormKind::layer}) {
    auto truth = x;
    for (int m = 0; m < kTokens; ++m) {
      const std::span<const float> from(x.data() + m * kCols, kCols);
      const std::span<float> to(truth.data() + m * kCols, kCols);
      if (kind == cuda::NormKind::rms) reference::rms_norm(from, scale, 3e-4, to);
      if (kind == cuda::NormKind::layer) reference::layer_norm(from, scale, shift, 3e-4, to);
    }
    for (const bool per_tensor : {false, true}) {
      const DeviceRows out(stream, kTokens, kCols);
      cuda::InputArgs args = plain_input(in, kTokens);
      args.norm = {kind, weight.as<float>(), bias.as<float>(), 3e-4f, 0, 0};
      args.bits = 8;
      args.per_tensor = per_tensor;
      args.runs = run_list.as<int32_t>();
      cuda::quantize_values(stream, {.in = args,
                                     .cols = kCols,
                                     .experts = 1,
                                     .room = kTokens,
                                     .values = out.data(),
                                     .stride = out.stride(),
                                     .stats = stats.as<cuda::RowStats>()});
      auto rounded = truth;
      const std::vector<bool> weak(kCols, false);
      const auto put = [&](int first, int last) { put_on_grid(rounded, weak, first, last, 8); };
      for (int m = 0; m < kTokens && !per_tensor; ++m) put(m, m + 1);
      if (per_tensor) put(0, 3), put(3, 12), put(12, 13);
      const auto got = out.read();
      // A step of the grid (0.03) where the last bit of a norm decides, which happens seldom.
      int steps = 0;
      for (size_t i = 0; i < got.size(); ++i) {
        const float off = std::fabs(got[i] - rounded[i]);
        CAPTURE(i);
        REQUIRE(off < 0.1f);
        steps += off > 1e-4f ? 1 : 0;
      }
      CHECK(steps <= (kind == cuda::NormKind::none ? 0 : 8));
    }
  }
}
