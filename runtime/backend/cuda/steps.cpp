#include "runtime/backend/cuda/steps.h"

namespace oq {
namespace {

constexpr size_t kMostShapes = 16;  ///< then all are forgotten: a graph takes memory too

}  // namespace

void CudaSteps::abandon() {
  recording_.reset();
  now_ = nullptr;
}

bool CudaSteps::begin(const std::vector<int>& shape) {
  if (!captures_ || shape.empty()) return true;
  if (steps_.size() >= kMostShapes && steps_.count(shape) == 0) {
    stream_.synchronize();  // one of them may be running
    steps_.clear();
  }
  now_ = &steps_[shape];
  if (now_->graph) return false;
  if (now_->has_run) recording_.emplace(stream_);
  return true;
}

void CudaSteps::end() {
  if (now_ == nullptr) return;
  now_->has_run = true;
  if (recording_) {
    now_->graph = recording_->finish();
    recording_.reset();
  }
  if (now_->graph) stream_.replay(now_->graph);
  now_ = nullptr;
}

void CudaSteps::forget() {
  stream_.synchronize();
  for (auto& entry : steps_) entry.second.graph = {};
}

}  // namespace oq
