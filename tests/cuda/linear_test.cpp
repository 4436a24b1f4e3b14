/// What stands before and behind a linear: norm, quantization, bias, residual, activation, rows
/// that are chosen, experts; on packed and on dense weights.

#include <functional>

#include "format/packed.h"
#include "kernels/reference/ops.h"
#include "tests/cuda/on_device.h"
#include "tests/kernels/packed_cases.h"

using namespace oq;
using namespace oq::test;
using cuda::Dense;
using cuda::Finish;

namespace {

constexpr int kCols = 173;

/// Weights on the device, and what they are.
template <class Matrix>
struct Weights {
  cuda::Memory memory;
  Matrix matrix;
  std::vector<float> truth;
  std::vector<uint32_t> weak;
};

Weights<cuda::PackedMatrix> packed(cuda::Stream& stream, Rng& rng, uint64_t rows,
                                   uint32_t weak_columns) {
  const PackedBuilder b =
      random_packed(rng, {rows, kCols, {.bits = 3, .group = 64, .weak_columns = weak_columns}});
  DevicePacked device(stream, b);
  const auto weak = b.view().weak_indices();
  return {std::move(device.memory),
          device.matrix,
          reference::dequantize(b.view()),
          {weak.begin(), weak.end()}};
}

Weights<cuda::DenseMatrix> dense(cuda::Stream& stream, Rng& rng, int rows, Dense type,
                                 int cols = kCols) {
  const int stride = (cols + 7) / 8 * 8;
  Weights<cuda::DenseMatrix> w;
  w.truth = random_floats(rng, size_t(rows * cols));
  std::vector<float> floats(size_t(rows * stride), 0.0f);
  std::vector<uint16_t> halves(floats.size(), 0);
  for (int r = 0; r < rows; ++r) {
    for (int k = 0; k < cols; ++k) {
      float& v = w.truth[size_t(r * cols + k)];
      const auto at = size_t(r * stride + k);
      if (type != Dense::f32) {
        halves[at] = type == Dense::f16 ? to_f16(v).bits : to_bf16(v).bits;
        v = type == Dense::f16 ? to_float(f16{halves[at]}) : to_float(bf16{halves[at]});
      }
      floats[at] = v;
    }
  }
  w.memory = type == Dense::f32 ? cuda::uploaded(stream, std::span<const float>(floats))
                                : cuda::uploaded(stream, std::span<const uint16_t>(halves));
  w.matrix = {type, rows, cols, stride, w.memory.data()};
  return w;
}

/// More than 8 tokens are a batch's, whose parts know nothing of what lies between 8 and 64.
void start(cuda::Stream& s, const cuda::PackedArgs& a) {
  cuda::BatchSpace space;
  if (a.in.tokens > cuda::kMaxTokens) {
    return cuda::batch_linears(s, a, {cuda::BatchEngine::tiles, true}, space);
  }
  cuda::packed_linears(s, a);
}
void start(cuda::Stream& s, const cuda::DenseArgs& a) { cuda::dense_linears(s, a); }

/// reference::linear of one matrix into columns of y.
void truth_into(const std::vector<float>& w, const std::vector<float>& bias,
                const std::vector<float>& x, int tokens, int column, int width,
                std::vector<float>& y) {
  const auto rows = w.size() / kCols;
  std::vector<float> part(size_t(tokens) * rows);
  reference::linear(w, bias, x, tokens, int64_t(rows), kCols, part);
  for (int m = 0; m < tokens; ++m) {
    for (size_t r = 0; r < rows; ++r) {
      y[size_t(m * width + column) + r] = part[size_t(m) * rows + r];
    }
  }
}

/// q, k and v of different heights behind a norm, each with a bias, side by side.
template <class Matrix>
void check_side_by_side(cuda::NormKind kind, const std::vector<Weights<Matrix>>& weights,
                        cuda::Stream& stream, int tokens) {
  Rng rng{uint32_t(tokens)};
  const auto x = random_floats(rng, size_t(tokens * kCols), 0.4f, 30.0f);
  const auto norm = random_floats(rng, kCols, 1.0f, 0.4f), shift = random_floats(rng, kCols, 0.2f);
  auto normed = x;
  for (int m = 0; m < tokens; ++m) {
    const std::span<const float> from(x.data() + m * kCols, kCols);
    const std::span<float> to(normed.data() + m * kCols, kCols);
    if (kind == cuda::NormKind::rms) reference::rms_norm(from, norm, 3e-4, to);
    if (kind == cuda::NormKind::layer) reference::layer_norm(from, norm, shift, 3e-4, to);
  }
  int width = 0;
  for (const auto& w : weights) width += w.matrix.rows;
  const DeviceRows in(stream, tokens, kCols, x), out(stream, tokens, width);
  const cuda::Memory norm_weight = cuda::uploaded(stream, std::span<const float>(norm));
  const cuda::Memory norm_bias = cuda::uploaded(stream, std::span<const float>(shift));
  cuda::LinearsArgs<Matrix> args{.in = plain_input(in, tokens),
                                 .out = output_to(out, Finish::store),
                                 .count = int(weights.size()),
                                 .linears = {},
                                 .experts = nullptr,
                                 .expert_count = 0};
  args.in.norm = {kind, norm_weight.as<float>(), norm_bias.as<float>(), 3e-4f, 4.0f, 4.0f};
  std::vector<float> truth(size_t(tokens * width));
  std::vector<cuda::Memory> biases;
  int column = 0;
  for (size_t i = 0; i < weights.size(); ++i) {
    const auto bias = random_floats(rng, size_t(weights[i].matrix.rows), 1.0f);
    biases.push_back(cuda::uploaded(stream, std::span<const float>(bias)));
    args.linears[i] = {weights[i].matrix, biases.back().template as<float>(), column};
    truth_into(weights[i].truth, bias, normed, tokens, column, width, truth);
    column += weights[i].matrix.rows;
  }
  start(stream, args);
  CAPTURE(tokens);
  CAPTURE(int(kind));
  CHECK_CLOSE(out.read(), truth, 1e-4, 1e-5, 1e-11);
}

}  // namespace

