// `algorithms: gradient_clipping`.
#pragma once

#include "train/base/yaml.h"

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

}  // namespace dropless::train
