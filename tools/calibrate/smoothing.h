#pragma once

#include <map>
#include <span>
#include <string>
#include <vector>

#include "tools/calibrate/block_job.h"
#include "tools/calibrate/learn/transformation.h"

namespace oq::calibrate {

/// Moves the size of activations into weights (SmoothQuant, Xiao et al. 2022), wherever the inverse
/// folds into what comes before without changing what the block computes: by all pairs of a
/// Transformation but q and k. All scales come from the weights as they were.
void smooth_block(BlockJob& job);

/// Of linears' inputs, the largest magnitude of each channel.
using InputMaxima = std::map<std::string, std::vector<float>>;

/// max_j = max(max_j, |x_tj|) over rows t of x, [*][channels = max.size()].
void update_channel_max(std::span<const float> x, std::span<float> max);

/// SmoothQuant's scales of channels whose inputs become x / s and whose weights W diag(s):
///   s_j = max(a_j^alpha / w_j^(1 - alpha), min_scale)
/// with a_j, w_j the largest magnitudes of channel j in inputs and weights, each at least 1e-5.
/// Throws oq::Error unless alpha is in 0..1 and min_scale positive.
std::vector<float> smoothing_scales(std::span<const float> input_max,
                                    std::span<const float> weight_max, double alpha,
                                    double min_scale);

/// Of columns that share a channel (query heads of one KV head), whose scale it has.
enum class Sharing { largest, first };

/// These scales for a pair, from the largest inputs and weights of all linears whose columns it
/// multiplies; those that saw no input (experts) count by their weights. A pair of rows alone
/// (q and k) keeps its own.
std::vector<float> smoothing_scale(const Pair& pair, const BlockWeights& weights,
                                   const InputMaxima& inputs, double alpha, double min_scale,
                                   Sharing sharing);

}  // namespace oq::calibrate
