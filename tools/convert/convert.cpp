#include "tools/convert/convert.h"

#include <future>

#include <fmt/format.h>

#include "tools/convert/binding.h"
#include "tools/convert/quantized/owq_checkpoint.h"
#include "tools/convert/quantized/quantized_checkpoint.h"
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

/// A checkpoint and what is to become of it.
struct Job {
  std::unique_ptr<Checkpoint> checkpoint;
  std::optional<Quantization> taken_over;  ///< of the checkpoint's linears
  Scheme scheme;
  int head_bits = 16;
};

Job open_source(const fs::path& source) {
  Job job;
  if (const auto file = OwqCheckpoint::find(source)) {
    auto owq = std::make_unique<OwqCheckpoint>(*file);
    job.taken_over = owq->quantization();
    job.checkpoint = std::move(owq);
  } else {
    job.checkpoint = Checkpoint::open(source);
    job.taken_over = read_quantization(*job.checkpoint);
  }
  return job;
}

Job open_vocabulary(const fs::path& source) {
  const auto owq = OwqCheckpoint::find(source);
  Job job;
  job.checkpoint = Checkpoint::open(owq ? OwqCheckpoint::folder_of(*owq) : source, false);
  return job;
}

Job open_job(const Options& o, Result& result) {
  if (o.vocab_only) return open_vocabulary(o.source);
  Job job = open_source(o.source);
  if (job.taken_over) {
    auto quantized =
        std::make_unique<QuantizedCheckpoint>(std::move(job.checkpoint), *job.taken_over);
    result.notices = quantized->notices();
    job.checkpoint = std::move(quantized);
  }
  job.scheme = o.scheme.value_or(job.taken_over ? job.taken_over->scheme() : Scheme());
  if (job.taken_over && job.scheme != job.taken_over->scheme()) {
    throw Error({.what = fmt::format("is quantized already, by {}, and is taken over as it is",
                                     job.taken_over->name()),
                 .where = job.taken_over->where.string(),
                 .expected = "--scheme " + job.taken_over->scheme().str() + ", or none",
                 .found = "--scheme " + job.scheme.str(),
                 .hint = "for another scheme, convert the checkpoint that it was made from"});
  }
  if (job.scheme.quantizes_weights()) job.head_bits = o.head_bits.value_or(job.taken_over ? 16 : 8);
  return job;
}

/// Options as they change the result, in one line.
std::string options_text(const Options& o, const Job& job) {
  if (o.vocab_only) return "--vocab-only";
  std::string text = fmt::format("--dtype {}", to_string(o.dtype));
  if (!job.scheme.quantizes_weights()) return text;
  text = fmt::format("--head-bits {} {}", job.head_bits, text);
  return job.taken_over ? text : fmt::format("--scheme {} {}", job.scheme.str(), text);
}

Storage storage_of(const Options& o, const Job& job) {
  Storage s;
  s.dtype = o.dtype;
  s.threads = o.threads;
  if (job.scheme.quantizes_weights() && !job.taken_over) s.linears = packing_of(job.scheme);
  if (job.head_bits < 16) s.head = head_packing(job.head_bits);
  return s;
}

void store_provenance(const Options& o, const Job& job, const std::vector<fs::path>& files,
                      std::vector<std::string> hashes, Metadata& metadata) {
  std::vector<std::string> names;
  for (const fs::path& file : files) names.push_back(file.filename().string());
  metadata.set("source.format", job.checkpoint->format());
  metadata.set("source.files", std::move(names));
  metadata.set("source.sha256", std::move(hashes));
  if (job.taken_over) {
    metadata.set("source.method", job.taken_over->name());
    if (!job.taken_over->producer.empty()) {
      metadata.set("source.producer", job.taken_over->producer);
    }
  }
  metadata.set("tool.version", std::string("oq-convert " OQ_VERSION));
  metadata.set("tool.options", options_text(o, job));
}

void write_model(const Options& o, const Job& job, const Model& model,
                 const std::vector<Binding>& bindings, Writer& out, const Observer& observer,
                 Result& result) {
  model.config.store(out.metadata);
  out.metadata.set("scheme", job.scheme.str());
  out.metadata.set("head_bits", int64_t(job.head_bits));
  uint64_t done = 0, total = 0;
  for (const Binding& b : bindings) {
    result.weights += uint64_t(b.spec.rows * b.spec.cols);
    total += b.source_bytes();
  }
  const auto progress = [&](uint64_t bytes, std::string_view tensor) {
    done += bytes;
    if (observer.progress) observer.progress(done, total, tensor);
  };
  TensorWriter writer(*job.checkpoint, model, storage_of(o, job), out, progress);
  for (const Binding& b : bindings) writer.write(b);
}

}  // namespace

bool is_quantized(const fs::path& source) { return open_source(source).taken_over.has_value(); }

Result convert(const Options& o, const Observer& observer) {
  Result result;
  const Job job = open_job(o, result);
  const Checkpoint* checkpoint = job.checkpoint.get();
  protect_source(*checkpoint, o.output);
  result.scheme = job.scheme;
  Model model;
  std::vector<Binding> bindings;
  if (!o.vocab_only) {
    const Family& family = find_family(*checkpoint);
    model = read_model(family, *checkpoint);
    bindings = bind_tensors(family, model.config, *checkpoint);
    result.family = model.config.family;
    result.notices.insert(result.notices.end(), model.notices.begin(), model.notices.end());
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
  if (!o.vocab_only) check_vocabulary(tokenizer, model.config.vocab, o.source.string());

  const std::vector<fs::path> files = checkpoint->files();
  Writer out(o.output, bindings.size() + 16, (16 << 10) + 256 * files.size());
  SourceHashes hashes(files);
  tokenizer.store(out);
  if (!o.vocab_only) write_model(o, job, model, bindings, out, observer, result);
  store_provenance(o, job, files, hashes.get(), out.metadata);
  out.finish();
  result.tensors = bindings.size();
  result.bytes = fs::file_size(o.output);
  return result;
}

}  // namespace oq::convert
