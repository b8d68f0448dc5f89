#include "train/nn/norm.h"

namespace dropless::train {

Norm::Norm(const NormConfig& config, const std::string& name, std::int64_t d, ParameterMaker& maker)
    : config_(config), d_(d) {
  weight_ = maker.constant(name + ".weight", d, 1.0);
  if (config.type == NormType::kLayerNorm && config.bias) {
    bias_ = maker.constant(name + ".bias", d, 0.0);
  }
}

at::Tensor Norm::forward(const at::Tensor& in) const {
  // Autocast gives some norms 16 bits and weights of 32, for which libtorch has no fused kernel.
  const at::Tensor x = in.to(weight_.scalar_type());
  if (config_.type == NormType::kRmsNorm) return at::rms_norm(x, {d_}, weight_, config_.eps);
  return at::layer_norm(x, {d_}, weight_, bias_, config_.eps);
}

DecodeNormTensors Norm::tensors() const {
  return {config_.type == NormType::kRmsNorm, config_.eps, weight_, bias_};
}

}  // namespace dropless::train
