#pragma once

#include "tools/calibrate/learn/block_learner.h"

namespace oq::calibrate {

/// What a block learns from in the methods of these names (learned.cpp).
Recipe omniquant_recipe(const BlockJob& job);
Recipe abq_recipe(const BlockJob& job);

}  // namespace oq::calibrate
