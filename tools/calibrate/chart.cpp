#include "tools/calibrate/chart.h"

#include <algorithm>
#include <cmath>

#include <fmt/format.h>

namespace oq::calibrate {
namespace {

/// 1, 2 or 5 times a power of ten, 3 to 7 of which reach `most`.
double tick_for(double most) {
  const double power = std::pow(10.0, std::floor(std::log10(most)));
  for (double tick : {0.2, 0.5, 1.0}) {
    if (most <= 6 * tick * power) return tick * power;
  }
  return 2 * power;
}

}  // namespace

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

std::string chart(const Series& series, int64_t blocks) {
  constexpr double kLeft = 60, kTop = 10, kWidth = 780, kHeight = 240;
  double largest = 0;
  for (const auto& [type, values] : series) {
    for (double v : values) largest = std::isfinite(v) ? std::max(largest, v) : largest;
  }
  if (largest == 0) return "<p>Nothing was measured.</p>";
  const double tick = tick_for(largest), most = tick * std::ceil(largest / tick);
  const auto x = [&](size_t b) {
    return kLeft + kWidth * double(b) / double(std::max<int64_t>(1, blocks - 1));
  };
  const auto y = [&](double v) { return kTop + kHeight * (1 - v / most); };
  std::string svg = fmt::format("<svg viewBox=\"0 0 960 {}\">", kTop + kHeight + 40);
  for (int i = 0; i * tick <= most * 1.001; ++i) {
    const double v = tick * i;
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
    const char* paint = kChartColours[colour % std::size(kChartColours)];
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

}  // namespace oq::calibrate
