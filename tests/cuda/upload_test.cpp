/// Tensors on their way to the device, in pieces much smaller than they are.

#include <cmath>

#include <doctest/doctest.h>

#include "runtime/backend/cuda/weight.h"
#include "tests/cuda/on_device.h"
#include "tests/support.h"
#include "tests/tiny_oq.h"

using namespace oq;
using namespace oq::test;

namespace {

std::vector<std::byte> bytes_of(cuda::Stream& stream, const cuda::Memory& memory) {
  std::vector<std::byte> bytes(memory.bytes());
  cuda::download(stream, bytes.data(), memory.data(), memory.bytes());
  return bytes;
}

}  // namespace

TEST_CASE("an upload in many pieces is an upload in one") {
  const TempDir dir;
  cuda::Stream stream;
  for (const char* scheme : {"w3a16g32", "w16a16"}) {
    const auto file = make_tiny_oq(dir / "tiny.oq", {.scheme = scheme});
    CudaUploader pieces(stream, 500), whole(stream);
    std::vector<std::unique_ptr<CudaWeight>> a, b;
    for (const TensorInfo& info : file->tensors()) a.push_back(pieces.upload(*file, info));
    for (const TensorInfo& info : file->tensors()) b.push_back(whole.upload(*file, info));
    pieces.finish();
    whole.finish();
    for (size_t i = 0; i < a.size(); ++i) {
      const TensorInfo& info = file->tensors()[i];
      CAPTURE(info.name);
      CHECK(a[i]->memory.bytes() == CudaUploader::device_bytes(info));
      // Between the parts of a packed tensor nothing is written, so only what was is compared.
      if (info.kind != Kind::packed) {
        CHECK(bytes_of(stream, a[i]->memory) == bytes_of(stream, b[i]->memory));
        continue;
      }
      const DevicePacked truth(stream, file->packed(info).layout(), file->data(info));
      const DeviceRows x(stream, 2, int(info.cols), std::vector<float>(2 * info.cols, 0.5f));
      const auto product = [&](const cuda::PackedMatrix& m) {
        const DeviceRows out(stream, 2, m.rows);
        cuda::packed_linears(stream, {.in = plain_input(x, 2),
                                      .out = output_to(out, cuda::Finish::store),
                                      .count = 1,
                                      .linears = {{m, nullptr, 0}},
                                      .experts = nullptr,
                                      .expert_count = 0});
        return out.read();
      };
      const auto expected = product(truth.matrix);
      CHECK(product(std::get<cuda::PackedMatrix>(a[i]->matrix)) == expected);
      CHECK(product(std::get<cuda::PackedMatrix>(b[i]->matrix)) == expected);
    }
  }
}

TEST_CASE("weights made on the device have the deviation that was asked for") {
  const TempDir dir;
  cuda::Stream stream;
  for (const char* name : {"w2a16", "w3a16g32", "w2*a16g32", "w4sa16g64", "w8a16g128", "w16a16"}) {
    const std::string scheme = name;
    CAPTURE(scheme);
    const bool packs = scheme != "w16a16";
    const auto file =
        make_tiny_oq(dir / "tiny.oq", {.scheme = scheme, .weak_columns = packs ? 3u : 0u});
    CudaUploader uploader(stream);
    const TensorInfo& info = file->tensor("blocks.0.up");
    std::span<const uint32_t> weak;
    if (packs) weak = file->packed(info).weak_indices();
    const auto w = uploader.make(info, 0.25f, weak), again = uploader.make(info, 0.25f, weak);
    const auto other = uploader.make(file->tensor("blocks.1.up"), 0.25f, weak);
    const auto rows = int(info.rows), cols = int(info.cols);
    const auto values = [&](const CudaWeight& weight) {
      std::vector<int32_t> index(info.rows);
      for (int i = 0; i < rows; ++i) index[size_t(i)] = i;
      const cuda::Memory indices = cuda::uploaded(stream, std::span<const int32_t>(index));
      const DeviceRows out(stream, rows, cols);
      std::visit(
          [&](const auto& m) {
            cuda::lookup(stream,
                         cuda::LookupArgs<std::decay_t<decltype(m)>>{
                             m, indices.as<int32_t>(), rows, false, out.data(), out.stride()});
          },
          weight.matrix);
      return out.read();
    };
    const auto a = values(*w);
    double sum = 0, square = 0;
    for (const float v : a) sum += double(v), square += double(v) * double(v);
    const auto n = double(a.size());
    CHECK(std::fabs(sum / n) < 0.06);
    CHECK(std::sqrt(square / n) > 0.22);
    CHECK(std::sqrt(square / n) < 0.28);
    CHECK(values(*again) == a);
    CHECK(values(*other) != a);
    uploader.finish();
  }
}
