#include <algorithm>
#include <deque>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "tools/common/json.h"
#include "tools/common/text_file.h"
#include "tools/eval/model_scorer.h"
#include "tools/eval/report.h"

namespace {

using namespace oq;

struct Options {
  std::vector<std::string> models, texts, divergence, tasks;
  std::string join, harness = "joint";
  int64_t window = 2048, unscored = 1, max_windows = 0, max_questions = 0;
  Model::Options model;
  bool bos = false, json = false, quiet = false;
};

/// Rows that appear as soon as they are known, or all at the end as JSON.
class Output {
 public:
  explicit Output(bool json) : json_(json) {}

  void begin(const std::string& list, const std::string& head) {
    list_ = list;
    head_ = head;
    if (json_) object_[list] = nlohmann::json::array();
  }
  template <class Row>
  void add(const Row& row, const std::string& line) {
    if (json_) {
      object_[list_].push_back(to_json(row));
      return;
    }
    const std::string head = std::exchange(head_, {});
    tool::print((printed_ && !head.empty() ? "\n" : "") + head + line);
    printed_ = true;
  }
  nlohmann::json& object() { return object_; }

 private:
  bool json_, printed_ = false;
  std::string list_, head_;
  nlohmann::json object_ = nlohmann::json::object();
};

struct Text {
  std::string path, body;
};

std::vector<Text> read_texts(const Options& o) {
  std::vector<std::string> paths = o.texts;
  if (!o.divergence.empty()) paths.push_back(o.divergence[1]);
  std::vector<Text> texts;
  for (const std::string& path : paths) {
    const auto same =
        std::find_if(texts.begin(), texts.end(), [&](const Text& t) { return t.path == path; });
    if (same != texts.end()) {  // a pipe can be read only once
      texts.push_back(*same);
      continue;
    }
    std::string body = tool::read_text(path);
    if (o.join == "hf") body = join_like_hf(body);
    texts.push_back({path, std::move(body)});
  }
  return texts;
}

/// Tokens that the windows of a text have, for progress.
double window_tokens(const Options& o, size_t ids) {
  int64_t windows = int64_t(ids) / o.window;
  if (o.max_windows > 0) windows = std::min(windows, o.max_windows);
  return double(windows * o.window);
}

/// A text's ids and scores in the first model, to which the others are compared.
struct First {
  std::vector<int32_t> ids;
  Perplexity result;
};

void perplexities(const Options& o, const std::deque<Model>& models, std::span<const Text> texts,
                  Output& out) {
  const PerplexityTable table(models.size() > 1, texts.size() > 1);
  out.begin("results", table.head());
  std::vector<First> firsts;
  for (const Model& model : models) {
    Decoder decoder = model.decoder(o.window, o.window);
    for (size_t t = 0; t < texts.size(); ++t) {
      std::vector<int32_t> ids = model.encode_text(texts[t].body);
      const std::string job = model.path() + " on " + texts[t].path;
      tool::Progress progress(job, window_tokens(o, ids.size()), {"tokens/s", 1}, o.quiet);
      PerplexityRow row{.model = &model, .text = texts[t].path, .result = {}, .difference = {}};
      row.result = with_place(job, [&] {
        return measure_perplexity(
            decoder, ids, o.window, o.max_windows, [&](int64_t n) { progress.advance(double(n)); },
            o.unscored);
      });
      progress.finish();
      if (&model == &models.front()) {
        firsts.push_back({std::move(ids), row.result});
      } else if (ids == firsts[t].ids) {  // another tokenizer makes other windows
        row.difference = paired_difference(firsts[t].result, row.result);
      }
      out.add(row, table.row(row));
    }
  }
}

void divergences(const Options& o, const std::deque<Model>& models, const Model& reference,
                 const Text& text, Output& out) {
  out.begin("divergence", divergence_head());
  Decoder reference_decoder = reference.decoder(o.window, o.window);
  std::deque<Decoder> decoders;
  std::vector<Decoder*> pointers;
  for (const Model& m : models) {
    decoders.push_back(m.decoder(o.window, o.window));
    pointers.push_back(&decoders.back());
  }
  const std::vector<int32_t> ids = reference.encode_text(text.body);
  const std::string job = fmt::format("divergence from {} on {}", reference.path(), text.path);
  const double total = window_tokens(o, ids.size()) * double(models.size() + 1);
  tool::Progress progress(job, total, {"tokens/s", 1}, o.quiet);
  const auto results = with_place(job, [&] {
    return measure_divergence(reference_decoder, pointers, ids, o.window, o.max_windows,
                              [&](int64_t n) { progress.advance(double(n)); });
  });
  progress.finish();
  for (size_t m = 0; m < models.size(); ++m) {
    const DivergenceRow row{.model = &models[m], .result = results[m]};
    out.add(row, divergence_row(row));
  }
}

struct TaskFile {
  const Task* task;
  std::string path;
  std::vector<Question> questions;
};

std::vector<TaskFile> read_tasks(const Options& o) {
  std::vector<TaskFile> files;
  for (const std::string& given : o.tasks) {
    const size_t equals = given.find('=');
    TaskFile f{.task = find_task(given.substr(0, equals)),
               .path = given.substr(equals + 1),
               .questions = {}};
    f.questions = f.task->read(f.path);
    const auto n = int64_t(f.questions.size());
    if (o.max_questions > 0) f.questions.resize(size_t(std::min(n, o.max_questions)));
    files.push_back(std::move(f));
  }
  return files;
}

void run_tasks(const Options& o, const std::deque<Model>& models, std::span<const TaskFile> files,
               Output& out) {
  out.begin("tasks", task_head());
  const Harness harness = o.harness == "joint" ? Harness::joint : Harness::separate;
  for (const Model& model : models) {
    ModelScorer scorer(model, harness, o.bos);
    for (const TaskFile& f : files) {
      const std::string job = fmt::format("{}, {}", model.path(), f.task->name);
      size_t requests = 0;
      for (const Question& q : f.questions) requests += q.requests.size();
      tool::Progress progress(job, double(requests), {"choices/s", 1}, o.quiet);
      TaskRow row{.model = &model,
                  .task = std::string(f.task->name),
                  .path = f.path,
                  .result = with_place(job, [&] {
                    return run_task(*f.task, f.questions, scorer,
                                    [&](int64_t n) { progress.advance(double(n)); });
                  })};
      progress.finish();
      out.add(row, task_row(row));
    }
  }
}

std::string check_task(const std::string& given) {
  const size_t equals = given.find('=');
  const std::string name = given.substr(0, equals);
  if (find_task(name) != nullptr && equals != given.npos && equals + 1 < given.size()) return {};
  std::vector<std::string_view> names;
  for (const Task& t : tasks()) names.push_back(t.name);
  return fmt::format("'{}' is not NAME=FILE with a name of {}", given, fmt::join(names, ", "));
}

void add_options(CLI::App& app, Options& o) {
  app.add_option("MODEL", o.models, ".oq files, compared with the first one")->required();
  app.add_option("--perplexity", o.texts, "text files to measure perplexity on");
  app.add_option("--divergence", o.divergence,
                 "a .oq file and a text: how far predictions are from that model's")
      ->expected(2);
  app.add_option("--task", o.tasks, "NAME=FILE: questions to answer")
      ->check(CLI::Validator(check_task, "NAME=FILE"));
  app.add_option("--window", o.window, "tokens per window")
      ->check(CLI::Range(2, 1 << 20))
      ->capture_default_str();
  app.add_option("--unscored", o.unscored,
                 "of --perplexity: tokens at each window's start that are only read; llama.cpp's "
                 "tool leaves out half of a window and one")
      ->check(CLI::Range(1, 1 << 20))
      ->capture_default_str();
  app.add_option("--max-windows", o.max_windows, "stop after N windows (0: all)")
      ->check(CLI::NonNegativeNumber);
  app.add_option("--join", o.join, "hf: join the text's lines as the papers do for WikiText")
      ->check(CLI::IsMember({"hf"}));
  app.add_option("--max-questions", o.max_questions, "only the first N of each task (0: all)")
      ->check(CLI::NonNegativeNumber);
  app.add_option("--harness", o.harness,
                 "joint: encode context and choice as one text, as lm-evaluation-harness does; "
                 "separate: each for itself, as GPTQ's zero-shot code does")
      ->check(CLI::IsMember({"joint", "separate"}))
      ->capture_default_str();
  app.add_flag("--bos", o.bos, "begin every question with BOS, which the harnesses leave out");
  tool::add_weak_flag(app, o.model.weak);
  tool::add_exact_flags(app, o.model.exact, o.model.kv_bits);
  tool::add_backend_flag(app, o.model.backend.name);
  tool::add_threads_flag(app, o.model.backend.threads);
  tool::add_json_flag(app, o.json);
  tool::add_quiet_flag(app, o.quiet);
}

void evaluate(const Options& o) {
  // Everything that can be refused is, before hours go into the first model.
  const std::vector<Text> texts = read_texts(o);
  const std::vector<TaskFile> tasks = read_tasks(o);
  if (!o.model.weak.empty() && o.models.size() > 1) {
    throw tool::usage_error("--weak is for a single MODEL");
  }
  std::deque<Model> models;
  for (const std::string& path : o.models) models.emplace_back(path, o.model);
  std::optional<Model> reference;
  if (!o.divergence.empty()) {
    Model::Options as_it_is = o.model;
    as_it_is.weak.clear();
    reference.emplace(o.divergence[0], as_it_is);
    for (const Model& m : models) check_same_vocabulary(*reference, m);
  }
  Output out(o.json);
  if (!o.texts.empty()) {
    perplexities(o, models, std::span(texts).first(o.texts.size()), out);
  }
  if (reference) divergences(o, models, *reference, texts.back(), out);
  if (!tasks.empty()) run_tasks(o, models, tasks, out);
  if (!o.json) return;
  out.object()["window"] = o.window;
  if (!o.texts.empty()) out.object()["unscored"] = o.unscored;
  tool::print_object(out.object());
}

}  // namespace

int main(int argc, char** argv) {
  CLI::App app("Measures how well models predict texts and answer questions", "oq-eval");
  Options o;
  add_options(app, o);
  return tool::run(app, argc, argv, [&] {
    if (o.texts.empty() && o.divergence.empty() && o.tasks.empty()) {
      throw tool::usage_error("--perplexity, --divergence or --task is required");
    }
    if (o.unscored >= o.window) throw tool::usage_error("--unscored leaves nothing of --window");
    o.model.backend.quiet = o.quiet;
    evaluate(o);
  });
}
