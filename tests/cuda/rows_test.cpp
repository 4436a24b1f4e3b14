/// What happens to rows between linears, on the device, against the reference.

#include "format/packed.h"
#include "kernels/reference/ops.h"
#include "tests/cuda/on_device.h"
#include "tests/kernels/packed_cases.h"

using namespace oq;
using namespace oq::test;

TEST_CASE("rows of a packed table are its dequantized rows, bit for bit") {
  cuda::Stream stream;
  for (const PackedCase& c : packed_cases()) {
    Rng rng(uint32_t(c.cols));
    const PackedBuilder b = random_packed(rng, c);
    const DevicePacked w(stream, b);
    std::vector<int32_t> index;
    for (uint64_t r = 0; r < c.rows; ++r) index.push_back(int32_t(c.rows - 1 - r));
    const cuda::Memory indices = cuda::uploaded(stream, std::span<const int32_t>(index));
    const int tokens = int(index.size());
    const DeviceRows x(stream, tokens, int(c.cols));
    cuda::lookup(stream, cuda::LookupArgs<cuda::PackedMatrix>{w.matrix, indices.as<int32_t>(),
                                                              tokens, false, x.data(), x.stride()});
    std::vector<float> truth(c.cols * c.rows);
    for (uint64_t r = 0; r < c.rows; ++r) {
      b.view().dequantize_row(uint64_t(index[r]), std::span(truth).subspan(r * c.cols, c.cols));
    }
    CAPTURE(int(c.packing.bits));
    CAPTURE(c.cols);
    CHECK(x.read() == truth);
  }
}

TEST_CASE("rows of a dense table are read and added") {
  cuda::Stream stream;
  const std::vector<float> table = {1, 2, 3, 0, 4, 5, 6, 0};
  std::vector<uint16_t> halves, brains;
  for (float v : table) halves.push_back(to_f16(v).bits), brains.push_back(to_bf16(v).bits);
  const cuda::Memory floats = cuda::uploaded(stream, std::span<const float>(table));
  const cuda::Memory half = cuda::uploaded(stream, std::span<const uint16_t>(halves));
  const cuda::Memory brain = cuda::uploaded(stream, std::span<const uint16_t>(brains));
  const std::vector<int32_t> index = {1, 0, 1};
  const cuda::Memory indices = cuda::uploaded(stream, std::span<const int32_t>(index));
  const std::pair<cuda::Dense, const void*> types[] = {{cuda::Dense::f32, floats.data()},
                                                       {cuda::Dense::f16, half.data()},
                                                       {cuda::Dense::bf16, brain.data()}};
  for (const auto& row : types) {
    const cuda::Dense type = row.first;
    const void* data = row.second;
    const DeviceRows x(stream, 3, 3, std::vector<float>(9, 10.0f));
    cuda::LookupArgs<cuda::DenseMatrix> args{
        {type, 2, 3, 4, data}, indices.as<int32_t>(), 3, true, x.data(), x.stride()};
    cuda::lookup(stream, args);
    CHECK(x.read() == std::vector<float>{14, 15, 16, 11, 12, 13, 14, 15, 16});
    args.add = false;
    cuda::lookup(stream, args);
    CHECK(x.read() == std::vector<float>{4, 5, 6, 1, 2, 3, 4, 5, 6});
  }
}

TEST_CASE("norms of rows on the device equal the reference") {
  cuda::Stream stream;
  for (int n : {1, 37, 600}) {
    Rng rng{uint32_t(n)};
    const auto x = random_floats(rng, size_t(3 * n), 0.5f, 4.0f);
    const auto w = random_floats(rng, size_t(n), 1.0f), b = random_floats(rng, size_t(n), 0.2f);
    const cuda::Memory weight = cuda::uploaded(stream, std::span<const float>(w));
    const cuda::Memory bias = cuda::uploaded(stream, std::span<const float>(b));
    for (const auto kind : {cuda::NormKind::rms, cuda::NormKind::layer}) {
      const DeviceRows rows(stream, 3, n, x);
      cuda::norm_rows(stream, {{kind, weight.as<float>(), bias.as<float>(), 3e-4f, 0, 0},
                               rows.data(),
                               rows.stride(),
                               n,
                               3});
      std::vector<float> truth(x.size());
      for (int m = 0; m < 3; ++m) {
        const std::span<const float> from(x.data() + m * n, size_t(n));
        const std::span<float> to(truth.data() + m * n, size_t(n));
        if (kind == cuda::NormKind::rms) reference::rms_norm(from, w, 3e-4, to);
        if (kind == cuda::NormKind::layer) reference::layer_norm(from, w, b, 3e-4, to);
      }
      CHECK_CLOSE(rows.read(), truth, 2e-6, 1e-5, 1e-12);
    }
  }
}

