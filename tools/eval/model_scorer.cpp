#include "tools/eval/model_scorer.h"

#include <algorithm>
#include <utility>

#include <fmt/format.h>

#include "tools/eval/logits.h"

namespace oq {
namespace {

constexpr int64_t kMaxSequences = 16;
constexpr int64_t kMaxCachedTokens = 4096;  ///< of all sequences, where one alone is not longer

/// A token whose likelihood counts for a request.
struct Target {
  size_t request;
  int32_t token;
};

struct Continuation {
  size_t request;
  std::vector<int32_t> ids;
};

/// Continuations of one context.
struct Group {
  std::vector<int32_t> context;
  std::vector<Continuation> continuations;

  int64_t longest() const {  // in tokens that go through the model
    size_t most = 0;
    for (const Continuation& c : continuations) most = std::max(most, c.ids.size());
    return int64_t(context.size() + most) - 1;
  }
};

/// Rows of a step as they gather; runs them and books what their logits say.
class Rows {
 public:
  Rows(Decoder& decoder, std::vector<Score>& scores) : decoder_(decoder), scores_(scores) {}

  /// The token at `position` of `sequence`, and what is asked of its prediction.
  void add(int32_t sequence, int64_t position, int32_t token, std::span<const Target> targets) {
    if (int64_t(tokens_.size()) == decoder_.max_rows()) run();
    if (!targets.empty()) {
      logit_rows_.push_back(int32_t(tokens_.size()));
      targets_.emplace_back(targets.begin(), targets.end());
    }
    tokens_.push_back(token);
    positions_.push_back(int32_t(position));
    sequences_.push_back(sequence);
  }

  /// Room for `rows` in one step.
  void keep_together(int64_t rows) {
    if (int64_t(tokens_.size()) + rows > decoder_.max_rows()) run();
  }

  void run() {
    if (tokens_.empty()) return;
    decoder_.step({.tokens = tokens_,
                   .positions = positions_,
                   .sequences = sequences_,
                   .logit_rows = logit_rows_});
    for (size_t i = 0; i < targets_.size(); ++i) book(decoder_.logits(int64_t(i)), targets_[i]);
    tokens_.clear();
    positions_.clear();
    sequences_.clear();
    logit_rows_.clear();
    targets_.clear();
  }

 private:
  void book(std::span<const float> logits, std::span<const Target> targets) {
    const double total = log_sum_exp(logits);
    const int32_t best = best_token(logits);
    for (const Target& t : targets) {
      Score& score = scores_[t.request];
      score.log_likelihood += double(logits[size_t(t.token)]) - total;
      score.greedy = score.greedy && t.token == best;
    }
  }

