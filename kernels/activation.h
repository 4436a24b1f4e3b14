#pragma once

#include <string_view>

namespace oq {

/// What stands between the linears of an MLP. gelu is the exact one, x Phi(x); gelu_tanh its tanh
/// approximation (Hendrycks and Gimpel 2016).
enum class Activation { silu, gelu, gelu_tanh, relu };

}  // namespace oq
