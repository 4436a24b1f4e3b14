#pragma once

namespace oq::calibrate {

/// What the tokens of a window see of each other.
enum class Sight {
  causal,  ///< those before, as in any text
  alone,   ///< nothing: each is the first token of a text, at position 0
};

}  // namespace oq::calibrate
