// The dense feed-forward network: down(act(up(x))), or down(act(gate(x)) * up(x)) for GLU
// (Shazeer 2020, arXiv:2002.05202).
#pragma once

#include <string>

#include "train/nn/ffn_config.h"
#include "train/nn/init.h"
#include "train/nn/lora.h"

namespace dropless::train {

// act(gate) * up (or act(gate) where `up` is undefined) by libtorch's kernels.
at::Tensor apply_activation(Activation activation, const at::Tensor& gate, const at::Tensor& up);

class Ffn {
 public:
  // Parameters NAME.up_proj, NAME.down_proj and, for GLU, NAME.gate_proj (.weight, .bias), each with
  // an adapter (LoraAdapter) where the config targets it.
  Ffn(const FfnConfig& config, const std::string& name, ParameterMaker& maker);
  at::Tensor forward(const at::Tensor& x, bool training = false) const;

 private:
  FfnConfig config_;
  at::Tensor gate_, gate_bias_, up_, up_bias_, down_, down_bias_;
  LoraAdapter gate_adapter_, up_adapter_, down_adapter_;
};

}  // namespace dropless::train
