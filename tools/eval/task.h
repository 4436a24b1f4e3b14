#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace oq {

/// A text that a model is given, and one that it is asked the likelihood of.
struct Request {
  std::string context, continuation;
};

/// A question of a task, in the words of its prompt.
struct Question {
  std::vector<Request> requests;  ///< one for each choice
  /// What acc_norm divides by: characters of each choice as the task has it, without the space in
  /// front. Empty where the task knows no acc_norm.
  std::vector<int64_t> characters;
  int64_t answer = 0;  ///< the right choice
};

struct Task {
  std::string_view name;
  /// Not a choice among continuations, but whether greedy decoding writes the only one.
  bool greedy = false;
  /// Questions of a file, "-" for standard input. Throws oq::Error naming file and line.
  std::vector<Question> (*read)(const std::string& path) = nullptr;
};

/// All of them: prompts are those of lm-evaluation-harness and of GPTQ's zero-shot code.
std::span<const Task> tasks();
/// nullptr where there is none of that name.
const Task* find_task(std::string_view name);

struct Score {
  double log_likelihood = 0;  ///< of the continuation, given the context: a sum over its tokens
  bool greedy = false;        ///< every token of it is the likeliest
};

/// Whatever can say how likely a continuation is: a model, or a test's table.
class Scorer {
 public:
  virtual ~Scorer() = default;
  /// One score for each request, in order. Calls `progress` with the number of requests that have
  /// been scored since the last call.
  virtual std::vector<Score> score(std::span<const Request> requests,
                                   const std::function<void(int64_t)>& progress) = 0;
};

/// A share of right answers, or a mean, with its standard error: sample deviation / sqrt(n).
struct Measured {
  double value = 0, standard_error = 0;
};

struct TaskResult {
  int64_t questions = 0;
  Measured accuracy;                                 ///< the likeliest choice is right; or: greedy
  std::optional<Measured> accuracy_norm;             ///< likeliest per character
  std::optional<Measured> perplexity;                ///< of the only continuation, per word
  std::vector<std::vector<double>> log_likelihoods;  ///< [question][choice]
};

/// PRECOND: there are questions, and each has a request and an answer among them.
TaskResult run_task(const Task& task, std::span<const Question> questions, Scorer& scorer,
                    const std::function<void(int64_t)>& progress);

}  // namespace oq
