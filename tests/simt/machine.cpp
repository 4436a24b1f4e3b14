#include "tests/simt/machine.h"

#include <algorithm>
#include <array>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <new>
#include <numeric>
#include <optional>
#include <random>
#include <string>
#include <string_view>
#include <vector>

#include <fmt/format.h>

#include "format/error.h"
#include "tests/simt/device_state.h"
#include "tests/simt/fiber.h"
#include "tests/simt/poison.h"

namespace oq::simt {
namespace {

constexpr int kWarp = 32;
constexpr int kMostThreads = 1024;  // of a block
constexpr size_t kRedZone = 4096;
constexpr std::byte kFill{0xFF};  // NaNs in every float type

struct Copy {
  void* to;
  const void* from;
  int group;
};

struct Thread {
  enum class State { ready, at_barrier, at_warp_instruction, done };
  Fiber fiber;
  State state = State::done;
  Place place{};
  const char* what = nullptr;
  uint64_t detail = 0;
  const void* in = nullptr;
  void* out = nullptr;
  std::vector<Copy> copies;
  int groups = 0;  ///< of copies, committed
};

/// A block's shared memory between two red zones.
class SharedMemory {
 public:
  std::byte* begin() { return bytes_.get() + kRedZone; }

  void open(size_t bytes) {
    size_ = bytes;
    whole_ = (bytes + 15) / 16 * 16 + 2 * kRedZone;
    if (whole_ > capacity_) {
      bytes_.reset(new (std::align_val_t(kAlign)) std::byte[whole_]);
      capacity_ = whole_;
    }
    std::fill_n(bytes_.get(), whole_, kFill);
    poison(bytes_.get(), kRedZone);
    poison(begin() + bytes, whole_ - kRedZone - bytes);
  }

  /// False where somebody wrote into a red zone.
  bool close() {
    unpoison(bytes_.get(), whole_);
    const auto untouched = [](const std::byte* from, const std::byte* to) {
      return std::all_of(from, to, [](std::byte b) { return b == kFill; });
    };
    return untouched(bytes_.get(), begin()) && untouched(begin() + size_, bytes_.get() + whole_);
  }

 private:
  static constexpr size_t kAlign = 128;
  struct Free {
    void operator()(std::byte* p) const { ::operator delete[](p, std::align_val_t(kAlign)); }
  };
  std::unique_ptr<std::byte[], Free> bytes_;
  size_t capacity_ = 0, whole_ = 0;
  size_t size_ = 0;
};

class Machine {
 public:
  explicit Machine(Order o) : order(o) {}

  void run(const char* name, const Extent& extent, void (*kernel)(const void*),
           const void* arguments);

  Order order;
  std::array<uint64_t, 5> counts{};

  // For the thread that runs.
  Thread& current() { return *threads_[size_t(current_)]; }
  int current_id() const { return current_; }
  int block_x() const { return block_ % extent_.x; }
  int block_y() const { return block_ / extent_.x; }
  const Extent& extent() const { return extent_; }
  std::byte* shared() { return shared_.begin(); }
  void wait_at_barrier(Place place);
  void wait_for_warp(Combine combine);
  void record(const std::string& what, Place place);

 private:
  static void thread_main(void* machine);
  void run_block();
  void prepare_block();
  void deal(int n, std::vector<int>& order);
  bool run_warp(int warp);
  bool release_barrier();
  void check_finished();
  [[noreturn]] void report_deadlock();
  std::string describe(int thread) const;

  /// Lanes that wait at a warp instruction, and the first that came there.
  struct Arrivals {
    int count = 0, first = 0;
  };

