#include <algorithm>

#include <fmt/format.h>
#include <fmt/ranges.h>

#include "format/error.h"
#include "tools/calibrate/methods/method.h"

namespace oq::calibrate {
namespace {

/// Flags that the same methods read.
enum Flags : unsigned {
  kGrids = 1,
  kCompensation = 2,  ///< of errors, through the Hessian
  kOrder = 4,         ///< of a block's linears
  kWeak = 8,
  kWeakPlaces = 16,
  kLearning = 32,
  kParameters = 64,
  kMaps = 128,  ///< of attention
};

struct Flag {
  std::string_view name;
  Flags group;
};

constexpr Flag kFlags[] = {{"--tuning", kGrids},
                           {"--act-order", kCompensation},
                           {"--static-groups", kCompensation},
                           {"--damp", kCompensation},
                           {"--true-sequential", kOrder},
                           {"--target-bits", kWeak},
                           {"--weak-columns", kWeak},
                           {"--weak-type", kWeak},
                           {"--layers", kWeakPlaces},
                           {"--paper-counts", kWeakPlaces},
                           {"--epochs", kLearning},
                           {"--batch-size", kLearning},
                           {"--lwc", kLearning},
                           {"--let", kLearning},
                           {"--lwc-lr", kLearning},
                           {"--let-lr", kLearning},
                           {"--faithful", kLearning},
                           {"--aug-loss", kLearning},
                           {"--first-tokens", kLearning},
                           {"--attention-loss", kMaps},
                           {"--save-params", kParameters},
                           {"--params", kParameters},
                           {"--act-scales", kParameters},
                           {"--act-shifts", kParameters}};

struct Row {
  std::string_view name;
  std::unique_ptr<Method> (*make)(const Options&);
  unsigned reads;  ///< Flags
};

constexpr Row kMethods[] = {
    {"rtn", make_rounding, kGrids},
    {"smoothquant", make_rounding, kGrids},
    {"act-only", make_rounding, 0},
    {"gptq", make_hessian_method, kGrids | kCompensation | kOrder},
    {"owq", make_hessian_method, kGrids | kCompensation | kOrder | kWeak | kWeakPlaces},
    {"awrq", make_hessian_method, kGrids | kCompensation | kOrder},
    {"omniquant", make_learner, kGrids | kLearning | kParameters},
    {"abq", make_learner, kGrids | kLearning | kParameters | kMaps},
    {"auto", make_auto, kGrids | kCompensation | kWeak | kLearning}};

}  // namespace

std::vector<std::string_view> readers(std::string_view flag) {
  std::vector<std::string_view> names;
  for (const Flag& f : kFlags) {
    if (f.name != flag) continue;
    for (const Row& row : kMethods) {
      if ((row.reads & f.group) != 0) names.push_back(row.name);
    }
  }
  return names;
}

bool reads(std::string_view method, std::string_view flag) {
  const auto names = readers(flag);
  return std::find(names.begin(), names.end(), method) != names.end();
}

bool learns(std::string_view method) { return reads(method, "--epochs"); }

std::string remedy(std::string_view method) {
  std::string changes;
  if (learns(method)) changes += "lower --lwc-lr and --let-lr, ";
  if (reads(method, "--damp")) changes += "raise --damp, ";
  return fmt::format("{}{}take a scheme with more bits", changes, changes.empty() ? "" : "or ");
}

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
