#include "tools/convert/pretokenizers.h"

#include <algorithm>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "format/error.h"

namespace oq::convert {
namespace {

/// Oniguruma's \s is the Unicode property White_Space. PCRE2's also has U+180E, so it is spelt out.
constexpr std::string_view kSpaces =
    R"(\x09-\x0D\x20\x{85}\x{A0}\x{1680}\x{2000}-\x{200A}\x{2028}\x{2029}\x{202F}\x{205F}\x{3000})";

constexpr std::string_view kGpt2 =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";
constexpr std::string_view kLlama3 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kQwen2 =
    R"((?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kBloom =
    R"( ?[^(\s|.,!?\x{2026}\x{3002}\x{FF0C}\x{3001}\x{964}\x{6D4}\x{60C})]+)";
constexpr std::string_view kTekken =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kDeepSeek3 =
    R"([!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kDeepSeekMarks =
    R"(\s?[!-/:-~\x{FF01}-\x{FF0F}\x{FF1A}-\x{FF5E}\x{2018}-\x{201F}\x{3000}-\x{3002}]+)";
constexpr std::string_view kDeepSeekHan =
    R"([\x{4E00}-\x{9FA5}\x{800}-\x{4E00}\x{AC00}-\x{D7FF}]+)";
// Letters with case, in the ranges that the checkpoints list.
constexpr std::string_view kDeepSeekLetters =
    R"(\s?[A-Za-z\x{B5}\x{C0}-\x{D6}\x{D8}-\x{F6}\x{F8}-\x{1BA}\x{1BC}-\x{1BF}\x{1C4}-\x{293})"
    R"(\x{295}-\x{2AF}\x{370}-\x{373}\x{376}\x{377}\x{37B}-\x{37D}\x{37F}\x{386})"
    R"(\x{388}-\x{38A}\x{38C}\x{38E}-\x{3A1}\x{3A3}-\x{3F5}\x{3F7}-\x{481}\x{48A}-\x{52F})"
    R"(\x{531}-\x{556}\x{10A0}-\x{10C5}\x{13A0}-\x{13F5}\x{13F8}-\x{13FD}\x{1C90}-\x{1CBA})"
    R"(\x{1CBD}-\x{1CBF}\x{1D00}-\x{1D2B}\x{1D6B}-\x{1D77}\x{1D79}-\x{1D9A})"
    R"(\x{1E00}-\x{1F15}\x{1F18}-\x{1F1D}\x{1F20}-\x{1F45}\x{1F48}-\x{1F4D})"
    R"(\x{1F50}-\x{1F57}\x{1F59}\x{1F5B}\x{1F5D}\x{1F5F}-\x{1F7D}\x{1F80}-\x{1FB4})"
    R"(\x{1FB6}-\x{1FBC}\x{1FBE}\x{1FC2}-\x{1FC4}\x{1FC6}-\x{1FCC}\x{1FD0}-\x{1FD3})"
    R"(\x{1FD6}-\x{1FDB}\x{1FE0}-\x{1FEC}\x{1FF2}-\x{1FF4}\x{1FF6}-\x{1FFC}\x{2102}\x{2107})"
    R"(\x{210A}-\x{2113}\x{2115}\x{2119}-\x{211D}\x{2124}\x{2126}\x{2128}\x{212A}-\x{212D})"
    R"(\x{212F}-\x{2134}\x{2139}\x{213C}-\x{213F}\x{2145}-\x{2149}\x{214E}\x{2183}\x{2184})"
    R"(\x{2C00}-\x{2C7B}\x{2C7E}-\x{2CE4}\x{2CEB}-\x{2CEE}\x{2CF2}\x{2CF3}\x{A640}-\x{A66D})"
    R"(\x{A680}-\x{A69B}\x{A722}-\x{A76F}\x{A771}-\x{A787}\x{A78B}-\x{A78E})"
    R"(\x{AB70}-\x{ABBF}\x{FB00}-\x{FB06}\x{FB13}-\x{FB17}\x{FF21}-\x{FF3A})"
    R"(\x{FF41}-\x{FF5A}\x{10400}-\x{1044F}\x{104B0}-\x{104D3}\x{104D8}-\x{104FB})"
    R"(\x{10C80}-\x{10CB2}\x{10CC0}-\x{10CF2}\x{118A0}-\x{118DF}\x{1E900}-\x{1E943}]+)";

struct Known {
  std::vector<std::string_view> names;
  std::vector<std::string_view> patterns;  ///< as the checkpoints write them
  std::vector<std::string_view> byte_patterns = {};
  bool ignore_merges = false;
  bool nfc = false;
};

/// The pre-tokenizers behind the names that GGUF writers use, from the checkpoints that they stand
/// for. A name goes with the tokenizer, not with the family.
const std::vector<Known>& table() {
  static const std::string digit = digits_pattern(true), digits = digits_pattern(false);
  static const std::string marks = punctuation_pattern(true);
  static const std::string byte_digits = byte_digits_pattern(false);
  static const std::vector<Known> rows = {
      {{"gpt-2", "phi-2", "mpt", "olmo", "jais"}, {kGpt2}},
      {{"smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"},
       {digit, kGpt2}},
      {{"llama-bpe", "llama3", "llama-v3", "falcon3"}, {kLlama3}, {}, true},
      {{"dbrx", "smaug-bpe", "chatglm-bpe"}, {kLlama3}},
      {{"qwen2"}, {kQwen2}, {}, false, true},
      {{"stablelm2", "deepseek-r1-qwen", "megrez"}, {kQwen2}},
      {{"falcon"}, {marks, kGpt2}, {byte_digits, "[0-9][0-9][0-9]"}},
      // What GGUF runtimes use where the name is "default".
      {{"default"}, {R"([\p{P}\$\+<=>\^~\|]+)", kGpt2, R"(\p{N}+)", "[0-9][0-9][0-9]"}},
      {{"tekken"}, {kTekken}, {}, true},
      {{"bloom", "poro-chat", "gpt3-finnish"}, {kBloom}},
      {{"viking"}, {kBloom, digit}},
      // The lookbehind is ours: no match lies inside a run of spaces that has none at its start,
      // and searching there takes quadratic time.
      {{"deepseek-llm"},
       {R"([\r\n])", kDeepSeekLetters, kDeepSeekMarks, R"((?<!\s)\s+$)", kDeepSeekHan, digits}},
      {{"deepseek-coder"}, {R"([\r\n])", R"(\s?\p{L}+)", R"(\s?\p{P}+)", kDeepSeekHan, digit}},
      {{"deepseek-v3"},
       {R"(\p{N}{1,3})", R"([\x{4E00}-\x{9FA5}\x{3040}-\x{309F}\x{30A0}-\x{30FF}]+)", kDeepSeek3}},
  };
  return rows;
}

/// Rewrites one pattern. Everything that both engines read alike passes through.
class Translator {
 public:
  Translator(std::string_view regex, const std::string& where) : in_(regex), where_(where) {}

