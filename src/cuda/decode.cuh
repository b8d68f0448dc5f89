// What the kernels of a pass over one token share: 16-bit elements, sums over a warp, and a launch that lets
// a kernel start while the one before it ends. They are compiled for GPUs that lack the latter too.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "src/cuda/check.h"
#include "src/cuda/kernels.h"
#include "src/cuda/launch.cuh"

namespace dropless::cuda {

__device__ __forceinline__ float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }
__device__ __forceinline__ float to_float(__half x) { return __half2float(x); }
template <class Element>
__device__ __forceinline__ Element element(float x);
template <>
__device__ __forceinline__ __nv_bfloat16 element(float x) {
  return __float2bfloat16_rn(x);
}
template <>
__device__ __forceinline__ __half element(float x) {
  return __float2half_rn(x);
}
__device__ __forceinline__ float2 two_floats(const __nv_bfloat16* pair) {
  return __bfloat1622float2(*reinterpret_cast<const __nv_bfloat162*>(pair));
}
__device__ __forceinline__ float2 two_floats(const __half* pair) {
  return __half22float2(*reinterpret_cast<const __half2*>(pair));
}

__device__ __forceinline__ float warp_sum(float x) {
#pragma unroll
  for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
  return x;
}

// Of kernels that are launched by launch_soon(). Nothing that the kernels before it in the stream write is
// touched before dependency_wait(). launch_dependents() comes first of all: the next kernel is then under
// way when this one ends, and reads what does not depend on it.
__device__ __forceinline__ void dependency_wait() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ __forceinline__ void launch_dependents() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

// Launched so that the kernel may start while the one before it ends, where a GPU has that.
template <class... Parameters, class... Args>
void launch_soon(void (*kernel)(Parameters...), std::int64_t ctas, int threads, int shared_bytes,
                 Stream stream, const Args&... args) {
  const auto on = static_cast<cudaStream_t>(stream);
  int device = 0;
  DROPLESS_CUDA_CHECK(cudaGetDevice(&device));
  if (!portable_path(device)) {
    return launch_dependent(kernel, static_cast<int>(ctas), threads, shared_bytes, 1, on, args...);
  }
  DROPLESS_CUDA_CHECK(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes));
  kernel<<<static_cast<unsigned>(ctas), threads, static_cast<std::size_t>(shared_bytes), on>>>(
      args...);
  DROPLESS_CUDA_CHECK(cudaGetLastError());
}

}  // namespace dropless::cuda