  Decoder& decoder_;
  std::vector<Score>& scores_;
  std::vector<int32_t> tokens_, positions_, sequences_, logit_rows_;
  std::vector<std::vector<Target>> targets_;  ///< of each of logit_rows_
};

/// The n-th continuation of a group, in the first round behind the context itself.
void add_round(Rows& rows, const Group& group, int32_t sequence, size_t n) {
  const Continuation& c = group.continuations[n];
  const auto begin = int64_t(group.context.size());
  const auto fed = int64_t(c.ids.size()) - 1;  // the last token is only predicted
  if (n == 0) {
    std::vector<Target> first;  // tokens of all continuations
    for (const Continuation& any : group.continuations) first.push_back({any.request, any.ids[0]});
    for (int64_t i = 0; i < begin; ++i) {
      rows.add(sequence, i, group.context[size_t(i)],
               i + 1 == begin ? std::span<const Target>(first) : std::span<const Target>());
    }
  }
  for (int64_t i = 0; i < fed; ++i) {
    const Target next{c.request, c.ids[size_t(i + 1)]};
    rows.add(sequence, begin + i, c.ids[size_t(i)], {&next, 1});
  }
}

/// Groups side by side, one sequence each; their continuations one after the other.
void run_wave(Rows& rows, std::span<const Group> wave, bool whole) {
  size_t rounds = 0;
  for (const Group& g : wave) rounds = std::max(rounds, g.continuations.size());
  for (size_t n = 0; n < rounds; ++n) {
    for (size_t s = 0; s < wave.size(); ++s) {
      if (whole) rows.keep_together(wave[s].longest());
      if (n < wave[s].continuations.size()) add_round(rows, wave[s], int32_t(s), n);
    }
    rows.run();  // a sequence cannot go back to its context inside a step
  }
}

/// `whole`: every request for itself.
std::vector<Group> grouped(std::vector<EncodedRequest> requests, bool whole) {
  std::vector<Group> groups;
  for (size_t i = 0; i < requests.size(); ++i) {
    EncodedRequest& r = requests[i];
    if (whole || groups.empty() || groups.back().context != r.context) {
      groups.push_back({.context = std::move(r.context), .continuations = {}});
    }
    groups.back().continuations.push_back({i, std::move(r.continuation)});
  }
  return groups;
}

/// EOS, or what else may stand before a text.
int32_t start_token(const Tokenizer& tokenizer) {
  if (!tokenizer.stop_ids().empty()) return tokenizer.stop_ids()[0];
  if (tokenizer.bos() >= 0) return tokenizer.bos();
  throw Error({.what = "a request has no context, and the model has neither EOS nor BOS",
               .where = "tokenizer"});
}

EncodedRequest encode_jointly(const Tokenizer& tokenizer, const Request& request) {
  const size_t last = request.context.find_last_not_of(" \t\n\v\f\r");
  const size_t end = last == std::string::npos ? 0 : last + 1;
  const std::string context = request.context.substr(0, end);
  EncodedRequest e{.context = tokenizer.encode(context, false), .continuation = {}};
  e.continuation = tokenizer.encode(request.context + request.continuation, false);
  if (context.empty()) e.context.clear();  // whatever a tokenizer makes of no text
  const size_t cut = std::min(e.context.size(), e.continuation.size());
  e.continuation.erase(e.continuation.begin(), e.continuation.begin() + int64_t(cut));
  return e;
}

}  // namespace

EncodedRequest encode_request(const Tokenizer& tokenizer, const Request& request, Harness harness,
                              bool bos, int64_t max_tokens) {
  EncodedRequest e;
  if (harness == Harness::joint) {
    e = encode_jointly(tokenizer, request);
  } else {
    if (!request.context.empty()) e.context = tokenizer.encode(request.context, false);
    e.continuation = tokenizer.encode(request.continuation, false);
  }
  if (e.continuation.empty()) {
    throw Error({.what = "a choice has no tokens of its own",
                 .where = fmt::format("'{}'", request.continuation)});
  }
  const bool starts = bos && tokenizer.bos() >= 0;
  const int64_t room = max_tokens + 1 - int64_t(e.continuation.size()) - (starts ? 1 : 0);
  if (room < 1) {
    throw Error({.what = "a choice is longer than the model's context",
                 .where = fmt::format("'{}...'", request.continuation.substr(0, 40)),
                 .expected = fmt::format("at most {} tokens", max_tokens),
                 .found = std::to_string(e.continuation.size())});
  }
  if (e.context.empty() && !starts) e.context.push_back(start_token(tokenizer));
  if (int64_t(e.context.size()) > room) e.context.erase(e.context.begin(), e.context.end() - room);
  if (starts) e.context.insert(e.context.begin(), tokenizer.bos());
  return e;
}

std::vector<Score> ModelScorer::score(std::span<const Request> requests,
                                      const std::function<void(int64_t)>& progress) {
  const int64_t vocab = model_.config().vocab;
  std::vector<EncodedRequest> encoded;
  for (const Request& r : requests) {
    encoded.push_back(
        encode_request(model_.tokenizer(), r, harness_, bos_, model_.config().context));
    for (int32_t id : encoded.back().continuation) {  // the last does not go through the decoder
      if (id < vocab) continue;
      throw Error({.what = "the tokenizer's ids go beyond the model's vocabulary",
                   .where = model_.path(),
                   .expected = fmt::format("0..{}", vocab - 1),
                   .found = std::to_string(id),
                   .hint = "convert the checkpoint again"});
    }
  }
  const bool whole = model_.scheme().per_tensor;
  const std::vector<Group> groups = grouped(std::move(encoded), whole);
  int64_t longest = 1;
  for (const Group& g : groups) longest = std::max(longest, g.longest());
  const int64_t side_by_side = std::clamp<int64_t>(kMaxCachedTokens / longest, 1, kMaxSequences);
  Decoder decoder = model_.decoder(longest, longest, side_by_side);
  std::vector<Score> scores(requests.size(), Score{.log_likelihood = 0, .greedy = true});
  Rows rows(decoder, scores);
  for (size_t first = 0; first < groups.size(); first += size_t(side_by_side)) {
    const size_t n = std::min(groups.size() - first, size_t(side_by_side));
    const auto wave = std::span(groups).subspan(first, n);
    run_wave(rows, wave, whole);
    int64_t done = 0;
    for (const Group& g : wave) done += int64_t(g.continuations.size());
    progress(done);
  }
  return scores;
}

}  // namespace oq
