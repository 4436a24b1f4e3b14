#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "tools/convert/config.h"

namespace oq::convert {

/// Rotary position embedding as data: dimension pair i of a head turns by position * inv_freq[i],
/// and cos and sin are multiplied by attention_factor. Every static way of scaling RoPE to longer
/// contexts is a choice of these numbers.
struct Rope {
  std::vector<float> inv_freq;  ///< rope_dim / 2 values
  double attention_factor = 1.0;
  int64_t context_limit = 0;  ///< positions up to which the numbers are exact; 0 = all
  std::string notice;         ///< what a user should know, or empty
};

/// From config.json: rope_theta and rope_scaling (`type` or `rope_type`), or rope_parameters.
/// default, linear, llama3, yarn; dynamic with a context_limit. Others are refused by name.
/// `default_theta` is what holds where rope_theta is not given.
/// PRECOND: rope_dim is even, > 0; context is max_position_embeddings.
Rope hf_rope(const Config& config, int64_t rope_dim, int64_t context,
             double default_theta = 10000.0);

/// From GGUF's "ARCH.rope.*". `factors` is the tensor rope_freqs.weight, by which frequencies are
/// divided; empty where there is none. PRECOND: as above.
Rope gguf_rope(const Config& config, std::string_view arch, int64_t rope_dim, int64_t context,
               std::span<const float> factors);

}  // namespace oq::convert
