#include <algorithm>
#include <cmath>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "tools/calibrate/calibration_text.h"
#include "tools/calibrate/methods/method.h"
#include "tools/calibrate/places.h"
#include "tools/calibrate/preflight.h"
#include "tools/calibrate/provenance.h"
#include "tools/calibrate/smoothing.h"
#include "tools/calibrate/work_folder.h"

namespace oq::calibrate {
namespace {

/// Refuses what is asked about learned parameters where it has nothing to do.
void check_parameters(const Options& o) {
  const bool uses = !o.parameters.empty() || !o.save_parameters.empty() || !o.act_scales.empty() ||
                    !o.act_shifts.empty();
  if (uses && !reads(o.method, "--params")) {
    throw Error({.what = "keeps no learned parameters",
                 .where = "--method " + o.method,
                 .expected = fmt::format("{}", fmt::join(readers("--params"), " or "))});
  }
  if (uses && o.smooth) {
    throw Error({.what = "its scales are not among the learned parameters",
                 .where = "--smooth",
                 .hint = "leave it out: --let learns such scales"});
  }
  if (o.save_parameters.empty()) return;
  if (o.save_parameters.extension() != kParametersExtension) {
    throw Error({.what = "is a name by which --params would not know learned parameters",
                 .where = o.save_parameters.string(),
                 .expected = fmt::format("NAME{}", kParametersExtension)});
  }
  const auto folder = std::filesystem::absolute(o.save_parameters).parent_path();
  if (!std::filesystem::is_directory(folder)) {
    throw Error({.what = "there is no such folder", .where = folder.string()});
  }
}

/// Refuses what no method could make sense of, before any work is done.
void check(const Options& o, const File& file, const ModelConfig& config) {
  const auto refuse = [&](std::string what, std::string hint) {
    return Error({.what = std::move(what), .where = file.path().string(), .hint = std::move(hint)});
  };
  for (const TensorSpec& spec : tensor_specs(config)) {
    if (file.tensor(spec.name).kind == Kind::packed) {
      throw refuse("is quantized already: '" + spec.name + "' is packed",
                   "calibrate the f16 model (oq-convert without --scheme)");
    }
  }
  if (o.method == "act-only" && o.scheme.quantizes_weights()) {
    throw refuse("--method act-only leaves weights as they are", "take a scheme such as w16a8");
  }
  if (o.method != "act-only" && !o.scheme.quantizes_weights()) {
    throw refuse("the scheme leaves weights as they are", "take --method act-only for it");
  }
  if (o.method == "awrq" && o.scheme.activation_bits == 16) {
    throw refuse("AWRQ needs a scheme that quantizes activations", "such as w4a8");
  }
  check_parameters(o);
  check_places({{"the input", o.input},
                {"the text", text_file(o.text)},
                {"the file of --params", o.parameters},
                {"that of --act-scales", o.act_scales},
                {"that of --act-shifts", o.act_shifts}},
               {{"-o", o.output}, {"--save-params", o.save_parameters}});
}

/// What the bytes of a written file are spent on.
std::vector<Part> parts_of(const File& file) {
  std::map<std::string, uint64_t> linears;
  uint64_t scales = 0, zeros = 0, weak = 0, embedding = 0, head = 0, rest = 0;
  for (const TensorInfo& t : file.tensors()) {
    if (t.name == "embedding") {
      embedding += t.bytes;
    } else if (t.name == "head") {
      head += t.bytes;
    } else if (t.kind != Kind::packed) {
      rest += t.bytes;
    } else {
      const PackedLayout l = PackedLayout::of(t.rows, t.cols, t.packing);
      linears[t.name.substr(t.name.rfind('.') + 1)] += l.scales_offset;
      scales += l.zeros_offset - l.scales_offset;
      zeros += l.weak_index_offset - l.zeros_offset;
      weak += l.bytes - l.weak_index_offset;
    }
  }
  std::vector<Part> parts;
  for (const auto& [type, bytes] : linears) parts.push_back({"codes of " + type, bytes});
  for (const auto& [name, bytes] :
       {std::pair("scales", scales), std::pair("zero points", zeros),
        std::pair("weak columns", weak), std::pair("embedding", embedding), std::pair("head", head),
        std::pair("the rest", rest)}) {
    if (bytes > 0) parts.push_back({name, bytes});
  }
  return parts;
}

class Calibration {
 public:
  Calibration(const Options& o, const Observer& observer)
      : o_(o),
        observer_(observer),
        of_blocks_{.progress = [this](double done, double,
                                      std::string_view what) { progress(done, what); },
                   .notice = observer.notice},
        file_(File::open(o.input)),
        config_(ModelConfig::load(*file_)) {
    check_tensors(*file_, config_);
    if (!o_.parameters.empty()) read_given();
    o_.scheme.heads_share_range = heads_share_range(o_, config_);
    check(o_, *file_, config_);
    method_ = make_method(o_);
    method_->check(config_);
    needs_text_ = o_.smooth || (method_->needs_text() && given_.blocks.empty());
    if (!o_.act_scales.empty() || !o_.act_shifts.empty()) {
      ranges_ = read_input_ranges(o_.act_scales, o_.act_shifts, config_);
    }
    if (needs_text_ && o_.text.empty()) {
      throw Error({.what = fmt::format("--method {} needs calibration text", o_.method),
                   .where = o_.input.string(),
                   .hint = "give --text FILE or --text self"});
    }
    if (needs_text_) check_windows(o_, *file_, config_);
  }

