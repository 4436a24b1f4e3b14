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

/// Finds the choice with the least error of the block's output, a token's by its size, among those
/// that take no more than a budget of bytes: on the windows that the job holds out, for what makes
/// up for errors on some tokens does not on others; on all where it holds none out. The job and the
/// variant outlive it. One thread at a time.
class BlockSearch {
 public:
  BlockSearch(BlockJob& job, const Variant& variant, uint64_t budget);

  /// The best of all choices that treat every linear alike.
  void start();
  /// Instead: where another search of this variant has ended, with that error.
  void start(const Choice& best, double least);
  /// What the budget buys, by the error of each candidate alone. Experts are priced on all windows:
  /// one that no token held out chose would seem to cost nothing at any width. Throws oq::Error
  /// where it buys nothing.
  Choice buy();
  /// Linear by linear, whatever candidate leaves less error than the one before.
  void improve();

  /// Empty: no choice so far kept to the budget and left a finite output.
  const Choice& best() const { return best_; }
  double least() const { return least_; }
  /// Whether a choice keeps to the budget.
  bool affords(const Choice& choice) const;
  /// The block with a choice, as it would be executed, until the search goes on.
  const BlockWeights& executed(const Choice& choice);
  /// And the error of its output.
  double error(const Choice& choice);

 private:
  void consider(const Choice& choice);
  void set(const std::string& name, const Candidate* candidate);
  int64_t first_judged() const;
  double measure(int64_t first);

  BlockJob& job_;
  const Variant& variant_;
  uint64_t budget_;
  BlockWeights executed_;
  std::map<std::string, const Candidate*> set_;
  Choice best_;
  double least_ = std::numeric_limits<double>::infinity();
  std::vector<float> x_, unused_;
};

/// How many of so many windows `auto` holds out: an eighth, or none of few.
int64_t held_out_windows(int64_t windows);
/// What a pass of the windows that are judged by is of a pass of all.
double judged_share(int64_t windows);

}  // namespace oq::calibrate
