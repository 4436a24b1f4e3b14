#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>

/// The thin layer between OQ and a GPU. It exists twice: for the CUDA runtime (stream.cpp) and for
/// the emulator (tests/simt/stream.cpp). Every call is checked; failures throw oq::Error. One
/// thread at a time.
namespace oq::cuda {

struct DeviceInfo {
  std::string name;
  int major = 0, minor = 0;  ///< compute capability
  size_t memory = 0, free = 0;
  int processors = 0;           ///< SMs
  int driver = 0, toolkit = 0;  ///< versions, as CUDA counts them
};

/// The device that a Stream would use, or nothing; then `why` says in a few words what is missing.
std::optional<DeviceInfo> find_device(std::string& why);

/// A queue of work of the first device. Work runs in the order in which it was enqueued.
class Stream {
 public:
  Stream();
  ~Stream();
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  void* handle() const { return handle_; }
  /// Waits for everything enqueued. Errors of kernels that ran show here at the latest.
  void synchronize();

 private:
  void* handle_ = nullptr;
};

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

/// Enqueue; `from` may be changed as soon as `upload` returns, `download` waits.
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
