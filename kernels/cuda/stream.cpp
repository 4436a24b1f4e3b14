/// kernels/cuda/stream.h for the CUDA runtime, and the host's half of launch().

#include "kernels/cuda/stream.h"

#include <mutex>
#include <string>
#include <unordered_set>

#include <cuda_runtime.h>

#include "format/error.h"

namespace oq::cuda {
namespace {

constexpr size_t kOrdinaryShared = 48 << 10;  ///< beyond it a kernel has to ask

void check(cudaError_t status, const char* what, const std::string& where = "CUDA") {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // told here: the next launch is not to be blamed for it
  std::string hint = "use --backend cpu";
  if (status == cudaErrorNoKernelImageForDevice || status == cudaErrorUnsupportedPtxVersion) {
    hint = "build OQ with this device's architecture in OQ_CUDA_ARCHITECTURES, or " + hint;
  }
  throw DeviceError(
      {.what = what, .where = where, .found = cudaGetErrorString(status), .hint = hint});
}

/// Why the runtime finds no device at all.
std::string no_device(cudaError_t status) {
  int driver = 0, runtime = 0;
  cudaDriverGetVersion(&driver);
  cudaRuntimeGetVersion(&runtime);
  const std::string why = why_not(driver, runtime);
  if (status == cudaErrorInsufficientDriver && !why.empty()) return why;
  return status == cudaSuccess ? "no device" : cudaGetErrorString(status);
}

cudaStream_t stream_of(const Stream& s) { return static_cast<cudaStream_t>(s.handle()); }

std::string mib(size_t bytes) { return std::to_string(bytes >> 20) + " MiB"; }

}  // namespace

std::optional<DeviceInfo> find_device(std::string& why) {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess || count == 0) {
    why = no_device(status);
    return std::nullopt;
  }
  cudaDeviceProp properties{};
  check(cudaGetDeviceProperties(&properties, 0), "a device does not answer");
  DeviceInfo d{.name = properties.name,
               .major = properties.major,
               .minor = properties.minor,
               .processors = properties.multiProcessorCount};
  why = why_not(d);
  if (!why.empty()) return std::nullopt;
  check(cudaDriverGetVersion(&d.driver), "the driver does not answer", d.name);
  d.toolkit = CUDART_VERSION;
  return d;
}

DeviceMemory device_memory() {
  DeviceMemory m;
  check(cudaMemGetInfo(&m.free, &m.total), "a device does not answer");
  return m;
}

Stream::Stream() {
  cudaStream_t s = nullptr;
  check(cudaStreamCreateWithFlags(&s, cudaStreamNonBlocking), "a stream cannot be made");
  handle_ = s;
  int shared = 0;
  check(cudaDeviceGetAttribute(&shared, cudaDevAttrMaxSharedMemoryPerBlockOptin, 0),
        "a device does not answer");
  block_shared_ = size_t(shared);
}
Stream::~Stream() { cudaStreamDestroy(static_cast<cudaStream_t>(handle_)); }

void Stream::synchronize() {
  check(cudaStreamSynchronize(stream_of(*this)), "the device failed while it worked");
}

void Stream::replay(const Graph& graph) {
  check(cudaGraphLaunch(static_cast<cudaGraphExec_t>(graph.handle()), stream_of(*this)),
        "a captured step could not be started");
}

Graph::~Graph() {
  if (handle_ != nullptr) cudaGraphExecDestroy(static_cast<cudaGraphExec_t>(handle_));
}

Recording::Recording(Stream& stream) : stream_(stream) {
  check(cudaStreamBeginCapture(stream_of(stream), cudaStreamCaptureModeThreadLocal),
        "a step cannot be captured");
}
Recording::~Recording() {
  if (!open_) return;
  cudaGraph_t graph = nullptr;
  cudaStreamEndCapture(stream_of(stream_), &graph);
  if (graph != nullptr) cudaGraphDestroy(graph);
  cudaGetLastError();  // that the capture failed is known
}

Graph Recording::finish() {
  open_ = false;
  cudaGraph_t graph = nullptr;
  check(cudaStreamEndCapture(stream_of(stream_), &graph), "a step cannot be captured");
  cudaGraphExec_t ready = nullptr;
  const cudaError_t status = cudaGraphInstantiate(&ready, graph, 0);
  cudaGraphDestroy(graph);
  check(status, "a captured step cannot be made ready");
  return Graph(ready);
}

