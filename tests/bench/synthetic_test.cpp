// Random models in memory: sound files, whatever the scheme, that a decoder can tell from noise
// only by what they say.

#include "bench/synthetic.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <set>
#include <string>
#include <vector>

#include <doctest/doctest.h>
#include <fmt/format.h>
#include <sys/mman.h>

#include "bench/pages.h"
#include "bench/random_weights.h"
#include "kernels/reference/ops.h"
#include "runtime/decoder.h"
#include "tests/support.h"
#include "tests/tiny_oq.h"

using namespace oq;

namespace {

const char* const kSchemes[] = {"w2*a16g128", "w2*a16",    "w2a16g64", "w2sa16g32", "w3a16g128",
                                "w3a16",      "w4a16g128", "w4a16",    "w4sa8g64",  "w5a16g64",
                                "w6a16g128",  "w7a16",     "w8a16",    "w16a16"};

/// Every kind of norm, position and MLP in one of these.
std::vector<Shape> tiny_shapes() {
  Shape rope{.name = "tiny-rope", .config = test::tiny_config()};
  Shape experts = rope, learned = rope, alibi = rope;
  experts.name = "tiny-experts";
  experts.config.experts = 5;
  experts.config.experts_used = 2;

  ModelConfig& l = learned.config;
  learned.name = "tiny-learned";
  l.norm = NormKind::layer;
  l.positions = PositionKind::learned;
  l.rope_dim = 0;
  l.activation = Activation::relu;
  l.gated = false;
  l.qkv_bias = l.o_bias = l.mlp_bias = true;
  l.tied_head = true;

  alibi.config = learned.config;
  alibi.name = "tiny-alibi";
  alibi.alibi_divided = true;
  ModelConfig& a = alibi.config;
  a.positions = PositionKind::alibi;
  a.embedding_norm = true;
  a.parallel = true;
  return {rope, experts, learned, alibi};
}

std::string_view all_bytes(const File& file) {
  const TensorInfo& first = file.tensors().front();
  const auto* start = file.data(first).data() - first.offset;
  return {reinterpret_cast<const char*>(start), size_t(file.bytes())};
}

struct Moments {
  double mean = 0, deviation = 0;
};

template <class Values>
Moments moments(const Values& values) {
  double sum = 0, squares = 0;
  for (float v : values) {
    sum += v;
    squares += double(v) * v;
  }
  const double n = double(values.size()), mean = sum / n;
  return {mean, std::sqrt(squares / n - mean * mean)};
}

std::vector<float> weights_of(const File& file, const TensorInfo& t) {
  if (t.kind == Kind::packed) return reference::dequantize(file.packed(t));
  std::vector<float> v(t.elements());
  const auto* from = file.data(t).data();
  for (size_t i = 0; i < v.size(); ++i) {
    v[i] = t.kind == Kind::f32 ? reinterpret_cast<const float*>(from)[i]
                               : to_float(reinterpret_cast<const f16*>(from)[i]);
  }
  return v;
}

/// Stored once more through PackedBuilder, a tensor has the same bytes: codes are in range, fields
/// of five levels are the ones that a writer would choose, and padding is 0.
void check_canonical(const File& file, const TensorInfo& t) {
  const PackedView view = file.packed(t);
  PackedBuilder again(t.rows, t.cols, t.packing);
  again.set_weak_indices(view.weak_indices());
  std::vector<uint8_t> codes(view.layout().padded_cols);
  std::set<int> seen;
  for (uint64_t r = 0; r < t.rows; ++r) {
    view.unpack_row(r, codes);
    again.set_codes(r, std::span(codes).first(t.cols));
    seen.insert(codes.begin(), codes.begin() + long(t.cols));
    for (uint64_t g = 0; g < view.layout().groups; ++g) {
      again.set_scale(r, g, to_f16(view.scale(r, g)));
      again.set_zero(r, g, view.zero(r, g));
    }
    for (uint32_t i = 0; i < t.packing.weak_columns; ++i) {
      again.set_weak_weight(r, i, view.weak_weight(r, i));
    }
  }
  const auto data = file.data(t);
  REQUIRE(again.bytes().size() == data.size());
  CHECK(std::memcmp(again.bytes().data(), data.data(), data.size()) == 0);
  const bool constant = t.packing.zero_mode == ZeroMode::constant;
  const int most = constant ? 2 * t.packing.zero : t.packing.max_code();
  CHECK(*seen.begin() == 0);
  CHECK(*seen.rbegin() == most);
  CHECK(int(seen.size()) == most + 1);
}

}  // namespace