  std::string run() {
    while (at_ < in_.size()) {
      const char c = in_[at_];
      if (c == '\\') {
        escape();
      } else {
        bool keep = true;
        if (depth_ > 0) {
          keep = in_class();
        } else if (c == '[') {
          open_class();
        } else if (c == '(') {
          group();
        }
        if (keep) out_ += c;
        ++at_;
      }
    }
    return std::move(out_);
  }

 private:
  void open_class() {
    depth_ = 1;
    const std::string_view rest = in_.substr(at_ + 1);
    if (rest.starts_with("]") || rest.starts_with("^]")) refuse("a class that starts with ]");
  }

  /// False where the character is to be left out: a class inside a class is a part of it, as
  /// BLOOM's pattern has it, and PCRE2 wants it without brackets.
  bool in_class() {
    const std::string_view rest = in_.substr(at_);
    if (rest.starts_with("&&")) refuse("an intersection of classes");
    if (rest[0] == '[') {
      const bool plain = rest.size() > 1 && in_[at_ - 1] != '-' &&
                         std::string_view("]^:[-").find(rest[1]) == std::string_view::npos;
      if (!plain) refuse("a class inside a class");
      ++depth_;
      return false;
    }
    if (rest[0] != ']') return true;
    if (--depth_ > 0 && rest.starts_with("]-")) refuse("a range from a class");
    return depth_ == 0;
  }

