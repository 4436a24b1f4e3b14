#pragma once

#include <memory>

#include "tools/convert/quantized/quantization.h"

namespace oq::convert {

/// A checkpoint whose quantized linears look like any other: the tensors "X.qweight", "X.scales"
/// and so on become one, "X.weight", with the shape of the weights and `packed` set. Read as
/// floats, it is scale * (code - zero). All other tensors are the checkpoint's own.
class QuantizedCheckpoint : public Checkpoint {
 public:
  /// Throws oq::Error where tensors are missing, contradict the settings, or where none is
  /// quantized at all.
  QuantizedCheckpoint(std::unique_ptr<Checkpoint> base, Quantization quantization);

  Dialect dialect() const override { return base_->dialect(); }
  std::string format() const override { return base_->format(); }
  std::string architecture() const override { return base_->architecture(); }
  const Config& config() const override { return base_->config(); }
  std::vector<std::filesystem::path> files() const override;
  TokenizerData tokenizer() const override { return base_->tokenizer(); }

  void read_rows(const SourceTensor& tensor, uint64_t row0, uint64_t n, float* out) const override;
  void release(const SourceTensor& tensor) const override;

  const Quantization& quantization() const { return quantization_; }
  /// What the user should know about how the linears were read.
  const std::vector<std::string>& notices() const { return notices_; }

 private:
  void add_linear(const std::string& name);
  std::shared_ptr<const PackedSource> open(const std::string& name);
  const SourceTensor& need(const std::string& name) const;

  std::unique_ptr<Checkpoint> base_;
  Quantization quantization_;
  std::vector<std::string> notices_;
  uint64_t ambiguous_ = 0;  ///< linears with zero points of 2^bits
};

}  // namespace oq::convert
