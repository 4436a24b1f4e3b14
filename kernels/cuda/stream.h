#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <utility>

#include "format/error.h"
#include "kernels/cuda/device_info.h"

/// The thin layer between OQ and a GPU. It exists twice: for the CUDA runtime (stream.cpp) and for
/// the emulator (tests/simt/stream.cpp). Every call is checked; failures throw DeviceError. One
/// thread at a time.
namespace oq::cuda {

/// What the device is to blame for, or what it cannot do; the file is not. Whoever may choose
/// another backend can go on with that. Not to be thrown through with_place, which makes a plain
/// Error of it.
struct DeviceError : Error {
  using Error::Error;
};

/// Bytes of the device's memory, now.
struct DeviceMemory {
  size_t free = 0, total = 0;
};
DeviceMemory device_memory();

/// The device that a Stream would use, or nothing; then `why` says in a few words what is missing.
std::optional<DeviceInfo> find_device(std::string& why);

/// Work that a stream recorded; it can run any number of times. Owns it.
class Graph {
 public:
  Graph() = default;
  explicit Graph(void* handle) : handle_(handle) {}
  ~Graph();
  Graph(Graph&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Graph& operator=(Graph&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }

  void* handle() const { return handle_; }
  explicit operator bool() const { return handle_ != nullptr; }

 private:
  void* handle_ = nullptr;
};

/// A queue of work of the first device. Work runs in the order in which it was enqueued.
class Stream {
 public:
  Stream();
  ~Stream();
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  void* handle() const { return handle_; }
  /// Bytes of shared memory that a block can have on this device: 64 KiB on sm_75, 99 KiB on sm_86,
  /// 227 KiB on sm_90.
  size_t block_shared() const { return block_shared_; }
  /// Waits for everything enqueued. Errors of kernels that ran show here at the latest.
  void synchronize();
  /// Enqueues all that was recorded, with the arguments that it was recorded with.
  void replay(const Graph& graph);

 private:
  void* handle_ = nullptr;
  size_t block_shared_ = 0;
};

/// While it lives, the stream records what is enqueued instead of running it: kernels and `clear`
/// alone; whatever copies, waits or makes a Memory throws.
class Recording {
 public:
  explicit Recording(Stream& stream);
  ~Recording();  ///< unless finished: what was recorded is forgotten
  Recording(const Recording&) = delete;
  Recording& operator=(const Recording&) = delete;

  /// Once.
  Graph finish();

 private:
  Stream& stream_;
  bool open_ = true;
};

/// A point in a stream's work.
class Event {
 public:
  Event();
  ~Event();
  Event(Event&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Event& operator=(Event&&) = delete;

  void record(Stream& stream);
  /// Until all that was enqueued before the point has run; at once where there is no point yet.
  void wait();
  void* handle() const { return handle_; }

 private:
  void* handle_ = nullptr;
};

/// Time between two points that have been waited for, as the device's clock has it.
double seconds_between(const Event& from, const Event& to);

/// Device memory; owns it. Its content is undefined at first.
class Memory {
 public:
  Memory() = default;
  explicit Memory(size_t bytes);
  ~Memory();
  Memory(Memory&& other) noexcept : data_(other.data_), bytes_(other.bytes_) {
    other.data_ = nullptr;
    other.bytes_ = 0;
  }
  Memory& operator=(Memory&& other) noexcept {
    std::swap(data_, other.data_);
    std::swap(bytes_, other.bytes_);
    return *this;
  }

  size_t bytes() const { return bytes_; }
  std::byte* data() const { return data_; }
  template <class T>
  T* as() const {
    return reinterpret_cast<T*>(data_);
  }

 private:
  std::byte* data_ = nullptr;
  size_t bytes_ = 0;
};

/// Memory of the host that copies to the device are read from while the host goes on; owns it.
class Pinned {
 public:
  explicit Pinned(size_t bytes);
  ~Pinned();
  Pinned(Pinned&& other) noexcept
      : data_(std::exchange(other.data_, nullptr)), bytes_(other.bytes_) {}
  Pinned& operator=(Pinned&&) = delete;

  size_t bytes() const { return bytes_; }
  std::byte* data() const { return data_; }

 private:
  std::byte* data_ = nullptr;
  size_t bytes_ = 0;
};

/// Enqueues a copy of the first bytes of `from`, which must stay as they are until an Event that
/// was recorded afterwards has been waited for.
void upload(Stream& stream, void* to, const Pinned& from, size_t bytes);

/// From and to any memory of the host: both wait.
void upload(Stream& stream, void* to, const void* from, size_t bytes);
void download(Stream& stream, void* to, const void* from, size_t bytes);
void clear(Stream& stream, void* to, size_t bytes);

/// Microseconds that the device takes for what `work` enqueues, with cold caches: the least of a
/// few runs. Nothing where that cannot be measured: on the emulator, or without memory to spare.
std::optional<double> measured(Stream& stream, const std::function<void()>& work);

template <class T>
Memory uploaded(Stream& stream, std::span<const T> values) {
  Memory m(values.size_bytes());
  upload(stream, m.data(), values.data(), values.size_bytes());
  return m;
}

/// Blocks, threads of each (a multiple of 32), and bytes of its dynamic shared memory.
struct Grid {
  int x = 1, y = 1;
  int threads = 32;
  size_t shared = 0;
};

}  // namespace oq::cuda
