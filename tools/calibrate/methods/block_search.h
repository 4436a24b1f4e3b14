#pragma once

#include <limits>
#include <map>
#include <string>
#include <vector>

#include "tools/calibrate/block_job.h"

namespace oq::calibrate {

/// A way to quantize one linear.
struct Candidate {
  std::string how;
  QuantizedLinear linear;
  LinearReport report;

  uint64_t bytes() const {
    return PackedLayout::of(uint64_t(linear.rows), uint64_t(linear.cols), linear.packing).bytes;
  }
};

/// A block in full precision, and what its linears can become.
struct Variant {
  BlockWeights weights;
  std::map<std::string, std::vector<Candidate>> candidates = {};
  bool learned = false;  ///< the first candidate of each linear has learned grids
};

/// One of its candidates for every linear.
using Choice = std::map<std::string, size_t>;

/// Finds the choice with the least error of the block's output on the job's windows, a token's by
/// its size, among those that take no more than a budget of bytes. The job and the variant outlive
/// it. One thread at a time.
class BlockSearch {
 public:
  BlockSearch(BlockJob& job, const Variant& variant, uint64_t budget);

  /// The best of all choices that treat every linear alike.
  void start();
  /// Instead: where another search of this variant has ended, with that error.
  void start(const Choice& best, double least);
  /// What the budget buys, by the error of each candidate alone in the sample. Throws oq::Error
  /// where it buys nothing.
  void buy();
  /// Linear by linear, whatever candidate leaves less error than the one before in the sample;
  /// nothing of it where all windows are not better for it.
  void improve();

  /// Empty: no choice so far kept to the budget and left a finite output.
  const Choice& best() const { return best_; }
  double least() const { return least_; }

 private:
  uint64_t bytes(const Choice& choice) const;
  double error(const Choice& choice);
  void consider(const Choice& choice);
  void set(const std::string& name, const Candidate* candidate);
  double measure();

  BlockJob& job_;
  const Variant& variant_;
  uint64_t budget_;
  int64_t stride_ = 1;  ///< every so many windows are looked at
  BlockWeights executed_;
  std::map<std::string, const Candidate*> set_;
  Choice best_;
  double least_ = std::numeric_limits<double>::infinity();
  std::vector<float> x_, unused_;
};

/// The sample: one window in so many, which makes 4 windows and 2048 tokens, or more.
int64_t search_stride(int64_t windows, int64_t tokens);

}  // namespace oq::calibrate
