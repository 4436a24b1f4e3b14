/// Attention on the device, with RoPE and the append in front of it, against the reference.
///
/// The cache is compared first, cell by cell, and the reference then attends to what the device has
/// stored. For a GPU rotates with other roundings than the host, and now and then they decide a
/// key's code or f16: every row behind it would differ. Such a cell counts, and has to be what the
/// reference stores of a number within those roundings; attention itself is held to the same limit
/// everywhere.

#include "kernels/kv_grid.h"
#include "kernels/reference/ops.h"
#include "tests/cuda/kv_copy.h"
#include "tests/cuda/on_device.h"

using namespace oq;
using namespace oq::test;
using cuda::KvType;

namespace {

struct Shape {
  int heads, kv_heads, dim, rope_dim;
  int window = 0;
  bool alibi = false;
  int query_bits = 16;
};

/// Sequences on the device and as the reference sees them, fed with random rows.
class Sequences {
 public:
  static constexpr int kRoom = 384;

  Sequences(cuda::Stream& stream, const Shape& shape, KvType type, int bits, int sequences)
      : stream_(stream),
        shape_(shape),
        bits_(bits),
        lengths_(size_t(sequences), 0),
        plain_keys_(size_t(sequences * shape.kv_heads)),
        plain_values_(plain_keys_.size()) {
    const int padded = (shape.dim + 7) / 8 * 8;
    const size_t positions = size_t(sequences * shape.kv_heads * kRoom);
    const size_t bytes = positions * size_t(padded / 8 * cuda::kv_chunk_bytes(type));
    keys_ = cuda::Memory(bytes);
    values_ = cuda::Memory(bytes);
    grids_ = cuda::Memory(positions * 8);
    kv_ = {.type = type,
           .bits = bits,
           .positions = kRoom,
           .kv_heads = shape.kv_heads,
           .dim = shape.dim,
           .padded_dim = padded,
           .keys = keys_.data(),
           .values = values_.data(),
           .grids = grids_.as<uint16_t>()};
    Rng rng(5);
    for (int i = 0; i < shape.rope_dim / 2; ++i)
      inv_freq_.push_back(std::pow(100.0f, -float(i) / 8));
    for (int p = 0; p < kRoom; ++p) {
      for (float f : inv_freq_) {
        rotations_.push_back(float(std::cos(double(p) * double(f))));
        rotations_.push_back(float(std::sin(double(p) * double(f))));
      }
    }
    if (shape.rope_dim > 0) turns_ = cuda::uploaded(stream, std::span<const float>(rotations_));
    alibi_ = random_floats(rng, size_t(shape.heads * kRoom), 0.0f, 2.0f);
    biases_ = cuda::uploaded(stream, std::span<const float>(alibi_));
  }

  /// One launch: a row for each entry, of these sequences. Long runs go through flash_attention.
  void step(Rng& rng, const std::vector<int32_t>& sequences, bool flash = false) {
    const int rows = int(sequences.size()), dim = shape_.dim;
    const int width = (shape_.heads + 2 * shape_.kv_heads) * dim;
    const auto qkv = random_floats(rng, size_t(rows * width), 0.1f, 1.5f);
    std::vector<int32_t> positions, order, first = {0};
    for (int32_t s : sequences) positions.push_back(lengths_[size_t(s)]++);
    for (int s = 0; s < int(lengths_.size()); ++s) {
      for (int m = 0; m < rows; ++m) {
        if (sequences[size_t(m)] == s) order.push_back(m);
      }
      if (int(order.size()) > first.back()) first.push_back(int32_t(order.size()));
    }
    const DeviceRows in(stream_, rows, width, qkv), out(stream_, rows, shape_.heads * dim);
    launch(in, out, sequences, positions, order, first, flash);
    CAPTURE(positions.front());
    CAPTURE(rows);
    const KvCopy cache(stream_, kv_, int(plain_keys_.size()));
    for (int m = 0; m < rows; ++m)
      remember(cache, qkv.data() + m * width, sequences[size_t(m)], positions[size_t(m)]);
    const auto got = out.read();
    std::vector<float> truth;
    for (int m = 0; m < rows; ++m) {
      const float* row = got.data() + m * shape_.heads * dim;
      for (float v :
           expected(qkv.data() + m * width, sequences[size_t(m)], positions[size_t(m)], row)) {
        truth.push_back(v);
      }
    }
    CHECK_CLOSE(got, truth, 2e-5, 1e-4, 1e-10);
  }

