// src/cuda/kernels.h in plain loops on the host: what src/ops/moe_cuda.cc composes can then be run, and compared with the layer
// in double, where there is no GPU. Tensors are said to be on a GPU and lie in the host's memory.
//
// A program that has plain_kernels.cc links neither the kernels nor unavailable.cc.
#pragma once

namespace dropless::testing {

// A product may carry out its gather at any time while it runs: before all else (the default) or after it.
void gather_after_products(bool after);

}  // namespace dropless::testing
