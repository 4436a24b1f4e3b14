/// kernels/cuda/stream.h for the emulator: device memory is the host's, and kernels have run when
/// the call returns. Copies from pinned memory are as late as they may be: until somebody waits for
/// them or needs what they bring. Each allocation stands alone, so AddressSanitizer guards its
/// ends.

#include "kernels/cuda/stream.h"

#include <cstring>
#include <functional>
#include <new>
#include <vector>

#include "tests/simt/device_state.h"

namespace oq::cuda {
namespace {

using Work = std::vector<std::function<void()>>;

struct Queue {
  Work* recording = nullptr;  ///< where work goes instead of running
  Work copies;                ///< from pinned memory, under way
};

Queue& queue_of(const Stream& s) { return *static_cast<Queue*>(s.handle()); }

void land_copies(Queue& q) {
  for (const auto& copy : q.copies) copy();
  q.copies.clear();
}

/// What neither waits nor copies may do while a stream records.
void refuse_recording(const Queue& q, const char* what) {
  if (q.recording == nullptr) return;
  throw DeviceError({.what = "the stream records", .where = what});
}

Work* finish_recording(Queue& q) {
  --simt::device_state().recordings;
  return std::exchange(q.recording, nullptr);
}

}  // namespace

void enqueue(Stream& stream, std::function<void()> work) {
  Queue& q = queue_of(stream);
  if (q.recording != nullptr) return q.recording->push_back(std::move(work));
  land_copies(q);
  work();
}

/// Called where a kernel starts, recorded or not.
void start_launch(const char* name) {
  ++simt::device_state().launches;
  int& left = simt::device_state().launches_left;
  if (left == 0) {
    throw DeviceError(
        {.what = "the device failed while it worked", .where = name, .hint = "use --backend cpu"});
  }
  if (left > 0) --left;
}

std::optional<DeviceInfo> find_device(std::string& why) {
  const DeviceInfo& d = simt::device_state().info;
  why = why_not(d.driver, d.toolkit);
  if (why.empty()) why = why_not(d);
  if (!why.empty()) return std::nullopt;
  return d;
}

DeviceMemory device_memory() {
  const simt::DeviceState& d = simt::device_state();
  return {d.memory - d.used, d.memory};
}

Stream::Stream() : handle_(new Queue), block_shared_(simt::device_state().block_shared) {}
Stream::~Stream() { delete &queue_of(*this); }  // with copies that nobody asked for
void Stream::synchronize() {
  refuse_recording(queue_of(*this), "synchronize");
  land_copies(queue_of(*this));
}
void Stream::replay(const Graph& graph) {
  refuse_recording(queue_of(*this), "replay");
  for (const auto& work : *static_cast<const Work*>(graph.handle())) enqueue(*this, work);
}

Graph::~Graph() { delete static_cast<Work*>(handle_); }

Recording::Recording(Stream& stream) : stream_(stream) {
  refuse_recording(queue_of(stream), "recording");
  queue_of(stream).recording = new Work;
  ++simt::device_state().recordings;
}
Recording::~Recording() {
  if (open_) delete finish_recording(queue_of(stream_));
}
Graph Recording::finish() {
  open_ = false;
  Graph graph(finish_recording(queue_of(stream_)));
  int& left = simt::device_state().graphs_left;
  if (left == 0) throw DeviceError({.what = "the device's memory is full", .where = "emulator"});
  if (left > 0) --left;
  return graph;
}

Event::Event() = default;
Event::~Event() = default;
void Event::record(Stream& stream) {
  refuse_recording(queue_of(stream), "record");
  handle_ = stream.handle();
}
void Event::wait() {
  if (handle_ == nullptr) return;
  refuse_recording(*static_cast<Queue*>(handle_), "wait");
  land_copies(*static_cast<Queue*>(handle_));
}
double seconds_between(const Event&, const Event&) { return 0; }  // the emulator has no clock

Memory::Memory(size_t bytes) : bytes_(bytes) {
  simt::DeviceState& d = simt::device_state();
  if (d.recordings > 0) {
    throw DeviceError({.what = "no memory can be had while a stream records", .where = "emulator"});
  }
  const bool fails = d.allocations_left == 0;
  if (d.allocations_left > 0) --d.allocations_left;
  if (fails || bytes > d.memory - d.used) {
    throw DeviceError({.what = "the device's memory is full", .where = "emulator"});
  }
  d.used += bytes;
  d.peak = d.used > d.peak ? d.used : d.peak;
  data_ = static_cast<std::byte*>(::operator new(bytes, std::align_val_t(256)));
  std::memset(data_, 0xFF, bytes);  // NaNs, until somebody writes
}
Memory::~Memory() {
  if (data_ == nullptr) return;
  simt::device_state().used -= bytes_;
  ::operator delete(data_, std::align_val_t(256));
}

Pinned::Pinned(size_t bytes) : data_(new std::byte[bytes]), bytes_(bytes) {}
Pinned::~Pinned() { delete[] data_; }

void upload(Stream& stream, void* to, const Pinned& from, size_t bytes) {
  refuse_recording(queue_of(stream), "upload");
  queue_of(stream).copies.push_back(
      [to, data = from.data(), bytes] { std::memcpy(to, data, bytes); });
}
void upload(Stream& stream, void* to, const void* from, size_t bytes) {
  stream.synchronize();
  std::memcpy(to, from, bytes);
}
void download(Stream& stream, void* to, const void* from, size_t bytes) {
  stream.synchronize();
  std::memcpy(to, from, bytes);
}
void clear(Stream& stream, void* to, size_t bytes) {
  enqueue(stream, [to, bytes] { std::memset(to, 0, bytes); });
}
std::optional<double> measured(Stream& stream, const std::function<void()>&) {
  refuse_recording(queue_of(stream), "measured");
  return std::nullopt;
}

}  // namespace oq::cuda

namespace oq::simt {

DeviceState& device_state() {
  static DeviceState state;
  return state;
}

}  // namespace oq::simt