Event::Event() {
  cudaEvent_t e = nullptr;
  check(cudaEventCreate(&e), "an event cannot be made");
  handle_ = e;
}
Event::~Event() {
  if (handle_ != nullptr) cudaEventDestroy(static_cast<cudaEvent_t>(handle_));
}
void Event::record(Stream& stream) {
  check(cudaEventRecord(static_cast<cudaEvent_t>(handle_), stream_of(stream)),
        "an event cannot be recorded");
}
void Event::wait() {
  check(cudaEventSynchronize(static_cast<cudaEvent_t>(handle_)),
        "the device failed while it worked");
}
double seconds_between(const Event& from, const Event& to) {
  float milliseconds = 0;
  check(cudaEventElapsedTime(&milliseconds, static_cast<cudaEvent_t>(from.handle()),
                             static_cast<cudaEvent_t>(to.handle())),
        "a time cannot be taken");
  return double(milliseconds) * 1e-3;
}

Memory::Memory(size_t bytes) : bytes_(bytes) {
  if (bytes == 0) return;
  void* p = nullptr;
  const cudaError_t status = cudaMalloc(&p, bytes);
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();  // an allocation that failed harms nothing else
    const DeviceMemory m = device_memory();
    throw DeviceError({.what = "the device's memory is full",
                       .where = "CUDA",
                       .expected = mib(bytes) + " more",
                       .found = mib(m.free) + " free of " + mib(m.total),
                       .hint = "choose a smaller --ctx or fewer bits, or use --backend cpu"});
  }
  check(status, "device memory cannot be had");
  data_ = static_cast<std::byte*>(p);
}
Memory::~Memory() { cudaFree(data_); }

Pinned::Pinned(size_t bytes) : bytes_(bytes) {
  void* p = nullptr;
  check(cudaMallocHost(&p, bytes), "pinned memory cannot be had");
  data_ = static_cast<std::byte*>(p);
}
Pinned::~Pinned() {
  if (data_ != nullptr) cudaFreeHost(data_);
}

void upload(Stream& stream, void* to, const Pinned& from, size_t bytes) {
  check(cudaMemcpyAsync(to, from.data(), bytes, cudaMemcpyHostToDevice, stream_of(stream)),
        "a copy to the device failed");
}
void upload(Stream& stream, void* to, const void* from, size_t bytes) {
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyHostToDevice, stream_of(stream)),
        "a copy to the device failed");
  stream.synchronize();  // nothing promises that pageable memory has been read before
}
void download(Stream& stream, void* to, const void* from, size_t bytes) {
  check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToHost, stream_of(stream)),
        "a copy from the device failed");
  stream.synchronize();
}
void clear(Stream& stream, void* to, size_t bytes) {
  check(cudaMemsetAsync(to, 0, bytes, stream_of(stream)), "device memory cannot be cleared");
}

std::optional<double> measured(Stream& stream, const std::function<void()>& work) {
  constexpr size_t kMoreThanCaches = size_t(128) << 20;
  constexpr int kRuns = 6;  // the first finds kernels that are not loaded yet
  if (device_memory().free < 2 * kMoreThanCaches) return std::nullopt;
  const Memory other(kMoreThanCaches);
  Event start, stop;
  double least = 0;
  for (int i = 0; i < kRuns; ++i) {
    clear(stream, other.data(), other.bytes());
    start.record(stream);
    work();
    stop.record(stream);
    stream.synchronize();
    const double time = seconds_between(start, stop) * 1e6;
    if (i == 1 || (i > 1 && time < least)) least = time;
  }
  return least;
}

namespace {

/// Lets a kernel have as much shared memory as a block can, once: were it what each launch wants, a
/// small launch would take it from a larger one that a graph has recorded or is recording. Threads
/// with streams of their own share what is known.
void raise_shared(const Stream& stream, const char* name, const void* kernel) {
  static std::mutex mutex;
  static std::unordered_set<const void*> raised;
  const std::lock_guard lock(mutex);
  if (raised.count(kernel) != 0) return;
  check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                             int(stream.block_shared())),
        "a kernel cannot have this device's shared memory", name);
  raised.insert(kernel);
}

}  // namespace

void launch_kernel(Stream& stream, const char* name, const void* kernel, const Grid& grid,
                   void* arguments) {
  if (grid.shared > stream.block_shared()) {
    throw DeviceError({.what = "a kernel wants more shared memory than this device has",
                       .where = name,
                       .expected = std::to_string(stream.block_shared()) + " bytes at the most",
                       .found = std::to_string(grid.shared) + " bytes",
                       .hint = "use --backend cpu"});
  }
  if (grid.shared > kOrdinaryShared) raise_shared(stream, name, kernel);
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(unsigned(grid.x), unsigned(grid.y));
  config.blockDim = dim3(unsigned(grid.threads));
  config.dynamicSmemBytes = grid.shared;
  config.stream = stream_of(stream);
  void* list[] = {arguments};
  check(cudaLaunchKernelExC(&config, kernel, list), "a kernel could not be started", name);
}

}  // namespace oq::cuda
