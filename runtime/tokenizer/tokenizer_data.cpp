#include "runtime/tokenizer/tokenizer_data.h"

#include <array>
#include <limits>

#include "format/bytes.h"

namespace oq {
namespace {

constexpr int64_t kVersion = 2;  // 1 had add_prefix_space, and neither byte_fallback nor nfc
constexpr uint8_t kTypeBits = 0x0F, kLstrip = 0x10, kRstrip = 0x20;

const std::array<std::pair<TokenizerData::Kind, const char*>, 3> kKinds = {{
    {TokenizerData::Kind::none, "none"},
    {TokenizerData::Kind::bpe, "bpe"},
    {TokenizerData::Kind::sentencepiece, "sentencepiece"},
}};

constexpr std::array<const char*, 4> kPrefixSpaces = {"never", "missing", "first", "always"};

PrefixSpace prefix_space_of(const std::string& name, const std::string& where) {
  for (size_t i = 0; i < kPrefixSpaces.size(); ++i) {
    if (name == kPrefixSpaces[i]) return PrefixSpace(i);
  }
  throw Error({.what = "unknown tokenizer.prefix_space",
               .where = where,
               .expected = "never, missing, first or always",
               .found = "'" + name + "'",
               .hint = "a newer version of OQ may know it"});
}

TokenizerData::Kind kind_of(const std::string& name, const std::string& where) {
  for (const auto& [kind, known] : kKinds) {
    if (name == known) return kind;
  }
  throw Error({.what = "unknown tokenizer.kind",
               .where = where,
               .expected = "bpe, sentencepiece or none",
               .found = "'" + name + "'",
               .hint = "a newer version of OQ may know it"});
}

std::span<const std::byte> blob(const File& file, const char* name) {
  const TensorInfo& info = file.tensor(name);
  if (info.kind != oq::Kind::bytes) {
    throw Error({.what = std::string(name) + " has the wrong kind",
                 .where = file.path().string(),
                 .expected = "bytes",
                 .found = std::string(to_string(info.kind))});
  }
  return file.data(info);
}

void add_blob(Writer& writer, const char* name, std::span<const std::byte> bytes) {
  writer.add({.name = name, .kind = oq::Kind::bytes, .rows = 1, .cols = bytes.size()}, bytes);
}

void expect_end(const ByteReader& in, const std::string& where) {
  if (in.left() == 0) return;
  throw Error({.what = "has bytes after its end",
               .where = where,
               .found = std::to_string(in.left()),
               .hint = "the file is damaged"});
}

/// An id, or -1 for none.
int32_t id_of(const Metadata& m, const char* key) {
  return int32_t(m.get_int(key, -1, std::numeric_limits<int32_t>::max()));
}

/// Whether there are such tokens is for `make_tokenizer` to say; what is no id at all is said here,
/// where it is still the number that the file has.
std::vector<int32_t> stop_ids_of(const Metadata& m) {
  constexpr const char* key = "tokenizer.stop_ids";
  constexpr int64_t most = std::numeric_limits<int32_t>::max();
  std::vector<int32_t> ids;
  for (const int64_t id : m.get<std::vector<int64_t>>(key)) {
    if (id < 0 || id > most) {
      throw Error({.what = "an id is out of range",
                   .where = std::string("metadata '") + key + "'",
                   .expected = "0.." + std::to_string(most),
                   .found = std::to_string(id)});
    }
    ids.push_back(int32_t(id));
  }
  return ids;
}

}  // namespace

std::vector<std::byte> TokenizerData::encode_tokens(const Vocabulary& tokens) {
  ByteWriter out;
  out.write(uint32_t(tokens.size()));
  for (int32_t id = 0; id < tokens.size(); ++id) {
    const TokenKind kind = tokens.kind(id);
    out.write(
        uint8_t(uint8_t(kind.type) | (kind.lstrip ? kLstrip : 0) | (kind.rstrip ? kRstrip : 0)));
    out.write_string<uint32_t>(tokens.bytes(id));
  }
  return out.bytes();
}

Vocabulary TokenizerData::decode_tokens(std::span<const std::byte> bytes,
                                        const std::string& where) {
  ByteReader in(bytes, where);
  Vocabulary tokens;
  const size_t count = in.read_count<uint32_t>(5);
  for (size_t id = 0; id < count; ++id) {
    const uint8_t kind = in.read<uint8_t>();
    const uint8_t type = kind & kTypeBits;
    if (type > uint8_t(TokenType::byte) || (kind & ~(kTypeBits | kLstrip | kRstrip)) != 0) {
      throw Error({.what = "token " + std::to_string(id) + " is of an unknown kind",
                   .where = where,
                   .found = std::to_string(kind)});
    }
    tokens.add(in.read_string<uint32_t>(),
               {TokenType(type), (kind & kLstrip) != 0, (kind & kRstrip) != 0});
  }
  expect_end(in, where);
  return tokens;
}

std::vector<std::byte> TokenizerData::encode_merges(std::span<const Merge> merges) {
  ByteWriter out;
  out.write(uint32_t(merges.size()));
  for (const Merge& merge : merges) {
    out.write(uint32_t(merge.left));
    out.write(uint32_t(merge.right));
  }
  return out.bytes();
}

std::vector<Merge> TokenizerData::decode_merges(std::span<const std::byte> bytes,
                                                const std::string& where) {
  ByteReader in(bytes, where);
  std::vector<Merge> merges(in.read_count<uint32_t>(8));
  for (Merge& merge : merges) {  // an id beyond 2^31 turns negative, which no token has
    merge.left = int32_t(in.read<uint32_t>());
    merge.right = int32_t(in.read<uint32_t>());
  }
  expect_end(in, where);
  return merges;
}

void TokenizerData::store(Writer& writer) const {
  Metadata& m = writer.metadata;
  m.set("tokenizer.kind", std::string(kKinds[size_t(kind)].second));
  m.set("tokenizer.version", kVersion);
  if (!chat_template.empty()) m.set("chat.template", chat_template);
  if (!chat_template_hash.empty()) m.set("chat.template_hash", chat_template_hash);
  if (kind == Kind::none) return;
  m.set("tokenizer.bos", int64_t(bos));
  m.set("tokenizer.adds_bos", adds_bos);
  m.set("tokenizer.stop_ids", std::vector<int64_t>(stop_ids.begin(), stop_ids.end()));
  if (kind == Kind::bpe) {
    m.set("tokenizer.unk", int64_t(unk));
    m.set("tokenizer.patterns", patterns);
    m.set("tokenizer.byte_patterns", byte_patterns);
    m.set("tokenizer.prefix_space", std::string(kPrefixSpaces[size_t(prefix_space)]));
    m.set("tokenizer.ignore_merges", ignore_merges);
    m.set("tokenizer.byte_fallback", byte_fallback);
    m.set("tokenizer.nfc", nfc);
  } else {
    add_blob(writer, "tokenizer.model", std::as_bytes(std::span(model)));
  }
  add_blob(writer, "tokenizer.tokens", encode_tokens(tokens));
  if (kind == Kind::bpe) add_blob(writer, "tokenizer.merges", encode_merges(merges));
}

TokenizerData TokenizerData::load(const File& file, const Metadata& m) {
  const std::string where = file.path().string();
  TokenizerData data;
  data.chat_template = m.get_or<std::string>("chat.template", "");
  data.chat_template_hash = m.get_or<std::string>("chat.template_hash", "");
  data.kind = kind_of(m.get_or<std::string>("tokenizer.kind", "none"), where);
  if (data.kind == Kind::none) return data;
  const int64_t version = m.get<int64_t>("tokenizer.version");
  if (version < 1 || version > kVersion) {
    throw Error({.what = "tokenizer.version is not one that this OQ knows",
                 .where = where,
                 .expected = "1 to " + std::to_string(kVersion),
                 .found = std::to_string(version),
                 .hint = "use a newer OQ, or convert the checkpoint again"});
  }
  data.bos = id_of(m, "tokenizer.bos");
  data.adds_bos = m.get<bool>("tokenizer.adds_bos");
  data.stop_ids = stop_ids_of(m);
  data.tokens = decode_tokens(blob(file, "tokenizer.tokens"), where + ": tokenizer.tokens");
  if (data.kind == Kind::bpe) {
    data.unk = id_of(m, "tokenizer.unk");
    data.patterns = m.get<std::vector<std::string>>("tokenizer.patterns");
    data.byte_patterns = m.get<std::vector<std::string>>("tokenizer.byte_patterns");
    data.ignore_merges = m.get<bool>("tokenizer.ignore_merges");
    if (version == 1) {
      if (m.get<bool>("tokenizer.add_prefix_space")) data.prefix_space = PrefixSpace::missing;
    } else {
      data.prefix_space = prefix_space_of(m.get<std::string>("tokenizer.prefix_space"), where);
      data.byte_fallback = m.get<bool>("tokenizer.byte_fallback");
      data.nfc = m.get<bool>("tokenizer.nfc");
    }
    data.merges = decode_merges(blob(file, "tokenizer.merges"), where + ": tokenizer.merges");
  } else {
    const auto bytes = blob(file, "tokenizer.model");
    data.model.assign(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  }
  return data;
}

}  // namespace oq
