// The dropless layer out of libtorch's operators alone: `at::_grouped_mm`, or a product per expert
// where that refuses the type or the alignment. The in-binary rival, and the CUDA path of types and
// widths that our kernels do not take.
#pragma once

#include <string>

#include "train/bridge/moe.h"

namespace dropless::train {

// Why libtorch cannot run this layer; empty where it can.
std::string moe_torch_problem(const MoEConfig& config);

// Same contract as moe_layer (train/bridge/moe.h). Throws Error(kUnsupported) with what
// moe_torch_problem says.
MoEResult moe_layer_torch(const MoEConfig& config, const at::Tensor& x_TD,
                          const at::Tensor& router_ED, const at::Tensor& w1_EFD,
                          const at::Tensor& v1_EFD, const at::Tensor& w2_EFD);

}  // namespace dropless::train
