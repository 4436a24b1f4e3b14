#include "tools/common/backend.h"

#include <utility>

#include "tools/common/cli.h"
#if defined(OQ_HAVE_CUDA)
#include "runtime/backend/cuda/cuda_backend.h"
#endif

namespace oq::tool {
namespace {

#if defined(OQ_HAVE_CUDA)

/// A tool that makes decoders by the dozen says everything once.
void notice_once(bool quiet, const std::string& text) {
  static std::string last;
  if (std::exchange(last, text) != text) notice(quiet, text);
}

Decoder cuda_decoder(const std::shared_ptr<const File>& file, const BackendChoice& choice,
                     const Decoder::Options& options) {
  const auto say = [&](const std::string& text) { notice_once(choice.quiet, text); };
  return Decoder(file, make_cuda_backend({.notice = say, .random = choice.random}), options);
}

#endif

}  // namespace

Decoder make_decoder(std::shared_ptr<const File> file, const BackendChoice& choice,
                     const Decoder::Options& options) {
#if defined(OQ_HAVE_CUDA)
  if (choice.name != "cpu") {
    try {
      return cuda_decoder(file, choice, options);
    } catch (const cuda::DeviceError& e) {
      if (choice.name == "cuda") with_place("--backend cuda", [] { throw; });
      Error::Parts parts = e.parts();
      parts.hint.clear();
      notice_once(choice.quiet, std::string("the CPU runs, for ") + Error(parts).what());
    }
  }
#else
  if (choice.name == "cuda") {
    throw Error({.what = "this build has no CUDA backend",
                 .where = "--backend cuda",
                 .hint = "use --backend cpu"});
  }
#endif
  return Decoder(std::move(file), make_cpu_backend(choice.threads), options);
}

}  // namespace oq::tool
