/// OmniQuant's own files applied: what they make is what torch makes of them in half tensors
/// (golden/make_omniquant.py), or what the same steps written down here do.

#include <cmath>
#include <random>

#include <doctest/doctest.h>
#include <fmt/format.h>

#include "tests/calibrate/omniquant_file.h"
#include "tests/calibrate/small_run.h"
#include "tests/convert/golden_models.h"
#include "tests/tiny_oq.h"
#include "tools/calibrate/block.h"

using namespace oq;
using calibrate::BlockWeights;
using calibrate::Matrix;
using test::TempDir;
namespace fs = std::filesystem;

namespace {

std::shared_ptr<const File> applied(const fs::path& in, const fs::path& parameters,
                                    const fs::path& out, const char* scheme) {
  calibrate::Options o;
  o.input = in;
  o.output = out;
  o.method = "omniquant";
  o.scheme = Scheme::parse(scheme);
  o.parameters = parameters;
  o.threads = 2;
  calibrate::calibrate(o);
  return File::open(out);
}

template <class T>
T at(const SafeTensor& t, size_t i) {
  T v;
  std::memcpy(&v, t.data.data() + i * sizeof(T), sizeof(T));
  return v;
}

/// How many codes of a linear are not the expected ones.
int64_t wrong_codes(const PackedView& found, const SafeTensor& expected) {
  std::vector<uint8_t> row(found.layout().padded_cols);
  int64_t wrong = 0;
  for (uint64_t r = 0; r < expected.shape[0]; ++r) {
    found.unpack_row(r, row);
    for (uint64_t k = 0; k < expected.shape[1]; ++k) {
      wrong += row[k] != at<uint8_t>(expected, r * expected.shape[1] + k) ? 1 : 0;
    }
  }
  return wrong;
}

/// "blocks.0.q.codes", ".scale", ".zero", or a norm or bias, which are the very same. A bias that
/// has moved by W d may be a step of f16 off, for the sum's order is open.
void check_tensor(const File& file, const std::string& name, const SafeTensor& expected) {
  CAPTURE(name);
  const std::string linear = name.substr(0, name.rfind('.'));
  const auto packed = [&] { return file.packed(file.tensor(linear)); };
  if (name.ends_with(".codes")) {
    CHECK(wrong_codes(packed(), expected) == 0);
  } else if (name.ends_with(".scale")) {
    for (uint64_t r = 0; r < expected.shape[0]; ++r) {
      CHECK(packed().scale(r, 0) == to_float(at<f16>(expected, r)));
    }
  } else if (name.ends_with(".zero")) {
    for (uint64_t r = 0; r < expected.shape[0]; ++r) {
      CHECK(packed().zero(r, 0) == at<int16_t>(expected, r));
    }
  } else {
    const std::vector<float> found = calibrate::read_tensor(file, name);
    REQUIRE(found.size() * 4 == expected.data.size());
    const bool sum = name.ends_with(".bias") && name.find("norm") == std::string::npos;
    for (size_t i = 0; i < found.size(); ++i) {
      CHECK(std::fabs(found[i] - at<float>(expected, i)) <= (sum ? std::fabs(found[i]) / 512 : 0));
      CHECK(found[i] == to_float(to_f16(found[i])));
    }
  }
}

}  // namespace

TEST_CASE("OmniQuant's parameters make what torch makes of them in half tensors") {
  const TempDir dir;
  for (const auto& [name, scheme] :
       {std::pair("opt", "w4a6"), std::pair("opt", "w4a16"), std::pair("llama-bias", "w3a16"),
        std::pair("mixtral", "w4a16")}) {
    const std::string model = name;
    CAPTURE(model);
    const fs::path golden = test::golden("omniquant") / name;
    test::to_oq(test::golden("families") / name, dir / "in.oq");
    const auto file =
        applied(dir / "in.oq", golden / "omni_parameters.pth", dir / "out.oq", scheme);
    const std::string bytes = test::read_file(golden / "expected.safetensors");
    const auto expected = read_safetensors(std::as_bytes(std::span(bytes)), name);
    REQUIRE(expected.size() > 10);
    for (const SafeTensor& t : expected) check_tensor(*file, t.name, t);
  }
}

