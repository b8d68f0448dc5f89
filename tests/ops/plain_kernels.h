// src/cuda/kernels.h in plain loops on the host: what src/ops/moe_cuda.cc composes can then be run, and compared with the layer
// in double, where there is no GPU. Tensors are said to be on a GPU and lie in the host's memory.
//
// An entry throws where its caller breaks kernels.h: types, alignment, widths, the stream, a device that is not current, a table
// of tiles for another kernel. A gather beside a product runs wholly before or wholly after it. What is not seen: tiles and
// their order, and stores of a product over what other parts of it still read.
//
// A program that has plain_kernels.cc links neither the kernels nor unavailable.cc.
#pragma once

#include "dropless/backend.h"

namespace dropless::testing {

struct PlainKernels {
  bool gather_after_products = false;
  bool small_batches = false;  // whether few tokens have a way of their own
  Stream stream = nullptr;     // that every entry expects
};
PlainKernels& plain_kernels();

}  // namespace dropless::testing
