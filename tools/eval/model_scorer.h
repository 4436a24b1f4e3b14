#pragma once

#include "tools/eval/model.h"
#include "tools/eval/task.h"

namespace oq {

/// How a request becomes tokens. Both put EOS where there is no context.
enum class Harness {
  joint,     ///< encoded as one text, cut behind the context's own ids: lm-evaluation-harness
  separate,  ///< context and continuation each for itself: GPTQ's zero-shot code, AWRQ
};

struct EncodedRequest {
  std::vector<int32_t> context, continuation;  ///< neither is empty
};

/// Spaces at the end of the context go to the continuation in joint encoding. `bos`: the model's
/// BOS comes first, where it has one. A context that is too long for `max_tokens` before the last
/// loses its beginning. Throws oq::Error when the continuation has no tokens of its own or does
/// not fit.
EncodedRequest encode_request(const Tokenizer& tokenizer, const Request& request, Harness harness,
                              bool bos, int64_t max_tokens);

/// Scores by a model. A context that several consecutive requests share goes through the model
/// once; requests of several contexts go side by side, as sequences of the KV cache. A scheme with
/// one activation range per tensor sees every request whole, in one step.
class ModelScorer final : public Scorer {
 public:
  /// `model` must outlive the scorer.
  ModelScorer(const Model& model, Harness harness, bool bos)
      : model_(model), harness_(harness), bos_(bos) {}

  std::vector<Score> score(std::span<const Request> requests,
                           const std::function<void(int64_t)>& progress) override;

 private:
  const Model& model_;
  Harness harness_;
  bool bos_;
};

}  // namespace oq
