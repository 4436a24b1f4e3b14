#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "format/packed.h"

namespace oq {

class File;
class Metadata;

/// The one name of a format: `w<B>[*][s] a<B>[t] [g<G>] [q<B>] [kv<B>]`, written together, as in
/// "w4a16g128", "w3a16", "w2*a8", "w4a8t", "w6a6q6kv6".
///
/// `a` is the inputs of the blocks' linears only; embedding and head are not part of a scheme.
struct Scheme {
  int weight_bits = 16;      ///< 2..8, or 16 for unquantized
  bool five_levels = false;  ///< `*`: ABQ's five levels, stored at 2.33 bits; weight_bits is 2
  bool symmetric = false;    ///< `s`: one constant zero point for the whole tensor
  int activation_bits = 16;  ///< 2..8, or 16 for unquantized
  bool per_tensor = false;   ///< `t`: one activation range per forward call instead of per token
  uint32_t group = 0;        ///< input columns that share a scale; 0 = the whole row
  int query_bits = 16;       ///< 2..8 or 16
  int kv_bits = 16;          ///< 2..8 or 16
  /// Not part of the name: one range of a token's queries over all heads, one of its keys, one of
  /// its values. OmniQuant's code has it so for OPT; else every head has a range of its own.
  bool heads_share_range = false;

  bool quantizes_weights() const { return weight_bits < 16; }
  /// Anything that is computed for a token: inputs of linears, queries, keys or values.
  bool quantizes_activations() const {
    return activation_bits < 16 || query_bits < 16 || kv_bits < 16;
  }
  /// How many neighbouring values of a token's q, k or v, [heads][head_dim], share a range.
  int64_t range_width(int64_t heads, int64_t head_dim) const {
    return heads_share_range ? heads * head_dim : head_dim;
  }
  std::string str() const;

  /// Throws oq::Error on anything but the grammar above.
  static Scheme parse(std::string_view text);

  /// What a file's metadata says ("scheme", "attention.range"); without it, the defaults. Throws
  /// oq::Error naming the key, of a file its path too.
  static Scheme load(const Metadata& metadata);
  static Scheme load(const File& file);
  void store(Metadata& metadata) const;

  friend bool operator==(const Scheme&, const Scheme&) = default;
};

/// How a scheme's weights are packed: zero points of code width, or the constant in the middle of
/// the codes. PRECOND: it quantizes weights.
Packing packing_of(const Scheme& scheme);
/// Likewise, for a tensor of another width than the scheme's; only at its own there are five
/// levels.
Packing packing_of(const Scheme& scheme, int bits);

/// How embedding and head are packed: `bits` wide, asymmetric, groups of 64.
Packing head_packing(int bits);

}  // namespace oq
