#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace oq::calibrate {

/// Of one type of linear, a value per block; NaN where there is none.
using Series = std::map<std::string, std::vector<double>>;

/// Colours that remain apart for most eyes (Okabe and Ito 2008).
inline constexpr const char* kChartColours[] = {"#0072b2", "#d55e00", "#009e73", "#cc79a7",
                                                "#e69f00", "#56b4e9", "#000000"};

/// Text as HTML shows it.
std::string escape(std::string_view text);

/// Lines over blocks from 0 up, one per type of linear, as SVG; each point says its value when
/// pointed at.
std::string chart(const Series& series, int64_t blocks);

}  // namespace oq::calibrate