TEST_CASE("a router chooses as the reference does, and the chosen are summed") {
  cuda::Stream stream;
  constexpr int kTokens = 5, kExperts = 6, kUsed = 2, kCols = 7;
  Rng rng(2);
  auto logits = random_floats(rng, kTokens * kExperts);
  logits[2] = logits[4] = 3.0f;  // the first of equal ones
  for (int e = 0; e < kExperts; ++e) logits[size_t(kExperts + e)] = 1.0f;
  logits[2 * kExperts + 1] = NAN;  // loses
  const DeviceRows rows(stream, kTokens, kExperts, logits);
  const cuda::Memory lists(kExperts * cuda::kExpertRows * 4), count(kExperts * 4);
  const cuda::Memory slot(kTokens * kExperts * 4), weight(kTokens * kExperts * 4);
  cuda::route(stream, {rows.data(), rows.stride(), kTokens, kExperts, kUsed, lists.as<int32_t>(),
                       count.as<int32_t>(), slot.as<int32_t>(), weight.as<float>()});
  const auto outs = random_floats(rng, kExperts * cuda::kExpertRows * kCols);
  const auto before = random_floats(rng, kTokens * kCols);
  const DeviceRows out(stream, kExperts * cuda::kExpertRows, kCols, outs);
  const DeviceRows x(stream, kTokens, kCols, before);
  cuda::combine(stream,
                {out.data(), int64_t(cuda::kExpertRows) * out.stride(), out.stride(), kTokens,
                 kExperts, kCols, slot.as<int32_t>(), weight.as<float>(), x.data(), x.stride()});
  std::vector<int32_t> counts(kExperts), chosen(kExperts * cuda::kExpertRows);
  cuda::download(stream, counts.data(), count.data(), count.bytes());
  cuda::download(stream, chosen.data(), lists.data(), lists.bytes());
  std::vector<int32_t> seen(kExperts, 0);
  auto truth = before;
  for (int m = 0; m < kTokens; ++m) {
    const std::span<const float> own(logits.data() + m * kExperts, kExperts);
    for (const reference::Choice& c : reference::route(own, kUsed)) {
      const int at = seen[size_t(c.expert)]++;
      CHECK(chosen[size_t(c.expert * cuda::kExpertRows + at)] == m);
      for (int k = 0; k < kCols; ++k) {
        truth[size_t(m * kCols + k)] +=
            c.weight * outs[size_t((c.expert * cuda::kExpertRows + at) * kCols + k)];
      }
    }
  }
  CHECK(counts == seen);
  CHECK_CLOSE(x.read(), truth, 1e-6, 1e-5, 1e-12);
}

TEST_CASE("the probe reads every word once, and copies") {
  cuda::Stream stream;
  Rng rng(9);
  for (const size_t words : {4u, 1000u, 40000u}) {
    std::vector<uint32_t> data(words);
    uint32_t truth = 0;
    for (uint32_t& w : data) truth ^= w = uint32_t(rng());
    const cuda::Memory from = cuda::uploaded(stream, std::span<const uint32_t>(data));
    const cuda::Memory to(from.bytes());
    constexpr int kBlocks = 3;
    std::vector<uint32_t> sums(size_t(kBlocks) * cuda::kReadThreads);
    const cuda::Memory out(sums.size() * 4);
    cuda::read_memory(stream, {from.data(), int64_t(from.bytes()), kBlocks, out.as<uint32_t>()});
    cuda::download(stream, sums.data(), out.data(), out.bytes());
    uint32_t sum = 0;
    for (uint32_t s : sums) sum ^= s;
    CHECK(sum == truth);
    cuda::copy_memory(stream, {from.data(), to.data(), int64_t(from.bytes()), kBlocks});
    std::vector<uint32_t> copied(words);
    cuda::download(stream, copied.data(), to.data(), to.bytes());
    CHECK(copied == data);
  }
  cuda::run_nothing(stream);
}
