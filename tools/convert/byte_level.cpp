#include "tools/convert/byte_level.h"

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

Vocabulary byte_level_vocabulary(std::span<const SourceToken> tokens, const std::string& where) {
  Vocabulary vocabulary;
  for (size_t id = 0; id < tokens.size(); ++id) {
    const auto& [text, kind] = tokens[id];
    if (kind.type != TokenType::normal) {
      vocabulary.add(text, kind);
      continue;
    }
    const auto bytes = from_byte_level(text);
    if (!bytes) {
      throw Error({.what = "token " + std::to_string(id) + " is not in the byte-level alphabet",
                   .where = where,
                   .found = "'" + std::string(text) + "'",
                   .hint = "OQ runs byte-level BPE (GPT-2's, LLaMA-3's) and sentencepiece"});
    }
    vocabulary.add(*bytes, kind);
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

std::vector<Merge> byte_level_merges(
    std::span<const std::pair<std::string_view, std::string_view>> merges, const Vocabulary& tokens,
    const std::string& where) {
  std::unordered_set<std::string_view> other;  // texts that are no normal tokens
  for (int32_t id = 0; id < tokens.size(); ++id) {
    if (tokens.kind(id).type != TokenType::normal) other.insert(tokens.bytes(id));
  }
  std::vector<Merge> result;
  for (const auto& [left, right] : merges) {
    const auto l = from_byte_level(left), r = from_byte_level(right);
    const bool written = l && r;
    const Merge merge = written ? Merge{tokens.find(*l), tokens.find(*r)} : Merge{-1, -1};
    if (merge.left >= 0 && merge.right >= 0 && tokens.find(*l + *r) >= 0) {
      result.push_back(merge);
      continue;
    }
    const std::string joined = std::string(left).append(right);
    const bool around = other.count(left) != 0 || other.count(right) != 0 ||
                        other.count(joined) != 0 || (written && other.count(*l + *r) != 0);
    if (around) continue;
    throw Error({.what = "merge " + std::to_string(result.size()) +
                         " names or makes a token that is not there",
                 .where = where,
                 .found = "'" + std::string(left) + "' '" + std::string(right) + "'",
                 .hint = "the vocabulary and the merges do not belong together"});
  }
  return result;
}

}  // namespace oq::convert
