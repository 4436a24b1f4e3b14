#include "runtime/chat.h"

#include <algorithm>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "format/error.h"
#include "runtime/tokenizer/utf8.h"

namespace oq {
namespace {

void add(std::vector<ChatPiece>& out, std::string_view text, bool is_message = false) {
  if (text.empty()) return;
  if (!out.empty() && out.back().is_message == is_message) {
    out.back().text += text;
  } else {
    out.push_back({std::string(text), is_message});
  }
}

/// From the left, never inside of what it has put there.
void replace_all(std::string& text, std::string_view from, std::string_view to) {
  for (size_t at = 0; (at = text.find(from, at)) != std::string::npos; at += to.size()) {
    text.replace(at, from.size(), to);
  }
}

/// A template is known by strings that its Jinja source has, and others that it has not. The first
/// row that fits names it.
struct Fingerprint {
  std::string_view name;
  std::vector<std::string_view> has, lacks;
};

const std::vector<Fingerprint>& fingerprints() {
  static const std::vector<Fingerprint> rows = {
      {"smollm", {"<|im_start|>", "<|im_end|>", "You are a helpful AI assistant named SmolLM"}, {}},
      {"qwen2.5", {"<|im_start|>", "<|im_end|>", "You are Qwen, created by Alibaba Cloud."}, {}},
      {"qwen2",
       {"<|im_start|>", "<|im_end|>", "messages[0]['role'] != 'system'",
        "<|im_start|>system\\nYou are a helpful assistant"},
       {"<think>"}},
      {"qwen2",
       {"<|im_start|>", "<|im_end|>", "messages[0]['role'] != 'system'",
        "<|im_start|>system\nYou are a helpful assistant"},
       {"<think>"}},
      {"chatml", {"<|im_start|>", "<|im_end|>"}, {"You are", "<think>", "enable_thinking"}},
      {"llama3.1", {"<|start_header_id|>", "<|eot_id|>", "Cutting Knowledge Date"}, {}},
      {"llama3",
       {"<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "| trim"},
       {"You are", "tools"}},
      {"llama2", {"[INST]", "[/INST]", "<<SYS>>", "content.strip()"}, {}},
      {"mistral-v0.1",
       {"'[INST] ' + message['content'] + ' [/INST]'", "message['content'] + eos_token + ' '"},
       {"<<SYS>>", "tools", "' ' + message['content'] + eos_token"}},
      {"mistral-spaced",
       {R"(" [INST] " + message["content"] + " [/INST]")",
        R"(" " + message["content"] + eos_token)"},
       {"<<SYS>>", "tools"}},
      {"mistral-v0.3",
       {R"("[INST] " + message["content"] + "[/INST]")",
        R"(" " + message["content"]|trim + eos_token)"},
       {"<<SYS>>", R"(" [INST])"}},
      {"falcon", {"User: ' + message['content'].strip().replace(", "Assistant:' }}"}, {}},
      {"mistral",
       {"'[INST] ' + message['content'] + ' [/INST]'", "message['content'] + eos_token"},
       {"<<SYS>>", "tools", "' ' + message['content'] + eos_token",
        "message['content'] + eos_token + ' '"}},
      {"zephyr",
       {"'<|user|>\\n' + message['content'] + eos_token",
        "'<|assistant|>\\n'  + message['content'] + eos_token"},
       {}},
      {"zephyr",
       {"'<|user|>\n' + message['content'] + eos_token",
        "'<|assistant|>\n'  + message['content'] + eos_token"},
       {}},
      {"vicuna", {"'USER: '", "'ASSISTANT: '"}, {}},
  };
  return rows;
}

}  // namespace

/// All templates. Sources: the checkpoints' own chat templates; FastChat for vicuna and Stanford
/// Alpaca's prompt for alpaca, which came without one. "plain" is ours, for models that were never
/// taught a format.
struct ChatTemplate::Table {
  std::vector<ChatTemplate> rows;

  static const Table& get() {
    static const Table table = make();
    return table;
  }

  static Table make() {
    Table t;
    ChatTemplate chatml;
    chatml.name_ = "chatml";
    chatml.system_ = {"<|im_start|>system\n", "<|im_end|>\n"};
    chatml.user_ = {"<|im_start|>user\n", "<|im_end|>\n"};
    chatml.assistant_ = {"<|im_start|>assistant\n", "<|im_end|>\n"};
    chatml.answer_open_ = chatml.assistant_.open;
    chatml.stop_tokens_ = {"<|im_end|>", "<|endoftext|>"};
    t.rows.push_back(chatml);
    t.add_like(chatml, "smollm",
               "You are a helpful AI assistant named SmolLM, trained by Hugging Face");
    t.add_like(chatml, "qwen2", "You are a helpful assistant.");
    t.add_like(chatml, "qwen2.5",
               "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.");
    t.add_llamas();
    t.add_mistrals();
    t.add_text_templates();
    return t;
  }

  void add_like(ChatTemplate base, std::string_view name, std::string_view system) {
    base.name_ = name;
    base.default_system_ = system;
    rows.push_back(base);
  }

  void add_llamas() {
    ChatTemplate llama2;
    llama2.name_ = "llama2";
    llama2.system_ = {"<<SYS>>\n", "\n<</SYS>>\n\n"};
    llama2.user_ = {"<s>[INST] ", " [/INST]"};
    llama2.assistant_ = {" ", " </s>"};
    llama2.answer_lead_ = " ";
    llama2.system_in_user_ = true;
    llama2.trim_ = Trim::all;
    llama2.stop_tokens_ = {"</s>"};
    rows.push_back(llama2);

    ChatTemplate llama3;
    llama3.name_ = "llama3";
    llama3.start_ = "<|begin_of_text|>";
    llama3.system_ = {"<|start_header_id|>system<|end_header_id|>\n\n", "<|eot_id|>"};
    llama3.user_ = {"<|start_header_id|>user<|end_header_id|>\n\n", "<|eot_id|>"};
    llama3.assistant_ = {"<|start_header_id|>assistant<|end_header_id|>\n\n", "<|eot_id|>"};
    llama3.answer_open_ = llama3.assistant_.open;
    llama3.trim_ = Trim::all;
    llama3.stop_tokens_ = {"<|eot_id|>", "<|end_of_text|>", "<|eom_id|>"};
    rows.push_back(llama3);

    // LLaMA-3.1 and 3.2 state the date in the system turn. OQ has no clock in its output: it writes
    // the date that their template falls back to where it has none either.
    ChatTemplate dated = llama3;
    dated.name_ = "llama3.1";
    dated.system_.open =
        "<|start_header_id|>system<|end_header_id|>\n\n"
        "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n";
    dated.always_system_ = true;
    rows.push_back(dated);
  }

  /// Mistral's checkpoints of one format differ in their spaces, and so do revisions of one
  /// checkpoint. Where a template writes a system message into the last turn (v0.3), it stands here
  /// in the first, so that a cache can hold what was said.
  void add_mistrals() {
    ChatTemplate mistral;
    mistral.name_ = "mistral";  // Mixtral and v0.2 as first published
    mistral.start_ = "<s>";
    mistral.system_ = {"", "\n\n"};
    mistral.user_ = {"[INST] ", " [/INST]"};
    mistral.assistant_ = {"", "</s>"};
    mistral.system_in_user_ = true;
    mistral.stop_tokens_ = {"</s>"};
    rows.push_back(mistral);

    ChatTemplate first = mistral;
    first.name_ = "mistral-v0.1";
    first.assistant_.close = "</s> ";
    rows.push_back(first);

    ChatTemplate spaced = mistral;  // v0.1, v0.2 and Mixtral since the summer of 2024
    spaced.name_ = "mistral-spaced";
    spaced.user_.open = " [INST] ";
    spaced.assistant_.open = " ";
    spaced.answer_lead_ = " ";
    rows.push_back(spaced);

    ChatTemplate third = spaced;
    third.name_ = "mistral-v0.3";
    third.user_ = {"[INST] ", "[/INST]"};
    third.trim_ = Trim::answers;
    rows.push_back(third);
  }

  void add_text_templates() {
    ChatTemplate zephyr;
    zephyr.name_ = "zephyr";
    zephyr.system_ = {"<|system|>\n", "</s>\n"};
    zephyr.user_ = {"<|user|>\n", "</s>\n"};
    zephyr.assistant_ = {"<|assistant|>\n", "</s>\n"};
    zephyr.answer_open_ = zephyr.assistant_.open;
    zephyr.stop_tokens_ = {"</s>"};
    rows.push_back(zephyr);

    ChatTemplate falcon;
    falcon.name_ = "falcon";
    falcon.user_.open = "\n\nUser: ";
    falcon.assistant_.open = "\n\nAssistant: ";
    falcon.answer_open_ = "\n\nAssistant:";
    falcon.answer_lead_ = " ";
    falcon.trim_ = Trim::all;
    falcon.joins_lines_ = true;
    falcon.stop_tokens_ = {"<|endoftext|>"};
    falcon.stop_strings_ = {"\nUser:"};
    rows.push_back(falcon);

    ChatTemplate vicuna;
    vicuna.name_ = "vicuna";
    vicuna.system_ = {"", " "};
    vicuna.user_ = {"USER: ", " "};
    vicuna.assistant_ = {"ASSISTANT: ", "</s>"};
    vicuna.answer_open_ = "ASSISTANT:";
    vicuna.answer_lead_ = " ";
    vicuna.default_system_ =
        "A chat between a curious user and an artificial intelligence assistant. The assistant "
        "gives helpful, detailed, and polite answers to the user's questions.";
    vicuna.bos_first_ = true;
    vicuna.stop_tokens_ = {"</s>"};
    vicuna.stop_strings_ = {"USER:"};
    rows.push_back(vicuna);

    ChatTemplate alpaca;
    alpaca.name_ = "alpaca";
    alpaca.system_ = {"", "\n\n"};
    alpaca.user_ = {"### Instruction:\n", "\n\n"};
    alpaca.assistant_ = {"### Response:\n", "\n\n"};
    alpaca.answer_open_ = alpaca.assistant_.open;
    alpaca.default_system_ =
        "Below is an instruction that describes a task. Write a response that appropriately "
        "completes the request.";
    alpaca.bos_first_ = true;
    alpaca.stop_strings_ = {"### Instruction:"};
    rows.push_back(alpaca);

    ChatTemplate plain;
    plain.name_ = "plain";
    plain.system_ = {"", "\n\n"};
    plain.user_ = {"User: ", "\n"};
    plain.assistant_ = {"Assistant: ", "\n"};
    plain.answer_open_ = "Assistant:";
    plain.answer_lead_ = " ";
    plain.bos_first_ = true;
    plain.stop_strings_ = {"\nUser:"};
    rows.push_back(plain);
  }
};

std::vector<std::string_view> ChatTemplate::names() {
  std::vector<std::string_view> names;
  for (const ChatTemplate& t : Table::get().rows) names.push_back(t.name_);
  return names;
}

const ChatTemplate& ChatTemplate::named(std::string_view name) {
  for (const ChatTemplate& t : Table::get().rows) {
    if (t.name_ == name) return t;
  }
  throw Error({.what = "no chat template of this name",
               .expected = fmt::format("{}", fmt::join(names(), ", ")),
               .found = "'" + std::string(name) + "'",
               .hint = "choose one with --template"});
}

const ChatTemplate& ChatTemplate::of(const Metadata& metadata) {
  const std::string name = metadata.get_or<std::string>("chat.template", "");
  if (!name.empty() && name != "unknown") return named(name);
  throw Error({.what = name.empty() ? "the model names no chat template"
                                    : "the model's chat template is not one that OQ knows",
               .where = "chat.template",
               .hint = fmt::format("choose one with --template: {}", fmt::join(names(), ", "))});
}

std::string ChatTemplate::recognise(std::string_view jinja) {
  const auto has = [&](std::string_view s) { return jinja.find(s) != std::string_view::npos; };
  for (const Fingerprint& row : fingerprints()) {
    if (std::all_of(row.has.begin(), row.has.end(), has) &&
        std::none_of(row.lacks.begin(), row.lacks.end(), has)) {
      return std::string(row.name);
    }
  }
  return "unknown";
}

const ChatTemplate::Turn& ChatTemplate::turn(ChatRole role) const {
  return role == ChatRole::system ? system_ : role == ChatRole::user ? user_ : assistant_;
}

std::vector<ChatPiece> ChatTemplate::render(std::span<const ChatMessage> messages,
                                            bool open_answer) const {
  std::vector<ChatPiece> out;
  add(out, start_);
  const bool has_system = !messages.empty() && messages[0].role == ChatRole::system;
  if (!has_system && (always_system_ || !default_system_.empty())) {
    add(out, system_.open);
    add(out, default_system_);
    add(out, system_.close);
  }
  render_from(messages, 0, open_answer, out);
  return out;
}

std::vector<ChatPiece> ChatTemplate::render_next(std::span<const ChatMessage> messages,
                                                 size_t answered, bool open_answer) const {
  if (answered >= messages.size() || messages[answered].role != ChatRole::assistant) {
    throw Error({.what = "message " + std::to_string(answered) + " is no answer"});
  }
  std::vector<ChatPiece> out;
  add(out, assistant_.close);
  render_from(messages, answered + 1, open_answer, out);
  return out;
}

/// A message's words as the template writes them; `leads`: others stand before them in its turn.
std::string ChatTemplate::shown(const ChatMessage& message, bool leads) const {
  std::string_view words = message.text;
  const bool trims =
      trim_ == Trim::all || (trim_ == Trim::answers && message.role == ChatRole::assistant);
  if (trims) {
    words.remove_suffix(trailing_space(words));
    if (!leads) words.remove_prefix(leading_space(words));
  }
  std::string text(words);
  if (joins_lines_ && message.role != ChatRole::system) {
    replace_all(text, "\r\n", "\n");
    replace_all(text, "\n\n", "\n");
  }
  return text;
}

void ChatTemplate::render_from(std::span<const ChatMessage> messages, size_t first,
                               bool open_answer, std::vector<ChatPiece>& out) const {
  for (size_t i = first; i < messages.size(); ++i) {
    const ChatRole role = messages[i].role;
    if (role == ChatRole::system && system_in_user_) {
      if (i == 0) continue;  // its user's turn writes it
      throw Error({.what = "chat template '" + std::string(name_) +
                           "' has a place for a system message only before all others",
                   .where = "message " + std::to_string(i)});
    }
    add(out, turn(role).open);
    const bool leads = system_in_user_ && i == 1 && messages[0].role == ChatRole::system;
    if (leads) {
      add(out, system_.open);
      add(out, messages[0].text, true);
      add(out, system_.close);
    }
    add(out, shown(messages[i], leads), true);
    add(out, turn(role).close);
  }
  if (open_answer) add(out, answer_open_);
}

namespace {

std::vector<int32_t> encode(const Tokenizer& tokenizer, const std::vector<ChatPiece>& pieces,
                            TextStart start) {
  std::vector<TextPiece> texts;
  for (const ChatPiece& p : pieces) texts.push_back({p.text, !p.is_message});
  return tokenizer.encode_pieces(texts, start);
}

}  // namespace

std::vector<int32_t> encode_chat(const Tokenizer& tokenizer, const ChatTemplate& chat,
                                 std::span<const ChatMessage> messages, bool open_answer) {
  std::vector<int32_t> ids =
      encode(tokenizer, chat.render(messages, open_answer), TextStart::begins);
  if (chat.bos_first() && tokenizer.adds_bos()) ids.insert(ids.begin(), tokenizer.bos());
  return ids;
}

std::vector<int32_t> encode_chat_next(const Tokenizer& tokenizer, const ChatTemplate& chat,
                                      std::span<const ChatMessage> messages, size_t answered,
                                      bool open_answer) {
  return encode(tokenizer, chat.render_next(messages, answered, open_answer), TextStart::goes_on);
}

std::vector<int32_t> chat_stop_ids(const Tokenizer& tokenizer, const ChatTemplate& chat) {
  std::vector<int32_t> ids(tokenizer.stop_ids().begin(), tokenizer.stop_ids().end());
  for (const std::string_view name : chat.stop_tokens()) {
    const int32_t id = tokenizer.find_token(name);
    if (id >= 0 && std::find(ids.begin(), ids.end(), id) == ids.end()) ids.push_back(id);
  }
  return ids;
}

}  // namespace oq
