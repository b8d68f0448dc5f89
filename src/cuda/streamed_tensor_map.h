// Tensor maps of tensors whose bytes are read once, in pieces of 128: a miss brings no more than that
// into L2, where make_tensor_map()'s brings 256 bytes.
#pragma once

#include "src/cuda/tensor_map.h"

namespace dropless::cuda {

CUtensorMap make_streamed_tensor_map(const TensorMapSpec& spec);

}  // namespace dropless::cuda
