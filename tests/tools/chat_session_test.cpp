// ChatSession at a context that is full: what it forgets, and that what it keeps decodes as if
// nothing else had ever been said.

#include "tools/run/chat_session.h"

#include "tests/tokenizer/small_sentencepiece.h"
#include "tests/tools/tools.h"

using namespace oq;
using namespace oq::test;

namespace {

const Generator::Show kSilent = [](std::string_view) {};

/// A model that never stops, its tokenizer, and a greedy session in a context of 128 positions. Its
/// sampler looks at everything that it thinks was said.
struct Chat {
  explicit Chat(std::string system = {}, int64_t context = 128, int64_t rows = 16)
      : decoder(file, make_cpu_backend(1), {.context = context, .max_rows = rows}),
        session(decoder, *tokenizer, sampler, chat, std::move(system), {},
                [this](int64_t turns) { drops.push_back(turns); }) {}

  Answer say(const std::string& text, int64_t max_tokens) {
    return session.say(text, max_tokens, kSilent, interrupted);
  }
  /// Greedy tokens after `prompt` in an empty cache, and the hash of the last logits.
  Answer fresh(std::span<const int32_t> prompt, int64_t max_tokens) {
    decoder.truncate(0);
    sampler.reset();
    Generator generator(decoder, *tokenizer, sampler, {}, {});
    return generator.run(prompt, max_tokens, kSilent, interrupted);
  }
  std::vector<int32_t> encode(std::span<const ChatMessage> messages) const {
    return encode_chat(*tokenizer, chat, messages, true);
  }
  /// The session's messages without the last answer.
  std::vector<ChatMessage> asked() const {
    auto messages = session.messages();
    messages.pop_back();
    return messages;
  }

  std::shared_ptr<const File> file = File::open(models().endless);
  std::unique_ptr<Tokenizer> tokenizer = Tokenizer::load(*file);
  const ChatTemplate& chat = ChatTemplate::named("chatml");
  Sampler sampler{{.temperature = 0, .repeat_penalty = 1.5, .repeat_window = 1000}};
  Decoder decoder;
  std::vector<int64_t> drops;
  std::atomic<bool> interrupted{false};
  ChatSession session;
};

bool same(const std::vector<ChatMessage>& a, const std::vector<ChatMessage>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](const auto& x, const auto& y) {
    return x.role == y.role && x.text == y.text;
  });
}

}  // namespace

TEST_CASE("a full context forgets its oldest turns, and the rest decodes as if they never were") {
  for (const std::string system : {"", "be brief"}) {
    Chat chat(system);
    Chat other(system);
    std::vector<ChatMessage> said;  // all that a memory without end would hold
    if (!system.empty()) said.push_back({ChatRole::system, system});
    const size_t first = said.size();
    for (int turn = 0; turn < 12; ++turn) {
      const size_t before = chat.drops.size();
      const std::string text = "cat " + std::to_string(turn);
      const Answer answer = chat.say(text, 12);
      CHECK(answer.ending == Ending::length);
      CHECK(answer.tokens.size() == 12);
      CHECK(chat.decoder.length() <= 128);
      said.push_back({ChatRole::user, text});
      said.push_back({ChatRole::assistant, answer.text});
      if (chat.drops.size() == before) continue;
      REQUIRE(chat.drops.size() == before + 1);
      CHECK(chat.drops.back() >= 1);
      // Whole turns went, the oldest, and never the system message.
      said.erase(said.begin() + std::ptrdiff_t(first),
                 said.begin() + std::ptrdiff_t(first) + 2 * chat.drops.back());
      CHECK(same(chat.session.messages(), said));
      const auto kept = other.encode(chat.asked());
      CHECK(kept.size() <= 64);
      const Answer expected = other.fresh(kept, 12);
      CHECK(answer.tokens == expected.tokens);
      CHECK(answer.stats.logits_hash == expected.stats.logits_hash);
    }
    CHECK(chat.drops.size() >= 2);
    CHECK(chat.drops.size() <= 6);  // not in every turn
  }
}

