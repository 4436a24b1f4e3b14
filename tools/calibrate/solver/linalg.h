#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <vector>

#include "kernels/cpu/thread_pool.h"

/// The linear algebra of the calibrator: fp32, row-major, on BLAS and LAPACK. What is computed does
/// not depend on the number of threads, except where a comment says so.
namespace oq::calibrate {

/// A row-major matrix of floats that owns its elements.
class Matrix {
 public:
  Matrix() = default;
  Matrix(int64_t rows, int64_t cols) : rows_(rows), cols_(cols), data_(size_t(rows * cols)) {}
  /// Takes `data`, [rows][cols]. Throws oq::Error when that is not its size.
  Matrix(int64_t rows, int64_t cols, std::vector<float> data);

  int64_t rows() const { return rows_; }
  int64_t cols() const { return cols_; }
  bool empty() const { return data_.empty(); }

  float* data() { return data_.data(); }
  const float* data() const { return data_.data(); }
  std::span<float> values() { return data_; }
  std::span<const float> values() const { return data_; }
  std::span<float> row(int64_t i) { return {data_.data() + i * cols_, size_t(cols_)}; }
  std::span<const float> row(int64_t i) const { return {data_.data() + i * cols_, size_t(cols_)}; }
  float& operator()(int64_t i, int64_t j) { return data_[size_t(i * cols_ + j)]; }
  float operator()(int64_t i, int64_t j) const { return data_[size_t(i * cols_ + j)]; }

 private:
  int64_t rows_ = 0, cols_ = 0;
  std::vector<float> data_;
};

/// Throws oq::Error naming `what` and the first row and column that is NaN or infinite.
void check_finite(const Matrix& m, const std::string& what);

/// C = alpha A op(B) + beta C. Rows of A and C are shared out over the pool.
/// PRECOND: the shapes fit, and C is neither A nor B.
void multiply(ThreadPool& pool, float alpha, const Matrix& a, const Matrix& b, bool transpose_b,
              float beta, Matrix& c);

/// Lower triangle of H += X^T X; the upper one is left alone. x: [tokens][H.cols].
void add_gram(ThreadPool& pool, const float* x, int64_t tokens, Matrix& h);

/// M += A^T B, a and b: [tokens][M.cols].
void add_product(ThreadPool& pool, const float* a, const float* b, int64_t tokens, Matrix& m);

/// Copies the lower triangle onto the upper one, times `factor`.
void mirror_lower(Matrix& h, float factor);

/// Replaces the symmetric, positive definite H by the upper triangular U with H^-1 = U^T U, below
/// the diagonal 0. H = R R^T with R upper triangular (the Cholesky factor of H with rows and
/// columns reversed), and U = R^-1: one factorization and one triangular inverse in place, and the
/// inverse itself is never formed.
///
/// Returns -1, or the place of the first pivot (from the end) that was not positive: H is then
/// overwritten with rubbish. PRECOND: H is finite. Deterministic for a given number of threads.
int64_t inverse_factor(ThreadPool& pool, Matrix& h);

/// A = A U, or A U^T: `u` upper triangular. Rows of A are shared out over the pool.
void multiply_upper(ThreadPool& pool, Matrix& a, const Matrix& u, bool transpose);

/// Rows that one task takes where rows are independent: by shape alone, so that results do not
/// depend on the number of threads.
int64_t slab_rows(int64_t rows);

/// C[m][n] = beta C + alpha A[m][k] B[k][n], on the calling thread; strides in floats.
struct Gemm {
  int64_t m, n, k;
  float alpha;
  const float* a;
  int64_t a_stride;
  const float* b;
  int64_t b_stride;
  float beta;
  float* c;
  int64_t c_stride;
};
void gemm(const Gemm& g);

/// While it lives, BLAS runs on so many threads of its own; outside it is to run on one, because
/// the solver's own pool calls it from several. Process-wide: one thread at a time may hold one.
class BlasThreads {
 public:
  explicit BlasThreads(int threads);
  ~BlasThreads();
  BlasThreads(const BlasThreads&) = delete;
  BlasThreads& operator=(const BlasThreads&) = delete;

 private:
  int before_;
};

}  // namespace oq::calibrate
