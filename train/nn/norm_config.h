// The `norm_type` and `norm_eps` of a model.
#pragma once

namespace dropless::train {

enum class NormType { kLayerNorm, kRmsNorm };

struct NormConfig {
  NormType type = NormType::kLayerNorm;
  double eps = 1e-5;
  bool bias = true;  // LayerNorm only
};

}  // namespace dropless::train
