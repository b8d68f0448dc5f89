// What the kernels of a pass over one token share: 16-bit elements, clusters, and a launch that lets a
// kernel start while the one before it ends. They are compiled for GPUs that lack the latter too.
//
// launch_dependents() comes first of all in them: the next kernel is then under way when this one ends,
// and reads what does not depend on it.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "src/cuda/check.h"
#include "src/cuda/device/ptx.cuh"
#include "src/cuda/device/warp.cuh"
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

// A cluster's CTAs, where a GPU has clusters. Between cluster_arrive() and cluster_wait() nothing is
// stored to another CTA, which may not have started.
__device__ __forceinline__ int cluster_rank() {
  std::uint32_t rank = 0;
#if __CUDA_ARCH__ >= 900
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
#endif
  return static_cast<int>(rank);
}
__device__ __forceinline__ int cluster_size() {
  std::uint32_t size = 1;
#if __CUDA_ARCH__ >= 900
  asm volatile("mov.u32 %0, %%cluster_nctarank;" : "=r"(size));
#endif
  return static_cast<int>(size);
}
__device__ __forceinline__ void cluster_arrive() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
#endif
}
__device__ __forceinline__ void cluster_wait() {
#if __CUDA_ARCH__ >= 900
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
#endif
}
// To the same place in the shared memory of the cluster's first CTA.
__device__ __forceinline__ void store_to_first(float* to, float value) {
#if __CUDA_ARCH__ >= 900
  std::uint32_t address;
  asm("mapa.shared::cluster.u32 %0, %1, 0;"
      : "=r"(address)
      : "r"(static_cast<std::uint32_t>(__cvta_generic_to_shared(to))));
  asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(address), "f"(value) : "memory");
#endif
}

// Launched so that the kernel may start while the one before it ends, where a GPU has that; in clusters
// only there.
template <class... Parameters, class... Args>
void launch_soon(void (*kernel)(Parameters...), std::int64_t ctas, int threads, int shared_bytes,
                 int cluster, Stream stream, const Args&... args) {
  const auto on = static_cast<cudaStream_t>(stream);
  int device = 0;
  DROPLESS_CUDA_CHECK(cudaGetDevice(&device));
  if (!portable_path(device)) {
    return launch_dependent(kernel, static_cast<int>(ctas), threads, shared_bytes, cluster, on,
                            args...);
  }
  DROPLESS_CUDA_CHECK(
      cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shared_bytes));
  kernel<<<static_cast<unsigned>(ctas), threads, static_cast<std::size_t>(shared_bytes), on>>>(
      args...);
  DROPLESS_CUDA_CHECK(cudaGetLastError());
}

}  // namespace dropless::cuda