TEST_CASE("after turns are forgotten, the cache goes on with what was kept") {
  Chat chat;
  for (int turn = 0; chat.drops.empty(); ++turn) chat.say("cat " + std::to_string(turn), 12);
  const int64_t length = chat.decoder.length();
  const size_t drops = chat.drops.size();
  const Answer answer = chat.say("and", 4);
  REQUIRE(chat.drops.size() == drops);
  const auto next = encode_chat_next(*chat.tokenizer, chat.chat, chat.asked(),
                                     chat.session.messages().size() - 3, true);
  CHECK(answer.stats.prompt_tokens == int64_t(next.size()));
  CHECK(chat.decoder.length() == length + int64_t(next.size()) + 4);
}

TEST_CASE("an answer that reaches the end goes on behind what is kept") {
  Chat chat({}, 256);
  chat.say("the dog", 20);
  chat.say("the cat", 20);
  auto messages = chat.session.messages();
  messages.push_back({ChatRole::user, "on"});
  const auto next = encode_chat_next(*chat.tokenizer, chat.chat, messages, 3, true);
  const int64_t room = 256 - chat.decoder.length() - int64_t(next.size());
  REQUIRE(room > 64);  // a quarter: nothing is forgotten before the answer
  const Answer answer = chat.say("on", 500);
  CHECK(answer.ending == Ending::context_full);  // one turn alone fills it in the end
  CHECK(chat.drops == std::vector<int64_t>{2});
  REQUIRE(chat.session.messages().size() == 2);
  CHECK(chat.session.messages()[1].text == answer.text);

  // As many tokens as there was room for, one more from their logits, and then those of a cache
  // that never held the first turns.
  Chat other({}, 256);
  auto kept = other.encode(chat.asked());
  CHECK(kept.size() + answer.tokens.size() == 256);
  const auto rest = answer.tokens.begin() + room + 1;
  REQUIRE(answer.tokens.end() - rest > 20);
  kept.insert(kept.end(), answer.tokens.begin(), rest);
  const auto expected = other.fresh(kept, -1).tokens;
  CHECK(std::equal(rest, answer.tokens.end(), expected.begin(), expected.end()));
}

TEST_CASE("a message that is too long leaves the conversation as it was") {
  Chat chat("be brief"), undisturbed("be brief");
  std::string much;
  for (int i = 0; i < 200; ++i) much += " house";
  for (Chat* c : {&chat, &undisturbed}) {
    c->say("the dog", 12);
    c->say("the cat", 12);
  }
  const auto before = chat.session.messages();
  const int64_t length = chat.decoder.length();
  CHECK_THROWS_WITH_AS(chat.say(much, 12), doctest::Contains("--ctx"), Error);
  CHECK(same(chat.session.messages(), before));
  CHECK(chat.decoder.length() == length);
  CHECK(chat.drops.empty());
  const Answer answer = chat.say("and", 8), expected = undisturbed.say("and", 8);
  CHECK(answer.tokens == expected.tokens);
  CHECK(answer.stats.logits_hash == expected.stats.logits_hash);
  CHECK_THROWS_AS(Chat().say(much, 12), Error);  // nor is it taken as the first
}

TEST_CASE("interrupted while the kept turns are fed, nothing is forgotten") {
  Chat chat;
  int turn = 0;
  while (chat.decoder.length() < 80) chat.say("cat " + std::to_string(turn++), 12);
  const auto before = chat.session.messages();
  CHECK(chat.drops.empty());
  chat.interrupted = true;
  const Answer answer = chat.say("the house of the dog and the house of the cat", 30);
  CHECK(answer.ending == Ending::interrupted);
  CHECK(answer.tokens.empty());
  CHECK(chat.drops.size() == 1);
  CHECK(same(chat.session.messages(), before));
  chat.interrupted = false;
  const Answer next = chat.say("and", 4);  // all of it is fed again
  Chat other;
  CHECK(next.tokens == other.fresh(other.encode(chat.asked()), 4).tokens);
}

