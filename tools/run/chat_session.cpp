#include "tools/run/chat_session.h"

#include <utility>

namespace oq {
namespace {

std::vector<std::string> with_template_stops(const ChatTemplate& chat,
                                             std::vector<std::string> stops) {
  for (std::string_view s : chat.stop_strings()) stops.emplace_back(s);
  return stops;
}

}  // namespace

ChatSession::ChatSession(Decoder& decoder, const Tokenizer& tokenizer, Sampler& sampler,
                         const ChatTemplate& chat, std::string system,
                         std::vector<std::string> stop_strings)
    : decoder_(decoder),
      tokenizer_(tokenizer),
      sampler_(sampler),
      chat_(chat),
      generator_(decoder, tokenizer, sampler, chat_stop_ids(tokenizer, chat),
                 with_template_stops(chat, std::move(stop_strings))),
      system_(std::move(system)) {
  reset();
}

void ChatSession::reset() {
  decoder_.truncate(0);
  sampler_.reset();
  messages_.clear();
  if (!system_.empty()) messages_.push_back({ChatRole::system, system_});
}

void ChatSession::set_system(std::string text) {
  system_ = std::move(text);
  reset();
}

/// Takes what stopped the answer out of the cache again: keeps the tokens that lie inside its text,
/// and feeds what is left of it.
void ChatSession::keep_answer(const Answer& answer, int64_t start) {
  std::string kept;
  int64_t tokens = 0;
  for (int32_t id : answer.tokens) {
    const std::string bytes = tokenizer_.token_bytes(id);
    if (kept.size() + bytes.size() > answer.text.size()) break;
    kept += bytes;
    ++tokens;
  }
  decoder_.truncate(start + tokens);
  const auto rest = tokenizer_.encode(std::string_view(answer.text).substr(kept.size()), false);
  if (!rest.empty()) decoder_.feed(rest);
}

Answer ChatSession::say(std::string text, int64_t max_tokens, const Generator::Show& show,
                        const std::atomic<bool>& interrupted) {
  const bool first = messages_.empty() || messages_.back().role == ChatRole::system;
  const int64_t length = decoder_.length();
  const size_t answered = messages_.size() - 1;  // unused on the first turn
  messages_.push_back({ChatRole::user, std::move(text)});
  try {
    const auto prompt = first ? encode_chat(tokenizer_, chat_, messages_, true)
                              : encode_chat_next(tokenizer_, chat_, messages_, answered, true);
    Answer answer = generator_.run(prompt, max_tokens, show, interrupted);
    if (decoder_.length() == length) {  // interrupted before the answer began
      messages_.pop_back();
      return answer;
    }
    if (answer.ending == Ending::stop_string) {
      keep_answer(answer, length + int64_t(prompt.size()));
    }
    messages_.push_back({ChatRole::assistant, answer.text});
    stats_ += answer.stats;
    return answer;
  } catch (...) {
    messages_.pop_back();
    decoder_.truncate(length);
    throw;
  }
}

}  // namespace oq
