#include "runtime/tokenizer/nfc.h"

#include <algorithm>
#include <cstdint>
#include <unordered_map>
#include <vector>

#include "runtime/tokenizer/utf8.h"

namespace oq {
namespace {

/// The canonical decomposition of one step; `second` is 0 where there is only one character.
struct Decomposition {
  char32_t code, first, second;
};
struct ClassRange {
  char32_t first, last;
  uint8_t combining_class;
};

#include "runtime/tokenizer/nfc_tables.inc"

// Hangul syllables are made by formula (The Unicode Standard, section 3.12).
constexpr char32_t kSyllables = 0xAC00, kLeads = 0x1100, kVowels = 0x1161, kTails = 0x11A7;
constexpr uint32_t kLeadCount = 19, kVowelCount = 21, kTailCount = 28;
constexpr uint32_t kSyllableCount = kLeadCount * kVowelCount * kTailCount;

bool is_vowel(char32_t c) { return c - kVowels < kVowelCount; }
bool is_tail(char32_t c) { return c > kTails && c - kTails < kTailCount; }

uint64_t pair_key(char32_t first, char32_t second) { return uint64_t(first) << 32 | second; }

struct Tables {
  std::unordered_map<char32_t, Decomposition> decompositions;
  std::unordered_map<uint64_t, char32_t> compositions;
  std::unordered_map<char32_t, uint8_t> classes;
  /// Characters that NFC may change, or that may change with the one before. Text without any is
  /// in NFC.
  std::vector<bool> unsafe = std::vector<bool>(0x30000);

  Tables() {
    for (const Decomposition& d : kDecompositions) {
      decompositions.emplace(d.code, d);
      const bool one_way =
          d.second == 0 || std::binary_search(std::begin(kOneWay), std::end(kOneWay), d.code);
      if (one_way) {
        unsafe[d.code] = true;
      } else {
        compositions.emplace(pair_key(d.first, d.second), d.code);
        unsafe[d.second] = true;
      }
    }
    for (const ClassRange& r : kClasses) {
      for (char32_t c = r.first; c <= r.last; ++c) {
        classes.emplace(c, r.combining_class);
        unsafe[c] = true;
      }
    }
    for (char32_t c = kVowels; c < kTails + kTailCount; ++c) {
      if (is_vowel(c) || is_tail(c)) unsafe[c] = true;
    }
  }

  static const Tables& get() {
    static const Tables tables;
    return tables;
  }

  uint8_t combining_class(char32_t c) const {
    const auto it = classes.find(c);
    return it == classes.end() ? 0 : it->second;
  }

  /// The character that the two make together, or 0.
  char32_t compose(char32_t first, char32_t second) const {
    if (first - kLeads < kLeadCount && is_vowel(second)) {
      return kSyllables + ((first - kLeads) * kVowelCount + (second - kVowels)) * kTailCount;
    }
    const char32_t syllable = first - kSyllables;
    if (syllable < kSyllableCount && syllable % kTailCount == 0 && is_tail(second)) {
      return first + (second - kTails);
    }
    const auto it = compositions.find(pair_key(first, second));
    return it == compositions.end() ? 0 : it->second;
  }
};

/// PRECOND: a valid character stands at the start.
char32_t decode(std::string_view s, size_t bytes) {
  constexpr uint8_t kLead[] = {0, 0x7F, 0x1F, 0x0F, 0x07};
  char32_t c = uint8_t(s[0]) & kLead[bytes];
  for (size_t i = 1; i < bytes; ++i) c = c << 6 | (uint8_t(s[i]) & 0x3F);
  return c;
}

void append(std::string& out, char32_t c) {
  if (c < 0x80) {
    out += char(c);
  } else if (c < 0x800) {
    out += {char(0xC0 | c >> 6), char(0x80 | (c & 0x3F))};
  } else if (c < 0x10000) {
    out += {char(0xE0 | c >> 12), char(0x80 | (c >> 6 & 0x3F)), char(0x80 | (c & 0x3F))};
  } else {
    out += {char(0xF0 | c >> 18), char(0x80 | (c >> 12 & 0x3F)), char(0x80 | (c >> 6 & 0x3F)),
            char(0x80 | (c & 0x3F))};
  }
}

/// Collects characters, and writes them normalized.
class Composer {
 public:
  explicit Composer(std::string& out) : out_(out) {}

  void add(char32_t c) {
    const auto it = tables_.decompositions.find(c);
    if (it == tables_.decompositions.end()) {
      const uint8_t k = tables_.combining_class(c);
      // What stands before a starter that composes with nothing before it is done.
      if (k == 0 && !(c < 0x30000 && tables_.unsafe[c])) flush();
      marks_.push_back({c, k});
      return;
    }
    add(it->second.first);
    if (it->second.second != 0) add(it->second.second);
  }

  void flush() {
    order();
    compose();
    for (const Mark& m : marks_) append(out_, m.code);
    marks_.clear();
  }

 private:
  struct Mark {
    char32_t code;
    uint8_t combining_class;
  };

  /// Canonical ordering: marks behind a starter by their class.
  void order() {
    const auto starter = [](const Mark& m) { return m.combining_class == 0; };
    for (auto at = marks_.begin(); at != marks_.end();) {
      const auto first = std::find_if_not(at, marks_.end(), starter);
      const auto last = std::find_if(first, marks_.end(), starter);
      std::stable_sort(first, last, [](const Mark& a, const Mark& b) {
        return a.combining_class < b.combining_class;
      });
      at = last;
    }
  }

  /// Joins each character to the last starter, unless one between them blocks it.
  void compose() {
    size_t kept = 0, starter = 0;
    bool has_starter = false;
    for (const Mark m : marks_) {
      if (has_starter) {
        const bool next_to = kept == starter + 1;
        const bool blocked = !next_to && marks_[kept - 1].combining_class >= m.combining_class;
        const char32_t c = blocked ? 0 : tables_.compose(marks_[starter].code, m.code);
        if (c != 0) {
          marks_[starter].code = c;
          continue;
        }
      }
      if (m.combining_class == 0) {
        starter = kept;
        has_starter = true;
      }
      marks_[kept++] = m;
    }
    marks_.resize(kept);
  }

  const Tables& tables_ = Tables::get();
  std::string& out_;
  std::vector<Mark> marks_;
};

bool is_nfc(std::string_view text) {
  const std::vector<bool>& unsafe = Tables::get().unsafe;
  for (size_t at = 0; at < text.size();) {
    if (uint8_t(text[at]) < 0x80) {
      ++at;
      continue;
    }
    const Utf8Step step = utf8_step(text, at);
    if (step.status == Utf8Step::valid) {
      const char32_t c = decode(text.substr(at), step.bytes);
      if (c < unsafe.size() && unsafe[c]) return false;
    }
    at += step.bytes;
  }
  return true;
}

}  // namespace

std::string_view to_nfc(std::string_view text, std::string& storage) {
  if (is_nfc(text)) return text;
  storage.clear();
  Composer composer(storage);
  for (size_t at = 0; at < text.size();) {
    const Utf8Step step = utf8_step(text, at);
    if (step.status == Utf8Step::valid) {
      composer.add(decode(text.substr(at), step.bytes));
    } else {
      composer.flush();
      storage += text.substr(at, step.bytes);
    }
    at += step.bytes;
  }
  composer.flush();
  return storage;
}

}  // namespace oq