  Result run() {
    if (o_.text == "self") {  // a decoder could only say that some logit is no number
      for (const TensorSpec& spec : tensor_specs(config_)) read_tensor(*file_, spec.name);
    }
    if (needs_text_) text_ = calibration_text(file_, o_, observer_);
    provenance_ = provenance_of(o_, *file_, text_);
    if (!o_.parameters.empty()) take_training(provenance_, given_, o_.parameters);
    const Preflight flight = preflight(*file_, config_, o_, int64_t(text_.windows.size()));
    if (observer_.notice) observer_.notice(flight.text());
    flight.check(o_.output);
    last_block_ = flight.last_block;
    WorkFolder work(o_.output, run_key(provenance_, o_), o_.resume);
    BlockRunner runner(file_, needs_text_ ? o_.window : 1, o_.threads);
    HiddenStates hidden(std::max<int64_t>(1, int64_t(text_.windows.size())),
                        needs_text_ ? o_.window : 1, config_.hidden, flight.hidden_memory_limit,
                        work.path());
    if (needs_text_) embed(runner, hidden);
    std::unique_ptr<HiddenStates> targets;
    if (method_->needs_targets() && needs_text_) {
      targets = std::make_unique<HiddenStates>(hidden.windows(), hidden.tokens(), config_.hidden,
                                               flight.hidden_memory_limit, work.path());
      embed(runner, *targets);
    }
    progress(0, fmt::format("block 1 of {}", config_.blocks));  // the clock starts here
    for (int64_t b = 0; b < config_.blocks; ++b) {
      if (targets) advance(runner, *targets, BlockWeights::load(*file_, config_, b), {}, b);
      if (b >= work.finished()) quantize(runner, hidden, targets.get(), work, b);
      // The block that follows sees what this one's file computes.
      if (needs_text_) {
        advance(runner, hidden, load_finished(*work.block(b), config_, o_.scheme, b), o_.scheme, b);
      }
      progress(double(b + 1), fmt::format("block {} of {}", b + 1, config_.blocks));
    }
    Result result = assemble(runner, work);
    if (!o_.save_parameters.empty()) save_parameters(work);
    work.remove();
    return result;
  }

 private:
  void read_given() {
    given_ = read_parameters(o_.parameters, config_);
    if (!given_.metadata.empty()) return;
    // A file of OmniQuant's does not say how it was made, but what it holds does; it is applied as
    // that code does it.
    const auto holds = [&](std::string_view end) {
      return std::any_of(given_.blocks[0].begin(), given_.blocks[0].end(),
                         [&](const auto& entry) { return entry.first.ends_with(end); });
    };
    const auto settle = [&](bool& asked, bool given, bool held, const char* flag) {
      if (given && asked != held) {
        throw Error({.what = "was learned with other options",
                     .where = o_.parameters.string(),
                     .expected = fmt::format("--{}{}", asked ? "" : "no-", flag),
                     .found = fmt::format("--{}{}", held ? "" : "no-", flag),
                     .hint = "leave the flag out: the file says it"});
      }
      asked = held;
    };
    Learning& l = o_.learning;
    l.faithful = true;
    settle(l.clip, l.clip_given, holds(".upper"), "lwc");
    settle(l.transform, l.transform_given, holds(".scale"), "let");
  }

  void embed(BlockRunner& runner, HiddenStates& hidden) const {
    runner.embed(text_.windows, hidden.data(), text_.first_tokens);
    if (text_.first_tokens) hidden.begin_with_first_tokens();
  }

  void save_parameters(const WorkFolder& work) const {
    Parameters p{.metadata = provenance_, .blocks = {}};
    for (int64_t b = 0; b < config_.blocks; ++b) p.blocks.push_back(work.parameters(b));
    write_parameters(o_.save_parameters, p);
  }

  /// Of so many blocks; the last has more work than the others.
  void progress(double blocks, std::string_view what) const {
    if (!observer_.progress) return;
    const double others = double(config_.blocks) - 1;
    const double done = std::min(blocks, others) + last_block_ * std::max(0.0, blocks - others);
    observer_.progress(done, others + last_block_, what);
  }

  void quantize(BlockRunner& runner, const HiddenStates& hidden, const HiddenStates* targets,
                WorkFolder& work, int64_t b) {
    BlockJob job(runner, hidden, o_, of_blocks_, b, BlockWeights::load(*file_, config_, b),
                 {.targets = targets,
                  .parameters = given_.blocks.empty() ? nullptr : &given_.blocks[size_t(b)],
                  .ranges = ranges_.empty() ? nullptr : &ranges_[size_t(b)]});
    if (o_.smooth) smooth_block(job);
    method_->quantize(job);
    work.write(b, job, *file_);
  }

