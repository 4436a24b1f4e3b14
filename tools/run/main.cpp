#include <algorithm>
#include <atomic>

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <signal.h>

#include "format/weak_file.h"
#include "tools/common/backend.h"
#include "tools/common/json.h"
#include "tools/common/text_file.h"
#include "tools/run/repl.h"

namespace {

using namespace oq;

std::atomic<bool> interrupted{false};

/// Ctrl-C stops an answer, and not the program; a second one before the answer has noticed the
/// first ends it after all.
void on_interrupt(int) {
  if (interrupted.exchange(true)) _exit(130);
}

struct Options {
  std::string model, weak, prompt, file, system, template_name, backend = "auto";
  std::vector<std::string> stops;
  int64_t max_tokens = -2, context = 0;
  SamplerParams sampling{.temperature = -1, .top_p = -1};  ///< -1: not given
  int threads = 0;
  Pages pages = Pages::ordinary;
  int kv_bits = 0;
  bool chat = false, exact = false, json = false, quiet = false;
};

/// A probability that is not 0: CLI::Range has its bounds in it.
std::string check_top_p(const std::string& text) {
  double p = 0;
  if (CLI::detail::lexical_cast(text, p) && p > 0 && p <= 1) return {};
  return "Value " + text + " is not above 0, up to 1";
}

void add_options(CLI::App& app, Options& o) {
  const auto views = ChatTemplate::names();
  const std::vector<std::string> names(views.begin(), views.end());
  app.add_option("MODEL", o.model, "a .oq file")->required();
  auto* prompt = app.add_option("-p,--prompt", o.prompt, "text to go on from");
  app.add_option("-f,--file", o.file, "the same from a file, or from stdin for -")
      ->excludes(prompt);
  app.add_flag("--chat", o.chat,
               "talk: with -p or -f one answer to that message, else line by line");
  app.add_option("--system", o.system, "system message of the chat");
  app.add_option(
         "--template", o.template_name,
         fmt::format("chat template instead of the model's own: {}", fmt::join(names, ", ")))
      ->check(CLI::IsMember(names));
  app.add_option("-n,--tokens", o.max_tokens,
                 "most tokens of an answer (-1: until the context is full; default 256, in a chat "
                 "1024)")
      ->check(CLI::Range(-1, 1 << 30));
  app.add_option("--ctx", o.context, "positions of the context (default: the model's, up to 8192)")
      ->check(CLI::Range(1, 1 << 30));
  app.add_option("--temperature", o.sampling.temperature,
                 "0 takes the likeliest token (default 0, in a chat 0.6)")
      ->check(CLI::Range(0.0, 100.0));
  app.add_option("--top-k", o.sampling.top_k, "sample from the K likeliest tokens (0: all)")
      ->check(CLI::NonNegativeNumber);
  app.add_option("--top-p", o.sampling.top_p,
                 "sample from the likeliest tokens that come to P (default 1, in a chat 0.9)")
      ->check(CLI::Validator(check_top_p, "FLOAT above 0, up to 1"));
  app.add_option("--min-p", o.sampling.min_p, "drop tokens below P times the likeliest")
      ->check(CLI::Range(0.0, 1.0));
  app.add_option("--repeat-penalty", o.sampling.repeat_penalty, "above 1 discourages repetition")
      ->check(CLI::Range(0.01, 100.0));
  app.add_option("--seed", o.sampling.seed, "of the sampler")->check(CLI::NonNegativeNumber);
  app.add_option("--stop", o.stops, "text that ends an answer; may be given again");
  tool::add_weak_flag(app, o.weak);
  tool::add_exact_flags(app, o.exact, o.kv_bits);
  tool::add_pages_flag(app, o.pages);
  tool::add_backend_flag(app, o.backend);
  tool::add_threads_flag(app, o.threads);
  tool::add_json_flag(app, o.json);
  tool::add_quiet_flag(app, o.quiet);
}

/// What depends on the kind of run.
void set_defaults(Options& o) {
  if (o.max_tokens == -2) o.max_tokens = o.chat ? 1024 : 256;
  if (o.sampling.temperature == -1) o.sampling.temperature = o.chat ? 0.6 : 0.0;
  if (o.sampling.top_p == -1) o.sampling.top_p = o.chat ? 0.9 : 1.0;
}

void check_usage(const Options& o, bool one_shot) {
  if (!one_shot && !o.chat) throw tool::usage_error("one of -p, -f and --chat is needed");
  if (!o.chat && !(o.system.empty() && o.template_name.empty())) {
    throw tool::usage_error("--system and --template need --chat");
  }
  if (o.json && !one_shot) throw tool::usage_error("--json needs -p or -f");
  if (std::find(o.stops.begin(), o.stops.end(), "") != o.stops.end()) {
    throw tool::usage_error("--stop needs some text");
  }
  try {
    o.sampling.check();  // a NaN is in every range of CLI11's
  } catch (const Error& e) {
    throw tool::usage_error(e.what());
  }
}

/// Opens the file for this alone, which costs its directory: `--huge-pages` copies all of it.
const ChatTemplate& template_of(const Options& o) {
  if (!o.template_name.empty()) return ChatTemplate::named(o.template_name);
  const auto file = File::open(o.model);
  return with_place(o.model,
                    [&]() -> const ChatTemplate& { return ChatTemplate::of(file->metadata()); });
}

std::string prompt_text(const Options& o, bool one_shot) {
  std::string text = o.file.empty() ? o.prompt : tool::read_text(o.file);
  if (!one_shot || !text.empty()) return text;
  throw Error({.what = "the prompt is empty",
               .where = o.file.empty() ? "-p" : o.file,
               .hint = "give some text with -p or -f"});
}

std::vector<int32_t> prompt_ids(const Tokenizer& tokenizer, const std::string& text) {
  std::vector<int32_t> ids;
  if (tokenizer.adds_bos()) ids.push_back(tokenizer.bos());
  const auto body = tokenizer.encode(text, true);
  ids.insert(ids.end(), body.begin(), body.end());
  return ids;
}

/// "template chatml, stop tokens 2 <|im_end|>, 0 <|endoftext|>, stop strings ..."
std::string in_force(const Tokenizer& tokenizer, const ChatTemplate& chat,
                     const std::vector<std::string>& own_stops) {
  std::vector<std::string> tokens, strings;
  for (const int32_t id : chat_stop_ids(tokenizer, chat)) {
    tokens.push_back(fmt::format("{} {}", id, tool::one_line(tokenizer.token_name(id))));
  }
  for (const std::string_view s : chat.stop_strings()) strings.emplace_back(s);
  strings.insert(strings.end(), own_stops.begin(), own_stops.end());
  for (std::string& s : strings) {
    s = nlohmann::json(s).dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
  }
  return fmt::format("template {}, stop tokens {}{}{}", chat.name(),
                     tokens.empty() ? "none" : fmt::format("{}", fmt::join(tokens, ", ")),
                     strings.empty() ? "" : ", stop strings ", fmt::join(strings, ", "));
}

void print_json(const Answer& a) {
  tool::print_object({{"text", a.text},
                      {"tokens", a.tokens},
                      {"ending", to_string(a.ending)},
                      {"prompt_tokens", a.stats.prompt_tokens},
                      {"prompt_seconds", a.stats.prompt_seconds},
                      {"decode_seconds", a.stats.decode_seconds},
                      {"decode_bytes", a.stats.decode_bytes},
                      {"logits_hash", fmt::format("{:08x}", a.stats.logits_hash)}});
}

void run(Options o, bool one_shot) {
  set_defaults(o);
  check_usage(o, one_shot);
  Sampler sampler(o.sampling);
  const ChatTemplate* chat = o.chat ? &template_of(o) : nullptr;
  const std::string text = prompt_text(o, one_shot);
  const auto file = open_with_weak(o.model, o.weak, o.pages);
  const auto tokenizer = Tokenizer::load(*file);
  Decoder decoder =
      tool::make_decoder(file, {o.backend, o.threads, o.quiet},
                         {.context = o.context, .exact = o.exact, .kv_bits = o.kv_bits});
  tool::notice(o.quiet, decoder.backend().description());
  struct sigaction action {};
  action.sa_handler = on_interrupt;
  sigaction(SIGINT, &action, nullptr);

  const Generator::Show show =
      o.json ? Generator::Show([](std::string_view) {}) : Generator::Show(tool::print);
  Answer answer;
  if (chat != nullptr) {
    tool::notice(o.quiet, in_force(*tokenizer, *chat, o.stops));
    ChatSession session(decoder, *tokenizer, sampler, *chat, o.system, o.stops, report_drop);
    if (!one_shot) {
      chat_repl(session, o.max_tokens, o.quiet, interrupted);
      tool::report(o.quiet, session.stats().line());
      return;
    }
    answer = session.say(text, o.max_tokens, show, interrupted);
  } else {
    const auto ids = prompt_ids(*tokenizer, text);
    const auto stop_ids = tokenizer->stop_ids();
    Generator generator(decoder, *tokenizer, sampler, {stop_ids.begin(), stop_ids.end()}, o.stops);
    answer = generator.run(ids, o.max_tokens, show, interrupted);
  }
  if (o.json) return print_json(answer);
  tool::print("\n");
  if (answer.ending == Ending::context_full) {
    tool::notice(o.quiet, "the context is full: --ctx makes it larger");
  }
  tool::report(o.quiet, answer.stats.line());
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Runs a .oq model: goes on from a prompt, or chats", "oq-run");
  Options o;
  add_options(app, o);
  return oq::tool::run(app, argc, argv, [&] {
    const bool one_shot = app.count("--prompt") + app.count("--file") > 0;
    run(o, one_shot);
  });
}
