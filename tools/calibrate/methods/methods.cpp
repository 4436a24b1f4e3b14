#include <fmt/format.h>
#include <fmt/ranges.h>

#include "format/error.h"
#include "tools/calibrate/methods/method.h"

namespace oq::calibrate {
namespace {

struct Row {
  std::string_view name;
  std::unique_ptr<Method> (*make)(const Options&);
};

constexpr Row kMethods[] = {
    {"rtn", make_rounding},        {"smoothquant", make_rounding}, {"act-only", make_rounding},
    {"gptq", make_hessian_method}, {"owq", make_hessian_method},   {"awrq", make_hessian_method},
    {"omniquant", make_learner},   {"abq", make_learner},          {"auto", make_auto}};

}  // namespace

std::vector<std::string_view> method_names() {
  std::vector<std::string_view> names;
  for (const Row& row : kMethods) names.push_back(row.name);
  return names;
}

std::unique_ptr<Method> make_method(const Options& options) {
  for (const Row& row : kMethods) {
    if (row.name == options.method) return row.make(options);
  }
  throw Error({.what = "unknown method",
               .where = "--method",
               .expected = fmt::format("{}", fmt::join(method_names(), ", ")),
               .found = "'" + options.method + "'"});
}

}  // namespace oq::calibrate
