#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "format/file.h"
#include "tools/calibrate/block_job.h"

namespace oq::calibrate {

/// OUTPUT.work: every finished block as a small .oq file, so that a killed run loses one block at
/// the most and the final file is put together from what was verified on disk. The files carry a
/// key, made of everything that shapes the result; blocks of another key are not used.
class WorkFolder {
 public:
  /// Makes the folder. Without `resume`, blocks that an earlier run left are removed; with it,
  /// throws oq::Error where they were made with other options or from another file.
  WorkFolder(const std::filesystem::path& output, std::string key, bool resume);

  const std::filesystem::path& path() const { return path_; }
  /// Blocks 0 .. finished() - 1 are there.
  int64_t finished() const { return finished_; }
  std::shared_ptr<const File> block(int64_t index) const;
  /// Linears that the job did not store, norms and the rest go in as the job's weights have them,
  /// matrices in the type that they have in `source`.
  void write(int64_t index, BlockJob& job, const File& source);
  std::vector<LinearReport> reports(int64_t index) const;
  /// What was learned of the block.
  BlockParameters parameters(int64_t index) const;
  /// The calibration is done: everything goes.
  void remove();

 private:
  std::filesystem::path file_of(int64_t index) const;

  std::filesystem::path path_;
  std::string key_;
  int64_t finished_ = 0;
};

/// The block as it will be executed: from its file, inputs quantized by the scheme.
BlockWeights load_finished(const File& file, const ModelConfig& config, const Scheme& scheme,
                           int64_t block);

}  // namespace oq::calibrate
