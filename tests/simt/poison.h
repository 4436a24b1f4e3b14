#pragma once

#include <cstddef>

#if defined(__SANITIZE_ADDRESS__)
#define OQ_SIMT_ASAN 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define OQ_SIMT_ASAN 1
#endif
#endif

#if defined(OQ_SIMT_ASAN)
#include <sanitizer/asan_interface.h>
#endif

/// Memory that nobody may touch, where AddressSanitizer is there to say so.
namespace oq::simt {

#if defined(OQ_SIMT_ASAN)
constexpr bool kPoisons = true;
inline void poison(const void* p, size_t n) { __asan_poison_memory_region(p, n); }
inline void unpoison(const void* p, size_t n) { __asan_unpoison_memory_region(p, n); }
#else
constexpr bool kPoisons = false;
inline void poison(const void*, size_t) {}
inline void unpoison(const void*, size_t) {}
#endif

}  // namespace oq::simt
