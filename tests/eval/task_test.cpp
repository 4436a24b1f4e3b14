/// Every task on questions made by hand: the prompts word for word, and accuracies counted by hand.

#include "tools/eval/task.h"

#include <cmath>
#include <map>
#include <utility>

#include <doctest/doctest.h>

#include "format/error.h"
#include "tests/support.h"

using namespace oq;
using doctest::Approx;
using test::TempDir;
using test::write_file;

namespace {

using Pair = std::pair<std::string, std::string>;  // context, continuation

/// Knows the scores of some requests, and fails on all others.
class TableScorer final : public Scorer {
 public:
  explicit TableScorer(std::map<Pair, Score> table) : table_(std::move(table)) {}

  std::vector<Score> score(std::span<const Request> requests,
                           const std::function<void(int64_t)>& progress) override {
    std::vector<Score> scores;
    for (const Request& r : requests) {
      const auto found = table_.find({r.context, r.continuation});
      CAPTURE(r.context);
      CAPTURE(r.continuation);
      REQUIRE(found != table_.end());
      scores.push_back(found->second);
      progress(1);
    }
    return scores;
  }

 private:
  std::map<Pair, Score> table_;
};

struct Made {
  Made(const std::string& name, const std::string& bytes) { write_file(dir / name, bytes); }
  TempDir dir;
};

TaskResult result_of(const std::string& task, const std::string& bytes,
                     const std::vector<std::pair<Pair, double>>& scores) {
  const Made file("questions.jsonl", bytes);
  std::map<Pair, Score> table;
  for (const auto& [request, score] : scores) table[request] = {score, false};
  TableScorer scorer(std::move(table));
  const Task* t = find_task(task);
  REQUIRE(t != nullptr);
  const auto questions = t->read(file.dir / "questions.jsonl");
  int64_t done = 0;
  const TaskResult r = run_task(*t, questions, scorer, [&](int64_t n) { done += n; });
  CHECK(done == int64_t(scores.size()));
  CHECK(r.questions == int64_t(questions.size()));
  return r;
}

/// All of `says` stand in what the reader throws.
void check_refused(const std::string& task, const std::string& bytes,
                   const std::vector<std::string>& says) {
  const Made file("questions.jsonl", bytes);
  std::string what;
  try {
    find_task(task)->read(file.dir / "questions.jsonl");
  } catch (const Error& e) {
    what = e.what();
  }
  CAPTURE(what);
  for (const std::string& part : says) {
    CAPTURE(part);
    CHECK(what.find(part) != std::string::npos);
  }
}

std::vector<std::string> lines_of(const std::vector<Question>& questions) {
  std::vector<std::string> lines;
  for (const Question& q : questions) {
    for (const Request& r : q.requests) lines.push_back(r.context + "|" + r.continuation);
  }
  return lines;
}

}  // namespace

TEST_CASE("ARC: the likeliest choice, and the likeliest per character") {
  const std::string bytes =
      R"({"id": "a", "question": {"stem": "Where?", "choices": [{"text": "here", "label": "A"}, )"
      R"({"text": "a long way", "label": "B"}]}, "answerKey": "B"})"
      "\n\n"
      R"({"question": {"stem": "Who?", "choices": [{"text": "me", "label": "1"}, )"
      R"({"text": "you", "label": "2"}, {"text": "Zoë", "label": "3"}]}, "answerKey": "1"})"
      "\r\n";
  const std::string where = "Question: Where?\nAnswer:", who = "Question: Who?\nAnswer:";
  for (const char* name : {"arc_easy", "arc_challenge"}) {
    // First: -4 beats -5, which is wrong; per character -4/4 loses to -5/10, which is right.
    // Second: -2 is best and right; per character -2/2, -2.1/3 and -2.4/3 (ë is one): "you".
    const TaskResult r = result_of(name, bytes,
                                   {{{where, " here"}, -4},
                                    {{where, " a long way"}, -5},
                                    {{who, " me"}, -2},
                                    {{who, " you"}, -2.1},
                                    {{who, " Zoë"}, -2.4}});
    CHECK(r.accuracy.value == 0.5);
    CHECK(r.accuracy.standard_error == Approx(0.5));  // sqrt(0.5 / 1 / 2)
    REQUIRE(r.accuracy_norm);
    CHECK(r.accuracy_norm->value == 0.5);
    CHECK_FALSE(r.perplexity);
    CHECK(r.log_likelihoods == std::vector<std::vector<double>>{{-4, -5}, {-2, -2.1, -2.4}});
  }
  check_refused(
      "arc_easy",
      "\n" + std::string(R"({"question": {"stem": "?", "choices": []}, )") + R"("answerKey": "A"})",
      {"questions.jsonl, line 2", "answerKey", "'A'"});
}

