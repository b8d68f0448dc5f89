// Tensor maps: what the copy engine needs to know about a tensor in global memory.
#pragma once

#include <cuda.h>  // types only; the driver's one function is looked up at run time

#include <cstdint>

#include "dropless/dtype.h"

namespace dropless::cuda {

// A tensor of up to three dimensions, innermost first and contiguous; pitches in elements.
struct TensorMapSpec {
  const void* data = nullptr;
  DType dtype = DType::kBFloat16;
  std::int64_t dims[3] = {1, 1, 1};
  std::int64_t row_pitch = 0;    // of dims[1]
  std::int64_t batch_pitch = 0;  // of dims[2]
  int box[2] = {1, 1};           // elements of dims[0] and dims[1] per copy
  int row_bytes = 128;           // of a box, and of the swizzle: 128 or 64
};

// Swizzled, zeros outside the tensor. Throws Error where the hardware cannot address the
// tensor: data must be 16-byte aligned and pitches multiples of 16 bytes.
CUtensorMap make_tensor_map(const TensorMapSpec& spec);

}  // namespace dropless::cuda
