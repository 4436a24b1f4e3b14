#include "bench/bandwidth.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdint>
#include <cstring>

#include <sys/mman.h>

#include "format/error.h"
#include "format/memory.h"

#if defined(__x86_64__)
#include <immintrin.h>
#endif

namespace oq {
namespace {

constexpr size_t kBytes = size_t(1) << 30;
constexpr size_t kLeast = size_t(256) << 20;  ///< below it, caches would take part
constexpr size_t kPiece = size_t(4) << 20;    ///< what one call of a reader takes
constexpr size_t kSmallestSubject = 4 * kPiece;

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

}  // namespace

BandwidthProbe::BandwidthProbe(int threads, std::span<const std::byte> subject)
    : pool_(threads), subject_{subject, {}} {
  const size_t bytes = std::min<size_t>(kBytes, available_memory() / 4 / kPiece * kPiece);
  if (bytes < kLeast) {
    throw Error({.what = "too little memory to measure its bandwidth",
                 .where = "oq-bench",
                 .expected = "1 GiB available",
                 .hint = "free some memory"});
  }
  const std::span<std::byte> huge = map_memory("the bandwidth probe", bytes, Pages::huge);
  huge_.bytes = huge;
  const std::span<std::byte> small = map_memory("the bandwidth probe", bytes, Pages::ordinary);
  small_.bytes = small;
#if defined(MADV_NOHUGEPAGE)
  madvise(small.data(), bytes, MADV_NOHUGEPAGE);  // some systems give huge pages unasked
#endif
  pool_.parallel_for(int64_t(bytes / kPiece), 1, [&](int64_t begin, int64_t end, int) {
    std::memset(huge.data() + size_t(begin) * kPiece, 1, size_t(end - begin) * kPiece);
    std::memset(small.data() + size_t(begin) * kPiece, 2, size_t(end - begin) * kPiece);
  });
}

BandwidthProbe::~BandwidthProbe() {
  for (const Buffer* b : {&huge_, &small_}) {
    munmap(const_cast<std::byte*>(b->bytes.data()), b->bytes.size());
  }
}

double BandwidthProbe::read(Buffer& buffer) {
  static const Reader reader = widest_reader();
  if (buffer.bytes.size() < kSmallestSubject) return 0;
  const std::byte* first = buffer.bytes.data();
  const int64_t pieces = int64_t(buffer.bytes.size() / kPiece);  // the last few bytes are left out
  const auto start = std::chrono::steady_clock::now();
  pool_.parallel_for(pieces, 1, [&](int64_t begin, int64_t end, int) {
    const uint64_t sum = reader(first + size_t(begin) * kPiece, size_t(end - begin) * kPiece);
    sink.fetch_xor(sum, std::memory_order_relaxed);
  });
  const std::chrono::duration<double> time = std::chrono::steady_clock::now() - start;
  buffer.rates.push_back(double(pieces) * double(kPiece) / time.count());
  return buffer.rates.back();
}

double BandwidthProbe::pass() {
  read(subject_);
  return std::max(read(huge_), read(small_));
}

}  // namespace oq
