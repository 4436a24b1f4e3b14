/// The emulator itself: what it computes, and what it refuses.

#include <array>
#include <functional>
#include <string>
#include <vector>

#include <doctest/doctest.h>
#include <sys/wait.h>
#include <unistd.h>

#include "format/error.h"
#include "kernels/cuda/device.h"
#include "tests/simt/poison.h"

using namespace oq;
using namespace oq::cuda;

namespace {

struct Args {
  float* out;
  const float* in;
  int n;
};

const simt::Order kOrders[] = {{simt::Order::Kind::forward, 1},
                               {simt::Order::Kind::reverse, 1},
                               {simt::Order::Kind::random, 1},
                               {simt::Order::Kind::random, 77}};

/// What a launch says when it fails; empty where it does not.
std::string failure(void (*kernel)(Args), const Grid& grid, Args args = {}) {
  Stream stream;
  try {
    launch(stream, "test", kernel, grid, args);
  } catch (const Error& e) {
    return e.what();
  }
  return "";
}

bool says(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

/// Runs `body` in a child, and returns what it wrote to stderr before it died; empty where it
/// lived.
std::string death(const std::function<void()>& body) {
  int ends[2];
  REQUIRE(pipe(ends) == 0);
  const pid_t child = fork();
  if (child == 0) {
    dup2(ends[1], 2);
    body();
    _exit(0);
  }
  close(ends[1]);
  std::string text;
  std::array<char, 4096> buffer{};
  for (ssize_t n = 0; (n = read(ends[0], buffer.data(), buffer.size())) > 0;) {
    text.append(buffer.data(), size_t(n));
  }
  close(ends[0]);
  int status = 0;
  waitpid(child, &status, 0);
  if (WIFEXITED(status) && WEXITSTATUS(status) == 0) return "";
  return text.empty() ? "died silently" : text;
}

/// Sums n values: warps by shuffle, then the block through shared memory.
void sum_kernel(Args a) {
  auto* shared = reinterpret_cast<float*>(shared_memory());
  float x = 0;
  for (int i = block_x() * block_threads() + thread_id(); i < a.n;
       i += grid_x() * block_threads()) {
    x += a.in[i];
  }
  for (int mask = 16; mask > 0; mask /= 2) x += shuffle_xor(x, mask);
  if (lane_id() == 0) shared[warp_id()] = x;
  sync_block();
  if (thread_id() != 0) return;
  float sum = 0;
  for (int w = 0; w < block_threads() / 32; ++w) sum += shared[w];
  a.out[block_x()] = sum;
}

}  // namespace

TEST_CASE("a reduction gives the same bits in every thread order") {
  std::vector<float> in(1000), first;
  for (size_t i = 0; i < in.size(); ++i) in[i] = 1.0f / float(i + 3);
  Stream stream;
  for (const simt::Order& order : kOrders) {
    simt::set_order(order);
    std::vector<float> out(5, 0.0f);
    launch(stream, "sum", sum_kernel, {.x = 5, .threads = 96, .shared = 12},
           Args{out.data(), in.data(), 1000});
    if (first.empty()) first = out;
    CHECK(out == first);
    double sum = 0, truth = 0;
    for (float v : out) sum += double(v);
    for (float v : in) truth += double(v);
    CHECK(sum == doctest::Approx(truth).epsilon(1e-6));
  }
  simt::set_order({});
}

TEST_CASE("shuffles and votes see all lanes") {
  std::vector<float> out(128);
  Stream stream;
  launch(
      stream, "shuffle",
      +[](Args a) {
        const int lane = lane_id();
        a.out[lane] = shuffle(float(100 + lane), (lane + 5) % 32);
        a.out[32 + lane] = shuffle_xor(float(lane), 9);
        a.out[64 + lane] = float(ballot(lane % 3 == 0) % 65536);
        a.out[96 + lane] = float(ballot(lane % 3 == 0) / 65536);
      },
      Grid{}, Args{out.data(), nullptr, 0});
  uint32_t votes = 0;
  for (int i = 0; i < 32; ++i) votes |= uint32_t(i % 3 == 0) << i;
  for (int i = 0; i < 32; ++i) {
    CHECK(out[size_t(i)] == float(100 + (i + 5) % 32));
    CHECK(out[size_t(32 + i)] == float(i ^ 9));
    CHECK(out[size_t(64 + i)] == float(votes % 65536));
    CHECK(out[size_t(96 + i)] == float(votes / 65536));
  }
}

TEST_CASE("an order is an order: the last thread to write wins") {
  const auto last = [](simt::Order order) {
    simt::set_order(order);
    float out = -1;
    Stream stream;
    launch(
        stream, "race", +[](Args a) { *a.out = float(block_x() * 64 + thread_id()); },
        Grid{.x = 3, .threads = 64}, Args{&out, nullptr, 0});
    simt::set_order({});
    return out;
  };
  CHECK(last({simt::Order::Kind::forward, 1}) == 191.0f);
  CHECK(last({simt::Order::Kind::reverse, 1}) == 0.0f);
  CHECK(last({simt::Order::Kind::random, 1}) != last({simt::Order::Kind::random, 2}));
}

TEST_CASE("a missing barrier is seen in one order or another") {
  // Thread i reads what its neighbour in the next warp writes, without waiting for it.
  const auto run = [](bool barrier, simt::Order order) {
    simt::set_order(order);
    std::vector<float> out(64, 0.0f);
    Stream stream;
    launch(
        stream, "race",
        +[](Args a) {
          auto* shared = reinterpret_cast<float*>(shared_memory());
          shared[thread_id()] = float(thread_id());
          if (a.n != 0) sync_block();
          a.out[thread_id()] = shared[(thread_id() + 32) % 64];
        },
        Grid{.threads = 64, .shared = 256}, Args{out.data(), nullptr, int(barrier)});
    simt::set_order({});
    float sum = 0;
    for (float v : out) sum += v;
    return sum;  // a NaN where something was read too early
  };
  for (const simt::Order& order : kOrders) {
    CHECK(run(true, order) == 2016.0f);
    CHECK(run(false, order) != 2016.0f);
  }
}

TEST_CASE("threads that part at a barrier are an error that says where") {
  const std::string text = failure(
      +[](Args) {
        if (thread_id() < 40) {
          sync_block();
        } else {
          sync_block();
        }
      },
      {.threads = 64});
  CHECK(says(text, "threads wait for each other for ever"));
  CHECK(says(text, "thread 0 waits at sync_block (machine_test.cpp:"));
  CHECK(says(text, "thread 40 waits at sync_block (machine_test.cpp:"));
  const std::string left = failure(
      +[](Args) {
        if (thread_id() != 33) sync_block();
      },
      {.threads = 64});
  CHECK(says(left, "thread 33 has returned"));
}

TEST_CASE("a warp that parts before a warp instruction is an error") {
  const std::string text = failure(
      +[](Args) {
        if (lane_id() == 7) {
          shuffle_xor(1.0f, 1);
        } else {
          ballot(true);
        }
      },
      {});
  CHECK(says(text, "a warp has parted"));
  CHECK(says(text, "waits at ballot"));
  const std::string left = failure(
      +[](Args) {
        if (lane_id() != 7) sync_warp();
      },
      {});
  CHECK(says(left, "thread 7 has returned"));
}

TEST_CASE("a launch that no GPU takes is refused") {
  const auto nothing = +[](Args) {};
  CHECK(failure(nothing, {.threads = 64}).empty());
  for (const Grid& grid : {Grid{.x = 0}, Grid{.threads = 48}, Grid{.threads = 2048},
                           Grid{.y = 70000}, Grid{.shared = 300000}}) {
    CHECK(says(failure(nothing, grid), "a launch that no GPU takes"));
  }
}

TEST_CASE("shared memory has red zones") {
  const auto outside = [](int offset) {
    return death([&] {
      const std::string text = failure(
          +[](Args a) {
            volatile std::byte* shared = shared_memory();
            shared[a.n] = std::byte{1};
          },
          {.shared = 20}, {nullptr, nullptr, offset});
      if (!text.empty()) {
        [[maybe_unused]] const auto written = write(2, text.data(), text.size());
        _exit(1);
      }
    });
  };
  CHECK(outside(0).empty());
  CHECK(outside(19).empty());
  for (int offset : {-1, 20, 100, 4000}) {
    CHECK(says(outside(offset),
               simt::kPoisons ? "use-after-poison" : "a write outside shared memory"));
  }
}

namespace {

/// Copies 16 floats to shared memory and reads them, with or without waiting.
void copy_kernel(Args a) {
  auto* shared = reinterpret_cast<float*>(shared_memory());
  if (thread_id() < 4) async_copy16(shared + 4 * thread_id(), a.in + 4 * thread_id());
  async_commit();
  if (a.n != 1) async_wait<0>();
  if (a.n != 2) sync_block();
  if (thread_id() < 16) a.out[thread_id()] = shared[15 - thread_id()];
  if (a.n == 1) async_wait<0>();
}

}  // namespace

TEST_CASE("cp.async: what is read before it was waited for is poison") {
  alignas(16) std::array<float, 16> in{};
  for (size_t i = 0; i < 16; ++i) in[i] = float(i);
  const auto run = [&](int fault, simt::Order order) {
    return death([&] {
      simt::set_order(order);
      std::vector<float> out(16, 0.0f);
      Stream stream;
      launch(stream, "copy", copy_kernel, {.shared = 64}, Args{out.data(), in.data(), fault});
      for (size_t i = 0; i < 16; ++i) {
        if (out[i] != in[15 - i]) _exit(1);
      }
    });
  };
  for (const simt::Order& order : kOrders) {
    CHECK(run(0, order).empty());
    CHECK_FALSE(run(1, order).empty());  // never waited
    CHECK_FALSE(run(2, order).empty());  // the copying thread waited, the reading one did not
  }
  const std::string left = failure(
      +[](Args a) {
        async_copy16(shared_memory() + 16 * thread_id(), a.in);
        async_commit();
      },
      {.shared = 512}, {nullptr, in.data(), 0});
  CHECK(says(left, "nobody waited for"));
  const std::string crooked = failure(+[](Args a) { async_copy16(shared_memory() + 4, a.in); },
                                      {.shared = 64}, {nullptr, in.data(), 0});
  CHECK(says(crooked, "multiples of 16"));
}
