// Gradient clipping (`algorithms: gradient_clipping`).
#pragma once

#include <optional>
#include <vector>

#include "train/base/yaml.h"
#include "train/bridge/torch.h"

namespace dropless::train {

struct ClipConfig {
  bool by_value =
      false;  // clamp each element to [-threshold, threshold]; else scale by the global norm
  double threshold = 1.0;

  // Reads `algorithms.gradient_clipping`.
  static ClipConfig from_yaml(const YamlMap& map);
};

// The Euclidean norm over all gradients of the parameters (undefined ones count as 0), fp32 scalar
// on their device.
at::Tensor global_grad_norm(const std::vector<at::Tensor>& parameters);

// Scales gradients by min(1, threshold / norm), or clamps them.
void clip_gradients(const ClipConfig& config, const std::vector<at::Tensor>& parameters,
                    const at::Tensor& norm);

}  // namespace dropless::train
