#include "tools/convert/tokenizer_habits.h"

#include <algorithm>
#include <string_view>

#include "runtime/chat.h"
#include "tools/convert/sha256.h"

namespace oq::convert {
namespace {

/// Tokens that end an answer in one family or another. Each counts where the chat template writes
/// it and the vocabulary has it as a special token.
constexpr std::string_view kEndTokens[] = {"<|im_end|>",      "<|eot_id|>",      "<|eom_id|>",
                                           "<|end_of_text|>", "<|endoftext|>",   "<|end|>",
                                           "<end_of_turn>",   "<|end_of_turn|>", "</s>"};

}  // namespace

TokenizerData with_habits(TokenizerData data, const TokenizerHabits& habits) {
  const auto tokenizer = make_tokenizer(data, habits.where);
  const auto stop = [&](int64_t id) {
    const auto& ids = data.stop_ids;
    if (id < 0 || id >= tokenizer->vocab_size()) return;
    if (std::find(ids.begin(), ids.end(), id) == ids.end()) data.stop_ids.push_back(int32_t(id));
  };
  if (!habits.bos.empty()) data.bos = tokenizer->find_token(habits.bos);
  if (habits.adds_bos) data.adds_bos = *habits.adds_bos;
  if (data.bos < 0) data.adds_bos = false;
  if (!habits.eos.empty()) stop(tokenizer->find_token(habits.eos));
  for (const int64_t id : habits.stop_ids) stop(id);
  if (!habits.jinja.empty()) {
    data.chat_template = ChatTemplate::recognise(habits.jinja);
    Sha256 hash;
    hash.update(std::as_bytes(std::span(habits.jinja)));
    data.chat_template_hash = hash.hex();
    for (const std::string_view name : kEndTokens) {
      if (habits.jinja.find(name) == std::string::npos) continue;
      const int32_t id = tokenizer->find_token(name);
      if (id >= 0 && tokenizer->token_bytes(id).empty()) stop(id);
    }
  }
  make_tokenizer(data, habits.where);  // with its ids this time
  return data;
}

}  // namespace oq::convert
