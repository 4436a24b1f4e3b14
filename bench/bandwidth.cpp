#include "bench/bandwidth.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstring>

#include <sys/mman.h>

#include "format/error.h"
#include "format/memory_file.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace oq {
namespace {

constexpr size_t kBytes = size_t(1) << 30;
constexpr size_t kLeast = size_t(256) << 20;  ///< below it, caches would take part
constexpr size_t kPiece = size_t(4) << 20;    ///< what one call of a reader takes

std::atomic<uint64_t> sink;  ///< keeps the compiler from dropping the reads

uint64_t read_plain(const std::byte* p, size_t n) {
  uint64_t a[8] = {};
  for (size_t i = 0; i < n; i += 64) {
    uint64_t w[8];
    std::memcpy(w, p + i, 64);
    for (int j = 0; j < 8; ++j) a[j] ^= w[j];
  }
  uint64_t sum = 0;
  for (uint64_t v : a) sum ^= v;
  return sum;
}

#if defined(__x86_64__)
__attribute__((target("avx2"))) uint64_t read_avx2(const std::byte* p, size_t n) {
  __m256i a[8];
  for (auto& v : a) v = _mm256_setzero_si256();
  for (size_t i = 0; i < n; i += 256) {
    for (int j = 0; j < 8; ++j) {
      const auto* from = reinterpret_cast<const __m256i*>(p + i + 32 * size_t(j));
      a[j] = _mm256_xor_si256(a[j], _mm256_load_si256(from));
    }
  }
  for (int j = 1; j < 8; ++j) a[0] = _mm256_xor_si256(a[0], a[j]);
  return uint64_t(_mm256_extract_epi64(a[0], 0)) ^ uint64_t(_mm256_extract_epi64(a[0], 3));
}

__attribute__((target("avx512f"))) uint64_t read_avx512(const std::byte* p, size_t n) {
  __m512i a[8];
  for (auto& v : a) v = _mm512_setzero_si512();
  for (size_t i = 0; i < n; i += 512) {
    for (int j = 0; j < 8; ++j) {
      a[j] = _mm512_xor_si512(a[j], _mm512_load_si512(p + i + 64 * size_t(j)));
    }
  }
  for (int j = 1; j < 8; ++j) a[0] = _mm512_xor_si512(a[0], a[j]);
  uint64_t lanes[8];
  _mm512_storeu_si512(lanes, a[0]);
  return lanes[0] ^ lanes[7];
}
#endif

using Reader = uint64_t (*)(const std::byte*, size_t);

Reader widest_reader() {
#if defined(__x86_64__)
  if (__builtin_cpu_supports("avx512f")) return read_avx512;
  if (__builtin_cpu_supports("avx2")) return read_avx2;
#endif
  return read_plain;
}

std::byte* map_buffer(size_t bytes, int advice) {
  void* p = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (p == MAP_FAILED) {
    throw Error({.what = "no memory for the bandwidth probe",
                 .where = "oq-bench",
                 .hint = "free some memory"});
  }
  madvise(p, bytes, advice);  // a wish: systems without huge pages give what they have
  return static_cast<std::byte*>(p);
}

}  // namespace

BandwidthProbe::BandwidthProbe(int threads) : pool_(threads) {
  bytes_ = std::min<size_t>(kBytes, available_memory() / 4 / kPiece * kPiece);
  if (bytes_ < kLeast) {
    throw Error({.what = "too little memory to measure its bandwidth",
                 .where = "oq-bench",
                 .expected = "1 GiB available",
                 .hint = "free some memory"});
  }
  huge_ = map_buffer(bytes_, MADV_HUGEPAGE);
  small_ = map_buffer(bytes_, MADV_NOHUGEPAGE);
  pool_.parallel_for(int64_t(bytes_ / kPiece), 1, [&](int64_t begin, int64_t end, int) {
    std::memset(huge_ + size_t(begin) * kPiece, 1, size_t(end - begin) * kPiece);
    std::memset(small_ + size_t(begin) * kPiece, 2, size_t(end - begin) * kPiece);
  });
}

BandwidthProbe::~BandwidthProbe() {
  munmap(huge_, bytes_);
  munmap(small_, bytes_);
}

double BandwidthProbe::pass(const std::byte* buffer) {
  static const Reader read = widest_reader();
  const auto start = std::chrono::steady_clock::now();
  pool_.parallel_for(int64_t(bytes_ / kPiece), 1, [&](int64_t begin, int64_t end, int) {
    const uint64_t sum = read(buffer + size_t(begin) * kPiece, size_t(end - begin) * kPiece);
    sink.fetch_xor(sum, std::memory_order_relaxed);
  });
  const std::chrono::duration<double> time = std::chrono::steady_clock::now() - start;
  return double(bytes_) / time.count();
}

void BandwidthProbe::measure() {
  best_huge_ = std::max(best_huge_, pass(huge_));
  best_small_ = std::max(best_small_, pass(small_));
  ++passes_;
}

}  // namespace oq