TEST_CASE("interrupted before the answer begins, the sampler forgets the question too") {
  Chat chat({}, 256, 256), undisturbed({}, 256, 256);  // a question in one step: fed, then left
  for (Chat* c : {&chat, &undisturbed}) c->say("the dog", 12);
  const Answer expected = undisturbed.say("and", 12);
  chat.interrupted = true;
  const Answer none = chat.say(expected.text, 12);  // the tokens that it should say next
  CHECK(none.ending == Ending::interrupted);
  CHECK(none.tokens.empty());
  chat.interrupted = false;
  CHECK(chat.say("and", 12).tokens == expected.tokens);
}

namespace {

/// Sentencepiece with a space before a text, where many tokens begin with one.
std::unique_ptr<Tokenizer> spaced_tokenizer() {
  SentencePieceModel model = small_sentencepiece();
  for (char c = 'A'; c <= 'Z'; ++c) {
    model.pieces.push_back({std::string("\xE2\x96\x81") + c, -float(model.pieces.size())});
  }
  return make_tokenizer(data_of(model), "test");
}

/// The first token of a space and a letter that no token before it has; the end where there is
/// none.
size_t find_cut(const Tokenizer& tokenizer, std::span<const int32_t> ids) {
  std::string before;
  for (size_t i = 0; i < ids.size(); ++i) {
    const std::string bytes = tokenizer.token_bytes(ids[i]);
    if (bytes.size() == 2 && before.find(bytes[1]) == std::string::npos) return i;
    before += bytes;
  }
  return ids.size();
}

}  // namespace

TEST_CASE("a stop string that cuts a token leaves what is before it, and no more") {
  const auto tokenizer = spaced_tokenizer();
  const auto file = File::open(models().endless);
  const ChatTemplate& chat = ChatTemplate::named("plain");
  const std::atomic<bool> interrupted{false};
  size_t cuts = 0;
  for (char letter = 'a'; letter <= 'z' && cuts < 4; ++letter) {
    Decoder decoder(file, make_cpu_backend(1), {.context = 256, .max_rows = 16});
    Sampler sampler({.temperature = 0, .repeat_penalty = 1.5, .repeat_window = 1000});
    const std::vector<ChatMessage> asked = {{ChatRole::user, std::string(1, letter)}};
    auto held = encode_chat(*tokenizer, chat, asked, true);
    const auto fresh = [&](std::span<const int32_t> ids) {
      decoder.truncate(0);
      sampler.reset();
      return Generator(decoder, *tokenizer, sampler, {}, {}).run(ids, 24, kSilent, interrupted);
    };
    const auto ids = fresh(held).tokens;
    const size_t cut = find_cut(*tokenizer, ids);
    if (cut == ids.size()) continue;
    ++cuts;

    const std::string stop = tokenizer->token_bytes(ids[cut]).substr(1);
    ChatSession session(decoder, *tokenizer, sampler, chat, "", {stop});
    const Answer answer = session.say(asked[0].text, 24, kSilent, interrupted);
    CHECK(answer.ending == Ending::stop_string);
    REQUIRE(answer.tokens.size() == cut + 1);
    held.insert(held.end(), ids.begin(), ids.begin() + std::ptrdiff_t(cut));
    held.push_back(tokenizer->find_token("\xE2\x96\x81"));  // the space, once
    CHECK(decoder.length() == int64_t(held.size()));

    auto messages = session.messages();
    messages.push_back({ChatRole::user, "ab"});
    const auto next = encode_chat_next(*tokenizer, chat, messages, 1, true);
    held.insert(held.end(), next.begin(), next.end());
    const Answer second = session.say("ab", 1, kSilent, interrupted);
    CHECK(second.tokens[0] == fresh(held).tokens[0]);
  }
  CHECK(cuts == 4);
}