  /// Letters before ':' or ')' are options; only case means the same in both.
  void group() {
    if (!in_.substr(at_).starts_with("(?")) return;
    const size_t end = in_.find_first_not_of("-abcdefghijklmnopqrstuvwxyz", at_ + 2);
    if (end == std::string_view::npos || (in_[end] != ':' && in_[end] != ')')) return;
    const std::string_view options = in_.substr(at_ + 2, end - at_ - 2);
    if (options.find_first_not_of("-i") != std::string_view::npos) refuse("a group's options");
  }

  void escape() {
    if (at_ + 1 >= in_.size()) refuse("a lone backslash");
    const char c = in_[at_ + 1];
    const bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z');
    if (c == 's') {
      out_ += depth_ > 0 ? std::string(kSpaces) : "[" + std::string(kSpaces) + "]";
    } else if (c == 'S' && depth_ == 0) {
      out_ += "[^" + std::string(kSpaces) + "]";
    } else if (c == 'u' && at_ + 6 <= in_.size()) {
      out_ += "\\x{" + std::string(in_.substr(at_ + 2, 4)) + "}";
      at_ += 4;
    } else if (letter && std::string_view("dDpPrntfxaeAzZ").find(c) == std::string_view::npos) {
      refuse("an escape");
    } else {
      out_ += in_.substr(at_, 2);
    }
    at_ += 2;
  }

  [[noreturn]] void refuse(const char* what) const {
    throw Error({.what = std::string("pre-tokenizer pattern has ") + what +
                         " that OQ cannot translate, at offset " + std::to_string(at_),
                 .where = where_,
                 .found = "'" + std::string(in_) + "'",
                 .hint = "a GGUF of the same model may name its pre-tokenizer"});
  }

  std::string_view in_;
  const std::string& where_;
  std::string out_;
  size_t at_ = 0;
  int depth_ = 0;  ///< of classes around the place
};

}  // namespace

std::string to_pcre2(std::string_view regex, const std::string& where) {
  return Translator(regex, where).run();
}

std::string literal_pattern(std::string_view text) {
  std::string pattern;
  for (const char c : text) {
    const bool plain = (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') ||
                       uint8_t(c) >= 0x80;
    if (!plain) pattern += '\\';
    pattern += c;
  }
  return pattern;
}

std::string gpt2_pattern() { return to_pcre2(kGpt2, "gpt2"); }

std::string digits_pattern(bool individual) { return individual ? R"(\p{N})" : R"(\p{N}+)"; }

std::string punctuation_pattern(bool contiguous) {
  return std::string(R"([!-/:-@\[-`{-~\p{P}])") + (contiguous ? "+" : "");
}

std::string byte_digits_pattern(bool individual) {
  return std::string(R"([0-9\xB2\xB3\xB9\xBC-\xBE])") + (individual ? "" : "+");
}

Pretokenization known_pretokenization(std::string_view name, const std::string& where) {
  std::vector<std::string_view> names;
  for (const Known& row : table()) {
    if (std::find(row.names.begin(), row.names.end(), name) != row.names.end()) {
      Pretokenization p;
      for (const std::string_view regex : row.patterns)
        p.patterns.push_back(to_pcre2(regex, where));
      p.byte_patterns.assign(row.byte_patterns.begin(), row.byte_patterns.end());
      p.ignore_merges = row.ignore_merges;
      p.nfc = row.nfc;
      return p;
    }
    names.insert(names.end(), row.names.begin(), row.names.end());
  }
  throw Error({.what = "unknown pre-tokenizer",
               .where = where,
               .expected = fmt::format("{}", fmt::join(names, ", ")),
               .found = "'" + std::string(name) + "'",
               .hint = "convert the model's Hugging Face folder instead: its tokenizer.json says "
                       "how text is cut"});
}

}  // namespace oq::convert
