#include "runtime/tokenizer/merges.h"

#include <algorithm>
#include <bit>
#include <limits>

#include "format/error.h"

namespace oq {
namespace {

constexpr uint32_t kNone = std::numeric_limits<uint32_t>::max();

/// The finalizer of splitmix64 (Steele, Lea, Flood 2014).
size_t hash(int32_t left, int32_t right) {
  uint64_t x = uint64_t(uint32_t(left)) << 32 | uint32_t(right);
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9u;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBu;
  return size_t(x ^ (x >> 31));
}

/// For std heaps, which keep the largest on top: the lowest rank, then the leftmost.
bool later(const MergeTable::Scratch::Candidate& a, const MergeTable::Scratch::Candidate& b) {
  return a.rank != b.rank ? a.rank > b.rank : a.left > b.left;
}

}  // namespace

MergeTable::MergeTable(std::vector<Merge> merges, const Vocabulary& vocabulary,
                       const std::string& where)
    : merges_(std::move(merges)) {
  results_.reserve(merges_.size());
  slots_.assign(std::bit_ceil(merges_.size() * 2 + 1), kNone);
  const auto normal = [&](int32_t id) {
    return id >= 0 && id < vocabulary.size() && vocabulary.kind(id).type == TokenType::normal;
  };
  std::string joined;
  for (size_t i = 0; i < merges_.size(); ++i) {
    const int32_t left = merges_[i].left, right = merges_[i].right;
    const auto error = [&](const char* what) {
      return Error({.what = "merge " + std::to_string(i) + what,
                    .where = where,
                    .found = std::to_string(left) + " and " + std::to_string(right),
                    .hint = "the vocabulary and the merges do not belong together"});
    };
    if (!normal(left) || !normal(right)) throw error(" names a token that is not there");
    joined.assign(vocabulary.bytes(left)).append(vocabulary.bytes(right));
    results_.push_back(vocabulary.find(joined));
    if (results_.back() < 0) throw error(" makes a token that is not there");
    if (rank(left, right) != kNone) throw error(" comes twice");
    size_t slot = hash(left, right) & (slots_.size() - 1);
    while (slots_[slot] != kNone) slot = (slot + 1) & (slots_.size() - 1);
    slots_[slot] = uint32_t(i);
  }
}

uint32_t MergeTable::rank(int32_t left, int32_t right) const {
  if (slots_.empty()) return kNone;
  const size_t mask = slots_.size() - 1;
  for (size_t slot = hash(left, right) & mask;; slot = (slot + 1) & mask) {
    const uint32_t i = slots_[slot];
    if (i == kNone || (merges_[i].left == left && merges_[i].right == right)) return i;
  }
}

void MergeTable::push(Scratch& s, int32_t left) const {
  if (left < 0 || s.symbols[size_t(left)].next < 0) return;
  const Scratch::Symbol& symbol = s.symbols[size_t(left)];
  const uint32_t r = rank(symbol.id, s.symbols[size_t(symbol.next)].id);
  if (r == kNone) return;
  s.heap.push_back({r, uint32_t(left)});
  std::push_heap(s.heap.begin(), s.heap.end(), later);
}

void MergeTable::apply(Scratch& s, std::vector<int32_t>& out) const {
  const int32_t n = int32_t(s.symbols.size());
  s.heap.clear();
  for (int32_t i = 0; i < n; ++i) {
    s.symbols[size_t(i)].previous = i - 1;
    s.symbols[size_t(i)].next = i + 1 < n ? i + 1 : -1;
  }
  for (int32_t i = 0; i < n; ++i) push(s, i);
  while (!s.heap.empty()) {
    const auto [r, at] = s.heap.front();
    std::pop_heap(s.heap.begin(), s.heap.end(), later);
    s.heap.pop_back();
    Scratch::Symbol& left = s.symbols[at];
    if (left.id != merges_[r].left || left.next < 0) continue;  // joined otherwise since
    Scratch::Symbol& right = s.symbols[size_t(left.next)];
    if (right.id != merges_[r].right) continue;
    left.id = results_[r];
    right.id = -1;
    left.next = right.next;
    if (left.next >= 0) s.symbols[size_t(left.next)].previous = int32_t(at);
    push(s, left.previous);
    push(s, int32_t(at));
  }
  for (int32_t i = n > 0 ? 0 : -1; i >= 0; i = s.symbols[size_t(i)].next) {
    out.push_back(s.symbols[size_t(i)].id);
  }
}

}  // namespace oq
