// Products of few rows on the CPU by the library, when text is generated: it reads the weights at the
// rate of memory, libtorch's bf16 product of one row at half of it (docs/benchmarks.md).
#pragma once

#include "train/bridge/torch.h"

namespace dropless::train {

// Whether few_rows_product() is the faster one for `rows` rows of the weight's type: up to eight on the CPU, no
// gradients, and a contiguous weight too large for the caches.
bool few_rows_may_pay(std::int64_t rows, const at::Tensor& weight_NK);

// rows W^T [R, N], both contiguous and of one type.
at::Tensor few_rows_product(const at::Tensor& rows_RK, const at::Tensor& weight_NK);

}  // namespace dropless::train
