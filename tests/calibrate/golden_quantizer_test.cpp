#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <map>

#include <doctest/doctest.h>
#include <nlohmann/json.hpp>

#include "kernels/activation_grid.h"
#include "tests/support.h"
#include "tools/calibrate/learn/activation_quantizer.h"
#include "tools/calibrate/learn/weight_quantizer.h"
#include "tools/tensor_files/safetensors.h"

// What the references' own quantizers made of weights and activations, in fp32: outputs, scales,
// zero points, and the gradients of everything.

namespace oq::calibrate {
namespace {

struct Case {
  std::map<std::string, std::string> options;
  std::map<std::string, Matrix> tensors;

  explicit Case(const std::filesystem::path& path) {
    const std::string bytes = test::read_file(path);
    uint64_t header = 0;
    std::memcpy(&header, bytes.data(), sizeof header);
    options = nlohmann::json::parse(bytes.substr(8, header))["__metadata__"];
    for (const auto& t : read_safetensors(std::as_bytes(std::span(bytes)), path)) {
      const int64_t rows = int64_t(t.shape.at(0));
      std::vector<float> values(t.data.size() / sizeof(float));
      std::memcpy(values.data(), t.data.data(), t.data.size());
      const auto cols = int64_t(values.size()) / rows;
      tensors[t.name] = Matrix(rows, cols, std::move(values));
    }
  }

  const Matrix& operator[](const char* name) const { return tensors.at(name); }

  Packing packing() const {
    Packing p;
    p.bits = uint8_t(std::stoi(options.at("bits")));
    p.five_levels = options.at("levels") == "5";
    p.group = uint32_t(std::max(0, std::stoi(options.at("group"))));
    if (options.at("symmetric") == "True") {
      p.zero_mode = ZeroMode::constant;
      p.zero = int16_t((1 << (p.bits - 1)) - 1);
    }
    return p;
  }
};

/// Gradients are sums in which much cancels, in an order of the reference's own.
constexpr double kLargest = 1;

/// The largest difference, each as a part of its own size, or of `floor` times the largest where
/// that is more.
double difference(const Matrix& a, const Matrix& b, double floor = 1e-3) {
  REQUIRE(a.values().size() == b.values().size());
  double most = 0, size = 1e-30;
  for (float v : b.values()) size = std::max(size, std::fabs(double(v)));
  for (size_t i = 0; i < a.values().size(); ++i) {
    const double x = a.values()[i], y = b.values()[i];
    most = std::max(most, std::fabs(x - y) / std::max(std::fabs(y), floor * size));
  }
  return most;
}

void check_weights(const Case& c) {
  ThreadPool pool(2);
  const Matrix& w = c["input"];
  WeightQuantizer quantizer(w.rows(), w.cols(), c.packing(), false);
  Clipping clipping, d(w.rows(), quantizer.groups(), 0);
  const auto by_group = [&](const char* name) {
    const auto v = c[name].values();
    return Matrix(w.rows(), quantizer.groups(), {v.begin(), v.end()});
  };
  clipping.upper = by_group("upbound_factor");
  clipping.lower = by_group("lowbound_factor");
  Matrix out(w.rows(), w.cols()), gradient = c["grad_output"];
  quantizer.forward(pool, w, clipping, out);
  quantizer.backward(pool, w, clipping, gradient, d, true);
  CHECK(difference(out, c["output"]) < 1e-5);
  CHECK(difference(quantizer.scales(), c["scale"]) < 1e-5);
  CHECK(difference(quantizer.zeros(), c["zero"]) < 1e-5);
  CHECK(difference(gradient, c["grad_input"], kLargest) < 1e-5);
  CHECK(difference(d.upper, c["grad_upbound"], kLargest) < 1e-5);
  CHECK(difference(d.lower, c["grad_lowbound"], kLargest) < 1e-5);
}

void check_activations(const Case& c) {
  ThreadPool pool(2);
  const Matrix& x = c["input"];
  const ActivationQuantizer quantizer{.bits = std::stoi(c.options.at("bits")), .zero_limit = 1e4f};
  Matrix out(x.rows(), x.cols()), gradient = c["grad_output"];
  quantizer.forward(pool, x.data(), x.rows(), x.cols(), x.cols(), out.data());
  quantizer.backward(pool, x.data(), x.rows(), x.cols(), x.cols(), gradient.data());
  CHECK(difference(out, c["output"]) < 1e-5);
  CHECK(difference(gradient, c["grad_input"], kLargest) < 1e-5);
  Matrix scales(x.rows(), 1), zeros(x.rows(), 1);
  for (int64_t r = 0; r < x.rows(); ++r) {
    const auto row = x.row(r);
    const auto ends = std::minmax_element(row.begin(), row.end());
    const ActivationGrid grid = ActivationGrid::of(*ends.first, *ends.second, quantizer.bits);
    scales(r, 0) = grid.scale;
    zeros(r, 0) = std::clamp(grid.zero, -quantizer.zero_limit, quantizer.zero_limit);
  }
  CHECK(difference(scales, c["scale"]) < 1e-5);
  CHECK(difference(zeros, c["zero"]) < 1e-5);
}

}  // namespace

TEST_SUITE("data") {
  TEST_CASE("quantizers equal the references', with all gradients") {
    const auto folder = test::data("golden/quantizer");
    if (!folder) return;
    int files = 0;
    for (const auto& entry : std::filesystem::directory_iterator(*folder)) {
      if (entry.path().extension() != ".safetensors") continue;
      const std::string name = entry.path().filename();
      CAPTURE(name);
      const Case c(entry.path());
      ++files;
      if (c.options.at("lwc") == "True") {
        check_weights(c);
      } else {
        check_activations(c);
      }
    }
    CHECK(files > 0);
  }
}

}  // namespace oq::calibrate
