#pragma once

#include <map>
#include <string>
#include <vector>

#include "tools/calibrate/block_job.h"
#include "tools/calibrate/solver/hessian.h"

namespace oq::calibrate {

/// Linears that read one input.
using InputGroup = std::vector<std::string>;

/// Groups whose moments are held at the same time: one by one, or as many as come to no more than
/// twice the largest of them.
std::vector<std::vector<InputGroup>> moment_batches(const BlockJob& job, bool one_by_one);

/// Moments of the groups' inputs, by the first linear of each, over all windows, the block running
/// as it stands; nothing for an expert that no token chose. `quantized`: of the inputs as the
/// scheme quantizes them, with the cross moment (AWRQ). Throws oq::Error naming the input.
std::map<std::string, Moments> observe_moments(BlockJob& job, const std::vector<InputGroup>& batch,
                                               bool quantized);

/// The options' damping; where it does not do, a notice says so.
Damping damping_of(const BlockJob& job, const std::string& linear);

/// "experts.3.up" is of type "up".
std::string type_of(const std::string& linear);

}  // namespace oq::calibrate