  /// That few cells, grids and queries were another of two neighbours. On the emulator only f16
  /// keys are, for the reference rotates in double.
  void check_flips() const {
    CAPTURE(cells_.seen);
    CAPTURE(grids_seen_.seen);
    CAPTURE(queries_.seen);
    const bool any = !kEmulated || bits_ == 16;
    CHECK(cells_.flipped <= (any ? 1 + cells_.seen / 1000 : 0));
    CHECK(grids_seen_.flipped <= (any ? 1 + grids_seen_.seen / 100 : 0));
    CHECK(queries_.flipped <= (any ? 1 + queries_.seen / 100 : 0));
  }

  void skip_to(Rng& rng, int sequence, int length) {
    while (lengths_[size_t(sequence)] < length) {
      const int rows = std::min(64, length - lengths_[size_t(sequence)]);
      step(rng, std::vector<int32_t>(size_t(rows), sequence), shape_.dim <= cuda::kFlashDims);
    }
  }

 private:
  void launch(const DeviceRows& in, const DeviceRows& out, const std::vector<int32_t>& sequences,
              const std::vector<int32_t>& positions, const std::vector<int32_t>& order,
              const std::vector<int32_t>& first, bool flash) {
    const int rows = int(sequences.size()), runs = int(first.size()) - 1;
    const auto up = [&](const std::vector<int32_t>& v) {
      return cuda::uploaded(stream_, std::span<const int32_t>(v));
    };
    const cuda::Memory s = up(sequences), p = up(positions), o = up(order), f = up(first);
    const int last = *std::max_element(positions.begin(), positions.end());
    const int stretches = last / cuda::kKvStretch + 1;
    const cuda::Memory parts(size_t(rows * shape_.heads * stretches * (kv_.padded_dim + 2)) * 4);
    const cuda::Memory arrived(size_t(runs * shape_.kv_heads) * 4);
    cuda::clear(stream_, arrived.data(), arrived.bytes());
    int longest = 0;
    for (int i = 0; i < runs; ++i) {
      longest = std::max(longest, first[size_t(i) + 1] - first[size_t(i)]);
    }
    const auto attend = flash ? cuda::flash_attention : cuda::attention;
    attend(stream_, {.kv = kv_,
                     .qkv = in.data(),
                     .qkv_stride = in.stride(),
                     .out = out.data(),
                     .out_stride = out.stride(),
                     .heads = shape_.heads,
                     .window = shape_.window,
                     .rotations = shape_.rope_dim > 0 ? turns_.as<float>() : nullptr,
                     .rope_dim = shape_.rope_dim,
                     .alibi = shape_.alibi ? biases_.as<float>() : nullptr,
                     .alibi_stride = kRoom,
                     .query_bits = shape_.query_bits,
                     .runs = runs,
                     .run_first = f.as<int32_t>(),
                     .order = o.as<int32_t>(),
                     .positions = p.as<int32_t>(),
                     .sequences = s.as<int32_t>(),
                     .rows = rows,
                     .longest_run = longest,
                     .stretches = stretches,
                     .parts = parts.as<float>(),
                     .arrived = arrived.as<uint32_t>()});
    stream_.synchronize();
  }

  std::span<float> rotated(std::vector<float>& head, int position) const {
    reference::rope(head, inv_freq_, position, 1.0);
    return head;
  }

  /// How far a rotated number may be from the reference's: 4 roundings, of the cosine or sine, the
  /// product, the sum and the reference itself, each 2^-24 of two numbers up to sqrt(2) times the
  /// head's largest.
  float slack(const std::vector<float>& head) const {
    float largest = 0;
    for (float x : head) largest = std::max(largest, std::fabs(x));
    return shape_.rope_dim > 0 ? largest * 0x1p-21f : 0.0f;
  }

  struct Place {
    size_t head;
    int position;
    bool value;
  };

  /// The device's grid, which must be one that the reference makes of x within `slack`.
  KvGrid stored_grid(const KvCopy& cache, const Place& at, const std::vector<float>& x,
                     float slack) {
    const auto [low, high] = std::minmax_element(x.begin(), x.end());
    const KvGrid grid = cache.grid(at.head, at.position, at.value), own = KvGrid::of(x, bits_);
    const float least = to_float(grid.low), steps = float((1 << bits_) - 1);
    const auto scale = [&](float most) { return to_float(to_f16((most - least) / steps)); };
    REQUIRE(least >= to_float(to_f16(*low - slack)));
    REQUIRE(least <= to_float(to_f16(*low + slack)));
    REQUIRE(to_float(grid.scale) >= scale(*high - slack));
    REQUIRE(to_float(grid.scale) <= scale(*high + slack));
    grids_seen_.count(grid.scale.bits != own.scale.bits || grid.low.bits != own.low.bits);
    return grid;
  }

