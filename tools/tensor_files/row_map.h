#pragma once

#include <cstdint>

namespace oq {

/// Where in a source the rows of one tensor of OQ lie. A source may hold more than that tensor
/// (fused q, k and v; all experts; positions that are never used), or keep the rows of a head in
/// another order. Of a bias, which is one row, the map is of its elements; of a linear that was
/// stored transposed, of its columns: always of the outputs.
///
///   OQ's row r is the source's row  first + h / run * stride + h % run
///
/// with h = r, or, where `head` is not 0, r with pairs instead of halves: within each head of
/// `head` rows the first `paired` of them alternate in the source, so that dimension i of OQ is its
/// 2i and dimension i + paired / 2 its 2i + 1.
struct RowMap {
  uint64_t first = 0;
  uint64_t run = 0;     ///< rows that lie together; 0: all of them
  uint64_t stride = 0;  ///< from the start of one run to that of the next
  uint64_t head = 0;    ///< rows of a head; 0: rows stay in order
  uint64_t paired = 0;  ///< even, at most `head`

  uint64_t operator()(uint64_t row) const {
    if (head > 0) {
      const uint64_t i = row % head;
      if (i < paired) row += 2 * (i % (paired / 2)) + i / (paired / 2) - i;
    }
    return run == 0 ? first + row : first + row / run * stride + row % run;
  }

  /// How many rows from `row` on, this one included, follow one another in the source too; at most
  /// `limit`.
  uint64_t together(uint64_t row, uint64_t limit) const {
    if (head > 0) return 1;
    const uint64_t left = run == 0 ? limit : run - row % run;
    return left < limit ? left : limit;
  }

  bool identity() const { return first == 0 && run == 0 && head == 0; }
};

}  // namespace oq
