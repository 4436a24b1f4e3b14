#include "tools/calibrate/calibration_text.h"

#include <algorithm>

#include <fmt/format.h>

#include "format/crc32c.h"
#include "runtime/decoder.h"
#include "runtime/sampler.h"
#include "runtime/tokenizer/tokenizer.h"
#include "tools/calibrate/solver/windows.h"
#include "tools/common/json.h"
#include "tools/common/text_file.h"

namespace oq::calibrate {
namespace {

using Ids = std::vector<int32_t>;

Ids encode(const Tokenizer& tokenizer, const std::string& text) {
  Ids ids;
  if (tokenizer.adds_bos()) ids.push_back(tokenizer.bos());
  const Ids body = tokenizer.encode(text, false);
  ids.insert(ids.end(), body.begin(), body.end());
  return ids;
}

/// The "text" of every line of a .jsonl file.
std::vector<std::string> documents(const Options& o, const std::string& text) {
  std::vector<std::string> docs;
  size_t line = 0;
  for (size_t at = 0; at < text.size(); ++line) {
    const size_t end = std::min(text.find('\n', at), text.size());
    const std::string_view row = std::string_view(text).substr(at, end - at);
    at = end + 1;
    if (row.find_first_not_of(" \t\r") == std::string_view::npos) continue;
    const auto json = nlohmann::json::parse(row, nullptr, false);
    if (!json.is_object() || !json.contains("text") || !json["text"].is_string()) {
      throw Error({.what = "is no JSON object with a string \"text\"",
                   .where = fmt::format("{}, line {}", o.text, line + 1),
                   .hint = "give a .jsonl file with one document per line, or plain text"});
    }
    docs.push_back(json["text"].get<std::string>());
  }
  return docs;
}

std::vector<Ids> from_documents(const Options& o, const Tokenizer& tokenizer,
                                const std::string& text) {
  const std::vector<std::string> docs = documents(o, text);
  std::vector<Ids> ids(docs.size());  // filled when first asked for
  const auto tokens_of = [&](uint64_t i) -> const Ids& {
    if (ids[i].empty()) ids[i] = encode(tokenizer, docs[i]);
    return ids[i];
  };
  std::vector<Ids> windows;
  for (const DocumentWindow& w : sample_document_windows(
           docs.size(), [&](uint64_t i) { return tokens_of(i).size(); }, uint64_t(o.window),
           uint64_t(o.windows), o.seed)) {
    const auto first = tokens_of(w.document).begin() + int64_t(w.start);
    windows.emplace_back(first, first + o.window);
  }
  return windows;
}

std::vector<Ids> from_stream(const Options& o, const Tokenizer& tokenizer,
                             const std::string& text) {
  const Ids ids = encode(tokenizer, text);
  std::vector<Ids> windows;
  for (uint64_t start :
       sample_windows(ids.size(), uint64_t(o.window), uint64_t(o.windows), o.seed)) {
    windows.emplace_back(ids.begin() + int64_t(start), ids.begin() + int64_t(start) + o.window);
  }
  return windows;
}

/// Several windows are written side by side: a step then reads the weights once for all of them.
std::vector<Ids> from_model(const std::shared_ptr<const File>& file, const Options& o,
                            const Observer& observer) {
  constexpr int64_t kBeside = 16;
  const int64_t count = o.windows, beside = std::min(count, kBeside);
  const ModelConfig config = ModelConfig::load(*file);
  Decoder decoder(file, make_cpu_backend(o.threads),
                  {.context = o.window, .sequences = beside, .max_rows = beside});
  const auto bos = file->metadata().get_or<int64_t>("tokenizer.bos", -1);
  PythonRandom random(o.seed);
  std::vector<Ids> windows;
  for (int64_t w = 0; w < count; ++w) {
    windows.push_back({int32_t(bos >= 0 ? bos : int64_t(random.below(uint64_t(config.vocab))))});
  }
  for (int64_t first = 0; first < count; first += beside) {
    const int64_t n = std::min(beside, count - first);
    std::vector<Sampler> samplers;
    Ids sequences, rows;
    for (int32_t i = 0; i < int32_t(n); ++i) {
      samplers.emplace_back(SamplerParams{.temperature = 1, .seed = random.next()});
      sequences.push_back(i);
      rows.push_back(i);
    }
    for (int64_t t = 0; t + 1 < o.window; ++t) {
      Ids tokens;
      for (int64_t i = 0; i < n; ++i) tokens.push_back(windows[size_t(first + i)].back());
      const Ids positions(tokens.size(), int32_t(t));
      decoder.step(
          {.tokens = tokens, .positions = positions, .sequences = sequences, .logit_rows = rows});
      for (int64_t i = 0; i < n; ++i) {
        windows[size_t(first + i)].push_back(samplers[size_t(i)].sample(decoder.logits(i)));
      }
      if (observer.progress) {
        observer.progress(double(first * o.window + (t + 2) * n), double(count * o.window),
                          "writing calibration text");
      }
    }
  }
  return windows;
}

/// A window of the others' tokens, each to stand for a text's first.
Ids draw_first_tokens(const std::vector<Ids>& windows, const Options& o) {
  PythonRandom random(o.seed);
  Ids tokens;
  for (int64_t i = 0; i < o.window; ++i) {
    const Ids& from = windows[random.below(windows.size())];
    tokens.push_back(from[random.below(from.size())]);
  }
  return tokens;
}

}  // namespace

void check_windows(const Options& o, const File& file, const ModelConfig& config) {
  const auto refuse = [&](std::string what, std::string hint) {
    return Error({.what = std::move(what), .where = file.path().string(), .hint = std::move(hint)});
  };
  if (o.window < 2 || o.windows < 1) throw refuse("needs windows of 2 tokens or more", "");
  if (o.window > config.context) {
    throw refuse(fmt::format("--window {} is longer than the model's context", o.window),
                 fmt::format("take at most {}", config.context));
  }
}

CalibrationText calibration_text(const std::shared_ptr<const File>& file, const Options& o,
                                 const Observer& observer) {
  CalibrationText text;
  text.source = o.text == "self" ? "self" : std::filesystem::path(o.text).filename().string();
  if (o.text == "self") {
    text.windows = from_model(file, o, observer);
  } else {
    const std::string all = tool::read_text(o.text);
    const auto tokenizer = Tokenizer::load(*file);
    text.windows = with_place(o.text, [&] {
      return o.text.ends_with(".jsonl") ? from_documents(o, *tokenizer, all)
                                        : from_stream(o, *tokenizer, all);
    });
  }
  text.first_tokens = learns_first_tokens(o);
  if (text.first_tokens) {
    text.windows.insert(text.windows.begin(), draw_first_tokens(text.windows, o));
  }
  const int64_t vocab = ModelConfig::load(*file).vocab;
  for (const Ids& window : text.windows) {
    for (int32_t id : window) {
      if (id >= 0 && id < vocab) continue;
      throw Error({.what = "tokenizer and embedding disagree",
                   .where = file->path().string(),
                   .expected = fmt::format("ids below {}", vocab),
                   .found = std::to_string(id),
                   .hint = "convert the checkpoint again"});
    }
    text.crc = crc32c(std::as_bytes(std::span(window)), text.crc);
  }
  return text;
}

}  // namespace oq::calibrate