namespace {

float half(float v) { return to_float(to_f16(v)); }

constexpr int kBlocks = 2;
constexpr const char* kTheirs[][2] = {{"q", "self_attn.q_proj"}, {"k", "self_attn.k_proj"},
                                      {"v", "self_attn.v_proj"}, {"o", "self_attn.o_proj"},
                                      {"gate", "mlp.gate_proj"}, {"up", "mlp.up_proj"},
                                      {"down", "mlp.down_proj"}};

/// A small LLaMA of as many KV heads as heads, and what was learned of it.
struct Llama {
  explicit Llama(int64_t group) : group(group) {
    test::TinyOq tiny;
    tiny.config.hidden = 64;
    tiny.config.heads = tiny.config.kv_heads = 4;
    tiny.config.head_dim = tiny.config.rope_dim = 16;
    tiny.config.mlp = 96;
    tiny.config.blocks = kBlocks;
    test::make_tiny_oq(dir / "in.oq", tiny);
    const auto file = File::open(dir / "in.oq");
    for (int64_t b = 0; b < kBlocks; ++b) {
      weights.push_back(BlockWeights::load(*file, tiny.config, b));
      for (const auto& [ours, theirs] : kTheirs) {
        const Matrix& w = weights.back().linears.at(ours).weight;
        const auto n = size_t(w.rows() * (group == 0 ? 1 : w.cols() / group));
        upper[b][ours] = numbers(n, 4, 1);
        lower[b][ours] = numbers(n, 4, 1);
        learned.add_bounds(b, theirs, upper[b][ours], lower[b][ours]);
      }
    }
  }

  /// f16's around `middle`.
  std::vector<float> numbers(size_t n, float middle, float spread) {
    std::vector<float> v(n);
    for (float& x : v) x = half(std::uniform_real_distribution(-spread, spread)(rng) + middle);
    return v;
  }

  std::shared_ptr<const File> apply(const char* scheme) {
    test::write_file(dir / "p.pth", learned.parameters());
    return applied(dir / "in.oq", dir / "p.pth", dir / "out.oq", scheme);
  }

  /// The codes of folded weights at 4 bits, step by step in f16, held to a file's.
  void check_codes(const File& file, int64_t b, const std::string& name, const Matrix& w) {
    const std::string full = fmt::format("blocks.{}.{}", b, name);
    CAPTURE(full);
    const PackedView view = file.packed(file.tensor(full));
    std::vector<uint8_t> row(view.layout().padded_cols);
    const int64_t n = group == 0 ? w.cols() : group, groups = w.cols() / n;
    for (int64_t r = 0; r < w.rows(); ++r) {
      view.unpack_row(uint64_t(r), row);
      for (int64_t g = 0; g < groups; ++g) {
        const auto values = w.row(r).subspan(size_t(g * n), size_t(n));
        const auto kept = [&](float logit) { return half(1 / (1 + std::exp(-logit))); };
        const auto at = size_t(r * groups + g);
        const auto [least, most] = std::minmax_element(values.begin(), values.end());
        const float high = half(kept(upper[b][name][at]) * *most);
        const float low = half(kept(lower[b][name][at]) * *least);
        const float scale = half(half(high - low) / 15);
        const float zero = std::nearbyint(half(-low / scale));
        CHECK(view.scale(uint64_t(r), uint64_t(g)) == scale);
        CHECK(float(view.zero(uint64_t(r), uint64_t(g))) == zero);
        int64_t wrong = 0;
        for (int64_t i = 0; i < n; ++i) {
          const float code = std::nearbyint(half(values[size_t(i)] / scale)) + zero;
          wrong += float(row[size_t(g * n + i)]) != std::clamp(code, 0.0f, 15.0f) ? 1 : 0;
        }
        CHECK(wrong == 0);
      }
    }
  }