TEST_CASE("synthetic models are sound files at every scheme") {
  const test::TempDir dir;
  for (const Shape& shape : tiny_shapes()) {
    for (const char* scheme : kSchemes) {
      CAPTURE(shape.name);
      CAPTURE(scheme);
      const auto file = make_synthetic(shape, {.scheme = Scheme::parse(scheme)});
      file->verify();
      CHECK(ModelConfig::load(*file) == shape.config);
      check_tensors(*file, shape.config);
      CHECK(file->metadata().get<std::string>("scheme") == scheme);
      const bool packed = Scheme::parse(scheme).quantizes_weights();
      CHECK(file->metadata().get<int64_t>("head_bits") == (packed ? 8 : 16));
      for (const TensorInfo& t : file->tensors()) {
        CAPTURE(t.name);
        if (t.kind == Kind::packed) check_canonical(*file, t);
      }
      // The same bytes, on disk, are a .oq.
      test::write_file(dir / "m.oq", all_bytes(*file));
      File::open(dir / "m.oq")->verify();
    }
  }
}

TEST_CASE("a decoder runs them: logits are finite, differ, and have the size of one") {
  for (const Shape& shape : tiny_shapes()) {
    for (const char* scheme : kSchemes) {
      CAPTURE(shape.name);
      CAPTURE(scheme);
      const auto file = make_synthetic(shape, {.scheme = Scheme::parse(scheme)});
      Decoder decoder(file, make_cpu_backend(1), {});
      std::vector<int32_t> tokens;
      for (int32_t i = 0; i < 40; ++i) tokens.push_back(i * 37 % 101);
      const auto logits = decoder.feed(tokens);
      CHECK(std::all_of(logits.begin(), logits.end(), [](float x) { return std::isfinite(x); }));
      const Moments m = moments(logits);
      CHECK(m.deviation > 0.5);
      CHECK(m.deviation < 2.0);
      const std::vector<float> before(logits.begin(), logits.end());
      const int32_t next = 5;
      const auto after = decoder.feed({&next, 1});
      CHECK_FALSE(std::equal(before.begin(), before.end(), after.begin()));
    }
  }
}

TEST_CASE("weak columns are those of every linear of a block, and weights like the others") {
  const Shape shape = tiny_shapes()[0];
  const auto file = make_synthetic(shape, {.scheme = Scheme::parse("w3a16"), .weak_columns = 4});
  file->verify();
  const TensorInfo& up = file->tensor("blocks.1.up");
  CHECK(up.packing.weak_columns == 4);
  CHECK(file->tensor("embedding").packing.weak_columns == 0);
  check_canonical(*file, up);
  const PackedView w = file->packed(up);
  std::vector<float> weak;
  for (uint64_t row = 0; row < up.rows; ++row) {
    for (uint32_t i = 0; i < 4; ++i) weak.push_back(w.weak_weight(row, i));
  }
  const Moments m = moments(weak);
  CHECK(std::abs(m.deviation * std::sqrt(double(up.cols)) - 1) < 0.2);
  Decoder decoder(file, make_cpu_backend(1), {});
  const std::vector<int32_t> tokens = {1, 2, 3};
  for (float x : decoder.feed(tokens)) CHECK(std::isfinite(x));
}

