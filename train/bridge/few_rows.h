// Products of few rows on the CPU by the library, when text is generated: it reads the weights at the
// rate of memory, libtorch's bf16 product of one row at half of it (docs/benchmarks.md).
#pragma once

#include "train/bridge/torch.h"

namespace dropless::train {

// Whether few_rows_product() is the faster one: up to eight rows on the CPU, no gradients, and a weight too
// large for the caches. rows_RK, weight_NK: what is to be multiplied.
bool few_rows_pay(const at::Tensor& rows_RK, const at::Tensor& weight_NK);

// rows W^T [R, N], both contiguous and of one type: fp32, bf16 or fp16.
at::Tensor few_rows_product(const at::Tensor& rows_RK, const at::Tensor& weight_NK);

}  // namespace dropless::train
