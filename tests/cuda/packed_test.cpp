/// Packed linears on the device against the reference.

#include "format/packed.h"

#include "tests/cuda/on_device.h"
#include "tests/kernels/packed_cases.h"

using namespace oq;
using namespace oq::test;

namespace {

std::vector<float> run(cuda::Stream& stream, const DevicePacked& w, const std::vector<float>& x,
                       int tokens) {
  const DeviceRows in(stream, tokens, w.matrix.cols, x), out(stream, tokens, w.matrix.rows);
  cuda::packed_linears(stream, {.in = plain_input(in, tokens),
                                .out = output_to(out, cuda::Finish::store),
                                .count = 1,
                                .linears = {{w.matrix, nullptr, 0}},
                                .experts = nullptr,
                                .expert_count = 0});
  return out.read();
}

std::vector<PackedCase> cases() {
  std::vector<PackedCase> list = packed_cases();
  for (uint8_t bits : {2, 3, 4, 8}) {  // more units than warps, and more than one slab's
    list.push_back({17, 2500, {.bits = bits, .group = 128, .weak_columns = 40}});
  }
  list.push_back({5, 3500, {.bits = 2, .five_levels = true, .group = 256}});
  return list;
}

}  // namespace

TEST_CASE("packed linears on the device equal the reference at every width, shape and zero mode") {
  cuda::Stream stream;
  for (const PackedCase& c : cases()) {
    Rng rng(uint32_t(c.cols * 31 + c.packing.bits));
    const PackedBuilder b = random_packed(rng, c);
    const DevicePacked w(stream, b);
    for (int tokens : {1, 3, 4, 5, 8}) {
      const auto x = random_floats(rng, size_t(tokens) * c.cols);
      CAPTURE(int(c.packing.bits));
      CAPTURE(c.packing.five_levels);
      CAPTURE(c.cols);
      CAPTURE(tokens);
      // hi + lo keep 22 bits of an activation; sums in fp32, as on the CPU.
      const double atol = 2e-5 * std::sqrt(double(c.cols)) * c.packing.max_code() * 0.1;
      CHECK_CLOSE(run(stream, w, x, tokens), linear_truth(b, x, tokens), atol, 1e-5, 1e-11);
    }
  }
}

TEST_CASE("a flipped code, scale or zero point is noticed on the device") {
  cuda::Stream stream;
  Rng rng(3);
  const PackedBuilder b = random_packed(rng, {16, 160, {.bits = 3, .group = 64}});
  const auto x = random_floats(rng, 160, 0.5f, 0.3f);
  const auto good = run(stream, DevicePacked(stream, b), x, 1);
  for (uint64_t at : {uint64_t(7), b.layout().scales_offset + 6, b.layout().zeros_offset + 1}) {
    std::vector<std::byte> bytes(b.bytes().begin(), b.bytes().end());
    bytes[at] ^= std::byte(at == 7 ? 1 : 4);
    const auto bad = run(stream, DevicePacked(stream, b.layout(), bytes), x, 1);
    CHECK(compare(bad, good, 1e-4, 1e-5).close == false);
  }
}
