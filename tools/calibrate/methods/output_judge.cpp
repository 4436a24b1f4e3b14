#include "tools/calibrate/methods/output_judge.h"

#include <cmath>

#include "tools/calibrate/methods/block_search.h"

namespace oq::calibrate {

OutputJudge::OutputJudge(BlockRunner& runner)
    : runner_(runner), head_(runner.file(), runner.config(), runner.pool()) {}

Statistics OutputJudge::compare(const BlockJob& job, const BlockWeights& usual,
                                const BlockWeights& other) {
  States states[] = {behind(job, usual), behind(job, other)};
  States* const both[] = {&states[0], &states[1]};
  go_on(job, both);
  const std::vector<double> a = divergence(states[0], job.tokens());
  const std::vector<double> b = divergence(states[1], job.tokens());
  Statistics difference;
  for (size_t i = 0; i < a.size(); ++i) difference.add(b[i] - a[i]);
  return difference;
}

std::vector<double> OutputJudge::divergence(const BlockJob& job, const BlockWeights& block) {
  States states = behind(job, block);
  States* const alone[] = {&states};
  go_on(job, alone);
  return divergence(states, job.tokens());
}

OutputJudge::States OutputJudge::behind(const BlockJob& job, const BlockWeights& block) {
  States states;
  for (int64_t w = job.windows(); w < job.all_windows(); ++w) {
    std::vector<float>& x = states.emplace_back(job.input(w).begin(), job.input(w).end());
    runner_.forward(block, job.options().scheme, x.data(), job.tokens());
  }
  return states;
}

/// Through the blocks behind the job's, in full precision, which goes along the first time.
void OutputJudge::go_on(const BlockJob& job, std::span<States* const> all) {
  std::vector<States*> going(all.begin(), all.end());
  if (full_.empty()) {
    for (int64_t w = job.windows(); w < job.all_windows(); ++w) {
      full_.emplace_back(job.target(w).begin(), job.target(w).end());
    }
    going.push_back(&full_);
  }
  for (int64_t b = job.index() + 1; b < job.config().blocks; ++b) {
    const BlockWeights block = BlockWeights::load(runner_.file(), job.config(), b);
    for (States* states : going) {
      for (std::vector<float>& x : *states) runner_.forward(block, {}, x.data(), job.tokens());
    }
  }
}

std::vector<double> OutputJudge::divergence(const States& states, int64_t tokens) {
  std::vector<double> all;
  for (size_t w = 0; w < states.size(); ++w) {
    const std::vector<double> d = head_.divergence(full_[w].data(), states[w].data(), tokens);
    // What is not finite is as far as can be.
    for (const double v : d) all.push_back(std::isfinite(v) ? v : 1e9);
  }
  return all;
}

double judging_passes(int64_t blocks, int64_t windows) {
  if (held_out_windows(windows) == 0) return 0;
  // Two blocks go on through those behind, which are half of all.
  return judged_share(windows) * double(blocks - 1);
}

}  // namespace oq::calibrate
