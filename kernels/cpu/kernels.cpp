#include "kernels/cpu/kernels.h"

#include <cmath>
#include <cstdlib>
#include <string_view>
#include <vector>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "format/error.h"

#if defined(OQ_HAVE_X86)
#include <cpuid.h>
#elif defined(OQ_HAVE_NEON)
#include <sys/auxv.h>
#endif

namespace oq::cpu {

// In files compiled for these instructions: called only where they run.
namespace avx2 {
const Kernels& table();
}
namespace avx512 {
const Kernels& table();
}
namespace neon {
const Kernels& table();
}
namespace neon_dotprod {
const Kernels& table();
}

#if defined(OQ_HAVE_X86)

const Kernels* avx2_kernels() {
  unsigned a = 0, b = 0, c = 0, d = 0;  // clang 14's __builtin_cpu_supports knows no "f16c"
  static const bool usable = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                             __get_cpuid(1, &a, &b, &c, &d) != 0 && (c & bit_F16C) != 0;
  return usable ? &avx2::table() : nullptr;
}

const Kernels* avx512_kernels() {
  static const bool usable =
      avx2_kernels() != nullptr && __builtin_cpu_supports("avx512f") &&
      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni");
  return usable ? &avx512::table() : nullptr;
}
#else
const Kernels* avx2_kernels() { return nullptr; }
const Kernels* avx512_kernels() { return nullptr; }
#endif

#if defined(OQ_HAVE_NEON)
const Kernels* neon_kernels() { return &neon::table(); }  // every AArch64 has it

const Kernels* neon_dotprod_kernels() {
  static const bool usable = (getauxval(AT_HWCAP) & HWCAP_ASIMDDP) != 0;
  return usable ? &neon_dotprod::table() : nullptr;
}
#else
const Kernels* neon_kernels() { return nullptr; }
const Kernels* neon_dotprod_kernels() { return nullptr; }
#endif

void Int8Rows::resize(int64_t rows, int64_t padded_cols) {
  blocks = padded_cols / kBlockCols;
  codes.resize(size_t(rows * padded_cols));
  scales.resize(size_t(rows * blocks * 2));
  sums.resize(size_t(rows * blocks));
}

void GridRows::resize(int64_t rows, int64_t padded_cols) {
  blocks = padded_cols / kBlockCols;
  codes.resize(size_t(rows * padded_cols));
  sums.resize(size_t(rows * blocks));
  scales.resize(size_t(rows));
  shifts.resize(size_t(rows));
}

std::vector<const Kernels*> available_kernels() {
  std::vector<const Kernels*> list = {&scalar_kernels()};
  for (const Kernels* k :
       {avx2_kernels(), avx512_kernels(), neon_kernels(), neon_dotprod_kernels()}) {
    if (k != nullptr) list.push_back(k);
  }
  return list;
}

const Kernels& best_kernels() {
  const auto available = available_kernels();
  const char* wanted = std::getenv("OQ_CPU");
  if (wanted == nullptr || *wanted == '\0') return *available.back();
  std::vector<std::string_view> names;
  for (const Kernels* k : available) {
    if (k->name == wanted) return *k;
    names.push_back(k->name);
  }
  throw Error({.what = "these CPU kernels cannot run here",
               .where = "environment variable OQ_CPU",
               .expected = fmt::format("{}", fmt::join(names, ", ")),
               .found = wanted,
               .hint = "unset OQ_CPU"});
}

void merge(AttentionPart& total, const AttentionPart& part, int64_t head_dim) {
  if (part.sum == 0.0f) return;  // saw no position
  if (total.sum == 0.0f) {
    total.top = part.top;
    total.sum = part.sum;
    for (int64_t d = 0; d < head_dim; ++d) total.out[d] = part.out[d];
    return;
  }
  const float top = std::fmax(total.top, part.top);
  const float a = std::exp(total.top - top), b = std::exp(part.top - top);
  total.top = top;
  total.sum = total.sum * a + part.sum * b;
  for (int64_t d = 0; d < head_dim; ++d) total.out[d] = total.out[d] * a + part.out[d] * b;
}

}  // namespace oq::cpu