TEST_CASE("characters are counted, not bytes") {
  const std::string bytes =
      R"({"question": {"stem": "?", "choices": [{"text": "ëë", "label": "A"}, )"
      R"({"text": "abc", "label": "B"}]}, "answerKey": "B"})";
  // -3.9/2 loses to -4.5/3; by bytes, -3.9/4 would win.
  const TaskResult r = result_of(
      "arc_easy", bytes,
      {{{"Question: ?\nAnswer:", " ëë"}, -3.9}, {{"Question: ?\nAnswer:", " abc"}, -4.5}});
  CHECK(r.accuracy.value == 0);
  CHECK(r.accuracy_norm->value == 1);
}

TEST_CASE("PIQA takes its answers from the line or from the file beside it") {
  const std::string a = R"({"goal": "open a door", "sol1": "push", "sol2": "shout at it "})";
  const std::string b = R"({"goal": "eat", "sol1": "bite", "sol2": "sing"})";
  const std::string door = "Question: open a door\nAnswer:", eat = "Question: eat\nAnswer:";
  const TempDir dir;
  write_file(dir / "valid.jsonl", a + "\n" + b + "\n");
  const Task& piqa = *find_task("piqa");
  CHECK_THROWS_WITH_AS(piqa.read(dir / "valid.jsonl"), doctest::Contains("valid-labels.lst or"),
                       Error);
  for (const char* labels : {"valid.labels", "valid-labels.lst"}) {
    write_file(dir / labels, "0\n1\n");
    const auto questions = piqa.read(dir / "valid.jsonl");
    REQUIRE(questions.size() == 2);
    CHECK(questions[0].answer == 0);
    CHECK(questions[1].answer == 1);
    CHECK(questions[0].characters == std::vector<int64_t>{4, 12});
    write_file(dir / labels, "0\n");
    CHECK_THROWS_WITH_AS(piqa.read(dir / "valid.jsonl"), doctest::Contains("(expected 2, found 1)"),
                         Error);
    write_file(dir / labels, "0\n7\n");
    CHECK_THROWS_WITH_AS(piqa.read(dir / "valid.jsonl"), doctest::Contains(", line 2: bad label"),
                         Error);
    std::filesystem::remove(dir / labels);
  }
  const auto with = [](std::string line, int label) {
    line.back() = ',';
    return line + "\"label\": " + std::to_string(label) + "}\n";
  };
  const TaskResult r = result_of("piqa", with(a, 0) + with(b, 1),
                                 {{{door, " push"}, -8},
                                  {{door, " shout at it "}, -12},
                                  {{eat, " bite"}, -3},
                                  {{eat, " sing"}, -2}});
  CHECK(r.accuracy.value == 1);  // and per character -8/4 loses to -12/12, -3/4 to -2/4
  CHECK(r.accuracy.standard_error == 0);
  CHECK(r.accuracy_norm->value == 0.5);
}

