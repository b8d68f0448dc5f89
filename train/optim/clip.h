// Gradient clipping (`algorithms: gradient_clipping`).
#pragma once

#include <optional>
#include <vector>

#include "train/base/yaml.h"
#include "train/bridge/torch.h"

namespace dropless::train {

enum class ClipType {
  kNorm,   // all gradients by one factor, so that their global norm is at most the threshold
  kValue,  // each element to [-threshold, threshold]
  // Each row g of a matrix' gradient (the whole of a vector's) so that |g| <= threshold
  // max(|w|, 1e-3), with w the row of the weight: adaptive gradient clipping, Brock et al. 2021,
  // arXiv:2102.06171.
  kAdaptive,
};

struct ClipConfig {
  ClipType type = ClipType::kNorm;
  double threshold = 1.0;

  // Reads `algorithms.gradient_clipping`.
  static ClipConfig from_yaml(const YamlMap& map);
};

// The Euclidean norm over all gradients of the parameters (undefined ones count as 0), fp32 scalar
// on their device.
at::Tensor global_grad_norm(const std::vector<at::Tensor>& parameters);

// `norm` is global_grad_norm's.
void clip_gradients(const ClipConfig& config, const std::vector<at::Tensor>& parameters,
                    const at::Tensor& norm);

}  // namespace dropless::train
