// Chat templates against what Jinja renders (golden/chat.json), and what the REPL relies on.

#include "runtime/chat.h"

#include <doctest/doctest.h>

#include "runtime/tokenizer/utf8.h"
#include "tests/tokenizer/small_sentencepiece.h"
#include "tests/tokenizer/vocabularies.h"
#include "tools/convert/json.h"

namespace {

using nlohmann::json;
using oq::ChatMessage;
using oq::ChatRole;
using oq::ChatTemplate;
using oq::PrefixSpace;

std::vector<ChatMessage> messages_of(const json& list) {
  std::vector<ChatMessage> messages;
  for (const json& m : list) {
    const auto role = m["role"].get<std::string>();
    messages.push_back({role == "system" ? ChatRole::system
                        : role == "user" ? ChatRole::user
                                         : ChatRole::assistant,
                        m["content"].get<std::string>()});
  }
  return messages;
}

std::string text_of(const std::vector<oq::ChatPiece>& pieces) {
  std::string text;
  for (const auto& p : pieces) text += p.text;
  return text;
}

/// A cache that is fed turn by turn, as the REPL does it, holds the ids of the conversation, in
/// every template.
void check_turns(const oq::Tokenizer& tokenizer) {
  const std::vector<ChatMessage> talk = {{ChatRole::user, "abc aab"},
                                         {ChatRole::assistant, "11 abc"},
                                         {ChatRole::user, "aaaa"},
                                         {ChatRole::assistant, "aab"},
                                         {ChatRole::user, "bab"}};
  for (const std::string_view name : ChatTemplate::names()) {
    CAPTURE(std::string(name));
    const ChatTemplate& chat = ChatTemplate::named(name);
    auto ids = oq::encode_chat(tokenizer, chat, {talk.data(), 1}, true);
    const auto feed = [&](const std::vector<int32_t>& more) {
      ids.insert(ids.end(), more.begin(), more.end());
    };
    for (size_t answered = 1; answered < talk.size(); answered += 2) {
      const std::string answer = std::string(chat.answer_lead()) + talk[answered].text;
      feed(tokenizer.encode(answer, false, oq::TextStart::goes_on));
      const std::span<const ChatMessage> so_far(talk.data(), answered + 2);
      feed(oq::encode_chat_next(tokenizer, chat, so_far, answered, true));
      CHECK(ids == oq::encode_chat(tokenizer, chat, so_far, true));
    }
  }
}

std::string trimmed(std::string_view s) {
  s.remove_prefix(oq::leading_space(s));
  s.remove_suffix(oq::trailing_space(s));
  return std::string(s);
}

}  // namespace

TEST_CASE("templates render what Jinja renders, and are recognised") {
  const json golden = oq::convert::read_json(oq::test::golden("chat.json"));
  CHECK(golden.size() == ChatTemplate::names().size());
  for (const json& entry : golden) {
    const auto name = entry["name"].get<std::string>();
    CAPTURE(name);
    if (entry["published"].get<bool>()) {
      CHECK(ChatTemplate::recognise(entry["jinja"].get<std::string>()) == name);
    }
    for (const json& r : entry["renders"]) {
      CAPTURE(r.dump());
      const auto pieces = ChatTemplate::named(name).render(messages_of(r["messages"]),
                                                           r["open_answer"].get<bool>());
      CHECK(text_of(pieces) == r["text"].get<std::string>());
    }
  }
}

TEST_CASE("other templates are not taken for known ones") {
  CHECK(ChatTemplate::recognise("") == "unknown");
  CHECK(ChatTemplate::recognise("{{ messages[0]['content'] }}") == "unknown");
  CHECK(ChatTemplate::recognise("<|im_start|>You are Bob<|im_end|>") == "unknown");
  CHECK(ChatTemplate::recognise("<|im_start|>{% if enable_thinking %}<|im_end|>") == "unknown");
}

TEST_CASE("a template is found by name, and a wrong name lists the right ones") {
  for (const auto name : ChatTemplate::names()) CHECK(ChatTemplate::named(name).name() == name);
  CHECK_THROWS_WITH_AS(ChatTemplate::named("nope"), doctest::Contains("llama2"), oq::Error);
  oq::Metadata m;
  CHECK_THROWS_WITH_AS(ChatTemplate::of(m), doctest::Contains("--template"), oq::Error);
  m.set("chat.template", std::string("unknown"));
  CHECK_THROWS_WITH_AS(ChatTemplate::of(m), doctest::Contains("zephyr"), oq::Error);
  m.set("chat.template", std::string("smollm"));
  CHECK(ChatTemplate::of(m).name() == "smollm");
}

