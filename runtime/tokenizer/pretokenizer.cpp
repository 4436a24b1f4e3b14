#include "runtime/tokenizer/pretokenizer.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include "format/error.h"
#include "runtime/tokenizer/utf8.h"

namespace oq {
namespace {

// Bounds on one search, far above what real patterns need on megabytes of text, so that a hostile
// pattern ends in an error instead of a hang.
constexpr uint32_t kMatchLimit = 50'000'000;
constexpr uint32_t kHeapLimitKib = 256 << 10;

struct Free {
  void operator()(pcre2_code* p) const { pcre2_code_free(p); }
  void operator()(pcre2_compile_context* p) const { pcre2_compile_context_free(p); }
  void operator()(pcre2_match_context* p) const { pcre2_match_context_free(p); }
  void operator()(pcre2_match_data* p) const { pcre2_match_data_free(p); }
};
template <class T>
using Owned = std::unique_ptr<T, Free>;

std::string message(int code) {
  PCRE2_UCHAR text[256] = {};
  pcre2_get_error_message(code, text, sizeof(text));
  return reinterpret_cast<const char*>(text);
}

/// What \K inside a lookaround can do. PCRE2 refuses it there, but not in a group that the
/// lookaround calls: a match that starts behind its end, or again and again in the one before it.
Error out_of_order(const std::string& pattern, size_t gap, size_t begin, size_t end) {
  return Error({.what = "pre-tokenizer pattern '" + pattern + "' matches where no match can be",
                .expected = "from byte " + std::to_string(gap) + " on, start before end",
                .found = "[" + std::to_string(begin) + ", " + std::to_string(end) + ")",
                .hint = "convert the checkpoint again"});
}

PCRE2_SPTR units(std::string_view s) { return reinterpret_cast<PCRE2_SPTR>(s.data()); }

}  // namespace

class Pretokenizer::Pattern {
 public:
  Pattern(std::string source, bool utf, const std::string& where)
      : source_(std::move(source)), utf_(utf) {
    const Owned<pcre2_compile_context> context(pcre2_compile_context_create(nullptr));
    pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
    // \C would cut characters in two, and every later stage trusts that pieces are UTF-8.
    const uint32_t options = PCRE2_MULTILINE | PCRE2_NEVER_BACKSLASH_C |
                             (utf ? PCRE2_UTF | PCRE2_UCP : PCRE2_NEVER_UTF | PCRE2_NEVER_UCP);
    int code = 0;
    PCRE2_SIZE at = 0;
    code_.reset(pcre2_compile(units(source_), source_.size(), options, &code, &at, context.get()));
    if (!code_) {
      throw Error({.what = "pre-tokenizer pattern does not compile: " + message(code) +
                           " at offset " + std::to_string(at),
                   .where = where,
                   .found = "'" + source_ + "'"});
    }
    pcre2_jit_compile(code_.get(), PCRE2_JIT_COMPLETE);  // without JIT, matching is only slower
  }

  const pcre2_code* code() const { return code_.get(); }
  bool utf() const { return utf_; }
  const std::string& source() const { return source_; }

 private:
  std::string source_;
  bool utf_;
  Owned<pcre2_code> code_;
};

/// One call of `split`: what PCRE2 writes into, so that the patterns stay immutable.
class Pretokenizer::Run {
 public:
  Run(const std::vector<Pattern>& stages, std::vector<std::string_view>& pieces)
      : stages_(stages), pieces_(pieces), context_(pcre2_match_context_create(nullptr)) {
    pcre2_set_match_limit(context_.get(), kMatchLimit);
    pcre2_set_heap_limit(context_.get(), kHeapLimitKib);
    for (const Pattern& stage : stages) {
      data_.emplace_back(pcre2_match_data_create_from_pattern(stage.code(), nullptr));
    }
  }

  /// Cuts `text` by the stages from `stage` on, each of which is one call deeper. PRECOND: it is
  /// UTF-8 if that stage wants it.
  void cut(size_t stage, std::string_view text) {
    if (text.empty()) return;
    if (stage == stages_.size()) {
      pieces_.push_back(text);
      return;
    }
    size_t gap = 0, from = 0;
    while (from <= text.size() && search(stage, text, from)) {
      const PCRE2_SIZE* bounds = pcre2_get_ovector_pointer(data_[stage].get());
      const size_t begin = bounds[0], end = bounds[1];
      if (begin < gap || end < begin) {
        throw out_of_order(stages_[stage].source(), gap, begin, end);
      }
      cut(stage + 1, text.substr(gap, begin - gap));
      cut(stage + 1, text.substr(begin, end - begin));
      gap = end;
      from = end > begin ? end : end + step(stage, text, end);
    }
    cut(stage + 1, text.substr(gap));
  }

 private:
  size_t step(size_t stage, std::string_view text, size_t at) const {
    return at < text.size() && stages_[stage].utf() ? utf8_step(text, at).bytes : 1;
  }

  bool search(size_t stage, std::string_view text, size_t from) {
    const auto match = [&](uint32_t options) {
      return pcre2_match(stages_[stage].code(), units(text), text.size(), from,
                         options | PCRE2_NO_UTF_CHECK, data_[stage].get(), context_.get());
    };
    int code = match(0);
    if (code == PCRE2_ERROR_JIT_STACKLIMIT) code = match(PCRE2_NO_JIT);
    if (code == PCRE2_ERROR_NOMATCH) return false;
    if (code < 0) {
      throw Error({.what = "pre-tokenizer pattern '" + stages_[stage].source() +
                           "' failed on a text of " + std::to_string(text.size()) +
                           " bytes: " + message(code),
                   .hint = "split the text, or convert the checkpoint again"});
    }
    return true;
  }

  const std::vector<Pattern>& stages_;
  std::vector<std::string_view>& pieces_;
  Owned<pcre2_match_context> context_;
  std::vector<Owned<pcre2_match_data>> data_;
};

Pretokenizer::Pretokenizer(std::span<const std::string> patterns,
                           std::span<const std::string> byte_patterns, const std::string& where)
    : byte_stages_(patterns.size()) {
  const size_t count = patterns.size() + byte_patterns.size();
  if (count > kMostPatterns) {
    throw Error({.what = "tokenizer.patterns and tokenizer.byte_patterns are too many",
                 .where = where,
                 .expected = "at most " + std::to_string(kMostPatterns),
                 .found = std::to_string(count),
                 .hint = "convert the checkpoint again"});
  }
  for (const std::string& p : patterns) stages_.emplace_back(p, true, where);
  for (const std::string& p : byte_patterns) stages_.emplace_back(p, false, where);
}

Pretokenizer::~Pretokenizer() = default;

void Pretokenizer::split(std::string_view text, std::vector<std::string_view>& pieces) const {
  Run run(stages_, pieces);
  while (!text.empty()) {
    const size_t valid = valid_utf8(text);
    run.cut(0, text.substr(0, valid));
    text.remove_prefix(valid);
    size_t invalid = 0;
    while (invalid < text.size() && utf8_step(text, invalid).status != Utf8Step::valid) {
      invalid += utf8_step(text, invalid).bytes;
    }
    run.cut(byte_stages_, text.substr(0, invalid));
    text.remove_prefix(invalid);
  }
}

}  // namespace oq