TEST_CASE("linears side by side behind each norm, with weak columns of their own") {
  cuda::Stream stream;
  Rng rng(4);
  std::vector<Weights<cuda::PackedMatrix>> three;
  three.push_back(packed(stream, rng, 40, 5));
  three.push_back(packed(stream, rng, 9, 0));
  three.push_back(packed(stream, rng, 16, 60));
  std::vector<Weights<cuda::DenseMatrix>> plain;
  for (int rows : {40, 9, 16}) plain.push_back(dense(stream, rng, rows, Dense::f32));
  for (auto kind : {cuda::NormKind::none, cuda::NormKind::rms, cuda::NormKind::layer}) {
    for (int tokens : {1, 2, 7, 12}) {
      check_side_by_side(kind, three, stream, tokens);
      if (tokens <= cuda::kMaxTokens) check_side_by_side(kind, plain, stream, tokens);
    }
  }
}

TEST_CASE("dense linears on the device equal the reference for every type and odd shapes") {
  cuda::Stream stream;
  for (Dense type : {Dense::f32, Dense::f16, Dense::bf16}) {
    for (int cols : {1, 7, 64, 173, 700, 5000}) {
      Rng rng{uint32_t(cols)};
      const auto w = dense(stream, rng, 21, type, cols);
      for (int tokens : {1, 5, 8}) {
        const auto x = random_floats(rng, size_t(tokens * cols), 0.3f);
        const DeviceRows in(stream, tokens, cols, x), out(stream, tokens, 21);
        cuda::dense_linears(stream, {.in = plain_input(in, tokens),
                                     .out = output_to(out, Finish::store),
                                     .count = 1,
                                     .linears = {{w.matrix, nullptr, 0}},
                                     .experts = nullptr,
                                     .expert_count = 0});
        std::vector<float> truth(size_t(tokens * 21));
        reference::linear(w.truth, {}, x, tokens, 21, cols, truth);
        CAPTURE(cols);
        CAPTURE(tokens);
        CHECK_CLOSE(out.read(), truth, 2e-5 * std::sqrt(double(cols)), 1e-5, 1e-11);
      }
    }
  }
}

TEST_CASE("a residual is added to, and gate and up become one") {
  cuda::Stream stream;
  Rng rng(6);
  const auto gate = packed(stream, rng, 25, 3), up = packed(stream, rng, 25, 8);
  for (int tokens : {1, 6, 17}) {
    const auto x = random_floats(rng, size_t(tokens * kCols)), none = std::vector<float>();
    const auto before = random_floats(rng, size_t(tokens * 25), 3.0f);
    const DeviceRows in(stream, tokens, kCols, x), residual(stream, tokens, 25, before);
    const DeviceRows out(stream, tokens, 25);
    cuda::PackedArgs args{.in = plain_input(in, tokens),
                          .out = output_to(residual, Finish::add),
                          .count = 1,
                          .linears = {{gate.matrix, nullptr, 0}, {up.matrix, nullptr, 0}},
                          .experts = nullptr,
                          .expert_count = 0};
    start(stream, args);
    std::vector<float> g(before.size()), u(before.size()), truth(before.size());
    truth_into(gate.truth, none, x, tokens, 0, 25, g);
    truth_into(up.truth, none, x, tokens, 0, 25, u);
    for (size_t i = 0; i < truth.size(); ++i) truth[i] = before[i] + g[i];
    CHECK_CLOSE(residual.read(), truth, 1e-4, 1e-5, 1e-11);
    const std::pair<Activation, float (*)(float)> all[] = {
        {Activation::silu, reference::silu},
        {Activation::gelu, reference::gelu},
        {Activation::gelu_tanh, reference::gelu_tanh},
        {Activation::relu, reference::relu}};
    for (const auto& row : all) {
      const Activation activation = row.first;
      float (*formula)(float) = row.second;
      for (int count : {1, 2}) {
        args.out = output_to(out, Finish::activate);
        args.out.activation = activation;
        args.count = count;
        start(stream, args);
        for (size_t i = 0; i < truth.size(); ++i) {
          truth[i] = formula(g[i]) * (count == 2 ? u[i] : 1.0f);
        }
        CHECK_CLOSE(out.read(), truth, 1e-4, 1e-4, 1e-10);
      }
    }
  }
}

