#include "runtime/backend/cuda/ranker.h"

#include <algorithm>

namespace oq {

static_assert(kMostRanked == cuda::kRankMost);

namespace {

int blocks_of(int64_t vocab) { return int((vocab + cuda::kRankChunk - 1) / cuda::kRankChunk); }

}  // namespace

uint64_t CudaRanker::device_bytes(int64_t vocab) {
  return uint64_t(blocks_of(vocab)) * sizeof(cuda::RankPart) + kMostRanked * sizeof(int32_t) +
         sizeof(cuda::RankResult);
}

void CudaRanker::run(const float* logits, const RankRequest& request, Ranking& out) {
  const int blocks = blocks_of(request.vocab);
  const auto parts = size_t(blocks) * sizeof(cuda::RankPart);
  if (parts_.bytes() < parts) {
    stream_.synchronize();
    parts_ = cuda::Memory(parts);
    also_ = cuda::Memory(kMostRanked * sizeof(int32_t));
    result_ = cuda::Memory(sizeof(cuda::RankResult));
  }
  if (!request.also.empty()) {
    cuda::upload(stream_, also_.data(), request.also.data(), request.also.size_bytes());
  }
  cuda::rank(stream_, {.logits = logits,
                       .vocab = int(request.vocab),
                       .blocks = blocks,
                       .keep = request.count == 1 ? 1 : int(kMostRanked),
                       .temperature = request.temperature,
                       .also = also_.as<int32_t>(),
                       .also_count = int(request.also.size()),
                       .parts = parts_.as<cuda::RankPart>(),
                       .out = result_.as<cuda::RankResult>()});
  cuda::RankResult result;
  cuda::download(stream_, &result, result_.data(), sizeof(result));
  out = {};
  out.finite = result.finite != 0;
  if (!out.finite) return;
  out.total = result.total;
  for (int64_t i = 0; i < std::min(request.count, request.vocab); ++i) {
    out.tokens.push_back({result.ids[i], result.logits[i]});
  }
  out.also.assign(result.also, result.also + request.also.size());
}

}  // namespace oq
