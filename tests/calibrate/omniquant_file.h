#pragma once

#include <map>
#include <string>
#include <utility>
#include <vector>

#include <fmt/format.h>

#include "tests/convert/torch_archive.h"

namespace oq::test {

/// A file of OmniQuant's while it is written: f16 tensors by name, in a dict of their own for each
/// block (omni_parameters.pth), or in one (act_scales.pt).
class OmniQuantFile {
 public:
  /// The next tensor of a dict, of shape [n], or [n][1] for a bound.
  void add(int64_t block, const std::string& name, const std::vector<float>& values) {
    const uint64_t n = values.size();
    const bool bound = name.ends_with("bound_factor");
    const std::string own = storage("HalfStorage", std::to_string(storages_.size()), n);
    blocks_[block].emplace_back(name,
                                bound ? tensor(own, 0, {n, 1}, {1, 1}) : tensor(own, 0, {n}, {1}));
    storages_.push_back(encode_floats(values, "F16"));
  }
  /// Both bounds of a linear's rows (and groups).
  void add_bounds(int64_t block, const std::string& linear, const std::vector<float>& upper,
                  const std::vector<float>& lower) {
    add(block, linear + ".weight_quantizer.upbound_factor", upper);
    add(block, linear + ".weight_quantizer.lowbound_factor", lower);
  }

  std::string parameters() const {
    std::string body = "}(";
    for (const auto& [block, items] : blocks_) body += integer(uint64_t(block)) + dict(items);
    return torch_bytes(pickle(body + "u"), storages_);
  }
  /// Of one dict, that of block 0; names are whole.
  std::string ranges() const { return torch_bytes(pickle(dict(blocks_.at(0))), storages_); }

 private:
  std::map<int64_t, std::vector<std::pair<std::string, std::string>>> blocks_;
  std::vector<std::string> storages_;
};

}  // namespace oq::test
