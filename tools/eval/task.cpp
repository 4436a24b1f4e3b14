#include "tools/eval/task.h"

#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include "format/error.h"
#include "tools/eval/statistics.h"

namespace oq {
namespace {

/// The first of the largest, as numpy's argmax.
int64_t largest(std::span<const double> values) {
  return std::max_element(values.begin(), values.end()) - values.begin();
}

Measured measured(const Statistics& s) {
  return {.value = s.mean(), .standard_error = s.standard_error()};
}

std::vector<Request> all_requests(std::span<const Question> questions) {
  std::vector<Request> all;
  for (const Question& q : questions) all.insert(all.end(), q.requests.begin(), q.requests.end());
  return all;
}

std::vector<double> per_character(const Question& q, std::span<const double> scores) {
  std::vector<double> normed;
  for (size_t c = 0; c < scores.size(); ++c) {
    normed.push_back(scores[c] / double(std::max<int64_t>(1, q.characters[c])));
  }
  return normed;
}

}  // namespace

TaskResult run_task(const Task& task, std::span<const Question> questions, Scorer& scorer,
                    const std::function<void(int64_t)>& progress) {
  const std::vector<Score> scores = scorer.score(all_requests(questions), progress);
  TaskResult result;
  result.questions = int64_t(questions.size());
  Statistics accuracy, normed, words;
  auto score = scores.begin();
  for (const Question& q : questions) {
    const bool greedy = score->greedy;
    std::vector<double> of_choices;
    for (size_t c = 0; c < q.requests.size(); ++c) of_choices.push_back((score++)->log_likelihood);
    for (double s : of_choices) {
      if (std::isfinite(s)) continue;
      throw Error({.what = "logits are not finite",
                   .where = fmt::format("question {}", result.log_likelihoods.size() + 1),
                   .hint = "check the file with oq-info --verify"});
    }
    accuracy.add((task.greedy ? greedy : largest(of_choices) == q.answer) ? 1 : 0);
    if (task.greedy) words.add(of_choices[0]);
    if (!q.characters.empty()) {
      normed.add(largest(per_character(q, of_choices)) == q.answer ? 1 : 0);
    }
    result.log_likelihoods.push_back(std::move(of_choices));
  }
  result.accuracy = measured(accuracy);
  if (normed.count() > 0) result.accuracy_norm = measured(normed);
  if (words.count() > 0) {
    const double perplexity = std::exp(-words.mean());
    result.perplexity = {.value = perplexity,
                         .standard_error = perplexity * words.standard_error()};
  }
  return result;
}

}  // namespace oq
