#pragma once

#include <atomic>
#include <string>
#include <vector>

#include "runtime/chat.h"
#include "tools/run/generator.h"

namespace oq {

/// A conversation whose KV cache stays between turns: each turn feeds only what is new.
class ChatSession {
 public:
  ChatSession(Decoder& decoder, const Tokenizer& tokenizer, Sampler& sampler,
              const ChatTemplate& chat, std::string system, std::vector<std::string> stop_strings);

  /// One user's turn and its answer. When it throws, or is interrupted before
  /// the answer begins, the conversation is as it was before.
  Answer say(std::string text, int64_t max_tokens, const Generator::Show& show,
             const std::atomic<bool>& interrupted);

  /// Forgets the conversation; the system message stays.
  void reset();
  /// Sets the system message ("" for the template's default) and starts over.
  void set_system(std::string text);

  const RunStats& stats() const { return stats_; }  ///< of all turns

 private:
  void keep_answer(const Answer& answer, int64_t start);

  Decoder& decoder_;
  const Tokenizer& tokenizer_;
  Sampler& sampler_;
  const ChatTemplate& chat_;
  Generator generator_;
  std::string system_;
  std::vector<ChatMessage> messages_;
  RunStats stats_;
};

}  // namespace oq