  std::vector<std::unique_ptr<Thread>> threads_;
  std::array<Arrivals, kMostThreads / kWarp> arrivals_{};
  std::vector<int> lanes_, warps_, blocks_;  ///< in the order in which they run
  SharedMemory shared_;
  std::mt19937 rng_;
  const char* name_ = "";
  Extent extent_;
  void (*kernel_)(const void*) = nullptr;
  const void* arguments_ = nullptr;
  int block_ = 0, current_ = 0;
  std::optional<Error> error_;
};

/// OQ_SIMT_ORDER chooses for programs that don't: reverse or random.
Order first_order() {
  const char* name = std::getenv("OQ_SIMT_ORDER");
  const std::string_view text = name == nullptr ? "" : name;
  if (text == "reverse") return {Order::Kind::reverse, 1};
  if (text == "random") return {Order::Kind::random, 1};
  return {};
}

Machine& machine() {
  static Machine m(first_order());
  return m;
}

std::string text(Place p) {
  const char* slash = std::strrchr(p.file, '/');
  return fmt::format("{}:{}", slash == nullptr ? p.file : slash + 1, p.line);
}

/// The order in which n of a kind run. Chance deals every time, and all else once.
void Machine::deal(int n, std::vector<int>& p) {
  if (order.kind != Order::Kind::random && p.size() == size_t(n)) return;
  p.resize(size_t(n));
  std::iota(p.begin(), p.end(), 0);
  if (order.kind == Order::Kind::reverse) std::reverse(p.begin(), p.end());
  if (order.kind == Order::Kind::random) std::shuffle(p.begin(), p.end(), rng_);
}

void Machine::thread_main(void* m) {
  auto& self = *static_cast<Machine*>(m);
  self.kernel_(self.arguments_);
  self.current().state = Thread::State::done;
  self.current().fiber.finish();
}

std::string Machine::describe(int thread) const {
  const Thread& t = *threads_[size_t(thread)];
  switch (t.state) {
    case Thread::State::done:
      return fmt::format("thread {} has returned", thread);
    case Thread::State::at_barrier:
      return fmt::format("thread {} waits at sync_block ({})", thread, text(t.place));
    case Thread::State::at_warp_instruction:
      return fmt::format("thread {} waits at {} ({})", thread, t.what, text(t.place));
    case Thread::State::ready:
      break;
  }
  return fmt::format("thread {} runs", thread);
}

/// The launch ends with this once the thread suspends, which it must do next, owning nothing: its
/// stack is never unwound.
void Machine::record(const std::string& what, Place place) {
  if (error_) return;
  error_ = Error({.what = what,
                  .where = fmt::format("emulated kernel {}, block {}, thread {}, {}", name_, block_,
                                       current_, text(place))});
}

void Machine::wait_at_barrier(Place place) {
  ++counts[size_t(Count::barriers)];
  Thread& t = current();
  t.state = Thread::State::at_barrier;
  t.place = place;
  t.fiber.suspend();
}

void Machine::wait_for_warp(Combine combine) {
  const int first = current_ / kWarp * kWarp;
  Thread& me = current();
  me.state = Thread::State::at_warp_instruction;
  Arrivals& arrivals = arrivals_[size_t(current_ / kWarp)];
  if (arrivals.count++ == 0) arrivals.first = current_;
  const Thread& other = *threads_[size_t(arrivals.first)];
  if (other.what != me.what || other.detail != me.detail || other.place.line != me.place.line ||
      std::strcmp(other.place.file, me.place.file) != 0) {
    record(
        fmt::format("a warp has parted: {}, but {}", describe(arrivals.first), describe(current_)),
        me.place);
  }
  if (arrivals.count < kWarp || error_) return me.fiber.suspend();
  arrivals.count = 0;
  const void* in[kWarp];
  void* out[kWarp];
  for (int i = 0; i < kWarp; ++i) {
    Thread& t = *threads_[size_t(first + i)];
    in[i] = t.in;
    out[i] = t.out;
    t.state = Thread::State::ready;
  }
  combine(in, out);
  ++counts[size_t(Count::warp_instructions)];
}

/// True when one of the warp's threads got further.
bool Machine::run_warp(int warp) {
  bool ran = false;
  deal(kWarp, lanes_);
  for (int lane : lanes_) {
    const int thread = warp * kWarp + lane;
    Thread& t = *threads_[size_t(thread)];
    if (t.state != Thread::State::ready) continue;
    current_ = thread;
    ++counts[size_t(Count::switches)];
    t.fiber.resume();
    if (error_) throw *error_;
    ran = true;
  }
  return ran;
}

/// True when all threads stood at one barrier, and may go on.
bool Machine::release_barrier() {
  const Place place = threads_.front()->place;
  for (int i = 0; i < extent_.threads; ++i) {
    const Thread& t = *threads_[size_t(i)];
    if (t.state != Thread::State::at_barrier || t.place.line != place.line ||
        std::strcmp(t.place.file, place.file) != 0) {
      return false;
    }
  }
  for (int i = 0; i < extent_.threads; ++i) threads_[size_t(i)]->state = Thread::State::ready;
  return true;
}

void Machine::report_deadlock() {
  const auto differs = [&](int i) {
    const Thread &a = *threads_.front(), &b = *threads_[size_t(i)];
    return a.state != b.state || (a.state != Thread::State::done && a.place.line != b.place.line);
  };
  int other = 0;
  while (other + 1 < extent_.threads && !differs(other)) ++other;
  throw Error({.what = "threads wait for each other for ever",
               .where = fmt::format("emulated kernel {}, block {}", name_, block_),
               .found = fmt::format("{}, but {}", describe(0), describe(other))});
}

void Machine::prepare_block() {
  while (threads_.size() < size_t(extent_.threads)) threads_.push_back(std::make_unique<Thread>());
  for (int i = 0; i < extent_.threads; ++i) {
    Thread& t = *threads_[size_t(i)];
    t.state = Thread::State::ready;
    t.copies.clear();
    t.groups = 0;
    t.fiber.start(thread_main, this);
  }
  arrivals_.fill({});
  shared_.open(extent_.shared);
}

void Machine::check_finished() {
  for (int i = 0; i < extent_.threads; ++i) {
    if (threads_[size_t(i)]->copies.empty()) continue;
    throw Error(
        {.what = "a thread returned with copies under way that nobody waited for",
         .where = fmt::format("emulated kernel {}, block {}, thread {}", name_, block_, i)});
  }
}

void Machine::run_block() {
  prepare_block();
  const auto done = [&] {
    return std::all_of(threads_.begin(), threads_.begin() + extent_.threads,
                       [](const auto& t) { return t->state == Thread::State::done; });
  };
  do {
    bool ran = false;
    deal(extent_.threads / kWarp, warps_);
    for (int warp : warps_) {
      while (run_warp(warp)) ran = true;
    }
    if (!ran && !release_barrier()) report_deadlock();
  } while (!done());
  check_finished();
}

void Machine::run(const char* name, const Extent& extent, void (*kernel)(const void*),
                  const void* arguments) {
  name_ = name;
  if (extent.x < 1 || extent.y < 1 || extent.y > 65535 || extent.threads < kWarp ||
      extent.threads > kMostThreads || extent.threads % kWarp != 0 ||
      extent.shared > device_state().block_shared) {
    throw Error({.what = "a launch that no GPU takes",
                 .where = fmt::format("emulated kernel {}", name),
                 .found = fmt::format("{} x {} blocks of {} threads, {} bytes of shared memory",
                                      extent.x, extent.y, extent.threads, extent.shared)});
  }
  extent_ = extent;
  kernel_ = kernel;
  arguments_ = arguments;
  error_.reset();
  rng_.seed(order.seed);
  lanes_.clear(), warps_.clear(), blocks_.clear();  // the order may be another one now
  deal(extent.x * extent.y, blocks_);
  for (int block : blocks_) {
    block_ = block;
    bool intact = false;
    try {
      run_block();
      intact = shared_.close();
    } catch (...) {
      shared_.close();
      throw;
    }
    if (intact) continue;
    throw Error({.what = "a write outside shared memory",
                 .where = fmt::format("emulated kernel {}, block {}", name, block)});
  }
}

}  // namespace

void set_order(Order o) { machine().order = o; }
Order order() { return machine().order; }

void run_grid(const char* name, const Extent& extent, void (*kernel)(const void*),
              const void* arguments) {
  machine().run(name, extent, kernel, arguments);
}

int thread_id() { return machine().current_id(); }
int block_x() { return machine().block_x(); }
int block_y() { return machine().block_y(); }
int grid_x() { return machine().extent().x; }
int block_threads() { return machine().extent().threads; }
std::byte* shared_memory() { return machine().shared(); }
void sync_block(Place place) { machine().wait_at_barrier(place); }

void warp_instruction(const char* what, uint64_t detail, Place place, const void* in, void* out,
                      Combine combine) {
  Thread& t = machine().current();
  t.what = what;
  t.detail = detail;
  t.place = place;
  t.in = in;
  t.out = out;
  machine().wait_for_warp(combine);
}

void async_copy16(void* shared, const void* global, Place place) {
  ++machine().counts[size_t(Count::async_copies)];
  Thread& t = machine().current();
  if (reinterpret_cast<uintptr_t>(shared) % 16 != 0 ||
      reinterpret_cast<uintptr_t>(global) % 16 != 0) {
    machine().record("cp.async of 16 bytes wants addresses that are multiples of 16", place);
    return t.fiber.suspend();
  }
  std::memset(shared, 0xFF, 16);
  poison(shared, 16);
  t.copies.push_back({shared, global, t.groups});
}

void async_commit() { ++machine().current().groups; }

void async_wait(int pending) {
  Thread& t = machine().current();
  const int finished = t.groups - pending;
  const auto lands = [&](const Copy& c) { return c.group < finished; };
  for (const Copy& c : t.copies) {
    if (!lands(c)) continue;
    unpoison(c.to, 16);
    std::memcpy(c.to, c.from, 16);
  }
  t.copies.erase(std::remove_if(t.copies.begin(), t.copies.end(), lands), t.copies.end());
}

uint64_t count(Count what) { return machine().counts[size_t(what)]; }
void add_count(Count what) { ++machine().counts[size_t(what)]; }

}  // namespace oq::simt