TEST_CASE("HellaSwag: published files are joined and cleaned, joined ones are taken as they are") {
  const Made published(
      "f", R"({"ind": 4, "activity_label": "Baking", "ctx_a": "A man [header] stands  in a)"
           R"( kitchen.", "ctx_b": "the MAN", "ctx": "unused", "label": 2, "endings": )"
           R"([" bakes. [step] ", "sings [title] a song", "x", "y"]})");
  const Task& task = *find_task("hellaswag");
  const auto questions = task.read(published.dir / "f");
  CHECK(lines_of(questions)[0] == "Baking: A man stands in a kitchen. The man| bakes. ");
  CHECK(lines_of(questions)[1] == "Baking: A man stands in a kitchen. The man| sings. a song");
  CHECK(questions[0].answer == 2);
  CHECK(questions[0].characters == std::vector<int64_t>{7, 13, 1, 1});

  const std::string joined =
      R"({"context": "Baking: a man [x]. he", "label": 1, "endings": ["eats.", "bakes bread."]})"
      "\n"
      R"({"context": "C", "label": "0", "endings": ["a", "bb"]})";
  const TaskResult r = result_of("hellaswag", joined,
                                 {{{"Baking: a man [x]. he", " eats."}, -6},
                                  {{"Baking: a man [x]. he", " bakes bread."}, -7},
                                  {{"C", " a"}, -1},
                                  {{"C", " bb"}, -1.5}});
  CHECK(r.accuracy.value == 0.5);
  CHECK(r.accuracy_norm->value == 0.5);  // -6/5 < -7/12: right now; -1 < -1.5/2: wrong now
  check_refused("hellaswag", R"({"context": "C", "label": 4, "endings": ["a", "b", "c", "d"]})",
                {"line 1", "'label'", "0..3", "found 4"});
}

TEST_CASE("WinoGrande scores the end of the sentence behind either name") {
  const std::string bytes =
      R"({"qID": "1", "sentence": "The cup fits _ because  it is small. ", "option1": "the box",)"
      R"( "option2": "the ring", "answer": "1"})"
      "\n"
      R"({"sentence": "_ won.", "option1": "Ann", "option2": "Bea", "answer": "2"})";
  const TaskResult r = result_of("winogrande", bytes,
                                 {{{"The cup fits the box", " because  it is small."}, -5},
                                  {{"The cup fits the ring", " because  it is small."}, -6},
                                  {{"Ann", " won."}, -1},
                                  {{"Bea", " won."}, -2}});
  CHECK(r.accuracy.value == 0.5);
  CHECK_FALSE(r.accuracy_norm);
  check_refused("winogrande", R"({"sentence": "no gap", "option1": "a", "option2": "b"})",
                {"line 1", "'sentence'", "gap"});
  check_refused("winogrande", R"({"sentence": "_", "option1": "a", "option2": "b", "answer": ""})",
                {"line 1", "'answer'"});
}

TEST_CASE("BoolQ: Google's file and SuperGLUE's; undecided means no") {
  const std::string google =
      R"({"question": "is it wet", "title": "Rain", "answer": true, "passage": "It rains."})";
  const std::string super =
      R"({"question": "is it dry", "passage": "It rains.", "idx": 3, "label": false})";
  const std::string wet = "It rains.\nQuestion: is it wet?\nAnswer:";
  const std::string dry = "It rains.\nQuestion: is it dry?\nAnswer:";
  const TaskResult r = result_of(
      "boolq", google + "\n" + super + "\n",
      {{{wet, " yes"}, -1}, {{wet, " no"}, -2}, {{dry, " yes"}, -1.5}, {{dry, " no"}, -1.5}});
  CHECK(r.accuracy.value == 1);
  CHECK_FALSE(r.accuracy_norm);
  check_refused("boolq", google + "\n" + R"({"question": "q", "passage": "p", "answer": "maybe"})",
                {"line 2", "'answer'", "'maybe'"});
}

