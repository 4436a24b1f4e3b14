#include "tools/convert/spelling.h"

#include <array>
#include <unordered_set>

#include "format/error.h"
#include "runtime/tokenizer/utf8.h"

namespace oq::convert {
namespace {

/// Bytes by character (GPT-2's encoder.py): the printable ones of Latin-1 stand for themselves,
/// the other 68 are numbered from U+0100 on, in order. -1: not in the alphabet.
std::array<int, 0x144> make_alphabet() {
  std::array<int, 0x144> bytes;
  bytes.fill(-1);
  int next = 0x100;
  for (int b = 0; b < 256; ++b) {
    const bool printable = (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b != 0xAD);
    bytes[size_t(printable ? b : next++)] = b;
  }
  return bytes;
}

/// The byte that "<0x41>" names, or -1.
int named_byte(std::string_view text) {
  constexpr std::string_view kDigits = "0123456789ABCDEF";
  if (text.size() != 6 || !text.starts_with("<0x") || text[5] != '>') return -1;
  const size_t high = kDigits.find(text[3]), low = kDigits.find(text[4]);
  if (high == std::string_view::npos || low == std::string_view::npos) return -1;
  return int(high * 16 + low);
}

/// The bytes of a marked token; nothing where no text leads to it by merges.
std::optional<std::string> from_marked(std::string_view text) {
  if (named_byte(text) >= 0 || text.find(' ') != std::string_view::npos) return std::nullopt;
  std::string bytes;
  for (size_t at = 0; at < text.size();) {
    const bool mark = text.substr(at).starts_with(kSpaceMark);
    bytes += mark ? ' ' : text[at];
    at += mark ? kSpaceMark.size() : 1;
  }
  return bytes;
}

void add_normal(Vocabulary& vocabulary, std::string_view text, Spelling spelling,
                const std::string& where) {
  if (spelling == Spelling::marked) {
    const char byte = char(named_byte(text));
    const auto bytes = from_marked(text);
    if (named_byte(text) >= 0) {
      vocabulary.add({&byte, 1}, {.type = TokenType::byte});
    } else {
      vocabulary.add(bytes ? *bytes : text,
                     {.type = bytes ? TokenType::normal : TokenType::unused});
    }
    return;
  }
  const auto bytes = from_byte_level(text);
  if (!bytes) {
    throw Error({.what = "token " + std::to_string(vocabulary.size()) +
                         " is not in the byte-level alphabet",
                 .where = where,
                 .found = "'" + std::string(text) + "'",
                 .hint = "OQ runs byte-level BPE (GPT-2's, LLaMA-3's), BPE with byte_fallback, and "
                         "sentencepiece"});
  }
  vocabulary.add(*bytes, {});
}

}  // namespace

std::optional<std::string> from_byte_level(std::string_view text) {
  static const std::array<int, 0x144> kBytes = make_alphabet();
  std::string bytes;
  for (size_t at = 0; at < text.size();) {
    const Utf8Step step = utf8_step(text, at);
    if (step.status != Utf8Step::valid || step.bytes > 2) return std::nullopt;
    size_t character = uint8_t(text[at]);
    if (step.bytes == 2) character = (character & 0x1F) << 6 | (uint8_t(text[at + 1]) & 0x3F);
    if (character >= kBytes.size() || kBytes[character] < 0) return std::nullopt;
    bytes += char(kBytes[character]);
    at += step.bytes;
  }
  return bytes;
}

Vocabulary bpe_vocabulary(std::span<const SourceToken> tokens, Spelling spelling,
                          const std::string& where) {
  Vocabulary vocabulary;
  for (const auto& [text, kind] : tokens) {
    if (kind.type == TokenType::normal) {
      add_normal(vocabulary, text, spelling, where);
    } else {
      vocabulary.add(text, kind);
    }
  }
  vocabulary.index(where);
  return vocabulary;
}

std::pair<std::string_view, std::string_view> split_merge(std::string_view merge,
                                                          const std::string& where) {
  const size_t space = merge.find(' ');
  if (space == 0 || space == std::string_view::npos || space + 1 == merge.size()) {
    throw Error({.what = "a merge is not two tokens with a space between them",
                 .where = where,
                 .found = "'" + std::string(merge) + "'"});
  }
  return {merge.substr(0, space), merge.substr(space + 1)};
}

std::vector<Merge> bpe_merges(std::span<const std::pair<std::string_view, std::string_view>> merges,
                              const Vocabulary& tokens, Spelling spelling,
                              const std::string& where) {
  const auto read = spelling == Spelling::marked ? from_marked : from_byte_level;
  std::unordered_set<std::string_view> other;  // texts that are no normal tokens
  for (int32_t id = 0; id < tokens.size(); ++id) {
    const TokenType type = tokens.kind(id).type;
    if (type != TokenType::normal && type != TokenType::byte) other.insert(tokens.bytes(id));
  }
  std::vector<Merge> result;
  for (size_t i = 0; i < merges.size(); ++i) {
    const auto& [left, right] = merges[i];
    const auto l = read(left), r = read(right);
    const bool written = l && r;
    const Merge merge = written ? Merge{tokens.find(*l), tokens.find(*r)} : Merge{-1, -1};
    if (merge.left >= 0 && merge.right >= 0 && tokens.find(*l + *r) >= 0) {
      result.push_back(merge);
      continue;
    }
    const std::string joined = std::string(left).append(right);
    if (spelling == Spelling::marked && !(written && read(joined))) continue;
    const bool around = other.count(left) != 0 || other.count(right) != 0 ||
                        other.count(joined) != 0 || (written && other.count(*l + *r) != 0);
    if (around) continue;
    throw Error({.what = "merge " + std::to_string(i) + " names or makes a token that is not there",
                 .where = where,
                 .found = "'" + std::string(left) + "' '" + std::string(right) + "'",
                 .hint = "the vocabulary and the merges do not belong together"});
  }
  return result;
}

}  // namespace oq::convert
