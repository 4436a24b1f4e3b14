#include "tools/run/chat_session.h"

#include <algorithm>
#include <utility>

#include "format/error.h"

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
                         std::vector<std::string> stop_strings, OnDrop on_drop)
    : decoder_(decoder),
      tokenizer_(tokenizer),
      sampler_(sampler),
      chat_(chat),
      generator_(decoder, tokenizer, sampler, chat_stop_ids(tokenizer, chat),
                 with_template_stops(chat, std::move(stop_strings))),
      system_(std::move(system)),
      on_drop_(std::move(on_drop)) {
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

/// The cache and what the sampler knows of it.
void ChatSession::truncate(int64_t length) {
  decoder_.truncate(length);
  sampler_.truncate(length);
}

/// What to feed for the question that was just added, so that an answer has room.
std::vector<int32_t> ChatSession::next_prompt(int64_t max_tokens) {
  std::vector<int32_t> prompt =
      decoder_.length() == 0
          ? encode_chat(tokenizer_, chat_, messages_, true)
          : encode_chat_next(tokenizer_, chat_, messages_, messages_.size() - 2, true);
  const int64_t context = decoder_.context();
  const int64_t left = context - decoder_.length() - int64_t(prompt.size());
  const int64_t wanted = max_tokens < 0 ? context / 4 : std::min(max_tokens, context / 4);
  if (left >= std::max<int64_t>(wanted, 1)) return prompt;
  std::vector<int32_t> kept = drop_turns({});
  if (!kept.empty()) {
    truncate(0);
    return kept;
  }
  if (left >= 1) return prompt;  // nothing to forget: the answer has to do with what is left
  throw Error({.what = "the message does not fit the context",
               .expected = "less than " + std::to_string(context) + " tokens",
               .found = std::to_string(context - left),
               .hint = "shorten it, or make the context larger with --ctx"});
}

/// Forgets the oldest turns and returns the rest, with the answer so far; nothing, and forgets
/// nothing, where there is no turn to forget or the rest is too long all the same.
std::vector<int32_t> ChatSession::drop_turns(std::span<const int32_t> answer) {
  std::vector<ChatMessage> kept = messages_;
  auto oldest = kept.begin() + (kept[0].role == ChatRole::system ? 1 : 0);
  std::vector<int32_t> ids;
  const auto most = size_t(decoder_.context() / 2);
  while (kept.end() - oldest > 1 && (ids.empty() || ids.size() > most)) {
    oldest = kept.erase(oldest, oldest + 2);
    ids = encode_chat(tokenizer_, chat_, kept, true);
    ids.insert(ids.end(), answer.begin(), answer.end());
  }
  if (int64_t(ids.size()) >= decoder_.context()) return {};
  const auto dropped = int64_t(messages_.size() - kept.size()) / 2;
  messages_ = std::move(kept);
  if (dropped > 0 && on_drop_) on_drop_(dropped);
  return ids;
}

/// Takes what stopped the answer out of the cache again: keeps the tokens that lie inside its text,
/// and feeds what is left of it.
void ChatSession::keep_answer(const Answer& answer) {
  const int64_t start = decoder_.length() - int64_t(answer.tokens.size());
  std::string kept;
  int64_t tokens = 0;
  for (int32_t id : answer.tokens) {
    const std::string bytes = tokenizer_.token_bytes(id);
    if (kept.size() + bytes.size() > answer.text.size()) break;
    kept += bytes;
    ++tokens;
  }
  truncate(start + tokens);
  const auto rest = tokenizer_.encode(std::string_view(answer.text).substr(kept.size()), false,
                                      TextStart::goes_on);
  if (!rest.empty()) decoder_.append(rest);
  for (int32_t id : rest) sampler_.accept(id);
}

Answer ChatSession::say(std::string text, int64_t max_tokens, const Generator::Show& show,
                        const std::atomic<bool>& interrupted) {
  const std::vector<ChatMessage> before = messages_;
  const int64_t length = decoder_.length();
  const auto restore = [&] {
    const bool dropped = messages_.size() != before.size() + 1;
    messages_ = before;
    truncate(dropped || decoder_.length() < length ? 0 : length);
  };
  messages_.push_back({ChatRole::user, std::move(text)});
  try {
    const std::vector<int32_t> prompt = next_prompt(max_tokens);
    Answer answer =
        generator_.run(prompt, max_tokens, show, interrupted,
                       [this](std::span<const int32_t> so_far) { return drop_turns(so_far); });
    if (answer.ending == Ending::interrupted && answer.tokens.empty()) {
      restore();
      return answer;
    }
    if (answer.ending == Ending::stop_string) keep_answer(answer);
    std::string_view said = answer.text;
    if (said.starts_with(chat_.answer_lead())) said.remove_prefix(chat_.answer_lead().size());
    messages_.push_back({ChatRole::assistant, std::string(said)});
    stats_ += answer.stats;
    return answer;
  } catch (...) {
    restore();
    throw;
  }
}

}  // namespace oq