TEST_CASE("weights have mean 0 and the deviation that keeps activations at their size") {
  Shape shape{.name = "wide", .config = test::tiny_config()};
  shape.config.hidden = 480;
  shape.config.mlp = 704;
  shape.config.vocab = 613;
  for (const char* scheme : kSchemes) {
    CAPTURE(scheme);
    const auto file = make_synthetic(shape, {.scheme = Scheme::parse(scheme)});
    const auto check = [&](const char* name, double deviation) {
      CAPTURE(name);
      const Moments m = moments(weights_of(*file, file->tensor(name)));
      CHECK(std::abs(m.mean) < 0.15 * deviation);  // at 2 bits, half a code up or down per row
      CHECK(std::abs(m.deviation / deviation - 1) < 0.05);
    };
    check("embedding", 1);
    check("head", 1 / std::sqrt(480.0));
    check("blocks.0.q", 1 / std::sqrt(480.0));
    check("blocks.1.up", 1 / std::sqrt(480.0));
    check("blocks.1.down", 1 / std::sqrt(704.0 * 2 * 2));
  }
}

TEST_CASE("no two rows of a matrix are alike") {
  Shape shape{.name = "wide", .config = test::tiny_config()};
  shape.config.vocab = 3001;
  shape.config.hidden = 240;
  for (const char* scheme : {"w4a16", "w16a16"}) {
    const auto file = make_synthetic(shape, {.scheme = Scheme::parse(scheme)});
    const auto w = weights_of(*file, file->tensor("head"));
    std::set<std::vector<float>> rows;
    for (size_t r = 0; r < 3001; ++r) {
      rows.emplace(w.begin() + long(r * 240), w.begin() + long((r + 1) * 240));
    }
    CHECK(rows.size() == 3001);
  }
}

TEST_CASE("equal seeds give equal bytes on any number of threads, others others") {
  for (const Shape& shape : tiny_shapes()) {
    for (const char* scheme : {"w2*a16g128", "w3a16g64", "w16a16"}) {
      CAPTURE(shape.name);
      const Scheme s = Scheme::parse(scheme);
      const auto of = [&](uint64_t seed, int threads) {
        return make_synthetic(shape,
                              {.scheme = s, .weak_columns = 3, .seed = seed, .threads = threads});
      };
      const auto one = of(7, 1), three = of(7, 3), other = of(8, 1);
      CHECK(all_bytes(*one) == all_bytes(*three));
      CHECK(all_bytes(*one) != all_bytes(*other));
    }
  }
}

TEST_CASE("positions and norms are what such a model has") {
  const auto shapes = tiny_shapes();
  const auto rope = make_synthetic(shapes[0], {.scheme = Scheme::parse("w4a16")});
  const auto frequencies = weights_of(*rope, rope->tensor("rope.inv_freq"));
  REQUIRE(frequencies.size() == 8);
  CHECK(frequencies[0] == 1);
  CHECK(frequencies[4] == doctest::Approx(0.01));  // 10000^(-8 / 16)
  const auto norm = weights_of(*rope, rope->tensor("blocks.1.mlp_norm"));
  CHECK(std::all_of(norm.begin(), norm.end(), [](float x) { return x == 1; }));

  const Shape& shape = shapes[3];
  const auto alibi = make_synthetic(shape, {.scheme = Scheme::parse("w4a16")});
  const auto table = weights_of(*alibi, alibi->tensor("alibi"));
  const auto at = [&](size_t head, size_t position) { return table[head * 700 + position]; };
  CHECK(at(0, 0) == 0);
  CHECK(at(5, 699) == doctest::Approx(699.0 / 256 / std::sqrt(20.0)));  // the last slope is 2^-8
  CHECK(at(2, 10) == doctest::Approx(10.0 / 16 / std::sqrt(20.0)));
  const Moments bias = moments(weights_of(*alibi, alibi->tensor("blocks.0.up.bias")));
  CHECK(bias.deviation > 0.01);
  CHECK(bias.deviation < 0.03);
}