TEST_CASE("COPA goes on from the premise") {
  const std::string bytes =
      R"({"premise": "The ice melted. ", "choice1": "It was warm.", "choice2": "He sang.", )"
      R"("question": "cause", "label": 0, "idx": 0})"
      "\n"
      R"({"premise": "The cup fell.", "choice1": "It flew.", "choice2": "It broke.", )"
      R"("question": "effect", "label": 1, "idx": 1})";
  const TaskResult r = result_of("copa", bytes,
                                 {{{"The ice melted because", " it was warm."}, -3},
                                  {{"The ice melted because", " he sang."}, -4},
                                  {{"The cup fell therefore", " it flew."}, -5},
                                  {{"The cup fell therefore", " it broke."}, -6}});
  CHECK(r.accuracy.value == 0.5);
  CHECK_FALSE(r.accuracy_norm);
  check_refused(
      "copa", R"({"premise": "p", "choice1": "a", "choice2": "b", "question": "why", "label": 0})",
      {"line 1", "cause or effect", "'why'"});
}

TEST_CASE("StoryCloze comes quoted or with tabs") {
  const std::string header =
      "InputStoryid,InputSentence1,InputSentence2,InputSentence3,InputSentence4,"
      "RandomFifthSentenceQuiz1,RandomFifthSentenceQuiz2,AnswerRightEnding";
  const std::string csv = "\xef\xbb\xbf" + header +
                          "\r\nid1,\"Ann, 5, sat.\",She ate.,\"She said \"\"hm\"\".\",She "
                          "slept.,Good.,Bad.,1\r\n\r\nid2,A.,B.,C.,D.,E.,F.,2";
  const std::vector<std::pair<Pair, double>> scores = {
      {{"Ann, 5, sat. She ate. She said \"hm\". She slept.", " Good."}, -1},
      {{"Ann, 5, sat. She ate. She said \"hm\". She slept.", " Bad."}, -2},
      {{"A. B. C. D.", " E."}, -3},
      {{"A. B. C. D.", " F."}, -4}};
  CHECK(result_of("storycloze", csv, scores).accuracy.value == 0.5);

  std::string tsv = header;
  for (char& c : tsv) c = c == ',' ? '\t' : c;
  tsv += "\nid1\tAnn, 5, sat.\tShe ate.\tShe said \"hm\".\tShe slept.\tGood.\tBad.\t2\n";
  tsv += "id2\tA.\tB.\tC.\tD.\tE.\tF.\t2\n";
  CHECK(result_of("storycloze", tsv, scores).accuracy.value == 0);

  check_refused("storycloze", header + "\nid,a,b\n", {"line 2", "expected 8, found 3"});
  check_refused("storycloze", header + "\nid,\"a,b\n\nc", {"line 2", "quote is not closed"});
  check_refused("storycloze", header + "\n\"id\"x,a\n", {"line 2", "after a closing quote"});
  check_refused("storycloze", header + "\n\"a\n\nb\",A,B,C,D,E,F,2\nid,A,B,C,D,E,F,3\n",
                {"line 5", "'AnswerRightEnding'", "1..2"});
  check_refused("storycloze", "a,b\n1,2\n", {"line 2", "InputSentence1"});
  check_refused("storycloze", header + "\n", {"no questions"});
}

TEST_CASE("LAMBADA: whether the last word is what greedy decoding writes, and its perplexity") {
  const Made file("lines", "{\"text\": \"one two\\n\\nthree four\"}\nfive six , seven\r\n");
  const Task& task = *find_task("lambada");
  const auto questions = task.read(file.dir / "lines");
  TableScorer scorer(
      {{{"one two\n\nthree", " four"}, {-1, true}}, {{"five six ,", " seven"}, {-3, false}}});
  const TaskResult r = run_task(task, questions, scorer, [](int64_t) {});
  CHECK(r.accuracy.value == 0.5);
  CHECK_FALSE(r.accuracy_norm);
  REQUIRE(r.perplexity);
  CHECK(r.perplexity->value == Approx(std::exp(2.0)));
  CHECK(r.perplexity->standard_error == Approx(std::exp(2.0) * 1.0));  // sqrt(2 / 1 / 2) = 1
  check_refused("lambada", "a b\nword\n", {"line 2", "last word"});
  check_refused("lambada", "a b\n{\"text\": 3}\n", {"line 2", "'text'", "string", "number"});
  check_refused("lambada", "{broken\n", {"line 1", "JSON"});
}

