// Over the lanes of a warp; every lane has the result.
#pragma once

namespace dropless::cuda {

__device__ __forceinline__ float warp_max(float value) {
  for (int step = 16; step > 0; step /= 2) {
    value = fmaxf(value, __shfl_xor_sync(0xffffffff, value, step));
  }
  return value;
}
__device__ __forceinline__ float warp_sum(float value) {
  for (int step = 16; step > 0; step /= 2) value += __shfl_xor_sync(0xffffffff, value, step);
  return value;
}

}  // namespace dropless::cuda
