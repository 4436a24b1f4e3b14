#pragma once

#include <atomic>
#include <functional>
#include <string>
#include <vector>

#include "runtime/chat.h"
#include "tools/run/generator.h"

namespace oq {

/// A conversation whose KV cache stays between turns: each turn feeds only what is new.
///
/// When the context is full, the oldest turns (a question with its answer) are forgotten until what
/// is kept fills no more than half of it, and that is fed again; the system message stays. Half,
/// because feeding is what takes long: dropping no more than must go would do it in every turn from
/// then on. It is full when less is left than an answer may want: its `max_tokens`, or a quarter of
/// the context where that is less. An answer that reaches the end all the same goes on behind what
/// is kept.
class ChatSession {
 public:
  /// Told how many turns were just forgotten, before the rest is fed again.
  using OnDrop = std::function<void(int64_t turns)>;

  ChatSession(Decoder& decoder, const Tokenizer& tokenizer, Sampler& sampler,
              const ChatTemplate& chat, std::string system, std::vector<std::string> stop_strings,
              OnDrop on_drop = {});

  /// One user's turn and its answer. When it throws, as it does when the question alone does not
  /// fit the context, or is interrupted before the answer begins, the conversation is as it was
  /// before.
  Answer say(std::string text, int64_t max_tokens, const Generator::Show& show,
             const std::atomic<bool>& interrupted);

  /// Forgets the conversation; the system message stays.
  void reset();
  /// Sets the system message ("" for the template's default) and starts over.
  void set_system(std::string text);

  /// What is remembered: the system message, then questions and answers in turn.
  const std::vector<ChatMessage>& messages() const { return messages_; }
  const RunStats& stats() const { return stats_; }  ///< of all turns

 private:
  std::vector<int32_t> next_prompt(int64_t max_tokens);
  std::vector<int32_t> drop_turns(std::span<const int32_t> answer);
  void keep_answer(const Answer& answer);
  void truncate(int64_t length);

  Decoder& decoder_;
  const Tokenizer& tokenizer_;
  Sampler& sampler_;
  const ChatTemplate& chat_;
  Generator generator_;
  std::string system_;
  std::vector<ChatMessage> messages_;  ///< the cache holds them up to the last, or it is empty
  OnDrop on_drop_;
  RunStats stats_;
};

}  // namespace oq
