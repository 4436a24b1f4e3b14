#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "tools/convert/families.h"

namespace oq::convert {

/// True where `name` is `pattern` with a number in place of each "{}"; `numbers` are these.
bool match(std::string_view pattern, std::string_view name, std::vector<std::string_view>& numbers);

/// `pattern` with the numbers in place of its holes; numbers too many are left out.
std::string fill(std::string_view pattern, const std::vector<std::string_view>& numbers);

/// A tensor of OQ in a checkpoint.
struct Source {
  const SourceTensor* tensor = nullptr;  ///< nullptr: it is not there
  std::string name;                      ///< under which it is, or should be
  Layout layout = whole;
  uint64_t expert = 0;
};

/// Where a checkpoint has "blocks.7.q" or "blocks.7.q.bias". Throws oq::Error where the family's
/// table has no such tensor.
Source find_source(const Family& family, const Checkpoint& checkpoint, std::string_view oq_name);

/// True where the checkpoint's tensor may be left unread: it carries no weights of the model.
bool ignored(const Family& family, const ModelConfig& config, const Checkpoint& checkpoint,
             std::string_view name);

}  // namespace oq::convert