TEST_CASE("a linear multiplies what another one left, where gate and up are of two kinds") {
  cuda::Stream stream;
  Rng rng(7);
  const auto gate = packed(stream, rng, 25, 3);
  const auto up = dense(stream, rng, 25, Dense::f16);
  for (int tokens : {1, 8, 20}) {
    const auto x = random_floats(rng, size_t(tokens * kCols)), none = std::vector<float>();
    const DeviceRows in(stream, tokens, kCols, x), out(stream, tokens, 25);
    start(stream, cuda::PackedArgs{.in = plain_input(in, tokens),
                                   .out = output_to(out, Finish::activate),
                                   .count = 1,
                                   .linears = {{gate.matrix, nullptr, 0}},
                                   .experts = nullptr,
                                   .expert_count = 0});
    const cuda::DenseArgs second{.in = plain_input(in, tokens),
                                 .out = output_to(out, Finish::multiply),
                                 .count = 1,
                                 .linears = {{up.matrix, nullptr, 0}},
                                 .experts = nullptr,
                                 .expert_count = 0};
    cuda::BatchSpace space;
    if (tokens > cuda::kMaxTokens) cuda::batch_linears(stream, second, space);
    if (tokens <= cuda::kMaxTokens) start(stream, second);
    std::vector<float> g(size_t(tokens * 25)), truth(g.size());
    truth_into(gate.truth, none, x, tokens, 0, 25, g);
    truth_into(up.truth, none, x, tokens, 0, 25, truth);
    for (size_t i = 0; i < truth.size(); ++i) truth[i] *= reference::silu(g[i]);
    const bool f16 = tokens > cuda::kMaxTokens;  // what x becomes
    CHECK_CLOSE(out.read(), truth, f16 ? 0.1 : 1e-3, f16 ? 2e-3 : 1e-4, f16 ? 1e-6 : 1e-10);
  }
}

TEST_CASE("linears take no input that a scheme quantizes: others do") {
  cuda::Stream stream;
  Rng rng(8);
  const auto w = packed(stream, rng, 9, 0);
  const auto plain = dense(stream, rng, 9, Dense::f32);
  const DeviceRows in(stream, 9, kCols), out(stream, 9, 9);
  for (int tokens : {1, 9}) {
    cuda::PackedArgs args{.in = plain_input(in, tokens),
                          .out = output_to(out, Finish::store),
                          .count = 1,
                          .linears = {{w.matrix, nullptr, 0}},
                          .experts = nullptr,
                          .expert_count = 0};
    args.in.bits = 8;
    CHECK_THROWS_WITH_AS(start(stream, args), doctest::Contains("as they are"), Error);
  }
  cuda::DenseArgs args{.in = plain_input(in, 1),
                       .out = output_to(out, Finish::store),
                       .count = 1,
                       .linears = {{plain.matrix, nullptr, 0}},
                       .experts = nullptr,
                       .expert_count = 0};
  args.in.bits = 8;
  CHECK_THROWS_WITH_AS(start(stream, args), doctest::Contains("as they are"), Error);
}

