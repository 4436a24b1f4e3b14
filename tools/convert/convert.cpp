#include "tools/convert/convert.h"

#include <future>

#include <fmt/format.h>

#include "tools/convert/binding.h"
#include "tools/convert/rtn.h"
#include "tools/convert/sha256.h"
#include "tools/convert/tensor_writer.h"

namespace oq::convert {
namespace {

namespace fs = std::filesystem;

void protect_source(const Checkpoint& checkpoint, const fs::path& output) {
  for (const fs::path& file : checkpoint.files()) {
    std::error_code absent;
    if (fs::equivalent(file, output, absent)) {
      throw Error({.what = "is a file of the checkpoint itself",
                   .where = output.string(),
                   .hint = "give another name with -o"});
    }
  }
}

/// Hashes of the source's files, computed beside the conversion; a conversion that fails does not
/// wait for the rest of them.
class SourceHashes {
 public:
  explicit SourceHashes(std::vector<fs::path> files)
      : hashes_(
            std::async(std::launch::async, [files = std::move(files), stop = stop_.get_token()] {
              std::vector<std::string> hashes;
              for (const fs::path& file : files) hashes.push_back(sha256_file(file, stop));
              return hashes;
            })) {}
  ~SourceHashes() { stop_.request_stop(); }

  std::vector<std::string> get() { return hashes_.get(); }

 private:
  std::stop_source stop_;
  std::future<std::vector<std::string>> hashes_;
};

/// Options as they change the result, in one line.
std::string options_text(const Options& o) {
  if (o.vocab_only) return "--vocab-only";
  std::string text = fmt::format("--dtype {}", to_string(o.dtype));
  if (o.scheme.quantizes_weights()) {
    text = fmt::format("--scheme {} --head-bits {} {}", o.scheme.str(), o.head_bits, text);
  }
  return text;
}

Storage storage_of(const Options& o) {
  Storage s;
  s.dtype = o.dtype;
  s.threads = o.threads;
  if (o.scheme.quantizes_weights()) {
    s.linears = rtn_packing(o.scheme);
    if (o.head_bits < 16) s.head = head_packing(o.head_bits);
  }
  return s;
}

void write_model(const Options& o, const Checkpoint& checkpoint, const Model& model,
                 const std::vector<Binding>& bindings, Writer& out, const Observer& observer,
                 Result& result) {
  model.config.store(out.metadata);
  out.metadata.set("scheme", o.scheme.str());
  out.metadata.set("head_bits",
                   int64_t(o.scheme.quantizes_weights() && o.head_bits < 16 ? o.head_bits : 16));
  uint64_t done = 0, total = 0;
  for (const Binding& b : bindings) {
    result.weights += uint64_t(b.spec.rows * b.spec.cols);
    if (b.source != nullptr) total += b.source->data.size();
  }
  const auto progress = [&](uint64_t bytes, std::string_view tensor) {
    done += bytes;
    if (observer.progress) observer.progress(done, total, tensor);
  };
  TensorWriter writer(checkpoint, model, storage_of(o), out, progress);
  for (const Binding& b : bindings) writer.write(b);
}

}  // namespace

Result convert(const Options& o, const Observer& observer) {
  const auto checkpoint = Checkpoint::open(o.source, !o.vocab_only);
  protect_source(*checkpoint, o.output);
  Result result;
  Model model;
  std::vector<Binding> bindings;
  if (!o.vocab_only) {
    const Family& family = find_family(*checkpoint);
    model = read_model(family, *checkpoint);
    bindings = bind_tensors(family, model.config, *checkpoint);
    result.family = model.config.family;
    if (!model.rope.notice.empty()) result.notices.push_back(model.rope.notice);
  }
  const TokenizerData tokenizer = checkpoint->tokenizer();
  if (tokenizer.kind == TokenizerData::Kind::none) {
    if (o.vocab_only) {
      throw Error({.what = "holds no tokenizer",
                   .where = o.source.string(),
                   .hint = "give a checkpoint that has one"});
    }
    result.notices.push_back("the checkpoint holds no tokenizer: the model takes token ids only");
  }

  const std::vector<fs::path> files = checkpoint->files();
  Writer out(o.output, bindings.size() + 16, (16 << 10) + 256 * files.size());
  SourceHashes hashes(files);
  tokenizer.store(out);
  if (!o.vocab_only) write_model(o, *checkpoint, model, bindings, out, observer, result);
  std::vector<std::string> names;
  for (const fs::path& file : files) names.push_back(file.filename().string());
  out.metadata.set("source.format", checkpoint->format());
  out.metadata.set("source.files", std::move(names));
  out.metadata.set("source.sha256", hashes.get());
  out.metadata.set("tool.version", std::string("oq-convert " OQ_VERSION));
  out.metadata.set("tool.options", options_text(o));
  out.finish();
  result.tensors = bindings.size();
  result.bytes = fs::file_size(o.output);
  return result;
}

}  // namespace oq::convert
