/// kernels/cuda/stream.h for the CUDA runtime, and the host's half of launch().

#include "kernels/cuda/stream.h"

#include <string>

#include <cuda_runtime.h>

#include "format/error.h"

namespace oq::cuda {
namespace {

constexpr int kLeastMajor = 8;                ///< sm_80: what the kernels are compiled for
constexpr size_t kOrdinaryShared = 48 << 10;  ///< beyond it a kernel has to ask

void check(cudaError_t status, const char* what, const std::string& where = "CUDA",
           const std::string& hint = "") {
  if (status == cudaSuccess) return;
  throw Error({.what = what, .where = where, .found = cudaGetErrorString(status), .hint = hint});
}

cudaStream_t stream_of(const Stream& s) { return static_cast<cudaStream_t>(s.handle()); }

std::string mib(size_t bytes) { return std::to_string(bytes >> 20) + " MiB"; }

}  // namespace

std::optional<DeviceInfo> find_device(std::string& why) {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess || count == 0) {
    why = status == cudaSuccess ? "no device" : cudaGetErrorString(status);
    return std::nullopt;
  }
  cudaDeviceProp properties{};
  check(cudaGetDeviceProperties(&properties, 0), "a device does not answer");
  DeviceInfo d{.name = properties.name,
               .major = properties.major,
               .minor = properties.minor,
               .memory = properties.totalGlobalMem,
               .free = 0,
               .processors = properties.multiProcessorCount};
  if (d.major < kLeastMajor) {
    why = d.name + " is of compute capability " + std::to_string(d.major) + "." +
          std::to_string(d.minor) + "; 8.0 is the least";
    return std::nullopt;
  }
  size_t total = 0;
  check(cudaMemGetInfo(&d.free, &total), "a device does not answer", d.name);
  check(cudaDriverGetVersion(&d.driver), "the driver does not answer", d.name);
  d.toolkit = CUDART_VERSION;
  return d;
}

Stream::Stream() {
  cudaStream_t s = nullptr;
  check(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking), "a stream cannot be made");
  handle_ = s;
}
Stream::~Stream() { cudaStreamDestroy(static_cast<cudaStream_t>(handle_)); }

void Stream::synchronize() {
  check(cudaStreamSynchronize(stream_of(*this)), "the device failed while it worked");
}

Memory::Memory(size_t bytes) : bytes_(bytes) {
  if (bytes == 0) return;
  void* p = nullptr;
  const cudaError_t status = cudaMalloc(&p, bytes);
  if (status == cudaErrorMemoryAllocation) {
    size_t free = 0, total = 0;
    cudaMemGetInfo(&free, &total);
    throw Error({.what = "the device's memory is full",
                 .where = "CUDA",
                 .expected = mib(bytes) + " more",
                 .found = mib(free) + " free of " + mib(total),
                 .hint = "choose a smaller --ctx or fewer bits, or use --backend cpu"});
  }
  check(status, "device memory cannot be had");
  data_ = static_cast<std::byte*>(p);
}
Memory::~Memory() { cudaFree(data_); }

void upload(Stream& stream, void* to, const void* from, size_t bytes) {
  // From pageable memory: the runtime has taken its copy when the call returns.
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, stream_of(stream)),
        "a copy to the device failed");
}
void download(Stream& stream, void* to, const void* from, size_t bytes) {
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, stream_of(stream)),
        "a copy from the device failed");
  stream.synchronize();
}
void clear(Stream& stream, void* to, size_t bytes) {
  check(cudaMemsetAsync(to, 0, bytes, stream_of(stream)), "device memory cannot be cleared");
}

namespace {

/// A mark in a stream's work.
class Event {
 public:
  Event() { check(cudaEventCreate(&event_), "an event cannot be made"); }
  ~Event() { cudaEventDestroy(event_); }
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;

  void record(Stream& stream) {
    check(cudaEventRecord(event_, stream_of(stream)), "an event cannot be recorded");
  }
  double microseconds_since(const Event& start) const {
    float milliseconds = 0;
    check(cudaEventElapsedTime(&milliseconds, start.event_, event_), "an event was not reached");
    return double(milliseconds) * 1000;
  }

 private:
  cudaEvent_t event_ = nullptr;
};

}  // namespace

std::optional<double> measured(Stream& stream, const std::function<void()>& work) {
  constexpr size_t kMoreThanCaches = size_t(128) << 20;
  constexpr int kRuns = 6;  // the first finds kernels that are not loaded yet
  size_t free = 0, total = 0;
  check(cudaMemGetInfo(&free, &total), "a device does not answer");
  if (free < 2 * kMoreThanCaches) return std::nullopt;
  const Memory other(kMoreThanCaches);
  Event start, stop;
  double least = 0;
  for (int i = 0; i < kRuns; ++i) {
    clear(stream, other.data(), other.bytes());
    start.record(stream);
    work();
    stop.record(stream);
    stream.synchronize();
    const double time = stop.microseconds_since(start);
    if (i == 1 || (i > 1 && time < least)) least = time;
  }
  return least;
}

void launch_kernel(Stream& stream, const char* name, const void* kernel, const Grid& grid,
                   void* arguments) {
  if (grid.shared > kOrdinaryShared) {
    check(
        cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(grid.shared)),
        "a kernel wants more shared memory than this device has", name);
  }
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(unsigned(grid.x), unsigned(grid.y));
  config.blockDim = dim3(unsigned(grid.threads));
  config.dynamicSmemBytes = grid.shared;
  config.stream = stream_of(stream);
  void* list[] = {arguments};
  check(cudaLaunchKernelExC(&config, kernel, list), "a kernel could not be started", name);
}

}  // namespace oq::cuda
