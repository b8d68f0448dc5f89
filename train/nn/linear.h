// x W^T + b, as at::linear computes it under autocast; few rows without gradients by train/bridge/few_rows.h.
#pragma once

#include "train/bridge/torch.h"

namespace dropless::train {

// x [..., in], weight [out, in], bias [out] or undefined -> [..., out].
at::Tensor linear_layer(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias = {});

}  // namespace dropless::train
