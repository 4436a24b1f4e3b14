#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/tokenizer/vocabulary.h"

namespace oq {

/// Tokens that stand side by side and become one. Its place in the list is its rank: lower goes
/// first.
struct Merge {
  int32_t left = 0, right = 0;
};

/// Byte pair encoding (Sennrich et al. 2016, arXiv 1508.07909) over the tokens of a vocabulary:
/// of all neighbours that some merge joins, those of the lowest rank are joined first, leftmost
/// first among equals, until no merge applies.
class MergeTable {
 public:
  MergeTable() = default;
  /// Throws oq::Error when a merge names no normal token, or makes none, or comes twice.
  /// PRECOND: vocabulary is indexed.
  MergeTable(std::vector<Merge> merges, const Vocabulary& vocabulary, const std::string& where);

  /// The memory that `apply` works in, to be reused.
  struct Scratch {
    struct Symbol {
      int32_t id, previous, next;  ///< neighbours by index, -1 = none; id -1 = joined to the left
    };
    struct Candidate {
      uint32_t rank, left;  ///< `left` is an index of a symbol
    };
    std::vector<Symbol> symbols;
    std::vector<Candidate> heap;
  };

  /// Joins `scratch.symbols` (ids filled in, nothing else) and appends what is left to `out`.
  /// O(n log n) for n symbols, whatever they are.
  void apply(Scratch& scratch, std::vector<int32_t>& out) const;

 private:
  uint32_t rank(int32_t left, int32_t right) const;
  void push(Scratch& scratch, int32_t left) const;

  std::vector<Merge> merges_;
  std::vector<int32_t> results_;  ///< the token that each merge makes
  std::vector<uint32_t> slots_;   ///< open addressing, a power of two; kNone = free
};

}  // namespace oq
