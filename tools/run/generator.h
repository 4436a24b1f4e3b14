#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/decoder.h"
#include "runtime/sampler.h"
#include "runtime/tokenizer/text_stream.h"
#include "runtime/tokenizer/tokenizer.h"

namespace oq {

/// What a run did, for the closing line: tokens, seconds, bytes.
struct RunStats {
  int64_t prompt_tokens = 0, decode_tokens = 0;
  double prompt_seconds = 0, decode_seconds = 0;
  double decode_bytes = 0;   ///< of weights and KV cache that decoding read
  uint32_t logits_hash = 0;  ///< CRC-32C of the last logits: equal runs have equal hashes

  RunStats& operator+=(const RunStats& other);
  /// "prompt 12 tokens, 512.0 tokens/s; decode ..."; with the process's own memory.
  std::string line() const;
};

/// Why an answer ended. `context_full`: the answer and what must stand before it fill the context.
enum class Ending { stop_token, stop_string, length, context_full, interrupted };

std::string_view to_string(Ending e);

struct Answer {
  std::string text;             ///< without the stop string
  std::vector<int32_t> tokens;  ///< all but a stop token; they are in the KV cache
  Ending ending = Ending::length;
  RunStats stats;
};

/// Feeds a prompt to a decoder and lets it go on, token by token.
class Generator {
 public:
  /// Text that is certain, as it comes; whole characters only.
  using Show = std::function<void(std::string_view)>;
  /// Asked when the context is full in the middle of an answer: what the cache is to hold instead
  /// of all it has, with the answer's tokens so far at its end; nothing to let the answer end.
  using MakeRoom = std::function<std::vector<int32_t>(std::span<const int32_t> answer)>;

  Generator(Decoder& decoder, const Tokenizer& tokenizer, Sampler& sampler,
            std::vector<int32_t> stop_ids, std::vector<std::string> stop_strings)
      : decoder_(decoder),
        tokenizer_(tokenizer),
        sampler_(sampler),
        stop_ids_(std::move(stop_ids)),
        stop_strings_(std::move(stop_strings)) {}

  /// Appends `prompt` to sequence 0, whose tokens so far the sampler knows, and answers with at
  /// most `max_tokens` tokens (-1: until the context is full and `make_room` makes none). Ends
  /// early when `interrupted` becomes true: between two tokens, or between two steps of the prompt,
  /// which is then forgotten: with what `make_room` gave, all of it.
  Answer run(std::span<const int32_t> prompt, int64_t max_tokens, const Show& show,
             const std::atomic<bool>& interrupted, const MakeRoom& make_room = {});

 private:
  /// Tells the sampler too. False, and nothing of it in the cache, when interrupted on the way.
  bool feed_prompt(std::span<const int32_t> prompt, const std::atomic<bool>& interrupted,
                   RunStats& stats);
  /// Whether the cache has a place for one more token, perhaps after `make_room`. False leaves it
  /// as it is, or empty when interrupted.
  bool has_room(const Answer& answer, const std::atomic<bool>& interrupted,
                const MakeRoom& make_room, RunStats& stats);

  Decoder& decoder_;
  const Tokenizer& tokenizer_;
  Sampler& sampler_;
  std::vector<int32_t> stop_ids_;
  std::vector<std::string> stop_strings_;
};

}  // namespace oq
