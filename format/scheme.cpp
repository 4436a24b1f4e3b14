#include "format/scheme.h"

#include <charconv>

#include "format/error.h"
#include "format/file.h"
#include "format/metadata.h"

namespace oq {
namespace {

constexpr const char* kName = "scheme";
constexpr const char* kRange = "attention.range";  ///< of q, k and v
constexpr const char* kOfHead = "head";
constexpr const char* kOfToken = "token";

/// Takes literals and numbers off the front of a scheme's text.
class Cursor {
 public:
  explicit Cursor(std::string_view text) : rest_(text) {}

  bool take(std::string_view literal) {
    if (rest_.substr(0, literal.size()) != literal) return false;
    rest_.remove_prefix(literal.size());
    return true;
  }

  bool number(uint32_t& out) {
    const char* end = rest_.data() + rest_.size();
    const auto [stop, ec] = std::from_chars(rest_.data(), end, out);
    if (ec != std::errc{} || rest_.front() == '0') return false;
    rest_.remove_prefix(size_t(stop - rest_.data()));
    return true;
  }

  /// A width of 2..8 or, as "unquantized", 16.
  bool bits(int& out) {
    uint32_t b = 0;
    if (!number(b) || (b != 16 && (b < 2 || b > 8))) return false;
    out = int(b);
    return true;
  }

  bool done() const { return rest_.empty(); }

 private:
  std::string_view rest_;
};

bool parse_into(std::string_view text, Scheme& s) {
  Cursor c(text);
  if (!c.take("w") || !c.bits(s.weight_bits)) return false;
  if (c.take("*")) {
    s.five_levels = true;
    if (s.weight_bits != 2) return false;
  }
  if (c.take("s")) {
    s.symmetric = true;
    if (s.weight_bits == 16) return false;
  }
  if (!c.take("a") || !c.bits(s.activation_bits)) return false;
  if (c.take("t")) {
    s.per_tensor = true;
    if (s.activation_bits == 16) return false;
  }
  if (c.take("g")) {
    if (!c.number(s.group) || s.group % 32 != 0 || s.weight_bits == 16) return false;
  }
  if (c.take("q") && !c.bits(s.query_bits)) return false;
  if (c.take("kv") && !c.bits(s.kv_bits)) return false;
  return c.done();
}

}  // namespace

Scheme Scheme::parse(std::string_view text) {
  Scheme s;
  if (!parse_into(text, s)) {
    throw Error({.what = "not a scheme",
                 .expected = "w<B>[*][s]a<B>[t][g<G>][q<B>][kv<B>] with B in 2..8 or 16, * only at "
                             "2 bits, and G a multiple of 32",
                 .found = "'" + std::string(text) + "'",
                 .hint = "write for example w4a16g128, w3a16, w2*a8 or w4a8t"});
  }
  return s;
}

std::string Scheme::str() const {
  std::string s = "w" + std::to_string(weight_bits);
  if (five_levels) s += "*";
  if (symmetric) s += "s";
  s += "a" + std::to_string(activation_bits);
  if (per_tensor) s += "t";
  if (group != 0) s += "g" + std::to_string(group);
  if (query_bits != 16) s += "q" + std::to_string(query_bits);
  if (kv_bits != 16) s += "kv" + std::to_string(kv_bits);
  return s;
}

Scheme Scheme::load(const Metadata& m) {
  Scheme s = parse(m.get_or<std::string>(kName, "w16a16"));
  const auto range = m.get_or<std::string>(kRange, kOfHead);
  if (range != kOfHead && range != kOfToken) {
    throw Error({.what = "a range of queries, keys and values is of something unknown",
                 .where = std::string("'") + kRange + "'",
                 .expected = std::string(kOfHead) + " or " + kOfToken,
                 .found = "'" + range + "'",
                 .hint = "a newer OQ may know it; or calibrate the model again"});
  }
  s.heads_share_range = range == kOfToken;
  return s;
}

Scheme Scheme::load(const File& file) {
  return with_place(file.path().string(), [&] { return load(file.metadata()); });
}

void Scheme::store(Metadata& m) const {
  m.set(kName, str());
  if (heads_share_range) {
    m.set(kRange, std::string(kOfToken));
  } else {
    m.erase(kRange);
  }
}

Packing packing_of(const Scheme& scheme) {
  Packing p;
  p.bits = uint8_t(scheme.weight_bits);
  p.five_levels = scheme.five_levels;
  p.group = scheme.group;
  if (scheme.symmetric) {
    p.zero_mode = ZeroMode::constant;
    p.zero = int16_t(scheme.five_levels ? 2 : (1 << (scheme.weight_bits - 1)) - 1);
  }
  return p;
}

Packing packing_of(const Scheme& scheme, int bits) {
  Scheme other = scheme;
  other.weight_bits = bits;
  other.five_levels = scheme.five_levels && bits == scheme.weight_bits;
  return packing_of(other);
}

Packing head_packing(int bits) {
  Packing p;
  p.bits = uint8_t(bits);
  p.group = 64;
  return p;
}

}  // namespace oq
