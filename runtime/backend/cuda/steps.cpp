#include "runtime/backend/cuda/steps.h"

#include <utility>

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

bool CudaSteps::end() {
  if (now_ == nullptr) return true;
  Step& step = *std::exchange(now_, nullptr);
  step.has_run = true;
  if (recording_ && !finish(step)) return false;
  if (step.graph) stream_.replay(step.graph);
  return true;
}

bool CudaSteps::finish(Step& step) {
  try {
    step.graph = recording_->finish();
  } catch (const cuda::DeviceError&) {
    captures_ = false;
  }
  recording_.reset();
  if (!captures_) forget();
  return captures_;
}

void CudaSteps::forget() {
  stream_.synchronize();
  for (auto& entry : steps_) entry.second.graph = {};
}

}  // namespace oq
