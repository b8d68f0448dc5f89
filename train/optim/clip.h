// Gradient clipping.
#pragma once

#include <vector>

#include "train/bridge/torch.h"
#include "train/optim/clip_config.h"

namespace dropless::train {

// The Euclidean norm over all gradients of the parameters (undefined ones count as 0), fp32 scalar
// on their device.
at::Tensor global_grad_norm(const std::vector<at::Tensor>& parameters);

// `norm` is global_grad_norm's.
void clip_gradients(const ClipConfig& config, const std::vector<at::Tensor>& parameters,
                    const at::Tensor& norm);

}  // namespace dropless::train