TEST_CASE("turns rendered one by one make the whole conversation") {
  const std::vector<ChatMessage> all = {{ChatRole::system, "Be kind."},  {ChatRole::user, " Hi "},
                                        {ChatRole::assistant, "Hello!"}, {ChatRole::user, "2+2?"},
                                        {ChatRole::assistant, "4"},      {ChatRole::user, "Bye"}};
  for (const auto name : ChatTemplate::names()) {
    for (const size_t first : {size_t(0), size_t(1)}) {  // with a system message, and without
      const std::vector<ChatMessage> talk(all.begin() + std::ptrdiff_t(first), all.end());
      const ChatTemplate& chat = ChatTemplate::named(name);
      CAPTURE(name);
      std::string cache;
      size_t answered = 0;
      for (size_t i = 0; i < talk.size(); ++i) {
        if (talk[i].role != ChatRole::user) continue;
        const std::span<const ChatMessage> so_far(talk.data(), i + 1);
        cache += text_of(answered == 0 ? chat.render(so_far, true)
                                       : chat.render_next(so_far, answered, true));
        CHECK(cache == text_of(chat.render(so_far, true)));
        if (i + 1 == talk.size()) break;
        answered = i + 1;
        cache += std::string(chat.answer_lead()) + trimmed(talk[answered].text);
      }
    }
  }
}

TEST_CASE("only the template's own words are searched for special tokens") {
  const ChatTemplate& chat = ChatTemplate::named("chatml");
  const std::vector<ChatMessage> talk = {{ChatRole::user, "x<|im_end|>y"}};
  for (const auto& piece : chat.render(talk, true)) {
    CHECK(piece.is_message == (piece.text == "x<|im_end|>y"));
  }
  auto data = oq::test::small_bpe();
  data.tokens.add("<|im_start|>", {.type = oq::TokenType::special});
  data.tokens.add("<|im_end|>", {.type = oq::TokenType::special});
  const auto tokenizer = oq::make_tokenizer(std::move(data), "test");
  const int32_t end = tokenizer->find_token("<|im_end|>");
  const auto ids = oq::encode_chat(*tokenizer, chat, talk, true);
  CHECK(std::count(ids.begin(), ids.end(), end) == 1);
  CHECK(std::count(ids.begin(), ids.end(), end - 1) == 2);

  const auto stops = oq::chat_stop_ids(*tokenizer, chat);
  CHECK(stops == std::vector<int32_t>{263, end});
}

TEST_CASE("ids of turns one by one are the ids of the whole") {
  auto data = oq::test::small_bpe();
  data.tokens.add("<|im_start|>", {.type = oq::TokenType::special});
  data.tokens.add("<|im_end|>", {.type = oq::TokenType::special});
  for (const auto prefix :
       {PrefixSpace::never, PrefixSpace::missing, PrefixSpace::first, PrefixSpace::always}) {
    data.prefix_space = prefix;
    check_turns(*oq::make_tokenizer(data, "test"));
  }
  auto model = oq::test::data_of(oq::test::small_sentencepiece());
  model.bos = 1;
  model.adds_bos = true;
  check_turns(*oq::make_tokenizer(model, "test"));
  model.tokens.add("<|im_start|>", {.type = oq::TokenType::special});
  model.tokens.add("<|im_end|>", {.type = oq::TokenType::special});
  check_turns(*oq::make_tokenizer(model, "test"));
}

TEST_SUITE("data") {
  TEST_CASE("ids of turns one by one are the ids of the whole, in real vocabularies") {
    for (const char* name : {"llama2", "llama2-gguf", "mixtral", "mistral", "metaspace"}) {
      auto data = oq::test::vocabulary(name);
      if (!data) continue;
      CAPTURE(name);
      check_turns(*oq::make_tokenizer(std::move(*data), name));
    }
  }
}

TEST_CASE("BOS goes before the templates that are only text") {
  auto data = oq::test::small_bpe();
  data.adds_bos = true;
  const auto tokenizer = oq::make_tokenizer(std::move(data), "test");
  const std::vector<ChatMessage> talk = {{ChatRole::user, "a"}};
  CHECK(oq::encode_chat(*tokenizer, ChatTemplate::named("plain"), talk, true)[0] == 262);
  CHECK(oq::encode_chat(*tokenizer, ChatTemplate::named("chatml"), talk, true)[0] == '<');
}

TEST_CASE("what a template cannot say is an error") {
  const std::vector<ChatMessage> talk = {{ChatRole::user, "a"}, {ChatRole::system, "b"}};
  CHECK_THROWS_AS(ChatTemplate::named("llama2").render(talk, true), oq::Error);
  CHECK_THROWS_AS(ChatTemplate::named("chatml").render_next(talk, 0, true), oq::Error);
  CHECK_THROWS_AS(ChatTemplate::named("chatml").render_next(talk, 2, true), oq::Error);
}
