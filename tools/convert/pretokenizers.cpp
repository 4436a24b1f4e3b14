#include "tools/convert/pretokenizers.h"

#include <algorithm>

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
constexpr std::string_view kBloom = R"( ?[^(\s|.,!?…。，、।۔،)]+)";
constexpr std::string_view kTekken =
    R"([^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kDeepSeek3 =
    R"([!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+)";
constexpr std::string_view kDeepSeekLetters =
    R"(\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝὟ-ώᾀ-ᾴᾶ-ᾼιῂ-ῄῆ-ῌῐ-ΐῖ-Ίῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤΩℨK-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+)";

struct Known {
  std::vector<std::string_view> names;
  std::vector<std::string_view> patterns;  ///< as the checkpoints write them
  std::vector<std::string_view> byte_patterns = {};
  bool ignore_merges = false;
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
      {{"qwen2", "stablelm2", "deepseek-r1-qwen", "megrez"}, {kQwen2}},
      {{"falcon"}, {marks, kGpt2}, {byte_digits, "[0-9][0-9][0-9]"}},
      // What GGUF runtimes use where the name is "default".
      {{"default"}, {R"([\p{P}\$\+<=>\^~\|]+)", kGpt2, R"(\p{N}+)", "[0-9][0-9][0-9]"}},
      {{"tekken"}, {kTekken}, {}, true},
      {{"bloom", "poro-chat", "gpt3-finnish"}, {kBloom}},
      {{"viking"}, {kBloom, digit}},
      // The lookbehind is ours: no match lies inside a run of spaces that has none at its start,
      // and searching there takes quadratic time.
      {{"deepseek-llm"},
       {R"([\r\n])", kDeepSeekLetters, R"(\s?[!-/:-~！-／：-～‘-‟　-。]+)", R"((?<!\s)\s+$)",
        "[一-龥ࠀ-一가-퟿]+", digits}},
      {{"deepseek-coder"},
       {R"([\r\n])", R"(\s?\p{L}+)", R"(\s?\p{P}+)", "[一-龥ࠀ-一가-퟿]+", digit}},
      {{"deepseek-v3"}, {R"(\p{N}{1,3})", "[一-龥぀-ゟ゠-ヿ]+", kDeepSeek3}},
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
        if (in_class_) in_class();
        else if (c == '[') open_class();
        else if (c == '(') group();
        out_ += c;
        ++at_;
      }
    }
    return std::move(out_);
  }

 private:
  void open_class() {
    in_class_ = true;
    const std::string_view rest = in_.substr(at_ + 1);
    if (rest.starts_with("]") || rest.starts_with("^]")) refuse("a class that starts with ]");
  }

  void in_class() {
    const std::string_view rest = in_.substr(at_);
    if (rest.starts_with("&&")) refuse("an intersection of classes");
    if (rest[0] == '[') refuse("a class inside a class");
    if (rest[0] == ']') in_class_ = false;
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
      out_ += in_class_ ? std::string(kSpaces) : "[" + std::string(kSpaces) + "]";
    } else if (c == 'S' && !in_class_) {
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
  bool in_class_ = false;
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
  std::string names;
  for (const Known& row : table()) {
    if (std::find(row.names.begin(), row.names.end(), name) != row.names.end()) {
      Pretokenization p;
      for (const std::string_view regex : row.patterns) p.patterns.push_back(to_pcre2(regex, where));
      p.byte_patterns.assign(row.byte_patterns.begin(), row.byte_patterns.end());
      p.ignore_merges = row.ignore_merges;
      return p;
    }
    for (const std::string_view n : row.names) names += (names.empty() ? "" : ", ") + std::string(n);
  }
  throw Error({.what = "unknown pre-tokenizer",
               .where = where,
               .expected = names,
               .found = "'" + std::string(name) + "'",
               .hint = "convert the model's Hugging Face folder instead: its tokenizer.json says "
                       "how text is cut"});
}

}  // namespace oq::convert
