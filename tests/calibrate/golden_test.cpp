#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <map>
#include <string>

#include <doctest/doctest.h>
#include <nlohmann/json.hpp>

#include "tests/calibrate/problem.h"
#include "tests/support.h"
#include "tools/calibrate/solver/awrq.h"
#include "tools/calibrate/solver/gptq.h"
#include "tools/calibrate/solver/owq.h"
#include "tools/tensor_files/safetensors.h"

// Single layers that the reference implementations of OWQ and AWRQ solved in fp32. Everything is
// computed again here, from weights and inputs alone, and held to what they got.

namespace oq::calibrate {
namespace {

struct Case {
  std::string bytes;
  std::map<std::string, std::string> options;
  std::map<std::string, SafeTensor> tensors;

  explicit Case(const std::filesystem::path& path) : bytes(test::read_file(path)) {
    const auto data = std::as_bytes(std::span(bytes));
    for (auto& t : read_safetensors(data, path.string())) tensors[t.name] = t;
    uint64_t header = 0;
    std::memcpy(&header, bytes.data(), sizeof header);
    options = nlohmann::json::parse(bytes.substr(8, header))["__metadata__"];
  }

  bool has(const std::string& name) const { return tensors.count(name) != 0; }
  bool flag(const std::string& name) const { return options.at(name) == "True"; }
  int number(const std::string& name) const { return std::stoi(options.at(name)); }
  double damp() const { return std::stod(options.at("damp")); }

  template <class T = float>
  std::vector<T> values(const std::string& name) const {
    const auto& data = tensors.at(name).data;
    std::vector<T> out(data.size() / sizeof(T));
    std::memcpy(out.data(), data.data(), data.size());
    return out;
  }

  Matrix matrix(const std::string& name) const {
    const auto& shape = tensors.at(name).shape;
    return {int64_t(shape.at(0)), int64_t(shape.at(1)), values(name)};
  }

  std::vector<std::vector<float>> windows() const {
    const auto shape = tensors.at("inputs").shape;
    const auto all = values("inputs");
    const auto size = std::ptrdiff_t(shape.at(1) * shape.at(2));
    std::vector<std::vector<float>> out;
    for (auto at = all.begin(); at != all.end(); at += size) out.emplace_back(at, at + size);
    return out;
  }

