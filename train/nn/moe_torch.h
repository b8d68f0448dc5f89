// The dropless layer out of libtorch's operators alone: `at::_grouped_mm`, or a product per expert
// where that refuses the type or the alignment. The CUDA path of types and widths that our kernels
// do not take, and of `ffn_config.backend: torch`.
#pragma once

#include <string>

#include "train/bridge/moe.h"
#include "train/nn/lora.h"

namespace dropless::train {

// Same contract as moe_layer (train/bridge/moe.h), for layers without expert biases and shared
// expert. jitter_eps: the router's input is multiplied by noise, uniform in [1 - eps, 1 + eps], from
// libtorch's generator; 0: off. `adapters` [E, ., .]: in the type of x; `training`: with their dropout.
MoEResult moe_layer_torch(const MoEConfig& config, const at::Tensor& x_TD,
                          const at::Tensor& router_ED, const at::Tensor& w1_EFD,
                          const at::Tensor& v1_EFD, const at::Tensor& w2_EFD,
                          const at::Tensor& selection_bias_E = {}, double jitter_eps = 0,
                          const ExpertAdapters& adapters = {}, bool training = false);

}  // namespace dropless::train
