#include "tools/calibrate/solver/linalg.h"

#include <algorithm>
#include <cmath>

#include <cblas.h>
#include <fmt/format.h>

#include "format/error.h"

// LAPACK by its Fortran names, which OpenBLAS exports without a header.
extern "C" {
void spotrf_(const char* uplo, const int* n, float* a, const int* lda, int* info);
void strtri_(const char* uplo, const char* diag, const int* n, float* a, const int* lda, int* info);
}

namespace oq::calibrate {
namespace {

constexpr int64_t kTile = 256;  ///< of a Gram matrix: one task's share

/// Calls f(first, last) on slabs of rows, several at a time.
template <class F>
void for_slabs(ThreadPool& pool, int64_t rows, const F& f) {
  const BlasThreads single(1);
  const int64_t slab = slab_rows(rows);
  pool.parallel_for((rows + slab - 1) / slab, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t s = begin; s < end; ++s) f(s * slab, std::min(rows, (s + 1) * slab));
  });
}

}  // namespace

Matrix::Matrix(int64_t rows, int64_t cols, std::vector<float> data)
    : rows_(rows), cols_(cols), data_(std::move(data)) {
  if (int64_t(data_.size()) != rows * cols) {
    throw Error({.what = "matrix does not fit its data",
                 .expected = fmt::format("{} x {} values", rows, cols),
                 .found = std::to_string(data_.size())});
  }
}

void check_finite(const Matrix& m, const std::string& what) {
  const auto values = m.values();
  const auto bad =
      std::find_if_not(values.begin(), values.end(), [](float x) { return std::isfinite(x); });
  if (bad == values.end()) return;
  const auto at = bad - values.begin();
  throw Error({.what = what + " has a value that is not finite",
               .where = fmt::format("row {}, column {}", at / m.cols(), at % m.cols()),
               .found = std::to_string(*bad)});
}

int64_t slab_rows(int64_t rows) { return std::clamp<int64_t>((rows / 8 + 7) / 8 * 8, 64, 256); }

void gemm(const Gemm& g) {
  if (g.m == 0 || g.n == 0) return;
  cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, int(g.m), int(g.n), int(g.k), g.alpha, g.a,
              int(g.a_stride), g.b, int(g.b_stride), g.beta, g.c, int(g.c_stride));
}

void multiply(ThreadPool& pool, float alpha, const Matrix& a, const Matrix& b, bool transpose_b,
              float beta, Matrix& c) {
  for_slabs(pool, a.rows(), [&](int64_t first, int64_t last) {
    cblas_sgemm(CblasRowMajor, CblasNoTrans, transpose_b ? CblasTrans : CblasNoTrans,
                int(last - first), int(c.cols()), int(a.cols()), alpha, a.data() + first * a.cols(),
                int(a.cols()), b.data(), int(b.cols()), beta, c.data() + first * c.cols(),
                int(c.cols()));
  });
}

void multiply_upper(ThreadPool& pool, Matrix& a, const Matrix& u, bool transpose) {
  const int n = int(u.cols());
  for_slabs(pool, a.rows(), [&](int64_t first, int64_t last) {
    cblas_strmm(CblasRowMajor, CblasRight, CblasUpper, transpose ? CblasTrans : CblasNoTrans,
                CblasNonUnit, int(last - first), n, 1.0f, u.data(), n, a.data() + first * n, n);
  });
}

void add_gram(ThreadPool& pool, const float* x, int64_t tokens, Matrix& h) {
  const BlasThreads single(1);
  const int64_t n = h.cols(), tiles = (n + kTile - 1) / kTile;
  const auto tile = [&](int64_t i, int64_t j) {
    const int64_t rows = std::min(kTile, n - i * kTile);
    float* to = h.data() + i * kTile * n + j * kTile;
    if (i == j) {
      cblas_ssyrk(CblasRowMajor, CblasLower, CblasTrans, int(rows), int(tokens), 1.0f,
                  x + i * kTile, int(n), 1.0f, to, int(n));
    } else {
      cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, int(rows), int(kTile), int(tokens), 1.0f,
                  x + i * kTile, int(n), x + j * kTile, int(n), 1.0f, to, int(n));
    }
  };
  pool.parallel_for(tiles * (tiles + 1) / 2, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) {  // t counts the tiles of the lower triangle by rows
      auto i = int64_t((std::sqrt(8.0 * double(t) + 1) - 1) / 2);
      tile(i, t - i * (i + 1) / 2);
    }
  });
}

void add_product(ThreadPool& pool, const float* a, const float* b, int64_t tokens, Matrix& m) {
  const BlasThreads single(1);
  const int64_t n = m.cols(), tiles = (n + kTile - 1) / kTile;
  pool.parallel_for(tiles, 1, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t rows = std::min(kTile, n - i * kTile);
      cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, int(rows), int(n), int(tokens), 1.0f,
                  a + i * kTile, int(n), b, int(n), 1.0f, m.data() + i * kTile * n, int(n));
    }
  });
}

void mirror_lower(Matrix& h, float factor) {
  const int64_t n = h.cols();
  constexpr int64_t kBlock = 32;  // two cache-sized squares at a time
  for (int64_t bi = 0; bi < n; bi += kBlock) {
    for (int64_t bj = 0; bj <= bi; bj += kBlock) {
      for (int64_t i = bi; i < std::min(n, bi + kBlock); ++i) {
        for (int64_t j = bj; j < std::min(i + 1, bj + kBlock); ++j) {
          h(j, i) = h(i, j) *= factor;
        }
      }
    }
  }
}

int64_t inverse_factor(ThreadPool& pool, Matrix& h) {
  const BlasThreads all(pool.threads());
  // LAPACK reads columns first, so its upper triangle is our lower one, and reversing all values
  // reverses rows and columns.
  const int n = int(h.cols());
  int info = 0;
  std::reverse(h.values().begin(), h.values().end());
  spotrf_("U", &n, h.data(), &n, &info);
  if (info != 0) return n - info;
  strtri_("U", "N", &n, h.data(), &n, &info);
  if (info != 0) return n - info;
  for (int64_t i = 0; i < n; ++i) {
    if (!std::isfinite(h(i, i)) || h(i, i) <= 0) return n - 1 - i;
    std::fill(h.row(i).begin() + i + 1, h.row(i).end(), 0.0f);
  }
  std::reverse(h.values().begin(), h.values().end());
  return -1;
}

BlasThreads::BlasThreads(int threads) : before_(openblas_get_num_threads()) {
  openblas_set_num_threads(threads);
}

BlasThreads::~BlasThreads() { openblas_set_num_threads(before_); }

}  // namespace oq::calibrate