  GptqOptions gptq_options() const {
    GptqOptions o;
    o.grid.fp32_scales = true;
    o.grid.packing.bits = uint8_t(number("bits"));
    o.grid.packing.group = uint32_t(std::max(0, number("group")));
    return o;
  }
};

double largest_of(std::span<const float> v) {
  double m = 0;
  for (float x : v) m = std::max(m, double(std::fabs(x)));
  return m;
}

/// The largest difference, as a part of the largest value of `b`.
double difference(std::span<const float> a, std::span<const float> b) {
  REQUIRE(a.size() == b.size());
  double most = 0;
  for (size_t i = 0; i < a.size(); ++i)
    most = std::max(most, std::fabs(double(a[i]) - double(b[i])));
  return most / largest_of(b);
}

/// |W X - Q X̂| over all windows.
double output_error(const Matrix& w, const Matrix& q, const std::vector<std::vector<float>>& x,
                    const std::vector<std::vector<float>>& x_quantized) {
  const auto cols = size_t(w.cols());
  double sum = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    for (size_t t = 0; t < x[i].size() / cols; ++t) {
      for (int64_t r = 0; r < w.rows(); ++r) {
        double y = 0;
        for (size_t k = 0; k < cols; ++k) {
          y += double(w.row(r)[k]) * double(x[i][t * cols + k]) -
               double(q.row(r)[k]) * double(x_quantized[i][t * cols + k]);
        }
        sum += y * y;
      }
    }
  }
  return std::sqrt(sum);
}

void check_result(const Case& c, const QuantizedLinear& linear,
                  const std::vector<std::vector<float>>& x,
                  const std::vector<std::vector<float>>& x_quantized) {
  const Matrix w = c.matrix("weight"), expected = c.matrix("dequantized");
  const Matrix found = linear.dequantize();
  const double tolerance = 1e-5 * largest_of(w.values());
  int64_t equal = 0;
  for (size_t i = 0; i < w.values().size(); ++i) {
    const auto d = double(found.values()[i]) - double(expected.values()[i]);
    equal += std::fabs(d) <= tolerance ? 1 : 0;
  }
  const double share = double(equal) / double(w.values().size());
  const double ours = output_error(w, found, x, x_quantized);
  const double theirs = output_error(w, expected, x, x_quantized);
  INFO("equal ", share, ", output error ", ours, " and ", theirs);
  CHECK(share >= 0.995);
  CHECK(ours == doctest::Approx(theirs).epsilon(0.005));
  if (!c.has("scale")) return;
  const auto scales = c.values("scale"), zeros = c.values("zero");
  for (int64_t r = 0; r < w.rows(); ++r) {
    const Grid& grid = linear.grid(r, 0);
    CHECK(double(grid.scale) == doctest::Approx(double(scales[size_t(r)])).epsilon(1e-6));
    // A constant zero point is the packing's; the references then count codes from below 0.
    const int shift = linear.packing.zero_mode == ZeroMode::constant ? linear.packing.zero : 0;
    CHECK(std::fabs(double(grid.zero - shift) - double(zeros[size_t(r)])) <= 1e-6);
  }
}

void check_owq(ThreadPool& pool, const Case& c) {
  const Matrix w = c.matrix("weight");
  const auto x = c.windows();
  MomentAccumulator sums(w.cols(), false);
  for (const auto& window : x) sums.add(pool, window);
  const Moments moments = std::move(sums).finish();
  CHECK(difference(moments.hessian.values(), c.values("hessian")) < 1e-6);

  GptqOptions options = c.gptq_options();
  options.compacted_groups = true;
  options.grid.tuning = c.options.at("tuning") == "mse" ? Tuning::mse : Tuning::minmax;
  if (c.flag("symmetric")) {
    options.grid.packing.zero_mode = ZeroMode::constant;
    options.grid.packing.zero = int16_t(1 << (options.grid.packing.bits - 1));
  }
  std::vector<float> score = diagonal(moments.hessian);
  std::vector<uint32_t> weak;
  if (c.number("weak_columns") > 0) {
    score = sensitivity(pool, w, score, options.grid);
    weak = largest(score, uint32_t(c.number("weak_columns")));
    const auto expected = c.values<int32_t>("weak_columns");
    CHECK(std::equal(weak.begin(), weak.end(), expected.begin(), expected.end()));
  }
  if (!c.flag("act_order")) score.clear();
  const InverseFactor factor =
      invert(pool, moments.hessian, column_order(w.cols(), weak, score), {.damp = c.damp()});
  check_result(c, gptq(pool, w, factor, options).linear, x, x);
}

void check_awrq(ThreadPool& pool, const Case& c) {
  const Matrix w = c.matrix("weight");
  const bool awrq = c.options.at("method") == "awrq";
  const auto x = c.windows();
  auto x_quantized = x;
  MomentAccumulator sums(w.cols(), true);
  for (size_t i = 0; i < x.size(); ++i) {
    if (awrq) {
      x_quantized[i] =
          test::on_grid(pool, x[i], w.cols(), {.bits = c.number("act_bits"), .per_tensor = true});
    }
    sums.add(pool, x[i], x_quantized[i]);
  }
  Moments moments = std::move(sums).finish();
  for (float& v : moments.hessian.values()) v /= 2;  // AWRQ's are 1/N sums
  for (float& v : moments.cross.values()) v /= 2;
  CHECK(difference(moments.hessian.values(), c.values("hessian")) < 1e-6);
  if (awrq) {
    CHECK(difference(moments.cross.values(), c.values("cross")) < 1e-4);
    CHECK(difference(x_quantized[0], c.values("activation_quantized")) < 1e-6);
  }
  GptqOptions options = c.gptq_options();
  options.joint = c.number("block");
  options.first_from_original = awrq;
  if (options.grid.packing.group != 0) options.block = int(options.grid.packing.group);
  const auto score = c.flag("act_order") ? diagonal(moments.hessian) : std::vector<float>{};
  options.compacted_groups = !score.empty();
  const InverseFactor factor =
      invert(pool, moments.hessian, column_order(w.cols(), {}, score), {.damp = c.damp()});
  const Matrix start = awrq ? reformulate(pool, w, moments.cross, factor) : w;
  check_result(c, gptq(pool, w, factor, options, &start).linear, x, x_quantized);
}

void check_folder(const char* folder, void (*check)(ThreadPool&, const Case&)) {
  const auto path = test::data(std::string("golden/") + folder);
  if (!path) return;
  ThreadPool pool(2);
  int files = 0;
  for (const auto& entry : std::filesystem::directory_iterator(*path)) {
    if (entry.path().extension() != ".safetensors") continue;
    ++files;
    SUBCASE(entry.path().filename().c_str()) { check(pool, Case(entry.path())); }
  }
  CHECK(files > 0);
}

}  // namespace

TEST_SUITE("data") {
  TEST_CASE("the layers that OWQ's own code solved") { check_folder("owq", check_owq); }
  TEST_CASE("the layers that AWRQ's own code solved") { check_folder("awrq", check_awrq); }
}

}  // namespace oq::calibrate
