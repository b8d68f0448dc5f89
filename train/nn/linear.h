// x W^T + b, as at::linear computes it under autocast. For few rows on the CPU and without gradients, when
// text is generated, by the library's product: it reads W at the rate of memory, libtorch's bf16 one
// at half of it (docs/benchmarks.md).
#pragma once

#include "train/bridge/torch.h"

namespace dropless::train {

// x [..., in], weight [out, in], bias [out] or undefined -> [..., out].
at::Tensor linear_layer(const at::Tensor& x, const at::Tensor& weight, const at::Tensor& bias = {});

}  // namespace dropless::train
