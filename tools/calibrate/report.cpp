#include "tools/calibrate/report.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <map>

#include <fmt/format.h>

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

/// Colours that remain apart for most eyes (Okabe and Ito 2008).
constexpr const char* kColours[] = {"#0072b2", "#d55e00", "#009e73", "#cc79a7",
                                    "#e69f00", "#56b4e9", "#000000"};

std::string escape(std::string_view text) {
  std::string out;
  for (char c : text) {
    if (c == '<') {
      out += "&lt;";
    } else if (c == '&') {
      out += "&amp;";
    } else {
      out += c;
    }
  }
  return out;
}

/// Of one type of linear, a value per block; NaN where there is none.
using Series = std::map<std::string, std::vector<double>>;

/// "blocks.3.experts.1.up" counts for block 3, type "up"; experts are averaged.
Series series_of(const Result& result, int64_t blocks, double LinearReport::*value) {
  Series sums, counts;
  for (const LinearReport& l : result.linears) {
    const auto block = size_t(std::stoll(l.name.substr(7)));
    const std::string type = l.name.substr(l.name.rfind('.') + 1);
    for (Series* s : {&sums, &counts}) {
      if ((*s)[type].empty()) (*s)[type].assign(size_t(blocks), 0.0);
    }
    if (!std::isfinite(l.*value)) continue;
    sums[type][block] += l.*value;
    counts[type][block] += 1;
  }
  for (auto& [type, values] : sums) {
    for (size_t b = 0; b < values.size(); ++b) {
      values[b] = counts[type][b] > 0 ? values[b] / counts[type][b] : NAN;
    }
  }
  return sums;
}

/// Lines over blocks, one per type of linear.
std::string chart(const Series& series, int64_t blocks) {
  constexpr double kLeft = 60, kTop = 10, kWidth = 780, kHeight = 240;
  double most = 0;
  for (const auto& [type, values] : series) {
    for (double v : values) most = std::isfinite(v) ? std::max(most, v) : most;
  }
  if (most == 0) return "<p>Nothing was measured.</p>";
  const auto x = [&](size_t b) {
    return kLeft + kWidth * double(b) / double(std::max<int64_t>(1, blocks - 1));
  };
  const auto y = [&](double v) { return kTop + kHeight * (1 - v / most); };
  std::string svg = fmt::format("<svg viewBox=\"0 0 960 {}\">", kTop + kHeight + 40);
  for (int i = 0; i <= 4; ++i) {
    const double v = most * i / 4;
    svg += fmt::format(
        "<line x1=\"{}\" x2=\"{}\" y1=\"{:.1f}\" y2=\"{:.1f}\" stroke=\"#e5e5e5\"/>"
        "<text x=\"{}\" y=\"{:.1f}\" text-anchor=\"end\">{:.3g}</text>",
        kLeft, kLeft + kWidth, y(v), y(v), kLeft - 6, y(v) + 4, v);
  }
  const auto step = size_t(std::max<int64_t>(1, blocks / 10));
  for (size_t b = 0; b < size_t(blocks); b += step) {
    svg += fmt::format("<text x=\"{:.1f}\" y=\"{}\" text-anchor=\"middle\">{}</text>", x(b),
                       kTop + kHeight + 18, b);
  }
  svg += fmt::format("<text x=\"{}\" y=\"{}\" text-anchor=\"middle\">block</text>",
                     kLeft + kWidth / 2, kTop + kHeight + 34);
  size_t colour = 0;
  for (const auto& [type, values] : series) {
    const char* paint = kColours[colour % std::size(kColours)];
    std::string points;
    for (size_t b = 0; b < values.size(); ++b) {
      if (!std::isfinite(values[b])) continue;
      points += fmt::format("{:.1f},{:.1f} ", x(b), y(values[b]));
      svg += fmt::format(
          "<circle cx=\"{:.1f}\" cy=\"{:.1f}\" r=\"2.5\" fill=\"{}\"><title>"
          "blocks.{}.{}: {:.4g}</title></circle>",
          x(b), y(values[b]), paint, b, escape(type), values[b]);
    }
    svg += fmt::format(
        "<polyline fill=\"none\" stroke=\"{}\" stroke-width=\"1.5\" points=\"{}\"/>"
        "<rect x=\"{}\" y=\"{}\" width=\"10\" height=\"10\" fill=\"{}\"/>"
        "<text x=\"{}\" y=\"{}\">{}</text>",
        paint, points, kLeft + kWidth + 14, kTop + 18.0 * double(colour), paint,
        kLeft + kWidth + 30, kTop + 18.0 * double(colour) + 9, escape(type));
    ++colour;
  }
  return svg + "</svg>";
}

std::string head_table(const Options& o, const ModelConfig& c, const Result& r, const Measured& m) {
  std::string t = "<table>";
  const auto row = [&](std::string_view name, const std::string& value) {
    t += fmt::format("<tr><td>{}</td><td>{}</td></tr>", name, escape(value));
  };
  row("model", o.input.filename().string());
  row("family", fmt::format("{}, {} blocks, {} wide", c.family, c.blocks, c.hidden));
  row("method", o.method);
  row("scheme", o.scheme.str());
  if (!r.text_source.empty()) {
    row("calibration text", fmt::format("{}: {} windows of {} tokens, seed {}", r.text_source,
                                        o.windows, o.window, o.seed));
  }
  if (m.windows > 0) {
    row("perplexity", fmt::format("{:.3f}, full precision {:.3f} (difference {:+.3f} +- {:.3f}); "
                                  "{} windows of {} tokens of {}",
                                  m.after, m.before, m.after - m.before, m.standard_error,
                                  m.windows, m.window, m.text));
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
        8 * double(p.bytes) / double(std::max<uint64_t>(1, r.weights)), kColours[0], 20 * share,
        100 * share);
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

}  // namespace

void write_report(const std::filesystem::path& path, const Options& o, const ModelConfig& c,
                  const Result& r, const Measured& measured) {
  const std::string title =
      escape(fmt::format("{} with {}, {}", o.input.filename().string(), o.method, o.scheme.str()));
  std::ofstream out(path, std::ios::trunc);
  out << fmt::format(kHead, fmt::arg("title", title)) << head_table(o, c, r, measured)
      << "<h2>What the bytes are spent on</h2>" << part_table(r)
      << "<h2>Relative error of each linear's output on the calibration text</h2>"
      << chart(series_of(r, c.blocks, &LinearReport::output_error), c.blocks)
      << "<h2>Relative error of the weights</h2>"
      << chart(series_of(r, c.blocks, &LinearReport::weight_error), c.blocks)
      << "<h2>Bits per weight</h2>" << chart(series_of(r, c.blocks, &LinearReport::bits), c.blocks)
      << linear_table(r) << "</html>\n";
  if (!out.flush()) {
    throw Error({.what = "cannot be written", .where = path.string()});
  }
}

}  // namespace oq::calibrate
