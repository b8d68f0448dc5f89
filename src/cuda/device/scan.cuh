// Exclusive prefix sum over the threads of a CTA.
#pragma once

namespace dropless::cuda {

// Sum of `value` over the threads below this one; `total` is the sum over all kThreads threads.
// `scratch` holds kThreads / 32 integers. Every thread calls it; a barrier stands on both sides.
template <int kThreads>
__device__ __forceinline__ int exclusive_scan(int value, int* scratch, int& total) {
  static_assert(kThreads % 32 == 0 && kThreads <= 1024);
  const int lane = threadIdx.x % 32;
  const int warp = threadIdx.x / 32;
  int inclusive = value;
#pragma unroll
  for (int step = 1; step < 32; step *= 2) {
    const int below = __shfl_up_sync(0xffffffff, inclusive, step);
    if (lane >= step) inclusive += below;
  }
  __syncthreads();  // scratch may still be read from an earlier call
  if (lane == 31) scratch[warp] = inclusive;
  __syncthreads();
  int before = 0;
  total = 0;
#pragma unroll
  for (int i = 0; i < kThreads / 32; ++i) {
    if (i < warp) before += scratch[i];
    total += scratch[i];
  }
  return before + inclusive - value;
}

}  // namespace dropless::cuda
