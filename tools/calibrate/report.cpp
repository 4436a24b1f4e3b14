#include "tools/calibrate/report.h"

#include <algorithm>
#include <cmath>
#include <fstream>

#include <fmt/format.h>

#include "tools/calibrate/chart.h"

namespace oq::calibrate {
namespace {

constexpr const char* kHead = R"(<!doctype html><html lang="en"><meta charset="utf-8">
<meta name="viewport" content="width=device-width"><title>{title}</title><style>
body{{font:15px/1.5 system-ui,sans-serif;max-width:1000px;margin:2em auto;padding:0 1em;color:#222}}
h1{{font-size:1.5em}}h2{{font-size:1.15em;margin-top:2em}}table{{border-collapse:collapse}}
td,th{{padding:.2em .8em;text-align:right;border-bottom:1px solid #ddd;font-variant-numeric:tabular-nums}}
td:first-child,th:first-child{{text-align:left}}code{{background:#f3f3f3;padding:.1em .3em}}
svg{{width:100%;height:auto}}svg text{{font:11px system-ui,sans-serif;fill:#555}}
summary{{cursor:pointer}}</style><h1>{title}</h1>
)";

/// "blocks.3.experts.1.up" counts for block 3, type "up"; experts are averaged.
template <class T>
Series series_of(const Result& result, int64_t blocks, T LinearReport::*value) {
  Series sums, counts;
  for (const LinearReport& l : result.linears) {
    const auto block = size_t(std::stoll(l.name.substr(7)));
    const std::string type = l.name.substr(l.name.rfind('.') + 1);
    for (Series* s : {&sums, &counts}) {
      if ((*s)[type].empty()) (*s)[type].assign(size_t(blocks), 0.0);
    }
    if (!std::isfinite(double(l.*value))) continue;
    sums[type][block] += double(l.*value);
    counts[type][block] += 1;
  }
  for (auto& [type, values] : sums) {
    for (size_t b = 0; b < values.size(); ++b) {
      values[b] = counts[type][b] > 0 ? values[b] / counts[type][b] : NAN;
    }
  }
  return sums;
}

std::string head_table(const Options& o, const ModelConfig& c, const Result& r, const Measured& m) {
  std::string t = "<table>";
  const auto row = [&](std::string_view name, const std::string& value) {
    t += fmt::format("<tr><td>{}</td><td>{}</td></tr>", name, escape(value));
  };
  row("model", o.input.filename().string());
  row("family", fmt::format("{}, {} blocks, {} wide", c.family, c.blocks, c.hidden));
  row("options", r.options);
  if (!r.text_source.empty()) row("calibration text", r.text_source);
  if (m.windows > 0) {
    row("perplexity", m.text_line());
  }
  row("bits per weight, as stored", fmt::format("{:.3f}", r.bits_per_weight));
  row("embedding and head", fmt::format("{} bits", o.head_bits));
  row("file", fmt::format("{:.1f} MB", double(r.bytes) / 1e6));
  return t + "</table>";
}

/// What the file's bytes are spent on, as bars.
std::string part_table(const Result& r) {
  std::string t =
      "<table><tr><th>part</th><th>MB</th><th>bits per weight of the linears</th><th></th></tr>";
  for (const Part& p : r.parts) {
    const double share = double(p.bytes) / double(std::max<uint64_t>(1, r.bytes));
    t += fmt::format(
        "<tr><td>{}</td><td>{:.2f}</td><td>{:.3f}</td><td style=\"text-align:left\">"
        "<span style=\"display:inline-block;height:.8em;background:{};width:{:.1f}em\"></span>"
        " {:.1f} %</td></tr>",
        escape(p.name), double(p.bytes) / 1e6,
        8 * double(p.bytes) / double(std::max<uint64_t>(1, r.weights)), kChartColours[0],
        20 * share, 100 * share);
  }
  return t + "</table>";
}

std::string linear_table(const Result& r) {
  std::string t =
      "<details><summary>Every linear</summary><table><tr><th>linear</th><th>output error</th>"
      "<th>weight error</th><th>bits per weight</th><th>weak columns</th><th>damp</th></tr>";
  for (const LinearReport& l : r.linears) {
    t += fmt::format(
        "<tr><td>{}</td><td>{}</td><td>{:.4f}</td><td>{:.3f}</td><td>{}</td>"
        "<td>{:g}</td></tr>",
        escape(l.name), std::isfinite(l.output_error) ? fmt::format("{:.4f}", l.output_error) : "",
        l.weight_error, l.bits, l.weak_columns, l.damp);
  }
  return t + "</table></details>";
}

/// How a block's loss went from epoch to epoch, as parts of the first.
std::string loss_curve(const std::vector<double>& losses) {
  constexpr double kWidth = 160, kHeight = 24;
  const double most = *std::max_element(losses.begin(), losses.end());
  std::string points;
  for (size_t e = 0; e < losses.size(); ++e) {
    points += fmt::format("{:.1f},{:.1f} ",
                          kWidth * double(e) / double(std::max<size_t>(1, losses.size() - 1)),
                          kHeight * (1 - losses[e] / (most > 0 ? most : 1)) + 1);
  }
  return fmt::format(
      "<svg style=\"width:{0}px;height:{1}px\" viewBox=\"0 0 {0} {1}\">"
      "<polyline fill=\"none\" stroke=\"{2}\" stroke-width=\"1.5\" points=\"{3}\"/></svg>",
      kWidth, kHeight + 2, kChartColours[0], points);
}

std::string loss_table(const Options& o, const Result& r) {
  std::string rows;
  for (size_t b = 0; b < r.losses.size(); ++b) {
    const std::vector<double>& l = r.losses[b];
    if (l.empty()) continue;
    rows += fmt::format(
        "<tr><td>blocks.{}</td><td>{:.4g}</td><td>{:.4g}</td><td>{:.3f}</td><td>{}</td></tr>", b,
        l.front(), l.back(), l.back() / l.front(), loss_curve(l));
  }
  if (rows.empty()) return {};
  return "<h2>Loss of each block, epoch by epoch</h2><table><tr><th>block</th><th>first epoch</th>"
         "<th>last</th><th>ratio</th><th></th></tr>" +
         rows + "</table>" +
         (o.learning.faithful ? ""
                              : "<p>The last block's loss is the divergence of what the model "
                                "predicts from full precision, in nats; the others' are errors of "
                                "their outputs.</p>");
}

/// The errors that a method which chooses by them has measured.
std::string block_errors(const Result& r, int64_t blocks) {
  const auto measured = [](double e) { return std::isfinite(e); };
  if (std::none_of(r.output_errors.begin(), r.output_errors.end(), measured)) return {};
  return "<h2>Relative error of each block's output, as chosen</h2>" +
         chart({{"block", r.output_errors}}, blocks);
}

}  // namespace

std::string Measured::text_line() const {
  const std::string error =
      std::isnan(standard_error) ? "" : fmt::format(" +- {:.3f}", standard_error);
  return fmt::format("{:.3f}, full precision {:.3f} ({:+.3f}{}); {} windows of {} tokens of {}",
                     after, before, after - before, error, windows, window, text);
}

void write_report(const std::filesystem::path& path, const Options& o, const ModelConfig& c,
                  const Result& r, const Measured& measured) {
  const std::string title =
      escape(fmt::format("{} with {}, {}", o.input.filename().string(), o.method, o.scheme.str()));
  std::ofstream out(path, std::ios::trunc);
  out << fmt::format(kHead, fmt::arg("title", title)) << head_table(o, c, r, measured)
      << "<h2>What the bytes are spent on</h2>" << part_table(r) << loss_table(o, r)
      << block_errors(r, c.blocks)
      << "<h2>Relative error of each linear's output on the calibration text</h2>"
      << chart(series_of(r, c.blocks, &LinearReport::output_error), c.blocks)
      << "<h2>Relative error of the weights</h2>"
      << chart(series_of(r, c.blocks, &LinearReport::weight_error), c.blocks)
      << "<h2>Bits per weight</h2>" << chart(series_of(r, c.blocks, &LinearReport::bits), c.blocks);
  if (o.method == "owq") {
    out << "<h2>Weak columns</h2>"
        << chart(series_of(r, c.blocks, &LinearReport::weak_columns), c.blocks);
  }
  out << linear_table(r) << "</html>\n";
  if (!out.flush()) {
    throw Error({.what = "cannot be written", .where = path.string()});
  }
}

}  // namespace oq::calibrate