  void advance(BlockRunner& runner, HiddenStates& hidden, const BlockWeights& block,
               const Scheme& scheme, int64_t b) const {
    for (int64_t w = 0; w < hidden.windows(); ++w) {
      const std::span<float> x = hidden.window(w);
      runner.forward(block, scheme, x.data(), hidden.tokens(), {}, hidden.sight(w));
      for (float v : x) {
        if (std::isfinite(v)) continue;
        throw Error({.what = "the block's output is not finite",
                     .where = fmt::format("blocks.{}, calibration window {}", b, w),
                     .hint = scheme.quantizes_weights() ? remedy(o_.method)
                                                        : "convert the checkpoint again"});
      }
    }
  }

  void write_head(BlockRunner& runner, const TensorSpec& spec, Writer& out) const {
    const Packing packing = head_packing(o_.head_bits);
    const Matrix w(spec.rows, spec.cols, read_tensor(*file_, spec.name));
    const auto q = round_to_nearest(runner.pool(), w, {.packing = packing});
    out.add({.name = spec.name,
             .kind = Kind::packed,
             .rows = uint64_t(spec.rows),
             .cols = uint64_t(spec.cols),
             .packing = packing},
            q.pack().bytes());
  }

  Result assemble(BlockRunner& runner, const WorkFolder& work) const {
    const auto specs = tensor_specs(config_);
    Writer out(o_.output, file_->tensors().size() + 8,
               std::max<size_t>(16 << 10, 2 * file_->metadata().encode().size()));
    out.metadata = file_->metadata();
    Result result;
    std::shared_ptr<const File> block;
    std::string prefix = "/";  // of the open block
    for (const TensorInfo& t : file_->tensors()) {
      if (t.kind == Kind::bytes) out.add(clean(t), file_->data(t));  // the tokenizer's
    }
    for (const TensorSpec& spec : specs) {
      const bool table = spec.role == Role::embedding || spec.role == Role::head;
      if (spec.name.rfind("blocks.", 0) == 0) {
        if (spec.name.rfind(prefix, 0) != 0) {
          const int64_t index = std::stoll(spec.name.substr(7));
          prefix = fmt::format("blocks.{}.", index);
          block = work.block(index);
          const auto reports = work.reports(index);
          result.linears.insert(result.linears.end(), reports.begin(), reports.end());
          result.losses.push_back(
              block->metadata().get_or<std::vector<double>>("report.losses", {}));
          result.output_errors.push_back(
              block->metadata().get_or<double>("report.output_error", NAN));
        }
        const TensorInfo& t = block->tensor(spec.name);
        out.add(clean(t), block->data(t));
      } else if (table && o_.head_bits < 16) {
        write_head(runner, spec, out);
      } else {
        const TensorInfo& t = file_->tensor(spec.name);
        out.add(clean(t), file_->data(t));
      }
    }
    set_provenance(out.metadata);
    out.finish();
    const auto written = File::open(o_.output);
    const LinearBytes linears = linear_bytes(*written, config_);
    result.bits_per_weight = linears.bits_per_weight();
    result.weights = linears.weights;
    result.bytes = written->bytes();
    result.parts = parts_of(*written);
    result.text_source = provenance_.at("text");
    result.options = options_text(provenance_, o_);
    return result;
  }

  /// A directory entry as the writer wants it: place and checksum are its own business.
  static TensorInfo clean(const TensorInfo& t) {
    return {.name = t.name, .kind = t.kind, .rows = t.rows, .cols = t.cols, .packing = t.packing};
  }

  void set_provenance(Metadata& m) const {
    o_.scheme.store(m);
    m.set("head_bits", int64_t(o_.head_bits));
    m.set("calibration.method", o_.method);
    m.set("calibration.options", options_text(provenance_, o_));
    m.set("calibration.text", provenance_.at("text"));
    m.set("calibration.text_crc32c", provenance_.at("text_crc32c"));
    m.set("calibration.model_crc32c", provenance_.at("model_crc32c"));
    m.set("calibration.seed", int64_t(seed_of(provenance_)));
    m.set("calibration.tool", provenance_.at("tool"));
  }

  Options o_;
  const Observer& observer_;
  Observer of_blocks_;  ///< of a job, which counts in blocks
  std::shared_ptr<const File> file_;
  ModelConfig config_;
  std::unique_ptr<Method> method_;
  double last_block_ = 1;
  bool needs_text_ = false;
  CalibrationText text_;
  Provenance provenance_;
  Parameters given_;                     ///< of --params
  std::vector<BlockParameters> ranges_;  ///< of --act-scales and --act-shifts
};

}  // namespace

Result calibrate(const Options& options, const Observer& observer) {
  return Calibration(options, observer).run();
}

}  // namespace oq::calibrate
