#pragma once

#include <vector>

namespace oq {

/// The most bytes per second that can be read from the memory that weights lie in: the limit that a
/// decode step is measured against. Passes are short, so that they can be interleaved with what is
/// being measured.
class Probe {
 public:
  Probe() = default;
  virtual ~Probe() = default;
  Probe(const Probe&) = delete;
  Probe& operator=(const Probe&) = delete;

  /// One pass, in bytes per second.
  double measure() {
    rates_.push_back(pass());
    return rates_.back();
  }
  /// Of each pass, in order.
  const std::vector<double>& rates() const { return rates_; }

 private:
  virtual double pass() = 0;

  std::vector<double> rates_;
};

}  // namespace oq