  /// x as the device has stored it: each number must be one that the reference makes of x within
  /// `slack`. With none they are equal.
  std::vector<float> stored(const KvCopy& cache, const Place& at, const std::vector<float>& x,
                            float slack) {
    std::vector<float> all;
    const bool codes = bits_ <= 8;
    const KvGrid grid = codes ? stored_grid(cache, at, x, slack) : KvGrid{};
    const auto put = [&](float v) {
      return codes ? grid.value(grid.code(v)) : bits_ == 16 ? to_float(to_f16(v)) : v;
    };
    for (int d = 0; d < shape_.dim; ++d) {
      const float v = x[size_t(d)];
      const float got = codes ? grid.value(cache.code(at.head, at.position, at.value, d))
                              : cache.number(at.head, at.position, at.value, d);
      CAPTURE(d);
      CAPTURE(v);
      REQUIRE(got >= put(v - slack));
      REQUIRE(got <= put(v + slack));
      if (bits_ < 32) cells_.count(got != put(v));
      all.push_back(got);
    }
    return all;
  }

  void remember(const KvCopy& cache, const float* row, int sequence, int position) {
    const int dim = shape_.dim;
    for (int h = 0; h < shape_.kv_heads; ++h) {
      const float* k = row + (shape_.heads + h) * dim;
      const float* v = row + (shape_.heads + shape_.kv_heads + h) * dim;
      std::vector<float> key(k, k + dim), value(v, v + dim);
      const auto at = size_t(sequence * shape_.kv_heads + h);
      const float key_slack = slack(key);
      rotated(key, position);
      key = stored(cache, {at, position, false}, key, key_slack);
      value = stored(cache, {at, position, true}, value, 0);
      plain_keys_[at].insert(plain_keys_[at].end(), key.begin(), key.end());
      plain_values_[at].insert(plain_values_[at].end(), value.begin(), value.end());
    }
  }

  /// A query as the reference quantizes it; then, on a GPU, as it would with one number of it off
  /// by what rotations may be, where that is something else.
  std::vector<std::vector<float>> quantized(std::vector<float> q, int position) const {
    const float off = slack(q);
    rotated(q, position);
    if (shape_.query_bits >= 16) return {q};
    std::vector<std::vector<float>> all = {q};
    reference::fake_quantize(all[0], shape_.query_bits);
    if (kEmulated || off == 0) return all;
    for (size_t d = 0; d < q.size(); ++d) {
      for (const float by : {-off, off}) {
        auto other = q;
        other[d] += by;
        reference::fake_quantize(other, shape_.query_bits);
        if (!compare(other, all[0], 1e-4, 1e-4).close) all.push_back(other);
      }
    }
    return all;
  }

  /// Of the outputs that a row can have, those nearest to `got`: one for each head, for few heads
  /// can have more than one.
  std::vector<float> expected(const float* row, int sequence, int position, const float* got) {
    std::vector<float> all;
    const int dim = shape_.dim;
    const int first = shape_.window > 0 ? std::max(0, position - shape_.window + 1) : 0;
    for (int h = 0; h < shape_.heads; ++h) {
      const auto at = size_t(sequence * shape_.kv_heads + h / (shape_.heads / shape_.kv_heads));
      std::span<const float> bias;
      if (shape_.alibi) bias = std::span(alibi_).subspan(size_t(h * kRoom + first));
      const std::vector<float> seen(got + h * dim, got + (h + 1) * dim);
      std::vector<float> best;
      bool flipped = false;
      for (const auto& q : quantized({row + h * dim, row + (h + 1) * dim}, position)) {
        std::vector<float> out(static_cast<size_t>(dim));
        reference::attention(q, std::span(plain_keys_[at]).subspan(size_t(first * dim)),
                             std::span(plain_values_[at]).subspan(size_t(first * dim)), bias,
                             position + 1 - first, out);
        const bool nearer =
            !best.empty() && compare(seen, out, 0, 0).worst < compare(seen, best, 0, 0).worst;
        flipped = flipped || nearer;
        if (best.empty() || nearer) best = out;
      }
      queries_.count(flipped);
      all.insert(all.end(), best.begin(), best.end());
    }
    return all;
  }