  const TempDir dir;
  int64_t group;  ///< columns; 0: whole rows
  std::mt19937 rng{5};
  std::vector<BlockWeights> weights;
  std::map<std::string, std::vector<float>> upper[kBlocks], lower[kBlocks];
  test::OmniQuantFile learned;
};

/// W times `columns` by column, then by row times or divided by `rows`; empty: neither.
Matrix folded(const Matrix& w, const std::vector<float>& columns, const std::vector<float>& rows,
              bool divided) {
  Matrix out = w;
  for (int64_t r = 0; r < w.rows(); ++r) {
    for (int64_t k = 0; k < w.cols(); ++k) {
      float v = w(r, k);
      if (!columns.empty()) v = half(v * columns[size_t(k)]);
      if (!rows.empty()) v = half(divided ? v / rows[size_t(r)] : v * rows[size_t(r)]);
      out(r, k) = v;
    }
  }
  return out;
}

}  // namespace

TEST_CASE("a LLaMA's transformations are folded step by step in f16, q and k by dimension") {
  Llama m(0);
  std::vector<float> s1[kBlocks], s2[kBlocks], s3[kBlocks], s4[kBlocks];
  for (int64_t b = 0; b < kBlocks; ++b) {
    for (auto* s : {s1, s2, s3, s4}) s[b] = m.numbers(64, 1.2f, 0.5f);
    s4[b][5] = -0.25f;
    m.learned.add(b, "qkv_smooth_scale", s1[b]);
    m.learned.add(b, "out_smooth_scale", s2[b]);
    m.learned.add(b, "fc1_smooth_scale", s3[b]);
    m.learned.add(b, "qkt_smooth_scale", s4[b]);
    for (const char* pair : {"qkv", "out", "fc1"}) {
      m.learned.add(b, std::string(pair) + "_smooth_shift", std::vector<float>(64));
    }
  }
  for (const char* scheme : {"w4a16", "w4a4q4kv4"}) {
    const auto file = m.apply(scheme);
    for (int64_t b = 0; b < kBlocks; ++b) {
      const auto w = [&](const char* name) { return m.weights[size_t(b)].linears.at(name).weight; };
      m.check_codes(*file, b, "q", folded(w("q"), s1[b], s4[b], true));
      m.check_codes(*file, b, "k", folded(w("k"), s1[b], s4[b], false));
      m.check_codes(*file, b, "v", folded(w("v"), s1[b], s2[b], true));
      m.check_codes(*file, b, "o", folded(w("o"), s2[b], {}, false));
      m.check_codes(*file, b, "gate", folded(w("gate"), s3[b], {}, false));
      m.check_codes(*file, b, "up", folded(w("up"), s3[b], {}, false));
      m.check_codes(*file, b, "down", w("down"));
      const auto norm = [&](const char* name, const std::vector<float>& from,
                            const std::vector<float>& s) {
        const auto found = calibrate::read_tensor(*file, fmt::format("blocks.{}.{}", b, name));
        for (size_t i = 0; i < s.size(); ++i) CHECK(found[i] == half(half(from[i]) / s[i]));
      };
      norm("attn_norm", m.weights[size_t(b)].attn_norm.weight, s1[b]);
      norm("mlp_norm", m.weights[size_t(b)].mlp_norm.weight, s3[b]);
    }
  }
}

TEST_CASE("bounds of groups lie row by row in OmniQuant's files") {
  Llama m(32);
  const auto file = m.apply("w4a16g32");
  for (int64_t b = 0; b < kBlocks; ++b) {
    for (const auto& [ours, theirs] : kTheirs) {
      m.check_codes(*file, b, ours, m.weights[size_t(b)].linears.at(ours).weight);
    }
  }
}

TEST_CASE("OmniQuant's parameters of OPT are applied with one range over all heads") {
  const TempDir dir;
  for (const char* name : {"opt", "llama-bias"}) {
    const std::string model = name;
    CAPTURE(model);
    test::to_oq(test::golden("families") / name, dir / "in.oq");
    const auto range = [&](const char* scheme) {
      auto o = test::small_run(dir / "in.oq", dir / "out.oq", "omniquant", scheme);
      o.text = "";
      o.parameters = test::golden("omniquant") / name / "omni_parameters.pth";
      calibrate::calibrate(o);
      return File::open(o.output)->metadata().get_or<std::string>("attention.range", "none");
    };
    CHECK(range("w4a6q6kv6") == (model == "opt" ? "token" : "none"));
    CHECK(range("w4a6") == "none");
  }
}