TEST_CASE("head bits are those of embedding and head alone") {
  const Shape shape = tiny_shapes()[0];
  for (int bits : {4, 6, 8}) {
    const auto file = make_synthetic(shape, {.scheme = Scheme::parse("w3a16"), .head_bits = bits});
    for (const char* name : {"embedding", "head"}) {
      CHECK(file->tensor(name).packing == head_packing(bits));
    }
    CHECK(file->tensor("blocks.0.k").packing == packing_of(Scheme::parse("w3a16")));
  }
  const auto file = make_synthetic(shape, {.scheme = Scheme::parse("w3a16"), .head_bits = 16});
  CHECK(file->tensor("head").kind == Kind::f16);
  CHECK(file->metadata().get<int64_t>("head_bits") == 16);
}

TEST_CASE("a router sends tokens to all experts") {
  Shape shape{.name = "experts", .config = test::tiny_config()};
  ModelConfig& c = shape.config;
  c.hidden = 256;
  c.vocab = 4000;
  c.experts = 8;
  c.experts_used = 2;
  const auto file = make_synthetic(shape, {.scheme = Scheme::parse("w4a16g128")});
  const auto embedding = weights_of(*file, file->tensor("embedding"));
  for (int64_t b = 0; b < c.blocks; ++b) {
    const auto router = weights_of(*file, file->tensor(fmt::format("blocks.{}.router", b)));
    std::vector<int> visits(8);
    for (size_t token = 0; token < 4000; ++token) {
      const std::span<const float> x(embedding.data() + token * 256, 256);
      std::vector<float> logits(8);
      reference::linear(router, {}, x, 1, 8, 256, logits);
      for (const auto& choice : reference::route(logits, 2)) ++visits[size_t(choice.expert)];
    }
    CAPTURE(b);
    CHECK(*std::min_element(visits.begin(), visits.end()) > 600);  // 1000 would be even
    CHECK(*std::max_element(visits.begin(), visits.end()) < 1400);
  }
}

TEST_CASE("a model that the machine cannot hold is refused with both sizes") {
  Shape shape{.name = "giant", .config = test::tiny_config()};
  shape.config.hidden = 1 << 20;
  shape.config.mlp = 1 << 22;
  shape.config.blocks = 1000;
  std::string message;
  try {
    make_synthetic(shape, {.scheme = Scheme::parse("w4a16g128")});
  } catch (const Error& e) {
    message = e.what();
  }
  CAPTURE(message);
  CHECK(message.find("synthetic giant") == 0);
  CHECK(message.find("memory") != std::string::npos);
  // 3 x 2^42 weights in each block's MLP alone, at 4.16 bits: 6.85e15 bytes
  CHECK(message.find("expected 685") != std::string::npos);
  CHECK(message.find("GB available") != std::string::npos);
}

TEST_CASE("small pages are known to be small") {
  constexpr size_t kBytes = 8 << 20;
  void* p = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  REQUIRE(p != MAP_FAILED);
  madvise(p, kBytes, MADV_NOHUGEPAGE);
  std::memset(p, 1, kBytes);
  CHECK(huge_page_share({static_cast<const std::byte*>(p), kBytes}) == 0);
  munmap(p, kBytes);
  CHECK(huge_page_share({}) == -1);
}

TEST_CASE("a hollow model has all but its weights, and needs no memory for them") {
  const Shape& shape = *find_shape("falcon-180b");
  const auto file = make_synthetic(
      shape, {.scheme = Scheme::parse("w3a16g512"), .weak_columns = 4, .hollow = true});
  CHECK(file->bytes() > uint64_t(60) << 30);
  for (const TensorInfo& t : file->tensors()) {
    const float deviation = synthetic_deviation(shape.config, t);
    if (t.kind == Kind::f32) {
      CHECK(deviation == 0);
      CHECK_NOTHROW(file->verify(t));
      continue;
    }
    CHECK(deviation > 0);
    if (t.kind != Kind::packed || t.packing.weak_columns == 0) continue;
    REQUIRE(file->packed(t).weak_indices()[1] == t.cols / 4);
  }
}