  /// How many there were, and how many were not the reference's own.
  struct Count {
    int64_t seen = 0, flipped = 0;
    void count(bool flip) { ++seen, flipped += flip ? 1 : 0; }
  };

  cuda::Stream& stream_;
  Shape shape_;
  int bits_;
  std::vector<int32_t> lengths_;
  cuda::Memory keys_, values_, grids_, turns_, biases_;
  cuda::KvArgs kv_{};
  std::vector<float> inv_freq_, rotations_, alibi_;
  std::vector<std::vector<float>> plain_keys_, plain_values_;
  Count cells_, grids_seen_, queries_;
};

KvType type_of(int bits) {
  return bits == 32   ? KvType::f32
         : bits == 16 ? KvType::f16
         : bits > 4   ? KvType::codes8
                      : KvType::codes4;
}

void check(const Shape& shape, int bits) {
  cuda::Stream stream;
  Sequences s(stream, shape, type_of(bits), bits, 3);
  Rng rng(uint32_t(shape.dim + bits));
  CAPTURE(shape.dim);
  CAPTURE(bits);
  s.step(rng, {1});
  s.step(rng, {1, 1, 1, 0});
  s.step(rng, {2, 0, 2, 1, 0});  // rows of a sequence apart
  s.skip_to(rng, 0, 127);
  s.step(rng, {0, 0, 0});  // over the end of a stretch
  s.skip_to(rng, 0, 300);
  s.step(rng, {0, 2});
  s.check_flips();
}

/// Prompts, one after another and beside each other, on top of what is there.
void check_flash(const Shape& shape, int bits) {
  cuda::Stream stream;
  Sequences s(stream, shape, type_of(bits), bits, 3);
  Rng rng(uint32_t(shape.dim * 3 + bits));
  CAPTURE(shape.dim);
  CAPTURE(bits);
  const auto rows = [](int n, int sequence) { return std::vector<int32_t>(size_t(n), sequence); };
  s.step(rng, rows(37, 1), true);
  std::vector<int32_t> mixed = rows(11, 0);
  for (int32_t sequence : {1, 2, 1, 0, 2}) mixed.push_back(sequence);  // rows of a sequence apart
  s.step(rng, mixed, true);
  s.step(rng, {1, 0}, false);
  s.step(rng, rows(45, 1), true);
  s.check_flips();
}

}  // namespace

TEST_CASE("attention on the device equals the reference") {
  for (int bits : {32, 16, 2, 4, 6, 8})
    check({.heads = 6, .kv_heads = 2, .dim = 20, .rope_dim = 16}, bits);
}

TEST_CASE("attention on the device: single heads, many queries, windows, ALiBi, wide heads") {
  check({.heads = 9, .kv_heads = 1, .dim = 64, .rope_dim = 64}, 16);
  check({.heads = 2, .kv_heads = 2, .dim = 128, .rope_dim = 0, .alibi = true}, 16);
  check({.heads = 2, .kv_heads = 1, .dim = 256, .rope_dim = 64}, 8);
  check({.heads = 2, .kv_heads = 1, .dim = 33, .rope_dim = 0, .window = 40}, 32);
  check({.heads = 4, .kv_heads = 2, .dim = 8, .rope_dim = 8, .window = 150, .query_bits = 6}, 32);
}

TEST_CASE("flash attention on the device equals the reference") {
  for (int bits : {32, 16, 3, 4, 6, 8}) {
    check_flash({.heads = 6, .kv_heads = 2, .dim = 20, .rope_dim = 16}, bits);
  }
}

TEST_CASE("flash attention: single heads, windows, ALiBi, quantized queries, wide heads") {
  check_flash({.heads = 3, .kv_heads = 1, .dim = 128, .rope_dim = 64}, 16);
  check_flash({.heads = 2, .kv_heads = 2, .dim = 80, .rope_dim = 0, .alibi = true}, 16);
  check_flash({.heads = 2, .kv_heads = 1, .dim = 33, .rope_dim = 0, .window = 10}, 32);
  check_flash({.heads = 4, .kv_heads = 2, .dim = 8, .rope_dim = 8, .window = 40, .query_bits = 6},
              4);
}
