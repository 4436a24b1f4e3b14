#pragma once

#include <cstdint>
#include <initializer_list>
#include <string>

#include "tools/convert/families.h"

// What the readers of settings of all families share.

namespace oq::convert {

/// A setting that OQ cannot run, in the words of the checkpoint.
Error unusable(const Checkpoint& c, std::string what, std::string found, std::string hint);

/// `total` shared evenly by `parts`, both from the file.
int64_t divided(const Checkpoint& c, int64_t total, int64_t parts);

/// Four times a width from the file, which may be any number.
int64_t four_times(int64_t width);

/// The first of these settings that is there. Throws, naming the first of all, where none is.
int64_t integer_of(const Config& settings, std::initializer_list<const char*> keys);

/// A setting that GGUF may give per block; OQ wants the same everywhere.
int64_t uniform(const Checkpoint& c, const std::string& key, int64_t fallback);

/// What config.json calls an activation, under `key`.
Activation hf_activation(const Checkpoint& c, const char* key, const char* fallback);

/// Throws where a flag of config.json is set that OQ cannot honour.
void refuse_flag(const Checkpoint& c, const char* key);

/// Sizes as OQ can run them. A file may claim any number, so this goes before they are used.
void check_sizes(const Checkpoint& c, const ModelConfig& config);

/// Throws where the context is too long for a table of it. `key` is the setting that says it.
void check_alibi_context(const Checkpoint& c, const ModelConfig& config, const std::string& key);

/// GGUF: rows of the embedding, where no setting says it.
int64_t gguf_vocab(const Checkpoint& c);

/// GGUF: what rope_freqs.weight holds, or nothing.
std::vector<float> gguf_rope_factors(const Checkpoint& c);

}  // namespace oq::convert
