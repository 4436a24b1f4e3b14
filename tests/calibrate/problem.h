#pragma once

#include <cmath>
#include <cstdint>
#include <random>
#include <vector>

#include "tools/calibrate/activation_quantizer.h"
#include "tools/calibrate/solver/hessian.h"
#include "tools/calibrate/solver/linalg.h"

namespace oq::test {

inline std::vector<float> normals(size_t n, uint32_t seed, float mean = 0, float size = 1) {
  std::mt19937 rng(seed);
  std::normal_distribution<float> normal(mean, size);
  std::vector<float> v(n);
  for (float& x : v) x = normal(rng);
  return v;
}

/// x [tokens][cols] behind q.
inline std::vector<float> on_grid(ThreadPool& pool, std::vector<float> x, int64_t cols,
                                  const calibrate::ActivationQuantizer& q) {
  q.forward(pool, x.data(), int64_t(x.size()) / cols, cols, cols, x.data());
  return x;
}

/// Numbers that look like a linear's weights and inputs. Inputs are correlated, because otherwise
/// there is nothing to make up for, and some channels are far larger than others.
struct Problem {
  calibrate::Matrix w;
  std::vector<std::vector<float>> windows;  ///< [tokens][cols] each

  Problem(int64_t rows, int64_t cols, uint32_t seed, int64_t tokens = 64, int count = 3)
      : w(rows, cols) {
    std::mt19937 random(seed);
    const auto uniform = [&] { return double(random()) / 4294967296.0 * 2 - 1; };
    const auto bell = [&] { return (uniform() + uniform() + uniform()); };
    for (float& v : w.values()) v = float(0.05 * bell());
    std::vector<double> size(static_cast<size_t>(cols), 1);
    for (double& s : size) s = std::exp(bell());
    for (int i = 0; i < count; ++i) {
      std::vector<float>& x = windows.emplace_back(size_t(tokens * cols));
      for (int64_t t = 0; t < tokens; ++t) {
        double last = 0;
        for (int64_t k = 0; k < cols; ++k) {
          last = 0.7 * last + bell();
          x[size_t(t * cols + k)] = float(last * size[size_t(k)]);
        }
      }
    }
  }

  calibrate::Moments moments(ThreadPool& pool) const {
    calibrate::MomentAccumulator sums(w.cols(), false);
    for (const auto& x : windows) sums.add(pool, x);
    return std::move(sums).finish();
  }
};

/// Row-major square or rectangular matrices in double, as plainly as they can be written.
struct Plain {
  int64_t rows, cols;
  std::vector<double> v;

  Plain(int64_t rows, int64_t cols) : rows(rows), cols(cols), v(size_t(rows * cols)) {}
  explicit Plain(const calibrate::Matrix& m)
      : rows(m.rows()), cols(m.cols()), v(m.values().begin(), m.values().end()) {}

  double& operator()(int64_t i, int64_t j) { return v[size_t(i * cols + j)]; }
  double operator()(int64_t i, int64_t j) const { return v[size_t(i * cols + j)]; }

  Plain times(const Plain& b) const {
    Plain c(rows, b.cols);
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t k = 0; k < cols; ++k) {
        for (int64_t j = 0; j < b.cols; ++j) c(i, j) += (*this)(i, k) * b(k, j);
      }
    }
    return c;
  }

  /// Rows and columns [begin, end).
  Plain corner(int64_t begin, int64_t end) const {
    Plain c(end - begin, end - begin);
    for (int64_t i = begin; i < end; ++i) {
      for (int64_t j = begin; j < end; ++j) c(i - begin, j - begin) = (*this)(i, j);
    }
    return c;
  }

  Plain inverse() const {  // Gauss and Jordan, with pivots
    Plain a = *this, b(rows, rows);
    for (int64_t i = 0; i < rows; ++i) b(i, i) = 1;
    for (int64_t i = 0; i < rows; ++i) {
      int64_t pivot = i;
      for (int64_t r = i; r < rows; ++r) {
        if (std::fabs(a(r, i)) > std::fabs(a(pivot, i))) pivot = r;
      }
      for (int64_t j = 0; j < rows; ++j) {
        std::swap(a(i, j), a(pivot, j));
        std::swap(b(i, j), b(pivot, j));
      }
      const double scale = 1 / a(i, i);
      for (int64_t j = 0; j < rows; ++j) {
        a(i, j) *= scale;
        b(i, j) *= scale;
      }
      for (int64_t r = 0; r < rows; ++r) {
        const double factor = a(r, i);
        if (r == i || factor == 0) continue;
        for (int64_t j = 0; j < rows; ++j) {
          a(r, j) -= factor * a(i, j);
          b(r, j) -= factor * b(i, j);
        }
      }
    }
    return b;
  }
};

/// H with its damping, in double; dead channels count as 1.
inline Plain damped(const calibrate::Matrix& h, double damp) {
  Plain d(h);
  double mean = 0;
  for (int64_t i = 0; i < d.rows; ++i) {
    if (d(i, i) == 0) d(i, i) = 1;
    mean += d(i, i) / double(d.rows);
  }
  for (int64_t i = 0; i < d.rows; ++i) d(i, i) += damp * mean;
  return d;
}

/// tr((W - Q) H (W - Q)^T)
inline double objective(const calibrate::Matrix& w, const calibrate::Matrix& q, const Plain& h) {
  Plain d(w);
  for (int64_t i = 0; i < d.rows; ++i) {
    for (int64_t j = 0; j < d.cols; ++j) d(i, j) -= double(q(i, j));
  }
  const Plain dh = d.times(h);
  double sum = 0;
  for (size_t i = 0; i < d.v.size(); ++i) sum += dh.v[i] * d.v[i];
  return sum;
}

}  // namespace oq::test
