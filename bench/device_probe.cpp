#include "bench/device_probe.h"

#include <algorithm>

#include "format/error.h"
#if defined(OQ_HAVE_CUDA)
#include "kernels/cuda/kernels.h"
#endif

namespace oq {

#if defined(OQ_HAVE_CUDA)
namespace {

constexpr size_t kLeast = size_t(512) << 20;  ///< below it, caches would take part
constexpr int kBlocksPerProcessor = 8;

class DeviceProbe final : public Probe {
 public:
  explicit DeviceProbe(size_t bytes) {
    const size_t room = cuda::device_memory().free / 2 / 4096 * 4096;
    if (room < std::min(bytes, kLeast)) {
      throw Error({.what = "too little of the device's memory is free to measure its bandwidth",
                   .where = "oq-bench",
                   .expected = "1 GiB",
                   .hint = "choose a smaller model"});
    }
    std::string why;
    const auto device = cuda::find_device(why);
    blocks_ = (device ? device->processors : 1) * kBlocksPerProcessor;
    buffer_ = cuda::Memory(std::min(bytes, room));
    sums_ = cuda::Memory(size_t(blocks_) * cuda::kReadThreads * sizeof(uint32_t));
    cuda::clear(stream_, buffer_.data(), buffer_.bytes());
    pass();  // brings the kernel
  }

 private:
  double pass() override {
    begin_.record(stream_);
    cuda::read_memory(stream_,
                      {buffer_.data(), int64_t(buffer_.bytes()), blocks_, sums_.as<uint32_t>()});
    end_.record(stream_);
    end_.wait();
    return double(buffer_.bytes()) / cuda::seconds_between(begin_, end_);
  }

  cuda::Stream stream_;
  cuda::Event begin_, end_;
  cuda::Memory buffer_, sums_;
  int blocks_ = 0;
};

}  // namespace

std::unique_ptr<Probe> make_device_probe(size_t bytes) {
  return std::make_unique<DeviceProbe>(bytes);
}

#else

std::unique_ptr<Probe> make_device_probe(size_t) {
  throw Error({.what = "this build has no CUDA backend", .where = "oq-bench"});
}

#endif

}  // namespace oq
