#pragma once

/// The host's twin of kernels/cuda/device.h: the same names, done by the emulator (machine.h).

#include <bit>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <functional>
#include <utility>

#include "format/half.h"
#include "kernels/cuda/stream.h"
#include "tests/simt/machine.h"

#define OQ_DEVICE inline
#define OQ_UNROLL
#define __global__ static
#define __launch_bounds__(...)

// Where in a kernel's source an instruction stands.
#define OQ_HERE \
  simt::Place { file, line }
#define OQ_FROM const char *file = __builtin_FILE(), int line = __builtin_LINE()

namespace oq::cuda {

/// Runs `work` now, or leaves it to the stream's recording (stream.cpp).
void enqueue(Stream& stream, std::function<void()> work);
void start_launch(const char* name);

template <class Arguments>
void launch(Stream& stream, const char* name, void (*kernel)(Arguments), const Grid& grid,
            Arguments arguments) {
  enqueue(stream, [name, grid, call = std::pair(kernel, arguments)] {
    start_launch(name);
    simt::run_grid(
        name, {.x = grid.x, .y = grid.y, .threads = grid.threads, .shared = grid.shared},
        [](const void* p) {
          const auto& c = *static_cast<const decltype(call)*>(p);
          c.first(c.second);
        },
        &call);
  });
}

struct alignas(8) Words2 {
  uint32_t w[2];
};
struct alignas(16) Words4 {
  uint32_t w[4];
};

inline int thread_id() { return simt::thread_id(); }
inline int lane_id() { return simt::thread_id() % 32; }
inline int warp_id() { return simt::thread_id() / 32; }
inline int block_threads() { return simt::block_threads(); }
inline int block_x() { return simt::block_x(); }
inline int block_y() { return simt::block_y(); }
inline int grid_x() { return simt::grid_x(); }
inline std::byte* shared_memory() { return simt::shared_memory(); }
inline void sync_block(OQ_FROM) { simt::sync_block(OQ_HERE); }

/// A warp instruction: every lane gives an In and gets an Out of kernel(all lanes' In, lane).
template <class In, class Out, class All>
Out warp_instruction(const char* what, uint64_t detail, simt::Place place, const In& in, All) {
  Out out{};
  simt::warp_instruction(what, detail, place, &in, &out,
                         [](const void* const* from, void* const* to) {
                           In all[32];
                           for (int i = 0; i < 32; ++i) all[i] = *static_cast<const In*>(from[i]);
                           for (int i = 0; i < 32; ++i) {
                             *static_cast<Out*>(to[i]) = All()(all, i);
                           }
                         });
  return out;
}

inline void sync_warp(OQ_FROM) {
  warp_instruction<int, int>("sync_warp", 0, OQ_HERE, 0, [](const int*, int) { return 0; });
}

inline float shuffle_xor(float x, int mask, OQ_FROM) {
  using In = std::pair<float, int>;
  return warp_instruction<In, float>(
      "shuffle_xor", uint64_t(mask), OQ_HERE, {x, mask},
      [](const In* all, int lane) { return all[(lane ^ all[lane].second) % 32].first; });
}
inline int32_t shuffle_xor(int32_t x, int mask, OQ_FROM) {
  using In = std::pair<int32_t, int>;
  return warp_instruction<In, int32_t>(
      "shuffle_xor", uint64_t(mask), OQ_HERE, {x, mask},
      [](const In* all, int lane) { return all[(lane ^ all[lane].second) % 32].first; });
}
inline float shuffle(float x, int lane, OQ_FROM) {
  using In = std::pair<float, int>;
  return warp_instruction<In, float>("shuffle", 0, OQ_HERE, {x, lane}, [](const In* all, int i) {
    return all[all[i].second & 31].first;
  });
}
inline uint32_t ballot(bool x, OQ_FROM) {
  return warp_instruction<bool, uint32_t>("ballot", 0, OQ_HERE, x, [](const bool* all, int) {
    uint32_t bits = 0;
    for (int i = 0; i < 32; ++i) bits |= uint32_t(all[i]) << i;
    return bits;
  });
}

inline uint32_t atomic_add(uint32_t* p, uint32_t x) { return std::exchange(*p, *p + x); }
inline void fence_device() {}
inline float load_fresh(const float* p) { return *p; }

inline float half_to_float(uint16_t h) { return to_float(f16{h}); }
inline uint16_t float_to_half(float x) { return to_f16(x).bits; }
inline float bits_to_float(uint32_t x) { return std::bit_cast<float>(x); }
inline uint32_t float_to_bits(float x) { return std::bit_cast<uint32_t>(x); }

inline Words4 load_stream(const Words4* p) { return *p; }
inline Words2 load_stream(const Words2* p) { return *p; }

inline void async_copy16(void* shared, const void* global, OQ_FROM) {
  simt::async_copy16(shared, global, OQ_HERE);
}
inline void async_commit() { simt::async_commit(); }
template <int kPending>
void async_wait() {
  simt::async_wait(kPending);
}

/// What mma takes and gives, a lane's registers.
template <class T>
struct MmaLane {
  T c[4];
  uint32_t a[4], b[2];
};

/// An mma of 16 x kDepth by kDepth x 8; kPer elements to a register. `element(word, i)` is a
/// register's i-th, and products are summed in ascending order.
template <class T, int kDepth, int kPer, class Element>
void mma(const char* what, simt::Place place, T c[4], const uint32_t a[4], const uint32_t b[2],
         Element) {
  MmaLane<T> in;
  std::memcpy(in.c, c, sizeof in.c);
  std::memcpy(in.a, a, sizeof in.a);
  std::memcpy(in.b, b, sizeof in.b);
  struct Sums {
    T c[4];
  };
  struct Shared {  // computed once, for lane 0; the others take their part
    T a[16][kDepth], b[kDepth][8];
  };
  const auto all = [](const MmaLane<T>* lanes, int lane) {
    static Shared s;
    if (lane == 0) {
      simt::add_count(simt::Count::mma);
      for (int i = 0; i < 32; ++i) {
        const int g = i / 4, q = i % 4;
        for (int r = 0; r < 4; ++r) {
          for (int e = 0; e < kPer; ++e) {
            s.a[g + 8 * (r % 2)][kPer * q + e + 4 * kPer * (r / 2)] = Element()(lanes[i].a[r], e);
            if (r < 2) s.b[kPer * q + e + 4 * kPer * r][g] = Element()(lanes[i].b[r], e);
          }
        }
      }
    }
    Sums out;
    for (int r = 0; r < 4; ++r) {
      const int row = lane / 4 + 8 * (r / 2), column = 2 * (lane % 4) + r % 2;
      T sum = 0;
      for (int k = 0; k < kDepth; ++k) sum += s.a[row][k] * s.b[k][column];
      out.c[r] = lanes[lane].c[r] + sum;
    }
    return out;
  };
  const Sums sums = warp_instruction<MmaLane<T>, Sums>(what, 0, place, in, all);
  std::memcpy(c, sums.c, sizeof sums.c);
}

inline void mma_f16(float c[4], const uint32_t a[4], const uint32_t b[2], OQ_FROM) {
  mma<float, 16, 2>("mma_f16", OQ_HERE, c, a, b,
                    [](uint32_t word, int i) { return to_float(f16{uint16_t(word >> (16 * i))}); });
}
inline void mma_u8(int32_t c[4], const uint32_t a[4], const uint32_t b[2], OQ_FROM) {
  mma<int32_t, 32, 4>("mma_u8", OQ_HERE, c, a, b,
                      [](uint32_t word, int i) { return int32_t(word >> (8 * i) & 0xFFu); });
}

/// What mma_and_popc takes and gives, a lane's registers.
struct BitsLane {
  int32_t c[4];
  uint32_t a[2], b;
};
inline void mma_and_popc(int32_t c[4], const uint32_t a[2], uint32_t b, OQ_FROM) {
  BitsLane in{{c[0], c[1], c[2], c[3]}, {a[0], a[1]}, b};
  struct Sums {
    int32_t c[4];
  };
  const auto all = [](const BitsLane* lanes, int lane) {
    if (lane == 0) simt::add_count(simt::Count::mma);
    Sums out;
    for (int r = 0; r < 4; ++r) {
      const int row = lane / 4, column = 2 * (lane % 4) + r % 2;
      int32_t sum = lanes[lane].c[r];
      for (int q = 0; q < 4; ++q) {
        sum += std::popcount(lanes[4 * row + q].a[r / 2] & lanes[4 * column + q].b);
      }
      out.c[r] = sum;
    }
    return out;
  };
  const Sums sums = warp_instruction<BitsLane, Sums>("mma_and_popc", 0, OQ_HERE, in, all);
  std::memcpy(c, sums.c, sizeof sums.c);
}

}  // namespace oq::cuda

#undef OQ_HERE
#undef OQ_FROM
