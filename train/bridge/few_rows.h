// Products of few rows by the library, when text is generated: it reads the weights at the rate of
// memory. libtorch's bf16 product of one row does so at half of it on a CPU, and on a GPU begins when
// the kernel before it has ended (docs/benchmarks.md).
#pragma once

#include "train/bridge/torch.h"

namespace dropless::train {

// Whether few_rows_product() is the faster one for `rows` rows of the weight's type: up to eight, no
// gradients, and a contiguous weight; on the CPU one that is too large for the caches, on a GPU one of
// 16 bits for which decode_product_pays().
bool few_rows_may_pay(std::int64_t rows, const at::Tensor& weight_NK);

// rows W^T + bias [R, N], both contiguous and of one type; bias [N] of any, or undefined.
at::Tensor few_rows_product(const at::Tensor& rows_RK, const at::Tensor& weight_NK,
                            const at::Tensor& bias_N);

}  // namespace dropless::train
