/// Files of the tasks as their authors publish them, and the prompts made of them. Prompts of ARC,
/// PIQA, BoolQ, COPA and StoryCloze: GPTQ's zero-shot code, with which lm-evaluation-harness
/// agrees; of HellaSwag, WinoGrande and LAMBADA: lm-evaluation-harness.

#include <algorithm>
#include <cctype>
#include <filesystem>

#include <fmt/format.h>

#include "tools/common/text_file.h"
#include "tools/eval/records.h"
#include "tools/eval/task.h"

namespace oq {
namespace {

constexpr std::string_view kBlanks = " \t\n\v\f\r";

std::string stripped(std::string_view s) {
  const size_t first = s.find_first_not_of(kBlanks);
  if (first == s.npos) return {};
  return std::string(s.substr(first, s.find_last_not_of(kBlanks) - first + 1));
}

/// With its ASCII letters in lower case.
std::string lowered(std::string s) {
  for (char& c : s) c = char(std::tolower(static_cast<unsigned char>(c)));
  return s;
}

bool continues_character(char c) { return (static_cast<unsigned char>(c) & 0xC0) == 0x80; }

int64_t characters(std::string_view utf8) {
  return int64_t(utf8.size()) - std::count_if(utf8.begin(), utf8.end(), continues_character);
}

void drop_last_character(std::string& utf8) {
  while (!utf8.empty() && continues_character(utf8.back())) utf8.pop_back();
  if (!utf8.empty()) utf8.pop_back();
}

void replace_all(std::string& s, std::string_view from, std::string_view to) {
  for (size_t at = 0; (at = s.find(from, at)) != s.npos; at += to.size()) {
    s.replace(at, from.size(), to);
  }
}

/// Choices after one context.
Question multiple_choice(const std::string& context, const std::vector<std::string>& choices,
                         int64_t answer) {
  Question q{.requests = {}, .characters = {}, .answer = answer};
  for (const std::string& c : choices) q.requests.push_back({context, " " + c});
  return q;
}

/// The same for tasks that know acc_norm.
Question normed_choice(const std::string& context, const std::vector<std::string>& choices,
                       int64_t answer) {
  Question q = multiple_choice(context, choices, answer);
  for (const std::string& c : choices) q.characters.push_back(characters(c));
  return q;
}

template <Question (*make)(const Record&)>
std::vector<Question> from_json_lines(const std::string& path) {
  std::vector<Question> questions;
  for (const Record& r : read_json_lines(path)) questions.push_back(make(r));
  return questions;
}

Question arc(const Record& r) {
  const Record question = r.object("question");
  const std::string key = r.text("answerKey");
  std::vector<std::string> texts;
  int64_t answer = -1;
  for (const Record& choice : question.objects("choices")) {
    if (choice.text("label") == key) answer = int64_t(texts.size());
    texts.push_back(choice.text("text"));
  }
  if (answer < 0) throw r.error("'answerKey' names no choice", {}, "'" + key + "'");
  return normed_choice(fmt::format("Question: {}\nAnswer:", question.text("stem")), texts, answer);
}

/// PIQA keeps its answers apart, a 0 or 1 on each line: valid.jsonl and valid-labels.lst, or
/// valid.labels.
std::vector<int64_t> piqa_labels(const std::string& path) {
  std::filesystem::path beside(path);
  const std::string stem = beside.replace_extension().string();
  for (const std::string& name : {stem + "-labels.lst", stem + ".labels"}) {
    if (!std::filesystem::exists(name)) continue;
    std::vector<int64_t> labels;
    for_each_line(tool::read_text(name), name,
                  [&](std::string_view line, const std::string& where) {
                    const std::string label = stripped(line);
                    if (label != "0" && label != "1") {
                      throw Error({.what = "bad label",
                                   .where = where,
                                   .expected = "0 or 1",
                                   .found = fmt::format("'{}'", label.substr(0, 40))});
                    }
                    labels.push_back(label == "1" ? 1 : 0);
                  });
    return labels;
  }
  throw Error({.what = "no answers",
               .where = path,
               .expected = fmt::format("{0}-labels.lst or {0}.labels", stem),
               .hint = "put PIQA's file of labels beside its questions"});
}

std::vector<Question> piqa(const std::string& path) {
  const std::vector<Record> records = read_json_lines(path);
  const bool own =
      std::all_of(records.begin(), records.end(), [](const Record& r) { return r.has("label"); });
  const std::vector<int64_t> labels = own ? std::vector<int64_t>() : piqa_labels(path);
  if (!own && labels.size() != records.size()) {
    throw Error({.what = "not one label for each question",
                 .where = path,
                 .expected = std::to_string(records.size()),
                 .found = std::to_string(labels.size())});
  }
  std::vector<Question> questions;
  for (size_t i = 0; i < records.size(); ++i) {
    const Record& r = records[i];
    questions.push_back(normed_choice(fmt::format("Question: {}\nAnswer:", r.text("goal")),
                                      {r.text("sol1"), r.text("sol2")},
                                      own ? r.choice("label", 0, 2) : labels[i]));
  }
  return questions;
}

/// Takes off what WikiHow's pages left in HellaSwag: "[header]" and the like.
std::string without_brackets(const std::string& text) {
  std::string s = stripped(text);
  replace_all(s, " [title]", ". ");
  for (size_t open = 0; (open = s.find('[', open)) != s.npos;) {
    const size_t close = s.find(']', open);
    if (close == s.npos) break;
    s.erase(open, close + 1 - open);
  }
  replace_all(s, "  ", " ");
  return s;
}

std::string capitalized(const std::string& text) {
  std::string s = lowered(text);
  if (!s.empty()) s[0] = char(std::toupper(static_cast<unsigned char>(s[0])));
  return s;
}

/// As published, or with a "context" that is joined already.
Question hellaswag(const Record& r) {
  std::vector<std::string> endings = r.texts("endings");
  const int64_t answer = r.choice("label", 0, int64_t(endings.size()));
  if (r.has("context")) return normed_choice(r.text("context"), endings, answer);
  for (std::string& e : endings) e = without_brackets(e);
  return normed_choice(without_brackets(fmt::format("{}: {} {}", r.text("activity_label"),
                                                    r.text("ctx_a"), capitalized(r.text("ctx_b")))),
                       endings, answer);
}

/// What is scored is the end of the sentence, given its beginning with either name in the gap.
Question winogrande(const Record& r) {
  const std::string sentence = r.text("sentence");
  const size_t gap = sentence.find('_');
  if (gap == sentence.npos) throw r.error("'sentence' has no gap", "'_'");
  const std::string before = sentence.substr(0, gap);
  const std::string end = " " + stripped(sentence.substr(gap + 1));
  Question q{.requests = {}, .characters = {}, .answer = r.choice("answer", 1, 2)};
  for (const char* option : {"option1", "option2"}) {
    q.requests.push_back({before + r.text(option), end});
  }
  return q;
}

/// Google's file has "answer", SuperGLUE's "label". Of equal scores the first wins: "no".
Question boolq(const Record& r) {
  return multiple_choice(
      fmt::format("{}\nQuestion: {}?\nAnswer:", r.text("passage"), r.text("question")),
      {"no", "yes"}, r.choice(r.has("label") ? "label" : "answer", 0, 2));
}

Question copa(const Record& r) {
  const std::string kind = r.text("question");
  if (kind != "cause" && kind != "effect") {
    throw r.error("bad 'question'", "cause or effect", "'" + kind + "'");
  }
  std::string premise = stripped(r.text("premise"));
  drop_last_character(premise);
  std::vector<std::string> choices = {r.text("choice1"), r.text("choice2")};
  for (std::string& c : choices) {
    if (!c.empty()) c[0] = char(std::tolower(static_cast<unsigned char>(c[0])));
  }
  return multiple_choice(premise + (kind == "cause" ? " because" : " therefore"), choices,
                         r.choice("label", 0, 2));
}

std::vector<Question> storycloze(const std::string& path) {
  std::vector<Question> questions;
  for (const Record& r : read_table(path)) {
    std::string story = r.text("InputSentence1");
    for (int i = 2; i <= 4; ++i) story += " " + r.text(fmt::format("InputSentence{}", i));
    questions.push_back(multiple_choice(
        story, {r.text("RandomFifthSentenceQuiz1"), r.text("RandomFifthSentenceQuiz2")},
        r.choice("AnswerRightEnding", 1, 2)));
  }
  return questions;
}

/// JSON lines with a "text", or the first release: passages, one on each line.
std::vector<Question> lambada(const std::string& path) {
  std::vector<Question> questions;
  const std::string file = tool::read_text(path);
  for_each_line(file, path, [&](std::string_view line, const std::string& where) {
    std::string text(line);
    if (line[0] == '{') {
      auto value = nlohmann::json::parse(line, nullptr, false);
      if (!value.is_object()) throw Error({.what = "a line is no JSON object", .where = where});
      text = Record(std::move(value), where).text("text");
    }
    const size_t space = text.rfind(' ');
    if (space == text.npos || space + 1 == text.size()) {
      throw Error({.what = "no last word to guess", .where = where});
    }
    questions.push_back(
        {.requests = {{text.substr(0, space), text.substr(space)}}, .characters = {}});
  });
  return questions;
}

/// Refuses a file without questions, and questions without choices.
template <std::vector<Question> (*read)(const std::string&)>
std::vector<Question> checked(const std::string& path) {
  std::vector<Question> questions = read(path);
  if (questions.empty()) throw Error({.what = "there are no questions", .where = path});
  return questions;
}

constexpr Task kTasks[] = {
    {.name = "arc_easy", .read = checked<from_json_lines<arc>>},
    {.name = "arc_challenge", .read = checked<from_json_lines<arc>>},
    {.name = "piqa", .read = checked<piqa>},
    {.name = "hellaswag", .read = checked<from_json_lines<hellaswag>>},
    {.name = "winogrande", .read = checked<from_json_lines<winogrande>>},
    {.name = "boolq", .read = checked<from_json_lines<boolq>>},
    {.name = "copa", .read = checked<from_json_lines<copa>>},
    {.name = "storycloze", .read = checked<storycloze>},
    {.name = "lambada", .greedy = true, .read = checked<lambada>},
};

}  // namespace

std::span<const Task> tasks() { return kTasks; }

const Task* find_task(std::string_view name) {
  const auto* found = std::find_if(std::begin(kTasks), std::end(kTasks),
                                   [&](const Task& t) { return t.name == name; });
  return found == std::end(kTasks) ? nullptr : found;
}

}  // namespace oq
