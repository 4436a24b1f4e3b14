#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>

#include "tools/calibrate/sight.h"

namespace oq::calibrate {

/// What enters the next block: [windows][tokens][hidden] floats, in memory, or in an unlinked file
/// where they would take more than `memory_limit` bytes. Zero at first. Owns its mapping.
class HiddenStates {
 public:
  /// Throws oq::Error when there is neither memory nor disk.
  HiddenStates(int64_t windows, int64_t tokens, int64_t hidden, uint64_t memory_limit,
               const std::filesystem::path& scratch_folder);
  ~HiddenStates();
  HiddenStates(const HiddenStates&) = delete;
  HiddenStates& operator=(const HiddenStates&) = delete;

  /// Others of as many windows and tokens, by the same limit and in the same folder.
  std::unique_ptr<HiddenStates> others(int64_t width) const;

  int64_t windows() const { return windows_; }
  int64_t tokens() const { return tokens_; }
  bool on_disk() const { return on_disk_; }
  static uint64_t bytes(int64_t windows, int64_t tokens, int64_t hidden);

  /// From now on the first window is one of first tokens.
  void begin_with_first_tokens() { first_ = Sight::alone; }
  /// What the tokens of a window see.
  Sight sight(int64_t window) const { return window == 0 ? first_ : Sight::causal; }

  float* data() { return data_; }
  std::span<float> window(int64_t i) { return {data_ + i * size_, size_t(size_)}; }
  std::span<const float> window(int64_t i) const { return {data_ + i * size_, size_t(size_)}; }

 private:
  int64_t windows_, tokens_, size_;
  uint64_t memory_limit_;
  std::filesystem::path scratch_folder_;
  bool on_disk_;
  Sight first_ = Sight::causal;
  float* data_ = nullptr;
};

}  // namespace oq::calibrate