TEST_CASE("an input that is no number, or far from 1, goes through a linear") {
  cuda::Stream stream;
  Rng rng(9);
  const auto w = packed(stream, rng, 25, 9);
  const auto run = [&](const std::vector<float>& x) {
    const DeviceRows in(stream, 1, kCols, x), out(stream, 1, 25);
    cuda::packed_linears(stream, {.in = plain_input(in, 1),
                                  .out = output_to(out, Finish::store),
                                  .count = 1,
                                  .linears = {{w.matrix, nullptr, 0}},
                                  .experts = nullptr,
                                  .expert_count = 0});
    return out.read();
  };
  for (float size : {1e-20f, 1e-6f, 1e6f, 1e20f}) {
    auto x = random_floats(rng, kCols);
    for (float& v : x) v *= size;
    std::vector<float> truth(25);
    truth_into(w.truth, {}, x, 1, 0, 25, truth);
    const double scale = size;
    CHECK_CLOSE(run(x), truth, 1e-4 * scale, 1e-5, 1e-11);
  }
  for (float bad : {NAN, INFINITY, -INFINITY}) {
    auto x = random_floats(rng, kCols);
    x[w.weak[0] == 40 ? 41 : 40] = bad;
    for (float y : run(x)) CHECK_FALSE(std::isfinite(y));
  }
}

namespace {

/// `room` says how many tokens may choose an expert: up to 8 are decode's kernel.
void check_experts(int room) {
  cuda::Stream stream;
  Rng rng(11);
  constexpr int kExperts = 3, kTokens = 4;
  std::vector<Weights<cuda::PackedMatrix>> up, down;
  std::vector<cuda::LinearArgs<cuda::PackedMatrix>> ups, downs;
  for (int e = 0; e < kExperts; ++e) {
    up.push_back(packed(stream, rng, kCols, uint32_t(4 * e)));
    down.push_back(packed(stream, rng, 20, uint32_t(e)));
    ups.push_back({up.back().matrix, nullptr, 0});
    downs.push_back({down.back().matrix, nullptr, 0});
  }
  const cuda::Memory up_table =
      cuda::uploaded(stream, std::span<const cuda::LinearArgs<cuda::PackedMatrix>>(ups));
  const cuda::Memory down_table =
      cuda::uploaded(stream, std::span<const cuda::LinearArgs<cuda::PackedMatrix>>(downs));
  std::vector<int32_t> rows(kExperts * cuda::kExpertRows, -1);
  const std::vector<int32_t> count = {2, 0, 3};
  rows[0] = 1, rows[1] = 3;
  rows[2 * cuda::kExpertRows] = 0, rows[2 * cuda::kExpertRows + 1] = 1;
  rows[2 * cuda::kExpertRows + 2] = 2;
  const cuda::Memory row_list = cuda::uploaded(stream, std::span<const int32_t>(rows));
  const cuda::Memory counts = cuda::uploaded(stream, std::span<const int32_t>(count));
  const auto x = random_floats(rng, kTokens * kCols);
  const DeviceRows in(stream, kTokens, kCols, x);
  const DeviceRows hidden(stream, kExperts * cuda::kExpertRows, kCols);
  const DeviceRows out(stream, kExperts * cuda::kExpertRows, 20);
  cuda::PackedArgs args{.in = plain_input(in, room),
                        .out = output_to(hidden, Finish::activate),
                        .count = 1,
                        .linears = {ups[2]},  // the most weak columns
                        .experts = up_table.as<cuda::LinearArgs<cuda::PackedMatrix>>(),
                        .expert_count = kExperts};
  args.in.rows = row_list.as<int32_t>();
  args.in.count = counts.as<int32_t>();
  args.out.expert_stride = int64_t(cuda::kExpertRows) * hidden.stride();
  start(stream, args);
  args.in = plain_input(hidden, room);
  args.in.count = counts.as<int32_t>();
  args.in.expert_stride = args.out.expert_stride;
  args.out = output_to(out, Finish::store);
  args.out.expert_stride = int64_t(cuda::kExpertRows) * out.stride();
  args.linears[0] = downs[2];
  args.experts = down_table.as<cuda::LinearArgs<cuda::PackedMatrix>>();
  start(stream, args);
  const auto got = out.read();
  for (int e = 0; e < kExperts; ++e) {
    for (int i = 0; i < cuda::kExpertRows; ++i) {
      const int token = rows[size_t(e * cuda::kExpertRows + i)];
      const auto at = got.begin() + (e * cuda::kExpertRows + i) * 20;
      const std::vector<float> row(at, at + 20);
      if (token < 0) {  // nobody's: never written
        CHECK(std::isnan(row[0]));
        continue;
      }
      const std::vector<float> one(x.begin() + token * kCols, x.begin() + (token + 1) * kCols);
      std::vector<float> middle(kCols), truth(20);
      truth_into(up[size_t(e)].truth, {}, one, 1, 0, kCols, middle);
      for (float& v : middle) v = reference::silu(v);
      truth_into(down[size_t(e)].truth, {}, middle, 1, 0, 20, truth);
      CHECK_CLOSE(row, truth, 1e-3, 1e-4, 1e-10);
    }
  }
}

}  // namespace

TEST_CASE("rows are chosen, and experts work on the tokens that chose them") {
  for (int room : {4, 40}) check_experts(room);
}