TEST_CASE("what is no task's file is refused by line") {
  check_refused("piqa", "", {"questions.jsonl", "no questions"});
  check_refused("arc_easy", "{}\n", {"line 1", "no 'question'"});
  check_refused("arc_easy", "\n[1]\n", {"line 2", "no JSON object"});
  check_refused("arc_easy", "{\"question\": \"Where?\"}", {"line 1", "'question'", "object"});
  check_refused("copa", "{\"premise\": \"\xff\"}", {"line 1", "no JSON object"});
  check_refused("hellaswag", R"({"context": "c", "label": 0, "endings": ["a", 2]})",
                {"line 1", "'endings'", "list of texts"});
  check_refused("hellaswag", R"({"context": "c", "label": 1e99, "endings": ["a", "b"]})",
                {"line 1", "'label'", "whole number"});
  check_refused("hellaswag", R"({"context": "c", "label": 0, "endings": []})",
                {"line 1", "'endings'", "list of texts"});
  check_refused("boolq", std::string(100000, '['), {"line 1", "no JSON object"});
  CHECK_THROWS_WITH_AS(find_task("arc_easy")->read("/no/such/file"),
                       doctest::Contains("/no/such/file"), Error);
}

TEST_CASE("a file that ends anywhere is read or refused") {
  const std::pair<const char*, std::string> files[] = {
      {"arc_easy", R"({"question": {"stem": "ë?", "choices": [{"text": "a", "label": "A"}]}, )"
                   R"("answerKey": "A"})"},
      {"piqa", R"({"goal": "a", "sol1": "b", "sol2": "c", "label": 1})"},
      {"hellaswag", R"({"activity_label": "a [b] c", "ctx_a": "d", "ctx_b": "e", "label": 0, )"
                    R"("endings": ["f [g", "h ] i"]})"},
      {"winogrande", R"({"sentence": "a _ b", "option1": "c", "option2": "d", "answer": "2"})"},
      {"boolq", R"({"passage": "a", "question": "b", "label": true})"},
      {"copa", R"({"premise": "a", "choice1": "b", "choice2": "c", "question": "cause", )"
               R"("label": 0})"},
      {"storycloze",
       "InputSentence1,InputSentence2,InputSentence3,InputSentence4,RandomFifthSentenceQuiz1,"
       "RandomFifthSentenceQuiz2,AnswerRightEnding\r\n\"a \"\"b\"\"\nc\",d,e,f,g,h,2\r\n"},
      {"lambada", "{\"text\": \"a b\"}\nc d\n"},
  };
  for (const auto& [name, whole] : files) {
    const std::string task = name;  // clang 14 captures no structured binding
    CAPTURE(task);
    const Made file("f", whole);
    CHECK(find_task(task)->read(file.dir / "f").size() == (task == "lambada" ? 2 : 1));
    size_t refused = 0;
    for (size_t n = 0; n < whole.size(); ++n) {
      write_file(file.dir / "f", whole.substr(0, n));
      try {
        find_task(task)->read(file.dir / "f");
      } catch (const Error&) {
        ++refused;
      }
    }
    CHECK(refused > 0);
  }
}

TEST_CASE("there are nine tasks") {
  CHECK(tasks().size() == 9);
  for (const Task& t : tasks()) CHECK(find_task(t.name) == &t);
  CHECK(find_task("arc") == nullptr);
  CHECK(find_task("") == nullptr);
}

TEST_CASE("a score that is no number ends the task") {
  const Made file("f", "one two\nthree four\n");
  const auto questions = find_task("lambada")->read(file.dir / "f");
  TableScorer scorer({{{"one", " two"}, {-1, true}}, {{"three", " four"}, {std::nan(""), true}}});
  CHECK_THROWS_WITH_AS(run_task(*find_task("lambada"), questions, scorer, [](int64_t) {}),
                       doctest::Contains("question 2: logits are not finite"), Error);
}
