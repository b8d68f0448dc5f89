// LayerNorm: y = (x - mean) / sqrt(var + eps) * weight + bias.  RMSNorm: y = x / sqrt(mean(x^2) +
// eps) * weight.
#pragma once

#include <cstdint>
#include <string>

#include "train/bridge/decode.h"
#include "train/nn/init.h"
#include "train/nn/norm_config.h"

namespace dropless::train {

class Norm {
 public:
  // Parameters NAME.weight [d] and, for LayerNorm with bias, NAME.bias [d].
  Norm(const NormConfig& config, const std::string& name, std::int64_t d, ParameterMaker& maker);
  at::Tensor forward(const at::Tensor& x) const;  // over the last dimension; any leading shape
  DecodeNormTensors tensors() const;

 private:
  NormConfig config_;
  std::int64_t d_;
  at::Tensor weight_, bias_;
};

}  // namespace dropless::train
